"""Judges a file: reads rows, streams verdicts into a journal, goes on where a killed run stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from grm_jax.data.comparisons import read_rows as read_input
from grm_jax.judging import rows
from grm_jax.judging.judge import Judge, Unjudged
from grm_jax.judging.options import Options
from grm_jax.run_store import RunStore
from grm_jax.types import Comparison


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one run over a file: rows in all, error rows among them, rows that an earlier run had written."""

    rows: int
    errors: int
    resumed: int


def settings_of(judge: Judge, options: Options) -> dict:
    """What every row of a run says about how it came to be."""
    settings = dataclasses.asdict(options)
    given = settings.pop("given_principles")
    if given is not None:
        settings["principles"] = f"given@{hashlib.sha256(given.encode()).hexdigest()[:12]}"
    return settings | {"model": judge.name, "meta_rm": getattr(judge.meta_rm, "name", None)}


def judge_file(
    judge: Judge,
    source: str | Path,
    output: str | Path,
    options: Options,
    format: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
    chunk: int = 256,
    progress: bool = True,
) -> Outcome:
    """Judges every row of `source` into `output` (JSONL, one row per input row, in its order).

    Rows are in OUT.part as soon as they are finished; see `RunStore`. A row that cannot be judged becomes an error row.
    Raises what `RunStore` and `data.comparisons.read_rows` raise, before anything is sampled.
    """
    settings = settings_of(judge, options)
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    lines = list(read_input(source, format))[:limit]
    header = settings | {
        "template": judge.family,
        "input": digest,
        "limit": limit,
        "format": format,
    }
    settings |= {"input": digest[:12]}
    if resume and finished(output):
        return _outcome(
            output, lines, settings, lambda comparison: template_named(judge, comparison, options)
        )
    existing = "resume" if resume else "overwrite" if overwrite else "refuse"
    if existing == "refuse" and Path(output).exists():
        raise FileExistsError(
            f"{output} exists: pass --resume to resume it, or --overwrite to start over"
        )
    journal = RunStore(part_of(output), header, key="line", existing=existing)
    resumed = len(journal)
    try:
        todo = [line for line in lines if line.number not in journal]
        with _Progress(len(lines), resumed, progress) as bar:
            for line in todo:
                if line.comparison is None:
                    bar.add(
                        journal,
                        rows.error_row(line.number, line.reason or "unreadable", settings, line.id),
                    )
            good = [line for line in todo if line.comparison is not None]
            for i, result in judge.stream([line.comparison for line in good], options, chunk):
                line = good[i]
                if isinstance(result, Unjudged):
                    row = rows.error_row(line.number, result.reason, settings, line.id)
                else:
                    named = template_named(judge, line.comparison, options)
                    row = rows.row_of(line.comparison, result, settings, line.number, named)
                bar.add(journal, row)
        errors = sum(row["error"] is not None for row in journal.records())
        journal.finish(output, [line.number for line in lines])
    finally:
        journal.close()
    return Outcome(len(lines), errors, resumed)


def finished(output: str | Path) -> bool:
    """Whether an earlier run wrote its output to the end."""
    return Path(output).exists() and not part_of(output).exists()


def part_of(output: str | Path) -> Path:
    """The file that holds the rows of an unfinished run."""
    return Path(f"{output}.part")


def template_named(judge: Judge, comparison: Comparison, options: Options) -> str:
    """The template that a comparison is judged under, as rows name it."""
    template = judge.template_for(comparison, options)
    return f"{template.name}@{template.fingerprint}"


def otherwise(row: dict, settings: dict, template: str | None = None) -> str | None:
    """How a finished row came to be otherwise than is asked for now, in words; None where it did not.

    What a row does not hold (an earlier version's, or an error row's template) is not compared.
    """
    for name, value in settings.items():
        if name in row and row[name] != value:
            if name == "input":
                return "from another input (texts, references, labels) than is given now"
            return f"with {name} = {row[name]!r}, now it is {value!r}"
    if template is not None and row.get("template") not in (None, template):
        return f"with template = {row['template']!r}, now it is {template!r}"
    return None


def _outcome(
    output: str | Path, lines: list, settings: dict, named: Callable[[Comparison], str]
) -> Outcome:
    """The outcome of a run that had ended. Raises ValueError where it had other settings, another template or input."""
    found = list(read_rows(output))
    differing = None
    for row, line in zip(found, lines):
        template = (
            named(line.comparison) if line.comparison is not None and row["error"] is None else None
        )
        differing = differing or otherwise(row, settings, template)
    if differing is None and len(found) != len(lines):
        differing = f"with {len(found)} rows, now {len(lines)} are asked for"
    if differing:
        raise ValueError(
            f"{output} is finished, {differing}: name another output, or --overwrite to judge again"
        )
    return Outcome(len(found), sum(row["error"] is not None for row in found), len(found))


def read_rows(path: str | Path):
    """The rows of an output file, or of the journal of a run that is not finished.

    Raises ValueError naming the line that is not a row of `grm judge`.
    """
    import json

    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError:
                if not text.endswith("\n"):
                    return  # the torn end of a journal
                raise ValueError(
                    f"{path}, line {number} is not JSON: name an output of `grm judge`, or judge again with --overwrite"
                ) from None
            if "line" not in row and number == 1 and "input" in row:
                continue  # a journal's header
            if "line" not in row or "critiques" not in row:
                raise ValueError(
                    f"{path}, line {number} is not a row that `grm judge` wrote: name its output, not its input"
                )
            yield row


class _Progress:
    """A bar with the time that is left, tokens per second and the share of critiques that were read, on stderr."""

    def __init__(self, total: int, resumed: int, show: bool):
        from tqdm import tqdm

        # Where stderr is a file, a line every half minute is enough.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(
            total=total,
            initial=resumed,
            unit="row",
            desc="judging",
            disable=not show,
            mininterval=interval,
        )
        self.start, self.tokens, self.critiques, self.read, self.errors = (
            time.monotonic(),
            0,
            0,
            0,
            0,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def add(self, journal: RunStore, row: dict) -> None:
        """Writes a row and counts it."""
        journal.append(row["line"], row)
        self.errors += row["error"] is not None
        self.tokens += sum(critique["tokens"] for critique in row["critiques"])
        self.critiques += len(row["critiques"])
        self.read += sum(critique["status"] == "ok" for critique in row["critiques"])
        rate = self.tokens / max(1e-9, time.monotonic() - self.start)
        share = self.read / self.critiques if self.critiques else 0.0
        errors = f", {self.errors} errors" if self.errors else ""
        self.bar.set_postfix_str(f"{rate:,.0f} tok/s, {share:.0%} read{errors}", refresh=False)
        self.bar.update()
