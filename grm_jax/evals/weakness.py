"""Reports the weaknesses of a policy: the principles under which it lost (SPCT, future directions).

The input are rows of `grm judge` in which one response is the policy's. For each principle of the
judge, the report counts critiques in which the policy lost and won, and sums the score deficit by
the principle's weight. Principles whose names share their word stems form one theme; no second
model is used.

    python -m grm_jax.evals.weakness OUT/pandalm.jsonl --policy_index 0 --out weakness.md
"""

import argparse
import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from grm_jax import strict_json
from grm_jax.commands import Parser, run_command, write_output
from grm_jax.data.records import strict_records
from grm_jax.evals.tables import markdown_table
from grm_jax.judging.votes import top

# Words that do not distinguish principles.
_STOP_WORDS = frozenset(
    "the a an of and to in for with on is are its it response responses answer answers quality "
    "level overall how well".split()
)
# The first suffix that fits is removed, then one of the second kind; at least 4 letters stay.
_SUFFIXES = tuple(
    "fulness ization ations ation ments ities ness ment ings ions ance ence able ally ates ual ity "
    "ing ion ful ate ive acy".split()
)
_SHORT_SUFFIXES = ("es", "ed", "ly", "s", "y", "e")
MAX_EXAMPLES = 5


@dataclasses.dataclass
class Theme:
    """Principles whose names share their word stems.

    Attributes:
      lost, won: critiques with such a principle, by whether the policy lost in them.
      deficit: sum over lost critiques of (best score - policy's score) x weight, in points.
      names, descriptions: as the judge wrote them.
      examples: ids of lost comparisons.
    """

    lost: int = 0
    won: int = 0
    deficit: float = 0.0
    names: Counter = dataclasses.field(default_factory=Counter)
    descriptions: Counter = dataclasses.field(default_factory=Counter)
    examples: list[str] = dataclasses.field(default_factory=list)


def theme_key(name: str) -> str:
    """The sorted word stems of a name: the same for "Factual accuracy" and "Accurate facts"."""
    words = set(re.findall(r"[^\W\d_]+", name.lower())) - _STOP_WORDS
    stems = {_stem(word) for word in words}
    return " ".join(sorted(stems)) or name.strip().lower()


def _stem(word: str) -> str:
    for suffixes in (_SUFFIXES, _SHORT_SUFFIXES):
        fitting = (s for s in suffixes if word.endswith(s) and len(word) - len(s) >= 4)
        word = word.removesuffix(next(fitting, ""))
    return word


def policy_index(row: Mapping, policy: str | None, index: int | None) -> int | None:
    """The index of the policy's response, given or from meta["models"]; None without one."""
    if index is not None:
        return index if index < row["n"] else None
    models = (row.get("meta") or {}).get("models") or []
    return models.index(policy) if policy in models else None


def collect(
    rows: Iterable[Mapping], policy: str | None = None, index: int | None = None
) -> tuple[dict[str, Theme], dict[str, int]]:
    """Collects themes by key, and counts of rows.

    The policy loses a critique in which another response has a higher score.
    Raises ValueError for a negative index, and if no row has a response of the policy.
    """
    if index is not None and index < 0:
        raise ValueError(f"the policy's index is {index}: count its response from 0")
    themes: dict[str, Theme] = {}
    counts: Counter = Counter()
    for row in rows:
        counts["rows"] += 1
        ours = None if row.get("error") else policy_index(row, policy, index)
        if ours is None or row["n"] < 2:
            continue
        counts["with the policy"] += 1
        winners = top(row["scores"]) if row["scores"] else []
        result = "lost" if ours not in winners else "tied" if len(winners) > 1 else "won"
        counts[result] += 1
        example = str(row.get("id")) if result == "lost" else None
        for critique in row["critiques"]:
            if critique["status"] == "ok":
                _add(themes, critique, ours, example)
    if not counts["with the policy"]:
        raise ValueError(
            f"none of {counts['rows']} rows has a response of the policy {policy or index!r}: give "
            "its index, or a model of meta.models"
        )
    return themes, dict(counts)


