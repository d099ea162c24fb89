"""From a comparison to the chat messages of a prompt, through a Jinja file.

A template is data: a file of this package by its name ("grm", "compact_single"), or anybody's file by its path.
It sees
  turns        [{"role", "content"}], the conversation; `query` is the last user text        n   number of responses
  responses    texts in prompt order        reference, principles, hint   texts or None       low, high   the scale
and may state, as top-level `{% set %}` of constants: output ("scores", "choice", "principles" or "scalar"), low, high,
n_min, n_max, needs (names that must not be None).
Everything it writes becomes one user turn.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from pathlib import Path
from typing import Any

from grm_jax.text import fences
from grm_jax.types import Comparison, Principle

FOLDER = Path(__file__).parent / "templates"
FAMILIES = ("grm", "compact")
OUTPUTS = ("scores", "choice", "principles", "scalar")
MOST_RESPONSES = 32


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt template, compiled. name: of a shipped template, or the name of its file.

    output: what a model writes under it.  low, high: the scale of its scores.
    n_min, n_max: numbers of responses it takes.  needs: inputs that must be given.
    markers: the strings that enclose texts.  fingerprint: 12 hex digits over its source and all that it includes.
    """

    name: str
    output: str
    low: float
    high: float
    n_min: int
    n_max: int
    needs: tuple[str, ...]
    markers: tuple[str, ...]
    fingerprint: str
    jinja: Any = dataclasses.field(repr=False, compare=False)


