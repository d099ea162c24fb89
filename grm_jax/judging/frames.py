"""Comparisons from Python objects, and verdicts as tables of pandas and `datasets`.

    verdicts = judge(pandas.read_parquet("pairs.parquet"))       # or a datasets.Dataset
    to_pandas(verdicts)[["best", "scores"]]

A data frame or a data set is recognised by its methods: neither library is imported to read one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from grm_jax.data.comparisons import record_rows
from grm_jax.data.records import Record
from grm_jax.data.tables import plain
from grm_jax.judging import codec
from grm_jax.types import Comparison, Verdict

if TYPE_CHECKING:
    import datasets
    import pandas

Fields: TypeAlias = Mapping[str, Any]  # one record, in a layout of `data.layouts`


class Frame(Protocol):
    """What is used of a pandas DataFrame."""

    columns: Any

    def convert_dtypes(self) -> Any:
        """Returns a copy with integers, texts and missing values as such."""


# A `datasets.Dataset` is an iterable of records.
Comparisons: TypeAlias = Comparison | Fields | Iterable[Comparison | Fields] | Frame


def comparisons_from(data: Comparisons, layout: str | None = None) -> list[Comparison]:
    """Returns the comparisons of one or several Python objects, in their order.

    Args:
      data: a Comparison, a record (a dict in a layout of docs/data.md), a list of these, a pandas
        DataFrame, or a split of a `datasets` data set.
      layout: of all records, a name of `LAYOUTS`; detected for each if None.

    Raises:
      TypeError: data, or an item of it, is none of these.
      ValueError: the first record that is not a comparison, with its index.
    """
    if isinstance(data, (str, bytes)) or hasattr(data, "__fspath__"):
        raise TypeError(
            f"comparisons is the text {str(data)!r:.60}: pass Comparison(query, responses), or "
            "call judge.rank(query, responses); `grm judge` and judging.run.judge_file take files"
        )
    comparisons = []
    for i, item in enumerate(_items(data)):
        if isinstance(item, Comparison):
            comparisons.append(item)
            continue
        if not isinstance(item, Mapping):
            raise TypeError(
                f"comparisons[{i}] is a {type(item).__name__}: pass Comparison(query, responses), "
                "or a dict with the fields of a comparison"
            )
        fields = {str(key): plain(value) for key, value in item.items() if not _is_missing(value)}
        for row in record_rows(Record(i + 1, i + 1, fields), layout, f"record-{i}"):
            if row.comparison is None:
                raise ValueError(f"comparisons[{i}]: {row.reason}")
            comparisons.append(row.comparison)
    return comparisons


def _items(data: Any) -> Iterator[Any]:
    if isinstance(data, Comparison) or (isinstance(data, Mapping) and not _has_splits(data)):
        return iter([data])
    if isinstance(data, Mapping):
        raise TypeError(
            f"comparisons has the splits {', '.join(data)}: pass one of them, such as "
            f"data[{next(iter(data))!r}]"
        )
    if hasattr(data, "convert_dtypes") and hasattr(data, "columns"):  # a pandas DataFrame
        if not data.columns.is_unique:
            repeated = data.columns[data.columns.duplicated()][0]
            raise ValueError(f"comparisons has the column {repeated!r:.60} twice: rename one")
        # A column of whole numbers with a missing value has become floats: labels are integers.
        return iter(data.convert_dtypes().to_dict("records"))
    if not isinstance(data, Iterable):
        raise TypeError(
            f"comparisons is a {type(data).__name__}: pass Comparison(query, responses), or a list"
        )
    return iter(data)


def _has_splits(data: Mapping[str, Any]) -> bool:
    """Whether data is a `datasets.DatasetDict`."""
    return any(hasattr(value, "column_names") for value in data.values())


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or pandas' NA and NaT."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


# ---------------------------------------------------------------- verdicts


def to_pandas(verdicts: Sequence[Verdict]) -> pandas.DataFrame:
    """Returns a data frame with a row per verdict: id, scores, best, tie, votes, critiques, ...

    The columns are the fields that `grm judge` writes. `best` is an integer, or NA.
    """
    import pandas

    columns = list(codec.verdict_to_json(Verdict(None, (), None, (), 0)))
    frame = pandas.DataFrame(map(codec.verdict_to_json, verdicts), columns=columns)
    return frame.astype({"best": "Int64"})


def to_dataset(verdicts: Sequence[Verdict]) -> datasets.Dataset:
    """Returns a `datasets.Dataset` with the columns of `to_pandas`."""
    import datasets

    return datasets.Dataset.from_list([codec.verdict_to_json(verdict) for verdict in verdicts])
