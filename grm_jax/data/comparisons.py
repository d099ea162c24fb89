"""Reads comparisons from files in a published layout, for training and for `grm judge`.

    for comparison in read_comparisons("train.jsonl.gz", "skywork"): ...     # training
    for row in read_rows("pairs.jsonl"): ...                                 # `grm judge`

Training skips malformed records up to a share, and places the responses: published pairs have the
better response first, so their order must not depend on it. `grm judge` keeps the published order
(its prompts show several orders) and returns a reason for each record that it cannot judge.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grm_jax.data.fields import checked, field, id_of
from grm_jax.data.layouts import LAYOUTS, Layout, permutation
from grm_jax.data.preferences import CONVERSATIONS, PAIR, check_unambiguous
from grm_jax.data.records import Account, Malformed, Record, Unusable, read_records
from grm_jax.data.sources import name_of
from grm_jax.data.tables import NotUtf8
from grm_jax.display import outside_text, shown
from grm_jax.types import Comparison

_ID_FIELDS = ("id", "bon_uid", "pair_uid", "prompt_id")


def placed(comparison: Comparison) -> Comparison:
    """Returns the comparison with its responses in an order drawn from its id, the label with them.

    Raises ValueError where there is no id.
    """
    if comparison.id is None:
        raise ValueError("a comparison without an id: the order of its responses depends on it")
    order, label = permutation(comparison.id, comparison.n), comparison.label
    if isinstance(label, int):
        label = order.index(label)
    elif label is not None:
        label = tuple(label[i] for i in order)
    responses = tuple(comparison.responses[i] for i in order)
    return dataclasses.replace(comparison, responses=responses, label=label)


def simplified(comparison: Comparison) -> Comparison:
    """Returns the comparison with turns of role and content only; one user turn becomes text."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in comparison.turns]
    single = len(turns) == 1 and turns[0]["role"] == "user"
    return dataclasses.replace(comparison, query=turns[0]["content"] if single else turns)


def from_json(fields: dict[str, Any]) -> Comparison:
    """Returns the comparison whose `dataclasses.asdict` was written as JSON."""
    label = fields["label"]
    return Comparison(**{**fields, "label": tuple(label) if isinstance(label, list) else label})


# ---------------------------------------------------------------- training


def read_comparisons(
    paths: str | Path | Iterable[str | Path],
    layout: str | None = None,
    max_skipped: float = 0.01,
    account: Account | None = None,
    where: Mapping[str, Any] | None = None,
) -> Iterator[Comparison]:
    """Yields the comparisons of sources in file order, their responses placed.

    Args:
      paths: one source or several (`sources.local_files`).
      layout: a name of `LAYOUTS`, detected for each record if None.
      max_skipped: share of records that may be malformed; those are logged and skipped.
      account: filled with counts; its `max_share` is set to `max_skipped`.
      where: {field: value} that a record must have; others are not counted.

    Raises:
      TooManyMalformed: after 100 records or at the end, if the share is exceeded.
    """
    _check_layout(layout)
    account = Account() if account is None else account
    account.max_share = max_skipped
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        stem = name_of(path)
        for record in read_records(path):
            if where and not record.problem and not where.items() <= record.fields.items():
                continue
            yield from convert(record, layout, f"{stem}-{record.line}", str(path), account)
            account.check()
    account.check(final=True)


def convert(
    record: Record, layout: str | None, name: str, path: str, account: Account
) -> list[Comparison]:
    """Returns the comparisons of one record for training, [] if it is malformed or unusable.

    The account counts the record. layout: as in `read_comparisons`. path: its file, for the log.
    """
    account.seen += 1
    try:
        chosen, comparisons = _read(record, layout, name)
        comparisons = [simplified(c) for c in comparisons]
        for comparison in comparisons:
            _check_trainable(comparison)
        return comparisons if chosen.keeps_order else [placed(c) for c in comparisons]
    except Unusable as error:
        account.unusable[str(error)] += 1
    except ValueError as error:  # Malformed, and what Comparison itself refuses
        account.report(path, record.line, str(error))
    return []


def _check_trainable(comparison: Comparison) -> None:
    """Raises Unusable for a comparison that no critique can be right about."""
    if _identical(comparison):
        raise Unusable("the responses are identical")
    if comparison.n == 1 and comparison.label is None:
        raise Unusable("a single response without a label")
    if comparison.n > 1 and comparison.best is None:
        raise Unusable("no single best response")
    if comparison.best is not None and not is_distinct(comparison, comparison.best):
        raise Unusable("another response is equal to the best one")


def is_distinct(comparison: Comparison, i: int) -> bool:
    """Returns whether no other response has the text of response i."""
    return comparison.responses.count(comparison.responses[i]) == 1


# ---------------------------------------------------------------- grm judge


