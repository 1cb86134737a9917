"""Anthropic's own client for Python."""

import base64

import anthropic
from harness import (
    ABSENT, EYES_URL, KEY, KEYED_URL, MODEL, QUESTION, THINKS_URL, URL, case, main, refused, seeing, thinking
)

client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
STORY = [{"role": "user", "content": "Tell me a story about a red ball."}]
# The client has no name for the temperature any more, the API has.
SAME = {"model": MODEL, "messages": STORY, "max_tokens": 24, "extra_body": {"temperature": 0}}


def prompt(usage):
    """Tokens of a prompt: in Anthropic's count, those from the cache stand apart."""
    return usage.input_tokens + usage.cache_read_input_tokens


@case
def message():
    """messages.create."""
    answer = client.messages.create(**SAME)
    assert answer.type == "message" and answer.role == "assistant" and answer.model == MODEL
    assert answer.content[0].type == "text" and answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert prompt(answer.usage) > 5 and 0 < answer.usage.output_tokens <= 24


@seeing
def picture(path, data):
    """messages.create with a picture."""
    encoded = base64.b64encode(data).decode()
    source = {"type": "base64", "media_type": "image/png", "data": encoded}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    eyes = anthropic.Anthropic(base_url=EYES_URL, api_key="none", max_retries=0)
    answer = eyes.messages.create(**{**SAME, "model": "eyes", "messages": messages, "max_tokens": 12})
    return answer.content[0].text


@thinking
def thinks():
    """messages.create with thinking, streamed and counted."""

    def ask(kind):
        client = anthropic.Anthropic(base_url=THINKS_URL, api_key="none", max_retries=0)
        same = {**SAME, "model": "thinker", "thinking": {"type": kind}}
        with client.messages.stream(**same) as stream:
            final = stream.get_final_message()
        whole = client.messages.create(**same)
        assert [b.type for b in final.content] == [b.type for b in whole.content]
        assert final.content[-1].text == whole.content[-1].text
        # The answer goes back as it came.
        turns = [*same["messages"], {"role": "assistant", "content": whole.content},
                 {"role": "user", "content": "And then?"}]
        client.messages.create(**{**same, "messages": turns})
        counted = client.messages.count_tokens(
            model="thinker", messages=same["messages"], thinking=same["thinking"]
        )
        assert counted.input_tokens == prompt(whole.usage)
        return counted.input_tokens

    return ask("disabled"), ask("adaptive")


@case
def streaming():
    """messages.create(stream=True), event by event."""
    events = list(client.messages.create(**SAME, stream=True))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(e.delta.text for e in events if e.type == "content_block_delta")
    assert text == client.messages.create(**SAME).content[0].text


@case
def stream_helper():
    """messages.stream, the helper."""
    with client.messages.stream(**SAME) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text
    assert final.usage.output_tokens > 0 and final.stop_reason


@case
def multi_turn():
    """Several turns with a system prompt, content as text and as blocks."""
    ask = {**SAME, "system": "You tell stories."}
    del ask["messages"]
    one = client.messages.create(**ask, messages=STORY)
    turns = [*STORY, {"role": "assistant", "content": one.content}]
    turns += [{"role": "user", "content": [{"type": "text", "text": "And then?"}]}]
    two = client.messages.create(**ask, messages=turns)
    assert prompt(two.usage) > prompt(one.usage) + one.usage.output_tokens
    assert two.content[0].type == "text"


@case
def stops():
    """stop_sequences end the answer and are named."""
    plain = client.messages.create(**SAME).content[0].text
    word = plain.split()[3]
    cut = client.messages.create(**SAME, stop_sequences=[word])
    assert cut.content[0].text == plain[: plain.index(word)]
    assert cut.stop_reason == "stop_sequence" and cut.stop_sequence == word


@case
def counting():
    """messages.count_tokens agrees with the usage of an answer."""
    ask = {"model": MODEL, "messages": STORY, "system": "You tell stories."}
    count = client.messages.count_tokens(**ask).input_tokens
    assert count == prompt(client.messages.create(**ask, max_tokens=1).usage)


@case
def models():
    """models.list and models.retrieve."""
    assert MODEL in [m.id for m in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@case
def errors():
    """Each error is the client's own exception and says which field."""
    create = client.messages.create
    error = refused(anthropic.NotFoundError, lambda: create(**{**SAME, "model": ABSENT}))
    assert ABSENT in str(error)
    error = refused(anthropic.BadRequestError, lambda: create(**{**SAME, "extra_body": {"temperature": -1}}))
    assert "temperature" in str(error)
    tool = {"name": "f", "input_schema": {"type": "object"}}
    error = refused(anthropic.BadRequestError, lambda: create(**SAME, tools=[tool]))
    assert "tools" in str(error) and error.body["error"]["type"] == "invalid_request_error"
    source = {"type": "base64", "media_type": "image/png", "data": "eA=="}
    image = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    refused(anthropic.BadRequestError, lambda: create(**{**SAME, "messages": image}))


@case
def keys():
    """A server with a key: with a wrong and with the right one."""
    right = anthropic.Anthropic(base_url=KEYED_URL, api_key=KEY, max_retries=0)
    assert right.messages.create(**SAME).content[0].text
    wrong = anthropic.Anthropic(base_url=KEYED_URL, api_key="wrong", max_retries=0)
    refused(anthropic.AuthenticationError, lambda: wrong.messages.create(**SAME))


main("anthropic (Python)")
