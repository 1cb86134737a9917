"""Google's own client for Gemini, in Python."""

from google import genai
from google.genai import errors, types
from harness import (
    ABSENT, EYES_URL, KEY, KEYED_URL, MODEL, QUESTION, THINKS_URL, URL, case, main, refused, seeing, thinking, unit
)


def connect(url, key="none"):
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url))


client = connect(URL)
STORY = "Tell me a story about a red ball."
CONFIG = types.GenerateContentConfig(max_output_tokens=24, seed=7)


def status(code, call):
    error = refused(errors.APIError, call)
    assert error.code == code, error
    return error


@case
def generate():
    """models.generate_content."""
    answer = client.models.generate_content(model=MODEL, contents=STORY, config=CONFIG)
    assert answer.text
    assert answer.candidates[0].finish_reason.name in ("STOP", "MAX_TOKENS")
    usage = answer.usage_metadata
    assert usage.prompt_token_count > 5 and 0 < usage.candidates_token_count <= 24
    assert usage.total_token_count == usage.prompt_token_count + usage.candidates_token_count
    assert answer.model_version and answer.response_id


@seeing
def picture(path, data):
    """models.generate_content with a picture."""
    shown = types.Part.from_bytes(data=data, mime_type="image/png")
    config = types.GenerateContentConfig(max_output_tokens=12, temperature=0)
    # The client closes when nothing holds it.
    eyes = connect(EYES_URL)
    answer = eyes.models.generate_content(
        model="eyes", contents=[shown, QUESTION], config=config
    )
    return answer.text


@thinking
def thinks():
    """models.generate_content with a ThinkingConfig."""

    def ask(budget):
        thinker = connect(THINKS_URL)
        config = types.GenerateContentConfig(
            max_output_tokens=24, seed=7,
            thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=budget),
        )
        answer = thinker.models.generate_content(model="thinker", contents=STORY, config=config)
        usage = answer.usage_metadata
        counts = usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count
        assert usage.total_token_count == sum(counts)
        return usage.prompt_token_count

    return ask(0), ask(-1)


@case
def streaming():
    """models.generate_content_stream gives the same text as without."""
    whole = client.models.generate_content(model=MODEL, contents=STORY, config=CONFIG)
    chunks = list(client.models.generate_content_stream(model=MODEL, contents=STORY, config=CONFIG))
    assert "".join(c.text or "" for c in chunks) == whole.text and len(chunks) > 1
    last = chunks[-1]
    assert last.candidates[0].finish_reason == whole.candidates[0].finish_reason
    assert last.usage_metadata.total_token_count == whole.usage_metadata.total_token_count


@case
def chats():
    """chats: several turns with a system instruction, whole and streamed."""
    config = types.GenerateContentConfig(
        max_output_tokens=16, seed=7, system_instruction="You tell stories."
    )
    chat = client.chats.create(model=MODEL, config=config)
    one = chat.send_message(STORY)
    two = "".join(c.text or "" for c in chat.send_message_stream("And then?"))
    roles = [c.role for c in chat.get_history()]
    # The client keeps each piece of a stream as a content of its own.
    assert one.text and two and roles[:3] == ["user", "model", "user"] and set(roles[3:]) == {"model"}


@case
def settings():
    """Settings take effect: seeds, stop sequences, candidates, probabilities."""
    ask = lambda **config: client.models.generate_content(
        model=MODEL,
        contents=STORY,
        config=types.GenerateContentConfig(max_output_tokens=24, **config),
    )
    plain = ask(temperature=0).text
    word = plain.split()[3]
    assert ask(temperature=0, stop_sequences=[word]).text == plain[: plain.index(word)]
    assert ask(temperature=1, seed=3).text == ask(temperature=1, seed=3).text
    assert len(ask(temperature=1, seed=3, candidate_count=2).candidates) == 2
    found = ask(temperature=0, response_logprobs=True, logprobs=2).candidates[0].logprobs_result
    assert len(found.chosen_candidates) == len(found.top_candidates) > 0


@case
def counting():
    """models.count_tokens agrees with the usage of an answer."""
    contents = [types.Content(role="user", parts=[types.Part(text=STORY)])]
    count = client.models.count_tokens(model=MODEL, contents=contents).total_tokens
    answer = client.models.generate_content(model=MODEL, contents=contents, config=CONFIG)
    assert count == answer.usage_metadata.prompt_token_count


@case
def embeddings():
    """models.embed_content, one and many."""
    found = client.models.embed_content(model=MODEL, contents=["a red ball", "a blue ball"]).embeddings
    assert len(found) == 2
    for e in found:
        unit(e.values)
    small = types.EmbedContentConfig(output_dimensionality=8)
    found = client.models.embed_content(model=MODEL, contents="a red ball", config=small).embeddings
    assert len(found[0].values) == 8
    unit(found[0].values)


@case
def models():
    """models.list and models.get."""
    assert f"models/{MODEL}" in [m.name for m in client.models.list()]
    model = client.models.get(model=MODEL)
    assert model.name == f"models/{MODEL}" and model.input_token_limit > 0


@case
def refusals():
    """Each error has Google's code and says which field."""
    ask = lambda model=MODEL, **config: client.models.generate_content(
        model=model, contents=STORY, config=types.GenerateContentConfig(max_output_tokens=4, **config)
    )
    assert ABSENT in status(404, lambda: ask(ABSENT)).message
    assert "temperature" in status(400, lambda: ask(temperature=-1)).message
    error = status(400, lambda: ask(response_mime_type="application/json"))
    assert "responseMimeType" in error.message and error.status == "INVALID_ARGUMENT"
    tool = types.Tool(google_search=types.GoogleSearch())
    assert "tools" in status(400, lambda: ask(tools=[tool])).message
    search = types.Part.from_bytes(data=b"x", mime_type="image/png")
    status(400, lambda: client.models.generate_content(model=MODEL, contents=[search]))


@case
def keys():
    """A server with a key: with a wrong and with the right one."""
    # A client closes its connection when nothing holds it any more.
    right, wrong = connect(KEYED_URL, KEY), connect(KEYED_URL, "wrong")
    ask = lambda keyed: keyed.models.generate_content(model=MODEL, contents=STORY, config=CONFIG)
    assert ask(right).text
    assert status(401, lambda: ask(wrong)).status == "UNAUTHENTICATED"


main("google-genai (Python)")
