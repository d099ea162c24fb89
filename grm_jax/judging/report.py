"""`grm report OUT.jsonl -o report.html`: judged comparisons as one self-contained HTML page.

`grm report A.jsonl B.jsonl` shows two runs of one input side by side. The page contains its data,
its style and its script. A Content-Security-Policy allows these two by their hashes, and no
network. The script builds elements and inserts every text as text, so nothing in a query, a
response or a critique is ever markup of the page.
"""

import argparse
import base64
import hashlib
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grm_jax.commands import Parser, run_command
from grm_jax.data import sources
from grm_jax.data.comparisons import read_rows
from grm_jax.data.layouts import LAYOUTS
from grm_jax.data.records import read_records
from grm_jax.judging.codec import OutputRow, judged_row, read_judged_rows
from grm_jax.judging.options import POSITIVE, Options
from grm_jax.judging.report_data import Run, embedded_json, page_data
from grm_jax.storage import check_outputs, fetch, is_remote, write_atomic
from grm_jax.types import Comparison, Verdict

if TYPE_CHECKING:  # JAX is imported only with a judge
    from grm_jax.judging.judge import Judge

PAGE = Path(__file__).parent / "page"
SCRIPTS = (
    *("elements.js", "markdown.js", "address.js", "critiques.js", "comparison.js"),
    *("overview.js", "report.js"),
)


def output_rows(
    judge: "Judge", comparisons: Sequence[Comparison], verdicts: Sequence[Verdict], options: Options
) -> list[OutputRow]:
    """Returns the rows that `grm judge` would write, for a page on verdicts in memory."""
    from grm_jax.judging.identity import row_fields, run_identity

    identity = run_identity(judge, options, digest="")
    return [
        judged_row(c, verdict, line, row_fields(judge, options, identity, c))
        for line, (c, verdict) in enumerate(zip(comparisons, verdicts), start=1)
    ]


def main(argv: list[str] | None = None) -> int:
    """Runs `grm report`; returns the exit status."""
    parser = Parser(
        prog="grm report",
        description="Makes one HTML page of the output of `grm judge`, or of two outputs for one "
        "input side by side.",
    )
    parser.add_argument(
        "rows",
        nargs="+",
        metavar="OUT.jsonl",
        help="output of grm judge, or the OUT.jsonl.part of a run; a second one to compare with",
    )
    parser.add_argument(
        "-o",
        "--out",
        "--output",
        dest="output",
        metavar="FILE",
        default="report.html",
        help="page to write (default report.html)",
    )
    parser.add_argument("--title", metavar="TEXT", help="title of the page")
    parser.add_argument(
        "--limit", type=POSITIVE, help="show the first N rows; the rates are of all rows"
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="the file that was judged: counts the rows that are missing, and shows the records "
        "of error rows",
    )
    parser.add_argument(
        "--format",
        choices=sorted(LAYOUTS),
        metavar="FORMAT",
        help="format of the input, as for grm judge",
    )
    return run_command("grm report", lambda: write_report(parser.parse_args(argv)))


def write_report(args: argparse.Namespace) -> int:
    """Writes the page of the arguments."""
    if len(args.rows) > 2:
        raise ValueError(f"{len(args.rows)} outputs: give one, or two to compare")
    stores = [f"{path}.part" for path in args.rows]
    read = sources.local_files(args.input) if args.input else []
    check_outputs([args.output], [*args.rows, *stores, *read])
    runs = [load_run(path, args.input, args.format) for path in args.rows]
    title = args.title or ("Judged comparisons" if len(runs) == 1 else "Two runs side by side")
    text = page_of_runs(runs, title, args.limit)
    write_atomic(args.output, text)
    counts = " and ".join(f"{len(run.rows):,}" for run in runs)
    print(f"{args.output}: {counts} rows, {len(text) / 1e6:.1f} MB", file=sys.stderr)
    for run in runs:
        if run.state:
            print(f"{run.name}: {run.state}", file=sys.stderr)
    return 0


def load_run(path: str, source: str | None = None, layout: str | None = None) -> Run:
    """Loads an output of `grm judge`. source, layout: the input that was judged, and its format."""
    local = fetch(path) if is_remote(path) else Path(path)
    if not local.is_file():
        raise FileNotFoundError(f"no file {path}: give the OUT of grm judge, or its OUT.part")
    rows = list(read_judged_rows(local))
    records, total = input_records(source, rows, layout) if source else ({}, None)
    of_all = f" of {total:,}" if total is not None else ""
    if path.endswith(".part"):
        state = f"unfinished run: {len(rows):,}{of_all} rows so far"
    elif not ends_with_newline(local):
        state = f"the file is cut off after {len(rows):,}{of_all} rows"
    elif total is not None and len(rows) < total:
        state = f"{len(rows):,}{of_all} rows of the input were judged"
    else:
        state = ""
    return Run(rows, Path(path).name, state, records)


def ends_with_newline(path: Path) -> bool:
    """Whether the last line of a file is complete; an empty file has none."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read() in (b"\n", b"")


def input_records(
    source: str, rows: Sequence[OutputRow], layout: str | None = None
) -> tuple[dict[str, Any], int]:
    """Returns the input's records of error rows, by line, and its number of comparisons.

    layout: a name of `LAYOUTS`, detected for each record if None.

    Raises:
      ValueError: the rows were judged from another input.
    """
    digest = sources.digest(source)
    if rows and rows[0].get("input") not in (None, digest[:12]):
        raise ValueError(
            f"--input {source} is not what was judged (its hash is {digest[:12]}, that of the rows "
            f"is {rows[0]['input']}): name the input of the run, unchanged"
        )
    errors = {str(row["line"]) for row in rows if row.get("error")}
    lines = {str(record.number): record.fields for record in read_records(source)}
    records = {line: lines.get(line.partition(".")[0]) for line in errors}
    total = sum(1 for _ in read_rows(source, layout))
    return {line: fields for line, fields in records.items() if fields}, total


def page(
    rows: Sequence[OutputRow],
    title: str = "Judged comparisons",
    source: str = "",
    are_examples: bool = False,
) -> str:
    """Returns the HTML page for rows of `grm judge`.

    source: name of their file.  are_examples: the rows were chosen, so the page opens at the first
    one and has no overview of their rates.
    """
    return _html(page_data([Run(rows, source)], title) | {"examples": are_examples})


def page_of_runs(runs: Sequence[Run], title: str, limit: int | None = None) -> str:
    """Returns the HTML page for one run, or for two runs side by side; see `page_data`."""
    return _html(page_data(runs, title, limit) | {"examples": False})


def _html(data: dict[str, Any]) -> str:
    style = (PAGE / "report.css").read_text(encoding="utf-8")
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    values = {
        "@TITLE@": html.escape(data["title"]),
        "@STYLE@": style,
        "@STYLE_HASH@": _csp_hash(style),
        "@SCRIPT@": script,
        "@SCRIPT_HASH@": _csp_hash(script),
        "@DATA@": embedded(data),
    }
    template = (PAGE / "report.html").read_text(encoding="utf-8")
    # One pass over the template: a placeholder in a value is not filled in.
    pieces = []
    for name in sorted(values, key=template.index):
        before, template = template.split(name, 1)
        pieces += [before, values[name]]
    return "".join([*pieces, template])


def embedded(data: Any) -> str:
    """Returns ASCII JSON that is safe in a script element: nothing in it ends the element."""
    text = embedded_json(data)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
