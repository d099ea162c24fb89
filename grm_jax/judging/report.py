"""`grm report OUT.jsonl -o report.html`: judged comparisons as one page that needs nothing else.

The page holds its data as JSON, its style and its script; a Content-Security-Policy allows exactly these two by their hashes
and no network. Every text is put in as text by the script, so nothing in a query, a response or a critique can be markup.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from grm_jax.judging import summary
from grm_jax.judging.codec import read_judged_rows

PAGE = Path(__file__).parent / "page"
KEPT: tuple[str, ...] = (
    "id",
    "line",
    "n",
    "label",
    "scores",
    "best",
    "tie",
    "votes",
    "unparsed",
    "kept",
    "critiques",
    "query",
    "responses",
)
KEPT += ("reference", "error", "vote")


def page(rows: Sequence[dict], title: str = "Judged comparisons", source: str = "") -> str:
    """The page for rows of `grm judge`, as HTML."""
    data = {
        "title": title,
        "run": run_text(rows, source),
        "summary": summary.summarise(rows),
        "curve": summary.accuracy_by_k(rows),
        "rows": [row_data(row) for row in rows],
    }
    style = (PAGE / "report.css").read_text(encoding="utf-8")
    script = (PAGE / "report.js").read_text(encoding="utf-8")
    parts = {
        "@TITLE@": html.escape(title),
        "@STYLE@": style,
        "@STYLE_HASH@": _csp_hash(style),
        "@SCRIPT@": script,
        "@SCRIPT_HASH@": _csp_hash(script),
        "@DATA@": embedded(data),
    }
    text = (PAGE / "report.html").read_text(encoding="utf-8")
    # Each placeholder stands once, and data come last: a text that spells a placeholder is not filled in again.
    pieces = []
    for name in sorted(parts, key=text.index):
        before, text = text.split(name, 1)
        pieces += [before, parts[name]]
    return "".join([*pieces, text])


def embedded(data) -> str:
    """JSON that can stand inside a script element: no character in it can end the element or the line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def row_data(row: dict) -> dict:
    """A row with what the page shows about it: its grade, its flip, its margin, how its vote grew."""
    data = {name: row.get(name) for name in KEPT}
    if row.get("error"):
        return data | {
            "credit": None,
            "margin": 0,
            "nothing": False,
            "truth": [],
            "critiques": [],
            "tie": False,
        }
    nothing = row["unparsed"] == len(row["critiques"])
    ranked = sorted(row["scores"], reverse=True)
    label = row["label"]
    truth = [
        label == i if isinstance(label, int) else bool(label and label[i] == max(label))
        for i in range(row["n"])
    ]
    return data | {
        "credit": None if nothing and row["n"] == 1 else summary.grade(row),
        "flip": summary.flipped(row),
        "margin": ranked[0] - ranked[1] if len(ranked) > 1 else ranked[0],
        "nothing": nothing,
        "truth": truth if any(truth) and not (row["n"] == 1) else [False] * row["n"],
        "grew": summary.as_k_grew(row),
        "scale": scale_of(row),
    }


def scale_of(row: dict) -> tuple[float, float]:
    """The scale of a row's scores: 1 to 10, or what a binary or choosing template uses."""
    values = {score for critique in row["critiques"] for score in critique["scores"] or ()}
    return (0, 1) if values and values <= {0, 1} else (1, 10)


def run_text(rows: Sequence[dict], source: str) -> str:
    """One line about the run: model, template, k, temperature, seed, file."""
    judged = next((row for row in rows if not row.get("error")), None)
    if judged is None:
        return source
    parts = [f"model {judged['model']}", f"template {judged['template']}"]
    if judged.get("meta_rm"):
        parts.append(f"meta {judged['meta_rm']}")
    parts += [
        f"k = {judged['k']}",
        f"temperature {judged['temperature']:g}",
        f"seed {judged['seed']}",
    ]
    return " · ".join([*parts, source] if source else parts)


def main(argv: list[str] | None = None) -> int:
    """Runs `grm report`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="grm report", description="One readable page from the output of `grm judge`."
    )
    parser.add_argument(
        "rows", help="OUT.jsonl of grm judge, or OUT.jsonl.part of a run that goes on"
    )
    parser.add_argument(
        "-o", "--output", default="report.html", help="page to write (default report.html)"
    )
    parser.add_argument("--title", default="Judged comparisons")
    parser.add_argument("--limit", type=int, help="show the first rows only")
    args = parser.parse_args(argv)
    try:
        rows = list(read_judged_rows(args.rows))[: args.limit]
        text = page(rows, args.title, Path(args.rows).name)
        temporary = Path(args.output + ".tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, args.output)
    except (ValueError, OSError) as error:
        print(f"grm report: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {len(rows)} rows, {len(text) / 1e6:.1f} MB", file=sys.stderr)
    return 0
