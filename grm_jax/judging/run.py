"""Judges many comparisons into an output file; a killed run resumes where it stopped.

`judge_rows` is the loop of `grm judge` (rows of a file) and of `grm eval` (a benchmark).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grm_jax.data import sources
from grm_jax.data.comparisons import InputRow, read_rows
from grm_jax.devices import watch_compilations
from grm_jax.hosts import distributed
from grm_jax.judging import codec
from grm_jax.judging.identity import (
    FREE_OF_RUN,
    OTHER_INPUT,
    difference,
    field_names,
    is_of_row,
    row_fields,
    run_identity,
    templates_of,
)
from grm_jax.judging.judge import Judge, Unjudged
from grm_jax.judging.options import CHUNK, POSITIVE, Options
from grm_jax.judging.progress import (
    PART_SECONDS,
    Progress,
    compiling_text as compiling_text,
    read_cost,
    write_cost,
)
from grm_jax.judging.sampler import watch_sampling
from grm_jax.judging.shards import Shard
from grm_jax.run_store import IdentityMismatch, RunStore
from grm_jax.sampling.programs import PROGRAMS
from grm_jax.storage import check_outputs
from grm_jax.types import Verdict

Records = dict[int | str, codec.OutputRow]  # by number


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a run stores and shows its rows; no verdict depends on it.

    existing: "resume" continues an earlier run and accepts a finished output of the same run,
    "overwrite" starts over, "refuse" raises FileExistsError.  private: rows without texts.
    chunk: comparisons that the sampler gets at once.  cost_path: a JSON file that adds up the cost
    of all sessions of the run.  shard: judge this part of the rows, into `Shard.path(output)`.
    """

    existing: str = "refuse"
    private: bool = False
    chunk: int = CHUNK
    progress: bool = True
    cost_path: Any = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        POSITIVE.check("chunk = ", self.chunk)
        if self.existing not in ("resume", "overwrite", "refuse"):
            raise ValueError(f"existing {self.existing!r:.80}: use resume, overwrite or refuse")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Counts of a run: all rows, error rows, rows of earlier sessions.

    cost: {"seconds", "tokens", "critiques"}, by endpoint "prompt_tokens" too; of an output that was
    finished already, the content of `RunConfig.cost_path`, or {}.
    """

    rows: int
    errors: int
    resumed: int
    cost: dict[str, float]


def judge_file(
    judge: Judge,
    source: str | Path,
    output: str | Path,
    options: Options,
    config: RunConfig | None = None,
    format: str | None = None,
    limit: int | None = None,
) -> RunResult:
    """Judges the rows of a file, in any of the `LAYOUTS`; see `judge_rows`.

    format: a name of `LAYOUTS`, detected for each row if None.  limit: judge the first rows only.
    """
    if limit is not None:
        POSITIVE.check("limit = ", limit)
    shard = config.shard if config else None
    written = [shard.path(output)] if shard else [output, part_path(output)]
    check_outputs(written, sources.local_files(source))
    rows = list(itertools.islice(read_rows(source, format), limit))
    digest = sources.digest(source)
    return judge_rows(judge, rows, output, options, lambda _: digest, config, {"format": format})


def judge_rows(
    judge: Judge,
    rows: Sequence[InputRow],
    output: str | Path,
    options: Options,
    digest: Callable[[Sequence[InputRow]], str],
    config: RunConfig | None = None,
    selection: Mapping[str, Any] | None = None,
) -> RunResult:
    """Judges numbered input rows into `output`: JSONL, one row per input row, in their order.

    While the run is in progress its rows are in OUT.part (`RunStore`). A row that cannot be judged
    becomes an error row with the reason. A resumed run keeps the rows of a finished output that has
    only some of the input rows, and judges error rows again for which an endpoint answered no
    request.

    Args:
      digest: returns a hash of what verdicts depend on in the input of the given rows; output rows
        have its first 12 digits.
      selection: what else a resumed run must have in common with the earlier one.

    Raises:
      FileExistsError: there is output already, and config.existing = "refuse".
      IdentityMismatch: an earlier run had other settings, another input, or more rows.
      ValueError, BlockingIOError: see `RunStore`.
    """
    config = config or RunConfig()
    identity = run_identity(judge, options, digest(rows))
    differ = {name: getattr(config, name) for name in field_names(config, FREE_OF_RUN)}
    header = identity | differ | dict(selection or {})
    open_store = functools.partial(
        RunStore, key="line", existing=config.existing, one_disk=distributed.has_peers()
    )
    if config.shard:
        header |= {"shard": str(config.shard), "of_rows": len(rows)}
        rows = config.shard.select(rows)
        with open_store(config.shard.path(output), header) as store:
            store.begin()
            return _judge_store(store, judge, rows, options, identity, config)
    while True:
        # Process 0 reads and writes the files for all processes.
        earlier = distributed.from_first(
            lambda: _earlier_rows(judge, rows, output, options, digest, config, header)
        )
        if "result" in earlier:
            return RunResult(**earlier["result"])
        with open_store(part_path(output), header) as store:
            if not earlier["reopened"] and distributed.from_first(
                lambda: _is_late(store, output, config)
            ):
                store.remove()  # another run has finished since this one looked
                continue
            _check_keys(store, rows)
            result = _judge_store(store, judge, rows, options, identity, config)
            store.finish(output, [row.number for row in rows])
            return result


def _earlier_rows(
    judge: Judge,
    rows: Sequence[InputRow],
    output: str | Path,
    options: Options,
    digest: Callable[[Sequence[InputRow]], str],
    config: RunConfig,
    header: Mapping[str, Any],
) -> dict[str, Any]:
    """Looks for a finished output of this run.

    Returns:
      {"result": fields of a RunResult} if it has every row. Else {"reopened": whether it has some,
      which are in OUT.part now}.
    """
    part = part_path(output)
    if config.existing == "refuse":
        refuse_existing(output, part)
    if config.existing != "resume" or part.exists() or not Path(output).exists():
        return {"reopened": False}
    judged, errors = _check_finished(judge, rows, output, options, digest)
    if errors or len(judged) < len(rows):
        kept = _kept(output, judged, header)
        if len(kept) < len(rows):
            with RunStore(part, header, key="line") as store:
                store.append_all({key: row for key, row in kept.items() if key not in store})
            return {"reopened": True}
    result = RunResult(len(rows), errors, len(rows), read_cost(config.cost_path))
    return {"result": dataclasses.asdict(result)}


def _check_keys(store: RunStore, rows: Sequence[InputRow]) -> None:
    """Raises IdentityMismatch for a store with rows that this run would lose."""
    if others := sorted({*store} - {row.number for row in rows}):
        raise IdentityMismatch(
            f"{store.path} holds row {others[0]}, which is not among the {len(rows)} rows of this "
            "run: use the same --limit, or start over with --overwrite"
        )


def _is_late(store: RunStore, output: str | Path, config: RunConfig) -> bool:
    """Returns whether a new store is beside a finished output."""
    is_new = all(codec.has_no_reply(record) for record in store.records())
    return is_new and config.existing != "overwrite" and Path(output).exists()


def _judge_store(
    store: RunStore,
    judge: Judge,
    rows: Sequence[InputRow],
    options: Options,
    identity: Mapping[str, Any],
    config: RunConfig,
) -> RunResult:
    """Judges the rows that the store lacks, shows progress, and writes the cost."""
    if not store.is_writer:
        config = dataclasses.replace(config, progress=False, cost_path=None)
    elif not distributed.has_peers():  # an endpoint judges on one host
        for key in [key for key in store if codec.has_no_reply(store[key])]:
            store.discard(key)
    resumed = len(store)
    name, programs = Path(str(store.path).removesuffix(".part")).stem, num_programs(judge, options)
    progress = Progress(name, len(rows), resumed, config, programs)
    sampling = watch_sampling(judge.sampler, progress.sampled)
    with progress, watch_compilations(progress.compiling), sampling:
        judge_into(store, judge, rows, options, identity, config, progress.count)
    counts = distributed.from_first(lambda: _counts(store))
    cost = cost_of(progress.seconds, counts)
    write_cost(config.cost_path, cost)
    return RunResult(len(rows), counts["errors"], resumed, cost)


def _counts(store: RunStore) -> dict[str, int]:
    """Returns the sums of `codec.counts` over all records, and the number of error rows."""
    counts = dict.fromkeys(("errors", "tokens", "critiques", "prompt_tokens"), 0)
    for record in store.records():
        counts["errors"] += record["error"] is not None
        for name, value in codec.counts(record).items():
            counts[name] += value
    return counts


def cost_of(seconds: float, counts: Mapping[str, int]) -> dict[str, float]:
    """Returns the cost of a run; an engine counts no prompt tokens."""
    cost = {"seconds": seconds, "tokens": counts["tokens"], "critiques": counts["critiques"]}
    return cost | ({"prompt_tokens": counts["prompt_tokens"]} if counts["prompt_tokens"] else {})


def judge_into(
    store: RunStore,
    judge: Judge,
    rows: Sequence[InputRow],
    options: Options,
    identity: Mapping[str, Any],
    config: RunConfig,
    count: Callable[[codec.OutputRow], None] = lambda record: None,
) -> None:
    """Judges the rows that the store lacks, and appends them to it.

    A store in one file gets each row as soon as it is judged. A folder gets a part when a chunk is
    complete, or after `PART_SECONDS`.

    Args:
      identity: what `run_identity` returns.
      count: called with every output row.
    """
    remaining = [row for row in rows if row.number not in store]
    batch, written = config.chunk if store.is_folder else 1, time.monotonic()
    records: Records = {}
    unanswered: Records = {}  # stored at the end: a resumed run judges them again
    try:
        for row, result in _results(judge, remaining, options, config.chunk):
            record = _output_row(judge, row, result, options, identity)
            kind = unanswered if codec.has_no_reply(record) else records
            kind[row.number] = codec.without_texts(record) if config.private else record
            if len(records) >= batch or time.monotonic() > written + PART_SECONDS:
                store.append_all(records)
                records, written = {}, time.monotonic()
            count(record)
    finally:  # whatever stops it, no row that is judged is lost
        store.append_all(records)
    store.append_all(unanswered)


def _output_row(
    judge: Judge,
    row: InputRow,
    result: Verdict | Unjudged,
    options: Options,
    identity: Mapping[str, Any],
) -> codec.OutputRow:
    """Returns the output row of an input row. Raises ValueError if a template was edited."""
    if isinstance(result, Unjudged) or row.comparison is None:
        fields = row_fields(judge, options, identity, None)
        reason, no_reply = getattr(result, "reason", ""), getattr(result, "no_reply", False)
        record = codec.error_row(row.number, reason, fields, row.id, row.comparison, no_reply)
    else:
        fields = row_fields(judge, options, identity, row.comparison)
        record = codec.judged_row(row.comparison, result, row.number, fields)
    templates = templates_of(judge)
    if templates != identity["templates"]:
        raise ValueError(
            f"a template was edited during the run (begun with {identity['templates']}, now it is "
            f"{templates}): restore it and resume, or start over with --overwrite"
        )
    return record


def _results(
    judge: Judge, rows: Sequence[InputRow], options: Options, chunk: int
) -> Iterator[tuple[InputRow, Verdict | Unjudged]]:
    """Yields each input row with its verdict, or with the reason why it has none."""
    yield from ((r, Unjudged(r.reason or "malformed")) for r in rows if r.comparison is None)
    judged = [row for row in rows if row.comparison is not None]
    for i, result in judge.stream([row.comparison for row in judged], options, chunk):
        yield judged[i], result


# ---------------------------------------------------------------- finished outputs


def _check_finished(
    judge: Judge,
    rows: Sequence[InputRow],
    output: str | Path,
    options: Options,
    digest: Callable[[Sequence[InputRow]], str],
) -> tuple[list[InputRow], int]:
    """Returns the input rows that a finished output has, and its number of error rows.

    It may have some of them only, in their order. A field that an earlier version did not write is
    not compared.

    Raises:
      IdentityMismatch: the output is not of this run.
    """
    identity, problem = run_identity(judge, options, digest=""), ""  # the input is compared below
    judged: list[InputRow] = []
    inputs: set[str] = set()
    number, errors, remaining = 0, 0, iter(rows)
    for record in codec.read_judged_rows(output, check=True):
        number += 1
        errors += record.get("error") is not None
        inputs.add(str(record.pop("input", "")))
        for row in itertools.islice((r for r in remaining if is_of_row(record, r)), 1):
            judged.append(row)
            problem = problem or difference(judge, row, record, options, identity)
    if number > len(rows):
        problem = f"holds {number} comparisons, now there are {len(rows)}"
    elif number > len(judged) or inputs - {"", digest(judged)[:12]}:
        problem = OTHER_INPUT
    if problem:
        raise IdentityMismatch(
            f"{output} {problem}: choose another output (grm eval: --out), or start over with "
            "--overwrite"
        )
    return judged, errors


def _kept(output: str | Path, judged: Sequence[InputRow], identity: Mapping[str, Any]) -> Records:
    """Returns the rows of a finished output as rows of this run, without those of `has_no_reply`.

    judged: their input rows.  identity: of this run, or its store's header.
    """
    records = zip(judged, codec.read_judged_rows(output), strict=True)
    return {
        row.number: record | {"line": row.number, "input": identity["input"][:12]}
        for row, record in records
        if not codec.has_no_reply(record)
    }


def part_path(output: str | Path) -> Path:
    """Returns the path of the store that holds the rows of an unfinished run."""
    return Path(f"{output}.part")


def refuse_existing(*paths: str | Path) -> None:
    """Raises FileExistsError if one of the files exists."""
    for path in paths:
        if Path(path).exists():
            raise FileExistsError(
                f"{path} exists: pass --resume to resume it, or --overwrite to start over"
            )


def num_programs(judge: Judge, options: Options) -> int:
    """Returns how many programs the first comparison needs."""
    if judge.is_scalar:
        return 1
    return PROGRAMS + (judge.meta_rm is not None) + options.expected
