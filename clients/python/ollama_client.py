"""Ollama's own client for Python."""

import asyncio

import ollama
from harness import (
    ABSENT, EYES_URL, KEY, KEYED_URL, MODEL, QUESTION, THINKS_URL, URL, case, main, refused, seeing, thinking, unit
)

client = ollama.Client(host=URL)
STORY = [{"role": "user", "content": "Tell me a story about a red ball."}]
OPTIONS = {"num_predict": 24, "seed": 7}


def status(code, call):
    error = refused(ollama.ResponseError, call)
    assert error.status_code == code, error
    return error


@case
def chat():
    """chat."""
    answer = client.chat(model=MODEL, messages=STORY, options=OPTIONS)
    assert answer.message.role == "assistant" and answer.message.content
    assert answer.done and answer.done_reason in ("stop", "length")
    assert answer.prompt_eval_count > 5 and 0 < answer.eval_count <= 24
    assert answer.total_duration >= answer.eval_duration > 0


@seeing
def picture(path, data):
    """chat with a picture, as a path."""
    messages = [{"role": "user", "content": QUESTION, "images": [path]}]
    options = {"num_predict": 12, "temperature": 0}
    return ollama.Client(host=EYES_URL).chat(model="eyes", messages=messages, options=options).message.content


@seeing
def picture_to_generate(path, data):
    """generate with a picture, as bytes."""
    options = {"num_predict": 12, "temperature": 0}
    eyes = ollama.Client(host=EYES_URL)
    return eyes.generate(model="eyes", prompt=QUESTION, images=[data], options=options).response


@thinking
def think():
    """chat and generate with think."""

    def ask(think):
        thinker = ollama.Client(host=THINKS_URL)
        same = {"model": "thinker", "options": OPTIONS, "think": think}
        answer = thinker.chat(messages=STORY, **same)
        made = thinker.generate(prompt=STORY[0]["content"], **same)
        assert (made.thinking, made.response) == (answer.message.thinking, answer.message.content)
        assert made.prompt_eval_count == answer.prompt_eval_count
        return answer.prompt_eval_count

    assert "thinking" in ollama.Client(host=THINKS_URL).show("thinker").capabilities
    return ask(False), ask("high")


@case
def streaming():
    """chat(stream=True) gives the same text as without."""
    whole = client.chat(model=MODEL, messages=STORY, options=OPTIONS)
    parts = list(client.chat(model=MODEL, messages=STORY, options=OPTIONS, stream=True))
    assert "".join(p.message.content for p in parts) == whole.message.content
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count


@case
def multi_turn():
    """Several turns with a system message."""
    turns = [{"role": "system", "content": "You tell stories."}, *STORY]
    one = client.chat(model=MODEL, messages=turns, options=OPTIONS)
    turns += [one.message, {"role": "user", "content": "And then?"}]
    two = client.chat(model=MODEL, messages=turns, options=OPTIONS)
    assert two.prompt_eval_count > one.prompt_eval_count and two.message.content


@case
def generate():
    """generate, with the template and raw, whole and streamed."""
    ask = {"model": MODEL, "prompt": "Once upon a time", "options": OPTIONS}
    assert client.generate(**ask).response
    raw = client.generate(**ask, raw=True)
    parts = [p.response for p in client.generate(**ask, raw=True, stream=True)]
    assert raw.response and "".join(parts) == raw.response


@case
def asynchronous():
    """AsyncClient, two requests at once."""

    async def both():
        other = ollama.AsyncClient(host=URL)
        ask = lambda: other.chat(model=MODEL, messages=STORY, options=OPTIONS)
        return await asyncio.gather(ask(), ask())

    one, two = asyncio.run(both())
    assert one.message.content == two.message.content


@case
def embeddings():
    """embed, one and many."""
    found = client.embed(model=MODEL, input=["a red ball", "a blue ball"]).embeddings
    assert len(found) == 2
    for vector in found:
        unit(vector)
    assert len(client.embed(model=MODEL, input="a red ball", dimensions=8).embeddings[0]) == 8


@case
def models():
    """list, show and ps."""
    assert any(m.model.split(":")[0] == MODEL for m in client.list().models)
    shown = client.show(MODEL)
    assert shown.details.family and shown.modelinfo and "completion" in shown.capabilities
    assert any(m.model.split(":")[0] == MODEL for m in client.ps().models)


@case
def errors():
    """Each error has a status and says which field."""
    ask = lambda model=MODEL, **more: client.chat(model=model, messages=STORY, **more)
    assert ABSENT in status(404, lambda: ask(ABSENT)).error
    assert "temperature" in status(400, lambda: ask(options={"temperature": -1})).error
    assert "mirostat" in status(400, lambda: ask(options={"mirostat": 2})).error
    assert "format" in status(400, lambda: ask(format="json")).error
    assert "think" in status(400, lambda: ask(think=True)).error
    status(404, lambda: client.pull("gemma3"))


@case
def keys():
    """A server with a key: with a wrong and with the right one."""
    ask = lambda key: ollama.Client(
        host=KEYED_URL, headers={"Authorization": f"Bearer {key}"}
    ).chat(model=MODEL, messages=STORY, options=OPTIONS)
    assert ask(KEY).message.content
    status(401, lambda: ask("wrong"))


main("ollama (Python)")
