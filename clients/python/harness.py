"""Runs cases against the server that LAPIDARY_URL names, and prints a line for each."""

import os
import sys
import traceback

URL = os.environ["LAPIDARY_URL"]
"""A server without keys."""
KEYED_URL = os.environ["LAPIDARY_KEYED_URL"]
"""A server that wants KEY."""
KEY = os.environ["LAPIDARY_KEY"]
MODEL = os.environ["LAPIDARY_MODEL"]
ABSENT = "no-such-model"
EYES_URL = os.environ.get("LAPIDARY_EYES_URL")
"""A server whose model, `eyes`, sees; if there is one."""
THINKS_URL = os.environ.get("LAPIDARY_THINKS_URL")
"""A server whose model, `thinker`, can think; if there is one."""
QUESTION = os.environ.get("LAPIDARY_EYES_QUESTION", "")

_cases = []


def case(function):
    """Marks a case; its docstring says what it shows."""
    _cases.append(function)
    return function


def seeing(function):
    """Marks a case about a picture: it gives what the model says of the file, as `lapidary run` does."""

    def run():
        path = os.environ["LAPIDARY_EYES_IMAGE"]
        with open(path, "rb") as file:
            said = function(path, file.read())
        assert said.strip("\n") == os.environ["LAPIDARY_EYES_ANSWER"].strip("\n"), said

    run.__doc__ = function.__doc__
    return case(run) if EYES_URL else run


def thinking(function):
    """Marks a case that gives the tokens of a prompt without thinking, and with it: the template says so."""

    def run():
        off, on = function()
        assert 0 < off < on, (off, on)

    run.__doc__ = function.__doc__
    return case(run) if THINKS_URL else run


def refused(kind, call):
    """The exception of type `kind` that `call` raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected, and nothing was raised")


def unit(vector):
    """Checks that a vector has length 1."""
    assert abs(sum(x * x for x in vector) - 1) < 1e-3, sum(x * x for x in vector)


def main(client):
    """Runs all cases; the exit code says whether all passed."""
    failed = 0
    for function in _cases:
        name = f"{client}: {function.__doc__.splitlines()[0].rstrip('.')}"
        try:
            function()
        except Exception:
            failed += 1
            print(f"FAILED  {name}")
            traceback.print_exc(file=sys.stdout)
        else:
            print(f"passed  {name}")
    sys.exit(failed > 0)