def _add(themes: dict[str, Theme], critique: Mapping, ours: int, example: str | None) -> None:
    """Adds the principles of one critique, which counts once for each of its themes.

    Missing weights count as the mean of the others.
    """
    scores, principles = critique["scores"], critique["principles"]
    deficit = max(scores) - scores[ours]
    known = [p["weight"] for p in principles if p["weight"] is not None]
    default = sum(known) / len(known) if known else 1.0
    weights = [default if p["weight"] is None else p["weight"] for p in principles]
    total = sum(weights) or 1.0
    keys = [theme_key(principle["name"]) for principle in principles]
    for i, (principle, weight) in enumerate(zip(principles, weights)):
        theme, is_first = themes.setdefault(keys[i], Theme()), keys[i] not in keys[:i]
        theme.names[principle["name"].strip()] += 1
        if principle["description"]:
            theme.descriptions[principle["description"].strip()] += 1
        if deficit <= 0:
            theme.won += is_first
            continue
        theme.lost += is_first
        theme.deficit += deficit * weight / total
        if example and example not in theme.examples and len(theme.examples) < MAX_EXAMPLES:
            theme.examples.append(example)


def ranked(themes: Mapping[str, Theme], least: int = 2) -> list[Theme]:
    """Themes of at least `least` lost critiques, the largest deficit first."""
    frequent = [theme for theme in themes.values() if theme.lost >= least]
    return sorted(frequent, key=lambda t: (-t.deficit, -t.lost, t.names.most_common(1)[0][0]))


def lift(theme: Theme, themes: Mapping[str, Theme]) -> float:
    """The theme's frequency in lost critiques over that in won ones, with add-one smoothing."""
    lost, won = sum(t.lost for t in themes.values()), sum(t.won for t in themes.values())
    return ((theme.lost + 1) / (lost + 2)) / ((theme.won + 1) / (won + 2))


def report(
    themes: Mapping[str, Theme], counts: Mapping[str, int], policy: str, shown: int = 15
) -> str:
    """The report as Markdown."""
    rows = [
        (
            theme.names.most_common(1)[0][0],
            theme.lost,
            theme.won,
            f"{lift(theme, themes):.1f}",
            f"{theme.deficit:.1f}",
            theme.descriptions.most_common(1)[0][0] if theme.descriptions else "",
            ", ".join(theme.examples),
        )
        for theme in ranked(themes)[:shown]
    ]
    headings = ("theme", "lost", "won", "lift", "deficit", "the judge's criterion", "examples")
    summary = (
        f"{counts.get('with the policy', 0)} comparisons: {counts.get('lost', 0)} lost, "
        f"{counts.get('won', 0)} won, {counts.get('tied', 0)} tied. A theme is a group of "
        "principles with the same word stems. Deficit: points behind the best response, shared "
        "among the principles by weight, summed over critiques. Lift: the theme's frequency where "
        "the policy lost over that where it won."
    )
    lines = [f"# Weaknesses of {policy}", "", summary, "", *markdown_table(headings, rows)]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    p = Parser(
        prog="grm_jax.evals.weakness",
        description="Reports the weaknesses of a policy from judged comparisons.",
    )
    p.add_argument("rows", nargs="+", help="output files of grm judge or grm eval")
    who = p.add_mutually_exclusive_group(required=True)
    who.add_argument("--policy", help="name of the policy in meta.models")
    who.add_argument("--policy_index", type=int, help="index of the policy's response in every row")
    p.add_argument("--out", help=".md or .json (default: Markdown to the terminal)")
    args = p.parse_args(argv)
    return run_command("weakness", lambda: write_report(args))


def write_report(args: argparse.Namespace) -> int:
    """Reads the rows, and writes or prints the report."""
    rows = (row for path in args.rows for row in strict_records(path))
    themes, counts = collect(rows, args.policy, args.policy_index)
    name = args.policy or f"response {args.policy_index}"
    text = report(themes, counts, name)
    if args.out and args.out.endswith(".json"):
        listed = [
            dataclasses.asdict(theme) | {"lift": lift(theme, themes)} for theme in ranked(themes)
        ]
        content = {"policy": name, "counts": counts, "themes": listed}
        text = strict_json.dumps(content, indent=1) + "\n"
    return write_output(text, args.out)


if __name__ == "__main__":
    sys.exit(main())