def names() -> list[str]:
    """The templates that ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.jinja"))


def load(name_or_path: str | Path) -> Template:
    """The template of a name ("grm") or of a file's path.

    Raises FileNotFoundError naming the templates there are, or ValueError naming what in the file is wrong.
    """
    text = str(name_or_path)
    if text in names():
        return _load(FOLDER / f"{text}.jinja", text, 0.0)
    path = Path(text).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no template {text!r}: give a file, or one of {', '.join(names())}"
        )
    return _load(path.resolve(), path.name, path.stat().st_mtime)


@functools.lru_cache(maxsize=64)
def _load(path: Path, name: str, changed: float) -> Template:
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    env = SandboxedEnvironment(
        loader=jinja2.FileSystemLoader([path.parent, FOLDER]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    try:
        jinja = env.get_template(path.name)
        settings = _settings(env, path.read_text(encoding="utf-8"))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"template {name!r}, line {error.lineno}: {error.message}") from error
    output = settings.get("output", "scores")
    if output not in OUTPUTS:
        raise ValueError(
            f"template {name!r}: output is {output!r}, it must be one of {', '.join(OUTPUTS)}"
        )
    template = Template(
        name=name,
        output=output,
        low=float(settings.get("low", 1)),
        high=float(settings.get("high", 10)),
        n_min=int(settings.get("n_min", 1)),
        n_max=int(settings.get("n_max", MOST_RESPONSES)),
        needs=tuple(settings.get("needs", ())),
        markers=(),
        fingerprint=_fingerprint(env, path.name),
        jinja=jinja,
    )
    return dataclasses.replace(template, markers=_markers(template))


def _settings(env, source: str) -> dict[str, Any]:
    """The constants that a template sets at its top level."""
    from jinja2 import nodes

    settings = {}
    for node in env.parse(source).body:
        if (
            isinstance(node, nodes.Assign)
            and isinstance(node.target, nodes.Name)
            and isinstance(node.node, nodes.Expr)
        ):
            try:
                settings[node.target.name] = node.node.as_const()
            except nodes.Impossible:
                continue
    return settings


def _fingerprint(env, filename: str) -> str:
    from jinja2 import meta

    digest, todo, seen = hashlib.sha256(), [filename], set()
    while todo:
        name = todo.pop(0)
        if name is None or name in seen:
            continue
        seen.add(name)
        source = env.loader.get_source(env, name)[0]
        digest.update(source.encode())
        todo += sorted(x for x in meta.find_referenced_templates(env.parse(source)) if x)
    return digest.hexdigest()[:12]


def _markers(template: Template) -> tuple[str, ...]:
    """The strings that stand beside texts, found by rendering placeholders in one turn and in several."""
    roles = ("user", "assistant", "system", "tool")
    found: list[str] = []
    for several in (False, True):
        counts = (max(1, template.n_min), min(template.n_max, max(3, template.n_min)))
        for n in dict.fromkeys(counts):
            ids = (f"P{i}\x00Z" for i in itertools.count())
            turns = [
                {"role": role, "content": next(ids)} for role in (roles if several else roles[:1])
            ]
            responses = [next(ids) for _ in range(n)]
            reference, principles = next(ids), next(ids)
            text = _fill(template, turns, responses, reference, principles, None)
            placeholders = [turn["content"] for turn in turns] + responses + [reference, principles]
            found += fences.markers_beside(text, placeholders)
    # What stands between two texts may itself hold a placeholder (a template that puts everything on one line).
    return tuple(dict.fromkeys(m for m in found if "\x00" not in m))


def _fill(template: Template, turns, responses, reference, principles, hint) -> str:
    import jinja2

    users = [turn["content"] for turn in turns if turn["role"] == "user"]
    try:
        text = template.jinja.render(
            turns=turns,
            query=users[-1] if users else turns[-1]["content"],
            responses=responses,
            n=len(responses),
            reference=reference,
            principles=principles,
            hint=hint,
            low=template.low,
            high=template.high,
        )
    except jinja2.UndefinedError as error:
        raise ValueError(
            f"template {template.name!r}: {error}; it may use {', '.join(VARIABLES)}"
        ) from error
    except jinja2.TemplateError as error:
        raise ValueError(f"template {template.name!r}: {error}") from error
    return text.strip("\n")


VARIABLES = ("turns", "query", "responses", "n", "reference", "principles", "hint", "low", "high")


def render(
    name_or_path: str | Path | Template,
    comparison: Comparison,
    order: tuple[int, ...] | None = None,
    principles: str | tuple[Principle, ...] | None = None,
    hint: int | str | None = None,
    critique: str | None = None,
) -> list[dict[str, str]]:
    """The chat messages for a comparison: one user turn, and the critique as an assistant turn where one is given.

    order: order[j] is the caller's index of the response to show at position j; as given when None.
    principles: text, or Principle tuples, for templates that take them.
    hint: the caller's index of the best response (for one response: its correct score), or a sentence; for hinted
    sampling.
    critique: what a judge wrote, unchanged; for the meta reward model and for training.
    Raises ValueError where the template does not take so many responses, or lacks a reference or principles.
    """
    template = name_or_path if isinstance(name_or_path, Template) else load(name_or_path)
    n = comparison.n
    if not template.n_min <= n <= template.n_max:
        raise ValueError(
            f"template {template.name!r} takes {_range(template)}; the comparison has {n}"
        )
    order = tuple(range(n)) if order is None else tuple(order)
    if sorted(order) != list(range(n)):
        raise ValueError(f"order {order} is not a permutation of the {n} responses")
    if "reference" in template.needs and not comparison.reference:
        raise ValueError(
            f"template {template.name!r} shows a reference answer and the comparison has none"
        )
    if "principles" in template.needs and not principles:
        raise ValueError(f"template {template.name!r} takes principles: pass principles=...")
    fence = functools.partial(fences.fence, markers=template.markers)
    turns = [
        {"role": _role(turn["role"]), "content": fence(turn["content"])}
        for turn in comparison.turns
    ]
    text = _fill(
        template,
        turns,
        [fence(comparison.responses[i]) for i in order],
        fence(comparison.reference) if comparison.reference else None,
        fence(principles_text(principles)) if principles else None,
        _hint_text(hint, order),
    )
    messages = [{"role": "user", "content": text}]
    return messages if critique is None else [*messages, {"role": "assistant", "content": critique}]


def _range(template: Template) -> str:
    if template.n_min == template.n_max:
        return f"exactly {template.n_min} response" + "s" * (template.n_min > 1)
    return f"{template.n_min} to {template.n_max} responses"


def _role(role: str) -> str:
    role = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}.get(
        role.lower(), role.lower()
    )
    if role not in ("user", "assistant", "system", "tool"):
        raise ValueError(f"turn has role {role!r:.40}: use user, assistant, system or tool")
    return role


def _hint_text(hint: int | str | None, order: tuple[int, ...]) -> str | None:
    if hint is None or isinstance(hint, str):
        return hint
    if len(order) == 1:
        return f"the correct score is {hint}."
    if hint not in order:
        raise ValueError(f"hint {hint} is not an index of {len(order)} responses")
    return f"the best response is Response {order.index(hint) + 1}."


def principles_text(principles: str | tuple[Principle, ...]) -> str:
    """Principles as a template shows them: "1. Name (40%): what it asks", one a line."""
    if isinstance(principles, str):
        return principles.strip()
    lines = []
    for i, principle in enumerate(principles, start=1):
        weight = "" if principle.weight is None else f" ({principle.weight:g}%)"
        lines.append(f"{i}. {principle.name}{weight}: {principle.description}".rstrip(": "))
    return "\n".join(lines)


def choose(family: str, comparison: Comparison, principles=None) -> str:
    """The member of a family ("grm" or "compact") for a comparison; any other name as it is.

    Given principles decide first, then a reference answer, then whether there is one response or several.
    """
    if family not in FAMILIES:
        return family
    if principles:
        return f"{family}_given_principles"
    if comparison.reference:
        return f"{family}_reference"
    return f"{family}_single" if comparison.n == 1 else family
