"""/openapi.json and /docs: the routes with their fields and examples, from the code of the bodies.

The page loads nothing from other hosts.
"""

from __future__ import annotations

import dataclasses
import functools
import html
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request as HTTPRequest
from starlette.responses import HTMLResponse, Response

from grm_jax import __version__, strict_json
from grm_jax.judging.groups import Group
from grm_jax.judging.rewards import RewardOptions
from grm_jax.serving import bodies
from grm_jax.serving.errors import TYPES, json_response
from grm_jax.serving.service import Service

SCORE_EXAMPLE = {
    "groups": [{"prompt": "What is 2 + 2?", "responses": ["It is 4.", "It is 5."], "id": "first"}],
    "k": 4,
    "reward": "mean",
}
TEXTS = {
    ("post", "/v1/score"): "Rewards of groups of responses, each with a status and a reason.",
    ("post", "/v1/chat/completions"): "Chat completions in OpenAI's format, also streamed.",
    ("get", "/v1/models"): "The names of the model.",
    ("post", "/get_reward"): "OpenRLHF: rewards of queries, without prompts and special tokens.",
    ("post", "/compare"): "NeMo-Gym: rewards of all responses to one conversation.",
    ("post", "/verify"): "NeMo-Gym: the reward of one response, once its group is complete.",
    ("get", "/healthz"): "200 while the engine runs; 503 when the process must be restarted.",
    ("get", "/readyz"): "200 if requests are answered; 503 while programs compile, or at shutdown.",
    ("get", "/metrics"): "Prometheus metrics.",
    ("get", "/openapi.json"): "This description.",
    ("get", "/docs"): "This description as a page.",
}
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": bodies.ChatBody,
    "/get_reward": bodies.RewardBody,
    "/compare": bodies.CompareBody,
    "/verify": bodies.VerifyBody,
}
ERRORS = (400, 401, 413, 429, 503, 504)


def _dataclass_schema(kind: type) -> dict[str, Any]:
    """Returns the JSON schema of a dataclass, with the texts of its docstring."""
    hints, texts = get_type_hints(kind), _attribute_texts(kind.__doc__ or "")
    properties, required = {}, []
    for field in dataclasses.fields(kind):
        schema = TypeAdapter(hints[field.name]).json_schema()
        properties[field.name] = schema | {"description": texts.get(field.name, "")}
        if field.default is dataclasses.MISSING:
            required.append(field.name)
        elif field.default is not None:
            properties[field.name]["default"] = field.default
    return {"type": "object", "properties": properties, "required": required}


def _attribute_texts(doc: str) -> dict[str, str]:
    """Returns the text of each attribute in a docstring's "Attributes:" section."""
    section = doc.partition("Attributes:\n")[2].partition("\n\n")[0]
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        head, colon, text = line.strip().partition(": ")
        if colon and line.startswith("      ") and not line.startswith("        "):
            names = head.split(", ")
            texts |= dict.fromkeys(names, text)
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def _score_schema() -> dict[str, Any]:
    options = _dataclass_schema(RewardOptions)
    groups = {"type": "array", "items": {"$ref": "#/components/schemas/Group"}, "minItems": 1}
    size = {"type": "integer", "description": "Refuse groups that have not this many responses."}
    seconds = {"type": "number", "description": "Seconds until the request fails."}
    properties = {"groups": groups, **options["properties"]}
    properties |= {"group_size": size, "timeout": seconds}
    return {
        "type": "object",
        "properties": properties,
        "required": ["groups"],
        "additionalProperties": False,
        "example": SCORE_EXAMPLE,
    }


@functools.cache
def document() -> dict[str, Any]:
    """Returns the OpenAPI description of the server."""
    schemas: dict[str, Any] = {"Group": _dataclass_schema(Group), "ScoreBody": _score_schema()}
    for model in BODIES.values():
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    names = {path: model.__name__ for path, model in BODIES.items()} | {"/v1/score": "ScoreBody"}
    schemas["Error"] = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string", "enum": sorted(set(TYPES.values()))},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "null"},
                },
            }
        },
    }
    paths: dict[str, Any] = {}
    for (method, path), text in TEXTS.items():
        operation: dict[str, Any] = {"summary": text, "responses": _responses(method)}
        if path in names:
            reference = {"$ref": f"#/components/schemas/{names[path]}"}
            content = {"application/json": {"schema": reference}}
            operation["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "grm serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _responses(method: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failures = {str(s): {"description": TYPES[s], "content": error} for s in ERRORS}
    return {"200": {"description": "The result."}} | (failures if method == "post" else {})


async def openapi(service: Service, http: HTTPRequest) -> Response:
    """Answers GET /openapi.json."""
    return json_response(document())


async def docs(service: Service, http: HTTPRequest) -> Response:
    """Answers GET /docs."""
    return HTMLResponse(page())


STYLE = (
    "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#f4f4f4;color:#111;padding:.7rem;overflow:auto}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}"
)


@functools.cache
def page() -> str:
    """Returns the page: every route with a curl command and its fields."""
    parts, schemas = [], document()["components"]["schemas"]
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2>{method.upper()} {path}</h2><p>{operation['summary']}</p>")
            body = operation.get("requestBody")
            if body is None:
                continue
            reference = body["content"]["application/json"]["schema"]["$ref"]
            schema = schemas[reference.rpartition("/")[2]]
            example = html.escape(strict_json.dumps(schema["example"], indent=2))
            parts.append(f"<pre>curl $URL{path} --json '{example}'</pre>{_table(schema)}")
            if path == "/v1/score":
                parts.append(f"<h3>A group</h3>{_table(schemas['Group'])}")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>grm serve</title>'
        f"<style>{STYLE}</style><h1>grm serve</h1>{''.join(parts)}</html>"
    )


def _table(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema["properties"].items():
        default = strict_json.dumps(field["default"]) if field.get("default") is not None else ""
        cells = (name, default, field.get("description", ""))
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    return f"<table><tr><th>field<th>default<th><tr>{'<tr>'.join(rows)}</table>"
