"""Judges the comparisons of a benchmark, and reads and writes the files of judged comparisons."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grm_jax import strict_json
from grm_jax.data.comparisons import InputRow
from grm_jax.data.records import read_records, strict_records
from grm_jax.display import shown
from grm_jax.evals.benchmark import Benchmark
from grm_jax.evals.judged import JudgedComparison, from_row
from grm_jax.hosts import distributed
from grm_jax.judging.codec import is_scalar
from grm_jax.judging.options import Options
from grm_jax.judging.row_schema import ROW, are_numbers, field_problem, row_problem
from grm_jax.run_store import RunStore
from grm_jax.storage import write_atomic
from grm_jax.types import Comparison

if TYPE_CHECKING:  # JAX is imported only to judge with a model
    from grm_jax.judging.judge import Judge
    from grm_jax.judging.run import RunConfig


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark, the comparisons of it to judge, how many it has, and the files of its data."""

    benchmark: Benchmark
    comparisons: Sequence[Comparison]
    total: int
    read: frozenset[Path] = frozenset()


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The judged comparisons of a task: by whom, greedily as well, at what cost (see `measure`)."""

    judged: Sequence[JudgedComparison]
    judge: dict
    greedy: Sequence[JudgedComparison] | None = None
    cost: Mapping = dataclasses.field(default_factory=dict)


def choose(
    comparisons: Sequence[Comparison], limit: int | None, subset: str | None = None
) -> list[Comparison]:
    """Selects one subset, and of it `limit` comparisons with the smallest hashes of their ids.

    The same limit selects the same comparisons everywhere; the order stays.
    Raises ValueError for an unknown subset.
    """
    selected = list(comparisons)
    if subset is not None:
        names = sorted({str(c.meta.get("subset")) for c in selected})
        selected = [c for c in selected if str(c.meta.get("subset")) == subset]
        if not selected:
            raise ValueError(f"no subset {subset!r}: use one of {', '.join(names)}")
    if limit is None or limit >= len(selected):
        return selected
    ranked = sorted(selected, key=lambda c: hashlib.sha256(str(c.id).encode()).digest())
    ids = {c.id for c in ranked[:limit]}
    return [c for c in selected if c.id in ids]


# ---------------------------------------------------------------- judge


def judge_with_model(
    judge: Judge,
    comparisons: Sequence[Comparison],
    output: str | Path,
    options: Options,
    config: RunConfig | None = None,
) -> tuple[list[JudgedComparison], dict[str, float]]:
    """Judges comparisons into rows of `grm judge`, or resumes a run with the same settings.

    config: `RunConfig(existing="resume")` by default.
    Returns the judged comparisons, and {"seconds", "tokens", "critiques"} of all sessions of this
    file together. Of a shard, and on processes other than the first, no comparisons are returned.
    """
    from grm_jax.judging.run import RunConfig, judge_rows

    config = config or RunConfig(existing="resume")
    rows_path = config.shard.path(output) if config.shard else Path(output)
    config = dataclasses.replace(config, cost_path=rows_path.with_suffix(".cost.json"))
    result = judge_rows(judge, _rows(comparisons), output, options, _digest, config)
    is_read = distributed.is_first() and not config.shard
    return load_judged(comparisons, output) if is_read else [], result.cost


def judge_into_store(
    judge: Judge,
    comparisons: Sequence[Comparison],
    options: Options,
    folder: Any,
    chunk: int = 64,
    progress: Callable[[int], None] = lambda done: None,
    output: Any = None,
) -> list[JudgedComparison]:
    """Judges comparisons into a store that all hosts of a run share, or resumes it.

    folder: of the store; may be in a bucket.  progress: called with the number of judged
    comparisons.  output: JSONL to write with the rows of `grm judge`, in the order of the
    comparisons.
    """
    from grm_jax.judging.run import RunConfig, judge_into, run_identity

    rows, identity = _rows(comparisons), run_identity(judge, options, fingerprint(comparisons))
    with RunStore(folder, identity, key="line", shared=True) as store:
        count = itertools.count(len(store) + 1)
        config = RunConfig(chunk=chunk)
        judge_into(store, judge, rows, options, identity, config, lambda _: progress(next(count)))
        records = [store[row.number] for row in rows]
        if output is not None and store.is_writer:
            write_rows(records, output)
        return [from_row(c, record) for c, record in zip(comparisons, records)]


def write_rows(rows: Iterable[Mapping], path: Any) -> None:
    """Writes rows of `grm judge` as JSONL, to a local path or a bucket."""
    write_atomic(path, "".join(strict_json.dumps(row) + "\n" for row in rows))


def _rows(comparisons: Sequence[Comparison]) -> list[InputRow]:
    return [InputRow(number, c, id=c.id) for number, c in enumerate(comparisons, start=1)]


def _digest(rows: Sequence[InputRow]) -> str:
    return fingerprint([row.comparison for row in rows if row.comparison is not None])


def fingerprint(comparisons: Sequence[Comparison]) -> str:
    """A hash of everything in the comparisons that verdicts depend on."""
    digest = hashlib.sha256()
    for c in comparisons:
        text = json.dumps([c.id, c.turns, c.responses, c.reference], sort_keys=True)
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


# ---------------------------------------------------------------- files


def load_judged(comparisons: Sequence[Comparison], path: str | Path) -> list[JudgedComparison]:
    """Loads judged comparisons by id from rows of `grm judge` or of a scores file.

    Raises ValueError for a missing row, one that appears twice, or one that does not fit its
    comparison; the message names the file and the line.
    """
    by_id = {str(c.id): c for c in comparisons}
    judged: dict[str, JudgedComparison] = {}
    lines: dict[str, int] = {}
    for record in read_records(path):
        where = f"{path}, line {record.line}"
        if record.problem:
            raise ValueError(f"{where}: {record.problem}")
        id = str(record.fields.get("id"))
        if id in lines:
            raise ValueError(f"{where}: the id {id!r:.60} of line {lines[id]} again: remove one")
        if id in by_id:
            lines[id], judged[id] = record.line, _judged(by_id[id], record.fields, where)
    missing = [c.id for c in comparisons if str(c.id) not in judged]
    if missing:
        raise ValueError(
            f"{path} has no row for {len(missing)} of {len(comparisons)} comparisons, the first is "
            f"{missing[0]!r}: use the ids of `grm eval --write_comparisons`, or --part to measure "
            "the others"
        )
    return [judged[str(c.id)] for c in comparisons]


def _judged(comparison: Comparison, row: Mapping, where: str) -> JudgedComparison:
    where = f"{where}: row {comparison.id!r}"
    row = dict(row)
    if is_scalar(row) or ("critiques" in row and (row["critiques"] or row.get("error"))):
        if problem := row_problem(row):
            raise ValueError(f"{where}: {problem}")
        try:
            return from_row(comparison, row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if "scores" not in row:
        raise ValueError(f"{where} has no field 'scores': give a number per response, or null")
    views = [] if row.get("views") is None else row["views"]
    if not isinstance(views, list) or not all(_is_view(view, comparison.n) for view in views):
        raise ValueError(f"{where} has the views {shown(views)}: give [{{order, scores}}, ...]")
    orders = [(tuple(v["order"]), _scores(v.get("scores"), comparison.n, where)) for v in views]
    return JudgedComparison(
        comparison, _scores(row.get("scores"), comparison.n, where), tuple(orders)
    )


def _is_view(view: Any, n: int) -> bool:
    if not isinstance(view, dict) or not are_numbers(view.get("order"), n):
        return False
    return sorted(view["order"]) == [*range(n)]


def _scores(value: Any, n: int, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) != n:
        raise ValueError(
            f"{where} has {len(value)} scores for {n} responses: give one for each, in the order "
            "of `grm eval --write_comparisons`, or null"
        )
    if not are_numbers(value, n):
        raise ValueError(f"{where} has the scores {shown(value)}: give finite numbers, or null")
    return tuple(map(float, value))


def settings_of(path: str | Path) -> dict[str, Any]:
    """Returns the settings in the first row of a scores file. Raises ValueError for a wrong one."""
    first = next(strict_records(path), {})
    known = ("model", "k", "temperature", "vote", "template", "meta_rm")
    settings = {key: first[key] for key in known if first.get(key) is not None}
    if problem := field_problem(settings, {key: ROW[key] for key in known}, ()):
        raise ValueError(f"{path}: the first row has {problem}")
    return settings


def write_scores(judged: Sequence[JudgedComparison], path: str | Path) -> None:
    """Writes a scores file: {"id", "scores", "views"?} a line."""
    rows: list[dict] = [{"id": j.comparison.id, "scores": j.scores} for j in judged]
    for j, row in zip(judged, rows):
        if j.views:
            row["views"] = [{"order": order, "scores": scores} for order, scores in j.views]
    write_atomic(path, "".join(strict_json.dumps(row) + "\n" for row in rows))


def write_comparisons(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """Writes the comparisons as input of `grm judge` or of another judge."""
    lines = [strict_json.dumps(dataclasses.asdict(c)) for c in comparisons]
    write_atomic(path, "\n".join(lines) + "\n")


def num_parameters(path: str) -> int | None:
    """The number of parameters of a checkpoint, from its headers; None if they have no shapes."""
    from grm_jax.checkpoints import open_checkpoint

    try:
        return sum(math.prod(t.shape) for t in open_checkpoint(path).tensors.values())
    except (OSError, ValueError):
        return None
