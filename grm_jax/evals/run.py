"""Judges the comparisons of a benchmark into a file that a killed run can go on with, and reads such files back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from grm_jax.evals import content_blind
from grm_jax.evals.judged import JudgedComparison, from_row
from grm_jax.types import Comparison


def choose(
    comparisons: Sequence[Comparison], limit: int | None, subset: str | None = None
) -> list[Comparison]:
    """A part of a benchmark: one subset, and of it `limit` comparisons picked by a hash of their ids, in their order.

    The same limit picks the same comparisons everywhere. ValueError for a subset that is not there.
    """
    found = list(comparisons)
    if subset is not None:
        names = sorted({str(c.meta.get("subset")) for c in found})
        found = [c for c in found if str(c.meta.get("subset")) == subset]
        if not found:
            raise ValueError(f"subset {subset!r} is not there: use one of {', '.join(names)}")
    if limit is None or limit >= len(found):
        return found
    ranked = sorted(found, key=lambda c: hashlib.sha256(str(c.id).encode()).digest())
    kept = {c.id for c in ranked[:limit]}
    return [c for c in found if c.id in kept]


def judge_with_model(
    judge,
    comparisons: Sequence[Comparison],
    output: str | Path,
    options,
    private: bool = False,
    chunk: int = 256,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Judges comparisons into rows of `grm judge`; resumes an earlier run with the same settings.

    private: rows hold scores but no text.  Returns {"seconds", "tokens", "critiques"} of all
    sessions of this file together.
    """
    from grm_jax.data.comparisons import Row
    from grm_jax.judging.run import RunConfig, judge_rows

    rows = [Row(line, c, id=c.id) for line, c in enumerate(comparisons, start=1)]
    config = RunConfig(
        existing="overwrite" if overwrite else "resume",
        private=private,
        chunk=chunk,
        progress=progress,
        cost_path=Path(output).with_suffix(".cost.json"),
    )
    return judge_rows(judge, rows, output, options, fingerprint(comparisons), config).cost


def fingerprint(comparisons: Sequence[Comparison]) -> str:
    """A hash over all that is judged: data that changed under a half-finished run are noticed."""
    digest = hashlib.sha256()
    for c in comparisons:
        digest.update(
            json.dumps([c.id, c.turns, c.responses, c.reference], sort_keys=True).encode(
                "utf-8", "surrogatepass"
            )
        )
    return digest.hexdigest()


def read_rows(path: str | Path):
    """Rows of a scores file, one JSON object a line. Raises ValueError naming the line that is none."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError:
                    raise ValueError(
                        f'{path}, line {number} is not JSON: write one object a line, {{"id": ..., "scores": [...]}}'
                    ) from None


def load_judged(
    comparisons: Sequence[Comparison], path: str | Path, vote: str | None = None
) -> list[JudgedComparison]:
    """The judged comparisons of a file: rows of `grm judge`, or {"id", "scores"} (null where nothing could be read).

    Rows are found by id, so a file may hold more than is asked for. Raises ValueError where one is missing or does not fit.
    """
    rows = {str(row.get("id")): row for row in read_rows(path)}
    missing = [c.id for c in comparisons if str(c.id) not in rows]
    if missing:
        raise ValueError(
            f"{path} has no row for {len(missing)} of {len(comparisons)} comparisons, the first is {missing[0]!r}: "
            "ids are those of `grm eval --write_comparisons`; --part measures those that are there"
        )
    return [_judged(c, rows[str(c.id)], path, vote) for c in comparisons]


def _judged(comparison: Comparison, row: dict, path, vote: str | None) -> JudgedComparison:
    if "critiques" in row and (row["critiques"] or row.get("error")):
        return from_row(comparison, row, vote)
    scores = row.get("scores")
    if scores is not None and len(scores) != comparison.n:
        raise ValueError(
            f"{path}: row {comparison.id!r} has {len(scores)} scores for {comparison.n} responses: give one for each, in the "
            "order of `grm eval --write_comparisons`, or null"
        )
    views = tuple(
        (tuple(v["order"]), None if v["scores"] is None else tuple(v["scores"]))
        for v in row.get("views", ())
    )
    return JudgedComparison(
        comparison, None if scores is None else tuple(map(float, scores)), views
    )


def judge_content_blind(
    name: str, comparisons: Sequence[Comparison], seed: int, output: str | Path | None
) -> list[JudgedComparison]:
    """The judgements of a floor, written as a scores file where one is asked for."""
    judged = [content_blind.judge(name, comparison, seed) for comparison in comparisons]
    if output is not None:
        write_scores(judged, output)
    return judged


def write_scores(judged: Sequence[JudgedComparison], path: str | Path) -> None:
    """A scores file: {"id", "scores", "views"?} a line."""
    lines = []
    for j in judged:
        row: dict = {"id": j.comparison.id, "scores": j.scores}
        if j.views:
            row["views"] = [{"order": order, "scores": scores} for order, scores in j.views]
        lines.append(json.dumps(row))
    Path(path).write_text("\n".join(lines) + "\n")


def write_comparisons(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """The comparisons as input of `grm judge`, or of a judge elsewhere."""
    lines = [json.dumps(dataclasses.asdict(c), ensure_ascii=False) for c in comparisons]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
