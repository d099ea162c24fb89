"""Renders a comparison into the chat messages of a prompt, through a Jinja template.

Shipped templates are files FAMILY/ROLE.jinja in the folder `templates`. Every family ("grm",
"compact") has the same roles: "judge" for several responses, "single" for one, "meta_rm",
"principles", and so on. A user's template is a file of its own, named by its path.

A template sees these variables:
  turns        the conversation, [{"role", "content"}]       query       the last user text
  responses    texts in prompt order                         n           their number
  reference, principles, hint   texts or None                low, high   the scale of the scores
It may set these constants at its top level: output ("scores", "choice", "principles" or "scalar"),
low, high, n_min, n_max, needs (of "reference" and "principles", those that must not be None). Its
whole output becomes one user turn.

A template is rendered with stand-ins for the texts, which are filled in afterwards (`layout`). It
must print them as they are, between markers that can be protected (`fences`).
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.loaders import split_template_path

from grm_jax import storage, strict_json
from grm_jax.model_files import check_file, exists, read_bytes
from grm_jax.text import fences, inspection, layout, sandbox
from grm_jax.text.inspection import MAX_RESPONSES
from grm_jax.text.layout import NEEDS, Shape, Template
from grm_jax.types import ROLE_NAMES, ROLES, Comparison, Principle

FOLDER = Path(__file__).parent / "templates"
FAMILIES = tuple(sorted((path.parent.name for path in FOLDER.glob("*/judge.jinja")), reverse=True))
OUTPUTS = ("scores", "choice", "principles", "scalar")
PREFIX = "prompt_"  # of a user's template in a model folder
MAX_SCALE = 1_000_000


# ---------------------------------------------------------------- names


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the shipped templates."""
    return tuple(sorted(f"{p.parent.name}/{p.stem}" for p in FOLDER.glob("*/[!_]*.jinja")))


def canonical_name(name: str) -> str:
    """ "FAMILY/ROLE" of a shipped template.

    A family alone means its role "judge". Names of earlier versions ("grm_single", "meta_rm",
    "compact_meta_rm") are translated. Any other name, such as a path, is returned as it is. A
    fingerprint after "@" is kept.
    """
    base, at, fingerprint = name.partition("@")
    if base in FAMILIES:
        return f"{base}/judge{at}{fingerprint}"
    family, _, role = base.partition("_")
    for candidate in (f"{family}/{role}", f"{FAMILIES[0]}/{base}"):
        if candidate in names():
            return candidate + at + fingerprint
    return name


def family_of(name: str) -> str:
    """The family of a template's name; the first family for a user's own template."""
    family = canonical_name(name).partition("/")[0]
    return family if family in FAMILIES else FAMILIES[0]


def role_template(name: str, role: str) -> str:
    """Another role of the same family: ("compact", "meta_rm") gives "compact/meta_rm"."""
    return f"{family_of(name)}/{role}"


def choose(name: str, comparison: Comparison, principles: object = None) -> str:
    """Chooses the role of a family that fits a comparison; any other template fits all.

    Given principles decide first, then a reference answer, then the number of responses.
    """
    if name not in FAMILIES:
        return name
    if principles:
        return f"{name}/given_principles"
    if comparison.reference:
        return f"{name}/reference"
    return f"{name}/single" if comparison.n == 1 else f"{name}/judge"


def single_binary(name: str) -> str:
    """The template of the same family and variant that scores one response 0 or 1, if any."""
    base = canonical_name(name).removesuffix("judge")
    binary = f"{base}single_binary" if base.endswith("/") else f"{base}_single_binary"
    return binary if binary in names() else name


# ---------------------------------------------------------------- loading


