"""Renders chat messages as text, with a model folder's own Jinja chat template or Gemma's turns.

Message texts enter the template as placeholders and are filled in afterwards. The result therefore
separates what the template wrote, where "<start_of_turn>" is a control token, from the texts of
users and models, where it is plain text.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

GEMMA_TEMPLATE = """{{ bos_token }}
{%- set first = namespace(prefix="") -%}
{%- for message in messages -%}
{%- if message.role == "system" -%}
{%- set first.prefix = first.prefix + message.content + "\\n\\n" -%}
{%- else -%}
{{- "<start_of_turn>" + ("model" if message.role == "assistant" else message.role) + "\\n" + first.prefix -}}
{{- message.content | trim + "<end_of_turn>\\n" -}}
{%- set first.prefix = "" -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<start_of_turn>model\\n" }}{%- endif -%}"""  # noqa: E501

# Private-use characters: no tokenizer and no template gives them a meaning.
OPEN, CLOSE = "\ue0a0", "\ue0a1"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, empty without the file. Raises ValueError if it is not JSON."""
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def find_template(folder: Path) -> str | None:
    """The chat template of a model folder, from any of the three files that may hold it."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template")
        if isinstance(template, list):  # several named templates
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if template:
            return template
    return None


def check(messages: list[dict[str, str]]) -> None:
    """Raises ValueError unless every message has a role and a content."""
    if not messages:
        raise ValueError("no messages: a chat needs at least one turn")
    for i, message in enumerate(messages):
        if not isinstance(message.get("content"), str) or not isinstance(message.get("role"), str):
            raise ValueError(
                f"message {i} is {message!r:.80}: it needs a role and a content, both strings"
            )


def render(
    template: str,
    messages: list[dict[str, str]],
    add_generation_prompt: bool,
    special_tokens: dict[str, str],
) -> list[tuple[str, bool]]:
    """Renders a chat into pieces (text, is_content); is_content is True for message texts.

    Raises ValueError with the template's message if it rejects the roles (Gemma 2 has no system
    role).
    """
    check(messages)
    # The spaces around a placeholder show whether the template trims message texts.
    masked = [{**m, "content": f" {OPEN}{i}{CLOSE} "} for i, m in enumerate(messages)]
    try:
        text = _compiled(template).render(
            messages=masked,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            **special_tokens,
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the chat template rejects the roles {roles}: {error}. Alternate user and assistant "
            "turns, with system text at the start of the first user turn"
        ) from error
    return _fill(text, [message["content"] for message in messages])


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    def raise_exception(reason: str) -> None:
        raise jinja2.TemplateError(reason)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: ""  # a prompt must not depend on the day
    env.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
    return env.from_string(template)


def _fill(text: str, contents: list[str]) -> list[tuple[str, bool]]:
    before, *rest = re.split(f"( ?){OPEN}(\\d+){CLOSE}( ?)", text)
    pieces = [(before, False)]
    for left, index, right, after in zip(*[iter(rest)] * 4):
        content = contents[int(index)]
        content = content if left else content.lstrip()
        content = content if right else content.rstrip()
        pieces += [(content, True), (after, False)]
    return [piece for piece in pieces if piece[0]]
