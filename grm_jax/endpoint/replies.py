"""Parses the reply of an OpenAI-compatible server: its text, or why it has none.

An error object, a refusal, a filtered or an empty text is not a completion, for any status of
the reply.
"""

import dataclasses
from typing import Any

from grm_jax import strict_json
from grm_jax.display import outside_text

# Reasons for which a text ends; None if the server gives none. Others are a failed try.
_FINISH = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "end_turn": "stop",
    "stop_sequence": "stop", "length": "length", "max_tokens": "length", "": None, None: None,
}  # fmt: skip
# Error codes that hold for every request.
_REFUSED = ("invalid_api_key", "model_not_found", "insufficient_quota")
_TEXT_PARTS = ("text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning", "reasoning_content")  # not part of the answer


@dataclasses.dataclass(frozen=True)
class Completion:
    """A text that is not empty, why it ended ("stop", "length" or None), and its token counts."""

    text: str
    finish: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None


class BadReply(ValueError):
    """A reply without a completion.

    kind: for counts.  refused: the server refuses every request alike.
    """

    def __init__(self, kind: str, detail: str, refused: bool = False):
        super().__init__(detail)
        self.kind, self.refused = kind, refused


def parse_completion(reply: Any) -> Completion:
    """Returns the completion of a reply's JSON value. Raises BadReply for anything else."""
    reply = parse_object(reply, "no completion")
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReply("no completion", f"no choice: choices = {_shown(choices)}")
    choice = choices[0]
    if choice.get("error"):
        raise _error(choice)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadReply("no completion", f"no message: message = {_shown(message)}")
    if message.get("refusal"):
        raise BadReply("refusal", f"a refusal: {_shown(message['refusal'])}")
    finish = choice.get("finish_reason")
    name = finish.lower() if isinstance(finish, str) else finish
    if not isinstance(name, str | None) or name not in _FINISH:
        raise BadReply("finish_reason", f"finish_reason = {_shown(finish)}")
    text = join_content(message.get("content"))
    usage = reply.get("usage")
    counts = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    return Completion(text, _FINISH[name], *counts)


def parse_object(reply: Any, kind: str) -> dict[str, Any]:
    """Returns a reply's JSON object. Raises BadReply, of `kind` or "error", for anything else."""
    if not isinstance(reply, dict):
        raise BadReply(kind, f"{_shown(reply)}, not an object")
    if reply.get("error"):
        raise _error(reply)
    return reply


def join_content(content: Any) -> str:
    """Returns the text of a message's content, a text or a list of parts.

    Raises BadReply for other values, an empty text, or one that UTF-8 cannot hold.
    """
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, dict) and isinstance(content, list):
            if part.get("type") in _THOUGHT_PARTS:
                continue
            part = part.get("text") if part.get("type", "text") in _TEXT_PARTS else part
        elif isinstance(content, list):
            part = None
        if not isinstance(part, str):
            kind = "empty text" if content is None else "no text"
            raise BadReply(kind, f"no text: content = {_shown(content)}")
        texts.append(part)
    text = "".join(texts)
    if not text.strip():
        raise BadReply("empty text", "an empty text")
    if strict_json.surrogate(text, "content"):
        raise BadReply("no text", "half a surrogate pair in the text")
    return text


def parse_models(reply: Any) -> list[str]:
    """Returns the names of a list of models. Raises BadReply for anything else."""
    data = reply.get("data") if isinstance(reply, dict) else None
    models = data if isinstance(data, list) else []
    names = [model.get("id") if isinstance(model, dict) else None for model in models]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise BadReply("no models", f"no list of models: {_shown(reply)}")
    return [outside_text(name) for name in names]


def parse_error(body: bytes) -> tuple[str, bool]:
    """Returns (the message of an error's body, whether every request gets it)."""
    try:
        reply = strict_json.loads(body)
    except ValueError:
        return body.decode(errors="replace"), False
    error = _error(reply if isinstance(reply, dict) and reply.get("error") else {"error": reply})
    return error.message, error.refused


class _Error(BadReply):
    message: str


def _error(holder: dict[str, Any]) -> _Error:
    """The BadReply of {"error": text or {"message", "code", "type"}}."""
    error = holder["error"]
    fields = error if isinstance(error, dict) else {"message": error}
    message = fields.get("message")
    text = message if isinstance(message, str) else _shown(error)
    codes = {value for key in ("code", "type") if isinstance(value := fields.get(key), str)}
    made = _Error("error", f"an error: {outside_text(text)}", bool(codes & set(_REFUSED)))
    made.message = text
    return made


def _count(usage: Any, name: str) -> int | None:
    """Returns usage[name] if it is a number of tokens."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 1 << 31 else None


def _shown(value: Any) -> str:
    return outside_text(repr(value)[:200])
