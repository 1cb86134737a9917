"""OpenAI's own client for Python."""

import base64

import httpx
import openai
from harness import (
    ABSENT, EYES_URL, KEY, KEYED_URL, MODEL, QUESTION, THINKS_URL, URL, case, main, refused, seeing, thinking, unit
)

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
STORY = [{"role": "user", "content": "Tell me a story about a red ball."}]
SAME = {"model": MODEL, "messages": STORY, "max_tokens": 24, "seed": 7}


@case
def chat():
    """chat.completions.create."""
    answer = client.chat.completions.create(**SAME)
    assert answer.object == "chat.completion" and answer.model == MODEL
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 5 and 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.system_fingerprint


def connect(url=EYES_URL):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@thinking
def reasoning_effort():
    """chat.completions.create with reasoning_effort, whole and streamed."""

    def ask(effort):
        same = {**SAME, "model": "thinker", "reasoning_effort": effort}
        whole = connect(THINKS_URL).chat.completions.create(**same)
        chunks = list(connect(THINKS_URL).chat.completions.create(**same, stream=True))
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == whole.choices[0].message.content
        thought = "".join(getattr(c.choices[0].delta, "reasoning_content", "") for c in chunks)
        assert thought == getattr(whole.choices[0].message, "reasoning_content", "")
        details = whole.usage.completion_tokens_details
        assert 0 <= details.reasoning_tokens <= whole.usage.completion_tokens
        return whole.usage.prompt_tokens

    return ask("none"), ask("high")


@thinking
def reasoning_in_responses():
    """responses.create with reasoning, continued."""

    def ask(effort):
        same = {"model": "thinker", "max_output_tokens": 24, "reasoning": {"effort": effort}}
        client = connect(THINKS_URL)
        first = client.responses.create(**same, input=STORY)
        items = [*STORY, *first.output, {"role": "user", "content": "And then?"}]
        second = client.responses.create(**same, input=items, temperature=0)
        again = client.responses.create(
            **same, input="And then?", previous_response_id=first.id, temperature=0
        )
        assert second.output_text == again.output_text
        return first.usage.input_tokens

    return ask("none"), ask("low")


@seeing
def picture(path, data):
    """chat.completions.create with a picture."""
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": content}]
    answer = connect().chat.completions.create(
        model="eyes", messages=messages, max_tokens=12, temperature=0
    )
    return answer.choices[0].message.content


@seeing
def picture_in_response(path, data):
    """responses.create with a picture."""
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": QUESTION},
    ]
    items = [{"role": "user", "content": content}]
    answer = connect().responses.create(
        model="eyes", input=items, max_output_tokens=12, temperature=0
    )
    return answer.output_text


@case
def streaming():
    """chat.completions.create(stream=True) gives the same text as without."""
    whole = client.chat.completions.create(**SAME)
    text, finish, usage = "", None, None
    for chunk in client.chat.completions.create(
        **SAME, stream=True, stream_options={"include_usage": True}
    ):
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


@case
def stream_helper():
    """chat.completions.stream, the helper with events."""
    # An answer that ends by itself: the helper takes one that is cut off for an error.
    ask = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
    with client.chat.completions.stream(model=MODEL, max_tokens=100, **ask) as stream:
        deltas = [e.delta for e in stream if e.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content


@case
def stream_closed():
    """A stream that the client closes early leaves the server well."""
    stream = client.chat.completions.create(**{**SAME, "max_tokens": 200}, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(**SAME).choices[0].message.content


@case
def multi_turn():
    """A conversation of several turns with a system message."""
    turns = [{"role": "system", "content": "You tell stories."}, *STORY]
    one = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=16, seed=7)
    turns += [one.choices[0].message, {"role": "user", "content": "And then?"}]
    two = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=16, seed=7)
    assert two.usage.prompt_tokens > one.usage.prompt_tokens + one.usage.completion_tokens
    assert two.choices[0].message.content


@case
def seeds():
    """The same seed gives the same answer, several answers differ."""
    ask = {**SAME, "temperature": 1.0}
    one, two = (client.chat.completions.create(**ask) for _ in range(2))
    assert one.choices[0].message.content == two.choices[0].message.content
    many = client.chat.completions.create(**ask, n=3)
    assert [c.index for c in many.choices] == [0, 1, 2]
    assert len({c.message.content for c in many.choices}) > 1


