"""Typed access to the fields of a record: texts, numbers, lists and chat turns.

CSV files and some tables hold a list, an object or a number as JSON text. It is parsed where the
field must have that type.
"""

import re
from collections.abc import Sequence
from typing import Any

from grm_jax import display, strict_json
from grm_jax.data.records import Malformed
from grm_jax.types import ROLE_NAMES, ROLES, Turn

Record = dict[str, Any]
Kind = type | tuple[type, ...]

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")  # of the transcripts of HH-RLHF
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def field(record: Record, key: str, kind: Kind, expected: str) -> Any:
    """Returns a field. Raises Malformed where it is missing or has another type."""
    if key not in record:
        raise Malformed(
            f"the field {key!r} is missing; the record has {', '.join(map(repr, record)) or 'none'}"
        )
    return checked(record[key], f"the field {key!r}", kind, expected)


def checked(value: Any, name: str, kind: Kind, expected: str) -> Any:
    """Returns the value, or its JSON text parsed. Raises Malformed where it has another type."""
    if isinstance(value, str) and not _is(value, kind):
        value = from_json_text(value)
    if not _is(value, kind):
        raise Malformed(f"{name} is {display.shown(value)}: give {expected}")
    return value


def _is(value: Any, kind: Kind) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def from_json_text(text: str) -> Any:
    """Returns the JSON value of a text, or the text itself if it is no JSON."""
    try:
        return strict_json.loads(text)
    except ValueError:
        return text


def text(record: Record, key: str) -> str:
    """Returns a text field."""
    return field(record, key, str, "a text")


def number(record: Record, key: str) -> float:
    """Returns a finite number."""
    value = field(record, key, (int, float), "a number")
    if problem := strict_json.problem(value, f"the field {key!r}"):
        raise Malformed(problem)
    return value


def id_of(record: Record, keys: Sequence[str]) -> str | None:
    """Returns the first of these fields that is a text or a number, as text; None without one."""
    ids = (record[key] for key in keys if _is(record.get(key), (str, int, float)))
    return next((str(id) for id in ids if id != ""), None)


def own_id(record: Record) -> str | None:
    """Returns the field `id` as text, None without one. Raises Malformed for another type."""
    if record.get("id") in (None, ""):
        return None
    return str(field(record, "id", (str, int, float), "a text or a number"))


def items(record: Record, key: str, of: str = "values") -> list:
    """Returns a list field. of: what it holds, for the error."""
    return field(record, key, list, f"a list of {of}")


def texts(record: Record, key: str) -> list[str]:
    """Returns a list of texts."""
    values = items(record, key, "texts")
    if not all(isinstance(value, str) for value in values):
        raise Malformed(f"the field {key!r} holds an item that is not text")
    return values


def turns(values: Sequence[Any], name: str) -> list[Turn]:
    """Returns chat turns as {"role", "content"}, other fields kept unless they are null.

    The names that ShareGPT uses are replaced (roles as in `types.ROLE_NAMES`), text parts as
    OpenAI's are joined, and tool calls are written below the content.
    """
    if not values:
        raise Malformed(f"{name} has no turns")
    clean = []
    for turn in values:
        checked(turn, f"a turn of {name}", dict, "an object with 'role' and 'content'")
        role = turn.get("role") if turn.get("role") is not None else turn.get("from")
        content = turn.get("content") if turn.get("content") is not None else turn.get("value")
        content, calls = _joined_parts(content), _tool_calls(turn)
        if calls and (content is None or isinstance(content, str)):
            content = "\n".join(filter(None, [content, *calls]))
        if not isinstance(role, str) or not isinstance(content, str):
            raise Malformed(
                f"a turn of {name} is {display.shown(turn)}: role and content must be texts"
            )
        kept = {
            key: value
            for key, value in turn.items()
            if key not in ("from", "value", "tool_calls", "function_call") and value is not None
        }
        clean.append(kept | {"role": _role(role, name), "content": content})
    return clean


def _tool_calls(turn: Record) -> list[str]:
    """Returns a line for each tool call of a turn: "Tool call: NAME(ARGUMENTS)".

    A call is OpenAI's, or LangChain's with `args`. Values of another form are no calls.
    """
    calls = turn.get("tool_calls") or turn.get("function_call")
    lines = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = call if isinstance(call, dict) else {}
        call = call.get("function") or call.get("custom") or call
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            continue
        given = (call[key] for key in ("arguments", "args", "input") if call.get(key) is not None)
        arguments = next(given, "")
        if not isinstance(arguments, str):
            arguments = strict_json.dumps(arguments)
        lines.append(f"Tool call: {call['name']}({arguments})")
    return lines


def _role(role: str, name: str) -> str:
    known = ROLE_NAMES.get(role.lower(), role.lower())
    if known not in ROLES:
        raise Malformed(f"a turn of {name} has the role {role!r:.40}: use {', '.join(ROLES)}")
    return known


def _joined_parts(content: Any) -> Any:
    """Joins [{"type": "text", "text": ...}, ...]; anything else is returned as it is."""
    if isinstance(content, list) and content:
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        joined = [part for part in parts if isinstance(part, str)]
        if len(joined) == len(parts):
            return "".join(joined)
    return content


def query(record: Record, key: str) -> str | list[Turn]:
    """Returns a text, or the turns of a chat."""
    value = field(record, key, (str, list), "a text or a list of turns")
    return turns(value, key) if isinstance(value, list) else value


def transcript(value: str) -> list[Turn]:
    r"""Splits "\n\nHuman: ...\n\nAssistant: ..." (HH-RLHF) into its turns, stripped."""
    pieces = _SPEAKER.split(value)
    return [
        {"role": _SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(pieces[1::2], pieces[2::2])
    ]


def is_transcript(value: Any) -> bool:
    """Whether a value is a transcript as in HH-RLHF, which begins with the human's turn."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")
