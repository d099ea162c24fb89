"""`grm report OUT.jsonl -o report.html`: judged comparisons as one self-contained HTML page.

The page contains its data as JSON, its style and its script. A Content-Security-Policy allows these
two by their hashes, and no network. The script inserts every text as text, so nothing in a query, a
response or a critique is ever markup.
"""

import argparse
import base64
import hashlib
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grm_jax.commands import run_command
from grm_jax.judging import summary
from grm_jax.judging.codec import Row, read_judged_rows
from grm_jax.judging.votes import VOTES
from grm_jax.storage import write_atomic

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("elements.js", "comparison.js", "report.js")
# Fields of a row that the page shows.
FIELDS = (
    *("id", "line", "n", "label", "scores", "best", "tie", "votes", "unparsed", "kept"),
    *("critiques", "query", "responses", "reference", "error", "vote"),
)
ERROR_FIELDS: dict[str, Any] = {
    "credit": None,
    "margin": 0,
    "all_unparsed": False,
    "labelled_best": [],
    "critiques": [],
    "tie": False,
}


def main(argv: list[str] | None = None) -> int:
    """Runs `grm report`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="grm report", description="Makes one HTML page of the output of `grm judge`."
    )
    parser.add_argument("rows", help="OUT.jsonl of grm judge, or the OUT.jsonl.part of a run")
    parser.add_argument(
        "-o", "--output", default="report.html", help="page to write (default report.html)"
    )
    parser.add_argument("--title", default="Judged comparisons")
    parser.add_argument("--limit", type=int, help="show the first rows only")
    args = parser.parse_args(argv)
    return run_command("grm report", lambda: write_report(args))


def write_report(args: argparse.Namespace) -> int:
    """Writes the page of the arguments."""
    rows = list(read_judged_rows(args.rows))[: args.limit]
    text = page(rows, args.title, Path(args.rows).name)
    write_atomic(args.output, text)
    print(f"{args.output}: {len(rows)} rows, {len(text) / 1e6:.1f} MB", file=sys.stderr)
    return 0


def page(rows: Sequence[Row], title: str = "Judged comparisons", source: str = "") -> str:
    """Returns the HTML page for rows of `grm judge`. source: name of their file."""
    data = {
        "title": title,
        "run": run_text(rows, source),
        "summary": summary.summarise(rows),
        "curve": summary.accuracy_by_k(rows),
        "labels": {name: rule.label for name, rule in VOTES.items()},
        "rows": [row_data(row) for row in rows],
    }
    style = (PAGE / "report.css").read_text(encoding="utf-8")
    script = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    values = {
        "@TITLE@": html.escape(title),
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
    """Returns JSON that is safe in a script element: nothing in it ends the element or the line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def row_data(row: Row) -> dict[str, Any]:
    """Returns the fields of a row that the page shows, with its grade, flip, margin and votes."""
    data = {name: row.get(name) for name in FIELDS}
    if row.get("error"):
        return data | ERROR_FIELDS
    all_unparsed = summary.all_unparsed(row)
    ranked = sorted(row["scores"], reverse=True)
    labelled_best = [False] * row["n"]
    if row["n"] > 1 and row["label"] is not None:
        label = row["label"]
        labelled_best = [
            label == i if isinstance(label, int) else label[i] == max(label)
            for i in range(row["n"])
        ]
    return data | {
        "credit": None if all_unparsed and row["n"] == 1 else summary.grade(row),
        "flip": summary.flipped(row),
        "margin": ranked[0] - ranked[1] if len(ranked) > 1 else ranked[0],
        "all_unparsed": all_unparsed,
        "labelled_best": labelled_best,
        "votes_by_k": summary.votes_by_k(row),
        "scale": scale_of(row),
    }


def scale_of(row: Row) -> tuple[float, float]:
    """Returns the scale of a row's scores: 1 to 10, or 0 to 1 for a binary or choice template."""
    values = {score for critique in row["critiques"] for score in critique["scores"] or ()}
    return (0, 1) if values and values <= {0, 1} else (1, 10)


def run_text(rows: Sequence[Row], source: str) -> str:
    """Returns one line about the run: model, template, k, temperature, seed, file."""
    judged = next((row for row in rows if not row.get("error")), None)
    if judged is None:
        return source
    parts = [
        f"model {judged['model']}",
        f"template {judged['template']}",
        f"meta {judged['meta_rm']}" if judged.get("meta_rm") else "",
        f"k = {judged['k']}",
        f"temperature {judged['temperature']:g}",
        f"seed {judged['seed']}",
        source,
    ]
    return " · ".join(filter(None, parts))