@dataclasses.dataclass(frozen=True)
class InputRow:
    """One comparison of an input file, or the reason why there is none.

    number: of its line, from 1; "LINE.i" for the i-th of several comparisons of one record.
    """

    number: int | str
    comparison: Comparison | None
    reason: str | None = None
    id: str | None = None


def read_rows(path: str | Path, layout: str | None = None) -> Iterator[InputRow]:
    """Yields the comparisons of a source in their published order; a bad record gives its reason.

    layout: a name of `LAYOUTS`, detected for each record if None. A comparison's id is the record's
    own, or None. Raises ValueError for an unknown layout or a source without records, and what
    `read_records` raises.
    """
    _check_layout(layout)
    record = None
    for record in read_records(path):
        yield from record_rows(record, layout, f"{name_of(path)}-{record.line}")
    if record is None:
        raise ValueError(f"{path} has no rows: it has no records")


# ---------------------------------------------------------------- one record


def _check_layout(layout: str | None) -> None:
    if layout is not None:
        LAYOUTS[layout]


def _read(record: Record, layout: str | None, name: str) -> tuple[Layout, list[Comparison]]:
    """Returns a record's layout and comparisons. Raises Malformed or Unusable."""
    if record.problem:
        raise Malformed(record.problem)
    # In a table every record has every column: null stands for a field that is absent.
    fields = {key: value for key, value in record.fields.items() if value is not None}
    try:
        chosen = LAYOUTS[layout or detect(record.fields)]
        if isinstance(fields.get("label"), str) and not record.is_table:
            raise Malformed(
                f"the field 'label' is the text {shown(fields['label'])}: give a number, a list of "
                "numbers, true or false"
            )
        comparisons = [
            dataclasses.replace(c, label=None) if _identical(c) else c
            for c in chosen.read(fields, name)
        ]
        for c in comparisons:
            texts = [*c.responses, c.reference, *(turn["content"] for turn in c.turns)]
            if any(isinstance(text, NotUtf8) for text in texts):
                raise Malformed("a text of the comparison is not UTF-8")
        if not all(any(turn["content"].strip() for turn in c.turns) for c in comparisons):
            raise Malformed("the query is empty: its turns have no text")
        return chosen, comparisons
    except ValueError:
        raise
    except Exception as error:  # an odd record must not end the reading of the others
        raise Malformed(f"{type(error).__name__}: {error}") from error


def _identical(comparison: Comparison) -> bool:
    """Whether there are several responses, all with the same text: none of them is best."""
    return comparison.n > 1 and len(set(comparison.responses)) == 1


def detect(record: dict[str, Any]) -> str:
    """Returns the name of the layout that a record fits. Raises Malformed for none or several."""
    fields = {key: value for key, value in record.items() if value is not None}
    fitting = [
        name for name, layout in LAYOUTS.items() if layout.matches and layout.matches(fields)
    ]
    if fitting == ["comparison"]:
        check_unambiguous(fields)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        _check_nearly(record, fields)
    if not fields:
        raise Malformed("the record has no fields: give prompt, chosen and rejected")
    problem = f"both {' and '.join(fitting)}" if fitting else "no format"
    names = outside_text(", ".join(map(str, list(fields)[:8])))
    raise Malformed(
        f"the fields {names} fit {problem}: name one with "
        "--format, or with layout= in Python, or "
        + ("remove those of one" if fitting else "rename them to prompt, chosen and rejected")
    )


def _check_nearly(record: dict[str, Any], fields: dict[str, Any]) -> None:
    """Raises Malformed for the one field that a record lacks, or has with a wrong value.

    fields: those that are not null.
    """
    for pair in (PAIR, ("preferred_output", "non_preferred_output")):
        absent = [key for key in pair if key not in fields]
        if nulls := [key for key in absent if key in record]:
            raise Malformed(f"the field {nulls[0]!r} is null: give a text or a chat")
        if len(absent) == 1:
            field(fields, absent[0], object, "a text or a chat")
    if "label" in fields and not fields.keys().isdisjoint(("completion", *CONVERSATIONS)):
        checked(fields["label"], "the field 'label'", bool, "true or false")


def record_rows(record: Record, layout: str | None, name: str) -> list[InputRow]:
    """Returns the comparisons of one record, or the reason why there is none.

    name: of the record, from which the ids of several comparisons are made.
    """
    number, id = record.number, id_of(record.fields, _ID_FIELDS)
    try:
        _, comparisons = _read(record, layout, name)
    except ValueError as error:
        return [InputRow(number, None, str(error), id)]
    if len(comparisons) == 1:
        return [InputRow(number, dataclasses.replace(comparisons[0], id=id), None, id)]
    return [InputRow(f"{number}.{i}", c, None, c.id) for i, c in enumerate(comparisons, 1)]
