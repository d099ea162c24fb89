"""Renders chat messages as text, with a model folder's own Jinja chat template or Gemma's turns.

The template sees the messages as transformers shows them, so it may test, split or count them. In
their texts a private-use character breaks up each control string. The result is split there:
"<start_of_turn>" in one piece is a control token that the template wrote, and one that spans two
pieces is plain text of a user or a model.
"""

import datetime
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import jinja2

from grm_jax import strict_json
from grm_jax.model_files import exists, read_bytes, read_json_if_any
from grm_jax.text import sandbox

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

# The date of `strftime_now` in every prompt, which must not depend on the day: the default date of
# Llama's templates.
TODAY = datetime.datetime(2024, 7, 26)


def find_template(folder: Path) -> str | None:
    """The chat template of a model folder, from any of the three files that may hold it.

    Raises ValueError that names the file for one that is not UTF-8, or no text.
    """
    file = folder / "chat_template.jinja"
    if exists(file):
        try:
            return strict_json.decoded(read_bytes(file))
        except ValueError as error:
            raise ValueError(f"{file} is no chat template: {error}") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json_if_any(folder / name).get("chat_template")
        if isinstance(template, list):  # several named templates
            named = [entry for entry in template if isinstance(entry, dict)]
            template = {str(entry.get("name")): entry.get("template") for entry in named}
        if isinstance(template, dict):
            template = template.get("default")
        if template and not isinstance(template, str):
            raise ValueError(
                f"{folder / name}: chat_template={template!r:.40} is no text: remove it"
            )
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
    break_controls: Callable[[str, str], str],
    what: str = "the chat template",
) -> list[str]:
    """Renders a chat into pieces of text; control strings within a piece are the template's own.

    Args:
      break_controls: puts its second argument, a character, into each control string of a text.
      what: the template in error messages.

    Raises:
      sandbox.Rejected: a ValueError with the template's message, if it rejects the roles (Gemma 2
        has no system role).
      ValueError: the template is faulty, or does too much work.
    """
    check(messages)
    texts = (text for m in messages for text in m.values() if isinstance(text, str))
    used = set(template).union(*texts)
    private_use = itertools.chain(range(0xE0A0, 0xF8FF), range(0xF0000, 0x10FFFE))
    mark = next((c for c in map(chr, private_use) if c not in used), None)
    if mark is None:
        raise ValueError("the texts have every private-use character of Unicode: remove some")
    masked = [
        {k: break_controls(v, mark) if isinstance(v, str) else v for k, v in m.items()}
        for m in messages
    ]
    variables = {
        "messages": masked,
        "add_generation_prompt": add_generation_prompt,
        "tools": None,
        "documents": None,
        **special_tokens,
    }
    try:
        return sandbox.render(_compiled(template, what), variables, what).split(mark)
    except sandbox.Rejected as error:
        roles = ", ".join(message["role"] for message in messages)
        raise sandbox.Rejected(
            f"the chat template rejects the roles {roles:.200}: {error}. Alternate user and "
            "assistant turns, with system text at the start of the first user turn"
        ) from error


@functools.lru_cache(maxsize=16)
def _compiled(template: str, what: str) -> jinja2.Template:
    return sandbox.load(template, what, {"strftime_now": lambda form: TODAY.strftime(form)})