def load(name_or_path: str | Path) -> Template:
    """Loads a shipped template by name ("grm/single", or "grm" for "grm/judge"), or a file by path.

    Raises FileNotFoundError that lists the shipped templates, or ValueError that names the fault.
    """
    name = canonical_name(str(name_or_path))
    if name in names():
        return _load(FOLDER / f"{name}.jinja", name, 0.0)
    try:
        path = Path(name).expanduser()
        is_file = path.is_file()
    except (OSError, RuntimeError):  # a name that is too long; the home of an unknown user
        is_file = False
    if not is_file:
        raise FileNotFoundError(
            f"no template {name!r:.200}: give a file, or one of {', '.join(names())}"
        )
    return _load(path.resolve(), path.name, path.stat().st_mtime)


@functools.lru_cache(maxsize=64)
def _load(path: Path, name: str, mtime: float) -> Template:
    """Compiles a file, again once `mtime` changes; edits of included files are not noticed."""
    env = sandbox.Environment(
        loader=jinja2.FunctionLoader(functools.partial(_source, [path.parent, FOLDER])),
        undefined=jinja2.StrictUndefined,
    )
    what = f"template {name!r}"
    with sandbox.guard(what):
        jinja = env.get_template(path.name)
        sources = inspection.sources(env, path.name)
        settings = inspection.settings(env, sources)
        digest = hashlib.sha256("".join(sources.values()).encode("utf-8", "surrogatepass"))
    try:
        template = Template(
            name,
            **_checked(settings),
            fingerprint=digest.hexdigest()[:12],
            jinja=jinja,
            own=name not in names(),
            files=tuple(
                (name, text) for name, text in sources.items() if exists(path.parent / name)
            ),
        )
        markers = layout.all_markers(template)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(what) else f"{what}: {message}") from error
    return dataclasses.replace(template, markers=markers)


