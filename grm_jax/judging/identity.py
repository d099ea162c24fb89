"""The identity of a run: everything that its rows depend on. A resumed run needs the same one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from grm_jax.data.comparisons import InputRow
from grm_jax.judging import codec
from grm_jax.judging.judge import Judge
from grm_jax.judging.meta import MetaRM
from grm_jax.judging.options import Options
from grm_jax.judging.scalar import ScalarJudge
from grm_jax.run_store import content_of
from grm_jax.types import Comparison

# Fields of a judge that no verdict depends on, or that the identity has under another name: the
# model stands for the sampler and the expected scores, the options have the length.
FREE_OF_JUDGE = ("sampler", "expected", "max_new_tokens", "name", "single", "principles_cache")
# The same of `RunConfig`.
FREE_OF_RUN = ("existing", "chunk", "progress", "cost_path", "shard")
HEADER_ONLY = ("templates", "context", "padding_id", "private")  # not in the rows

OTHER_INPUT = "was judged from another input (texts, references or labels)"  # see `is_of_row`


def run_identity(judge: Judge, options: Options, digest: str) -> dict[str, Any]:
    """Returns everything that the verdicts of a run depend on: settings, models, input.

    A scalar reward model has no options, and its chat template is part of the tokenizer.
    A field of `Options` or `Judge` is in it unless it is listed above, so a new one counts.
    Templates and tokenizers count by their content.
    """
    if isinstance(judge, ScalarJudge):
        names = {name: getattr(judge, name) for name in ("context", "padding_id")}
        scalar = {"kind": codec.SCALAR, "model": judge.name, "input": digest, "template": None}
        scalar |= {"templates": "", "tokenizer": judge.tokenizer.fingerprint}
        return scalar | names | dict(judge.settings)
    identity = dataclasses.asdict(options)
    principles = identity.pop("given_principles")
    if principles is not None:
        identity["principles"] = f"given@{_hash([principles])}"
    identity |= {
        "model": judge.name,
        "meta_rm": getattr(judge.meta_rm, "name", None),
        "input": digest,
        "template": _label(judge),
        "templates": templates_of(judge),
        "tokenizer": getattr(judge.tokenizer, "fingerprint", None),
    }
    if isinstance(judge.meta_rm, MetaRM):
        identity["meta_template"] = _named(judge.meta_rm.template, judge.meta_rm)
        identity["meta_likelihood"] = judge.meta_rm.likelihood
    rest = {name: getattr(judge, name) for name in field_names(judge, FREE_OF_JUDGE)}
    return identity | rest.pop("settings") | {k: v for k, v in rest.items() if k not in identity}


def field_names(settings: Any, free: Collection[str] = ()) -> list[str]:
    """Returns the fields of a dataclass without those in `free`."""
    return [field.name for field in dataclasses.fields(settings) if field.name not in free]


def templates_of(judge: Judge) -> str:
    """Returns "names@fingerprint" of the files of a judge's templates as they are now.

    "" for a scalar reward model, which has none.
    """
    return "" if judge.is_scalar else _named(_label(judge), judge)


def _label(judge: Judge) -> str:
    return f"{judge.family}, {judge.single}" if judge.single else judge.family


def _named(name: str, judge: Judge | MetaRM) -> str:
    """Returns "name@fingerprint" of all templates that a judge chooses from."""
    return f"{Path(name).name}@{_hash([t.fingerprint for t in judge.templates()])}"


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def row_fields(
    judge: Judge, options: Options, identity: Mapping[str, Any], comparison: Comparison | None
) -> dict[str, Any]:
    """Returns the identity as the output row of a comparison has it; None for an error row.

    The template is the one that the comparison was judged under, "name@fingerprint".
    """
    fields = {name: value for name, value in identity.items() if name not in HEADER_ONLY}
    fields |= {"input": identity["input"][:12], "template": None}
    if comparison is not None and not judge.is_scalar:
        template = judge.template_for(comparison, options)
        fields["template"] = f"{template.name}@{template.fingerprint}"
    return fields


def difference(
    judge: Judge,
    row: InputRow,
    record: codec.OutputRow,
    options: Options,
    identity: Mapping[str, Any],
) -> str:
    """Returns the first difference in settings between an output row and the run, or ""."""
    fields = row_fields(judge, options, identity, None if record.get("error") else row.comparison)
    for name, value in fields.items():
        old = record.get(name, value)
        if content_of(old) != content_of(value):
            return f"was judged with {name} = {old!r:.80}, now it is {value!r:.80}"
    return ""


def is_of_row(record: codec.OutputRow, row: InputRow) -> bool:
    """Returns whether an output row has the id of an input row, or none, as in earlier versions."""
    id = str(row.number) if row.id is None else row.id
    return record.get("id", id) == id
