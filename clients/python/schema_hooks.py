"""What schemathesis can't know: the name of a model that there is. Half of the requests name it, so that
they get beyond the question which model is meant."""

import os

import schemathesis

MODEL = os.environ["LAPIDARY_MODEL"]


def even(text):
    return sum(map(ord, text)) % 2 == 0


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("model"), str) and even(body["model"]):
        body["model"] = MODEL
    return body


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    name = (path_parameters or {}).get("model")
    if isinstance(name, str) and even(name):
        path_parameters["model"] = MODEL
    return path_parameters