@case
def log_probabilities():
    """logprobs and top_logprobs; the tokens' bytes make the text."""
    ask = {**SAME, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**ask).choices[0]
    tokens = choice.logprobs.content
    text = b"".join(bytes(t.bytes) for t in tokens).decode()
    assert text.startswith(choice.message.content), (text, choice.message.content)
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        best = max(token.top_logprobs, key=lambda t: t.logprob)
        assert best.token == token.token and abs(best.logprob - token.logprob) < 1e-4


@case
def settings():
    """Stop strings, penalties and logit bias take effect."""
    plain = client.chat.completions.create(**SAME, temperature=0).choices[0].message.content
    word = plain.split()[3]
    cut = client.chat.completions.create(**SAME, temperature=0, stop=[word]).choices[0]
    assert cut.message.content == plain[: plain.index(word)] and cut.finish_reason == "stop"
    ids = httpx.post(f"{URL}/tokenize", json={"model": MODEL, "text": plain}).json()["ids"]
    banned = client.chat.completions.create(**SAME, temperature=0, logit_bias={str(ids[0]): -100})
    assert banned.choices[0].message.content.split()[0] != plain.split()[0]
    story = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 100}
    plain, *others = (
        client.completions.create(**story, **penalty).choices[0].text
        for penalty in ({}, {"presence_penalty": 2}, {"frequency_penalty": 2})
    )
    assert plain not in others


@case
def completions():
    """completions.create, whole and streamed."""
    ask = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 16, "seed": 1}
    whole = client.completions.create(**ask)
    parts = [c.choices[0].text for c in client.completions.create(**ask, stream=True) if c.choices]
    assert whole.choices[0].text and "".join(parts) == whole.choices[0].text


@case
def responses():
    """responses.create, stored, retrieved, continued, deleted."""
    one = client.responses.create(model=MODEL, input="Tell me a story.", max_output_tokens=16)
    assert one.output_text and one.status in ("completed", "incomplete")
    assert client.responses.retrieve(one.id).output_text == one.output_text
    two = client.responses.create(
        model=MODEL, input="And then?", previous_response_id=one.id, max_output_tokens=16
    )
    assert two.usage.input_tokens > one.usage.input_tokens + one.usage.output_tokens
    client.responses.delete(one.id)
    refused(openai.NotFoundError, lambda: client.responses.retrieve(one.id))


@case
def responses_stream():
    """responses.create(stream=True), event by event."""
    ask = {"model": MODEL, "input": "Tell me a story.", "max_output_tokens": 16}
    events = list(client.responses.create(**ask, stream=True, store=False))
    kinds = [e.type for e in events]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text and text == events[-1].response.output_text
    assert [e.sequence_number for e in events] == list(range(len(events)))


@case
def embeddings():
    """embeddings.create, as floats and (the client's default) as base64."""
    texts = ["a red ball", "a blue ball"]
    default = client.embeddings.create(model=MODEL, input=texts)
    floats = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert [d.index for d in default.data] == [0, 1] and default.usage.prompt_tokens > 2
    for a, b in zip(default.data, floats.data):
        unit(a.embedding)
        assert max(abs(x - y) for x, y in zip(a.embedding, b.embedding)) < 1e-6
    small = client.embeddings.create(model=MODEL, input=texts[0], dimensions=8)
    assert len(small.data[0].embedding) == 8
    unit(small.data[0].embedding)


@case
def models():
    """models.list and models.retrieve."""
    assert MODEL in [m.id for m in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@case
def errors():
    """Each error is the client's own exception, with the field's name."""
    create = client.chat.completions.create
    error = refused(openai.NotFoundError, lambda: create(**{**SAME, "model": ABSENT}))
    assert ABSENT in error.message
    error = refused(openai.BadRequestError, lambda: create(**SAME, temperature=-1))
    assert error.param == "temperature", error.param
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    error = refused(openai.BadRequestError, lambda: create(**SAME, tools=[tool]))
    assert error.param == "tools", error.param
    error = refused(openai.BadRequestError, lambda: create(**SAME, extra_body={"colour": "red"}))
    assert "colour" in error.message
    long = [{"role": "user", "content": "word " * 20000}]
    error = refused(openai.BadRequestError, lambda: create(**{**SAME, "messages": long}))
    assert "token" in error.message


@case
def keys():
    """A server with a key: without, with a wrong and with the right one."""
    for key, works in ((KEY, True), ("wrong", False)):
        keyed = openai.OpenAI(base_url=f"{KEYED_URL}/v1", api_key=key, max_retries=0)
        if works:
            assert keyed.chat.completions.create(**SAME).choices
        else:
            refused(openai.AuthenticationError, lambda: keyed.chat.completions.create(**SAME))


main("openai (Python)")