def _source(folders: list[Path], name: str) -> str | None:
    """The source of a template in the first folder that has it; never of a file elsewhere."""
    parts = split_template_path(name)
    for folder in folders:
        if exists(file := folder.joinpath(*parts)):
            data = read_bytes(file, most=4 * sandbox.MAX_SOURCE)
            try:
                source = strict_json.decoded(data)
            except ValueError as error:
                raise ValueError(f"{file.name} is {error}") from None
            return sandbox.check_source(source, file.name)
    return None


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a template, converted. Raises ValueError that names a wrong one."""
    needs, fields = settings["needs"], {k: v for k, v in settings.items() if k != "needs"}
    for name, value in fields.items():
        kinds = (str,) if name == "output" else (int,) if name.startswith("n_") else (int, float)
        if type(value) not in kinds or (name != "output" and not abs(value) <= MAX_SCALE):
            what = "a text" if name == "output" else f"a number up to {MAX_SCALE:,}"
            raise ValueError(f"{name} is {value!r:.40}: set {what}")
    low, high, n_min, n_max = (fields[name] for name in ("low", "high", "n_min", "n_max"))
    if fields["output"] not in OUTPUTS:
        raise ValueError(f"output is {fields['output']!r:.40}, not one of {', '.join(OUTPUTS)}")
    if low >= high:
        raise ValueError(f"the scale is {low:g} to {high:g}: set low below high")
    if not 1 <= n_min <= n_max <= MAX_RESPONSES:
        raise ValueError(f"n_min is {n_min} and n_max {n_max}: set 1 to {MAX_RESPONSES} responses")
    if not isinstance(needs, list | tuple) or not all(need in NEEDS for need in needs):
        raise ValueError(f"needs is {needs!r:.40}: list some of {', '.join(NEEDS)}")
    return {**fields, "low": float(low), "high": float(high), "needs": tuple(needs)}


# ---------------------------------------------------------------- templates of model folders


def in_folder(name: str, folder: Path) -> str:
    """Returns a template that a model folder names: a shipped name, or the path of its own file.

    Raises ValueError for any other path: a folder decides about its own files alone.
    """
    if name in FAMILIES or canonical_name(name) in names():
        return name
    if Path(name).name != name or not exists(folder / name):
        raise ValueError(
            f"template={name!r:.100} is neither shipped nor a file in this folder: give other "
            "files as --template"
        )
    check_file(folder / name)
    return str(folder / name)


def save(name: str, folder: Path) -> str:
    """Copies a user's template and its included files into a model folder.

    Returns the name for `in_folder`; that of a shipped template as it is.
    """
    template = load(name)
    if not template.own:
        return name
    main = PREFIX + template.name.removeprefix(PREFIX)
    for i, (included, source) in enumerate(template.files):
        storage.write_atomic(folder / (included if i else main), source)
    return main


# ---------------------------------------------------------------- rendering


def render(
    name_or_path: str | Path | Template,
    comparison: Comparison,
    order: Sequence[int] | None = None,
    principles: str | tuple[Principle, ...] | None = None,
    hint: int | str | None = None,
    critique: str | None = None,
) -> list[dict[str, str]]:
    """Renders the chat messages for a comparison: one user turn, then the critique if there is one.

    Every text is sanitised first, so that it cannot end its own block of the prompt (`fences`).

    Args:
      order: order[j] is the caller's index of the response at position j; None keeps the order.
      principles: text or Principle tuples, for templates that show principles.
      hint: the caller's index of the best response (for one response: its correct score), or a
        sentence. For hinted sampling.
      critique: the judge's text, unchanged, as the assistant's turn. For training and the meta RM.

    Raises:
      ValueError: the template does not take this many responses, or an input it needs is missing.
    """
    template = name_or_path if isinstance(name_or_path, Template) else load(name_or_path)
    n, name = comparison.n, template.name
    if not template.n_min <= n <= template.n_max:
        raise ValueError(f"template {name!r} takes {_range(template)}; the comparison has {n}")
    order = tuple(range(n)) if order is None else tuple(order)
    if sorted(order) != list(range(n)):
        raise ValueError(f"order {order} is not a permutation of the {n} responses")
    if "reference" in template.needs and not comparison.reference:
        raise ValueError(f"template {name!r} shows a reference answer and the comparison has none")
    if "principles" in template.needs and not principles:
        raise ValueError(f"template {name!r} takes principles: pass principles=...")
    shape = Shape(
        roles=tuple(_role(turn["role"]) for turn in comparison.turns),
        n=n,
        reference=bool(comparison.reference),
        principles=bool(principles),
        hint=hint is not None,
    )
    texts = [
        *(turn["content"] for turn in comparison.turns),
        *(comparison.responses[i] for i in order),
        comparison.reference or "",
        principles_text(principles) if principles else "",
        _hint_text(hint, order) or "",
    ]
    places, markers = layout.layout_of(template, shape)
    layout.check_turns(template, comparison.turns, places)
    hint_index = len(texts) - 1  # a sentence of the caller, which is not sanitised
    pieces = [
        (piece, slot is not None and slot.index != hint_index) for piece, slot in places.fill(texts)
    ]
    text = fences.join(pieces, (*template.markers, *markers), (template.low, template.high))
    messages = [{"role": "user", "content": text.strip("\n")}]
    return messages if critique is None else [*messages, {"role": "assistant", "content": critique}]


def _range(template: Template) -> str:
    if template.n_min == template.n_max:
        return f"exactly {template.n_min} response" + "s" * (template.n_min > 1)
    return f"{template.n_min} to {template.n_max} responses"


def _role(role: str) -> str:
    role = ROLE_NAMES.get(role.lower(), role.lower())
    if role not in ROLES:
        raise ValueError(f"turn has role {role!r:.40}: use {', '.join(ROLES)}")
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
    """Principles as a template shows them, one a line: "1. Name (40%): description"."""
    if isinstance(principles, str):
        return principles.strip()
    lines = []
    for i, principle in enumerate(principles, start=1):
        weight = "" if principle.weight is None else f" ({principle.weight:g}%)"
        lines.append(f"{i}. {principle.name}{weight}: {principle.description}".rstrip(": "))
    return "\n".join(lines)
