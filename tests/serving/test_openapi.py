"""The description of the routes is complete, and its examples are accepted."""

import html

import jsonschema
import pytest

from grm_jax.serving.app import ROUTES
from grm_jax.serving.openapi import BODIES, document

DOCUMENT = document()


def schema_of(path):
    name = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return DOCUMENT["components"]["schemas"][name["$ref"].rpartition("/")[2]]


def test_every_route_is_described():
    described = {path: set(methods) for path, methods in DOCUMENT["paths"].items()}
    assert described == {p: {m.lower() for m in methods} for p, methods in ROUTES.items()}


@pytest.mark.parametrize("path", [*BODIES, "/v1/score"])
def test_an_example_fits_its_schema_and_is_answered(server, texts, path):
    schema = schema_of(path)
    jsonschema.validate(schema["example"], schema | {"components": DOCUMENT["components"]})
    running = texts if path == "/v1/chat/completions" else server
    example = schema["example"]
    if "max_tokens" in example:
        example = example | {"max_tokens": 5}
    reply = running.post(path, example)
    # The toy's critiques have two scores, so a lone response has no reward.
    lone = path in ("/get_reward", "/verify")
    assert reply.status_code == (422 if lone else 200), reply.text


def test_the_page_has_every_route_and_field_and_loads_nothing(server):
    reply = server.client.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    for path in ROUTES:
        assert path in reply.text
    for path in [*BODIES, "/v1/score"]:
        for name, field in schema_of(path)["properties"].items():
            assert f"<td>{name}</td>" in reply.text
            assert html.escape(field.get("description", "")) in reply.text
    assert "critiques per prompt" in reply.text  # from the docstring of RewardOptions
    assert "http" not in reply.text.replace("http-equiv", "")
    assert server.client.get("/openapi.json").json() == DOCUMENT
