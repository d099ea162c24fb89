"""What a policy loses on: the principles of the comparisons that it lost, added up (SPCT, future directions).

Input: rows of `grm judge` over comparisons in which one response is the policy's. For every principle that the judge wrote it
is counted how often it came up where the policy lost, how often where it won, and with what weight. Principles are put
together by their words (stems of names), not by another model.

    grm eval ... ; python -m grm_jax.evals.weakness OUT/pandalm.jsonl --policy_index 0 --out weakness.md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from grm_jax.evals.run import read_rows
from grm_jax.judging.votes import top

# Words that make no difference between principles.
_EMPTY = frozenset(
    "the a an of and to in for with on is are its it response responses answer answers quality level overall how well".split()
)
# The first that fits is taken off, then one of the second kind; four letters stay.
_ENDINGS = ("fulness", "ization", "ations", "ation", "ments", "ities", "ness", "ment", "ings", "ions", "ance", "ence", "able",
            "ally", "ates", "ual", "ity", "ing", "ion", "ful", "ate", "ive", "acy")  # fmt: skip
_SHORT = ("es", "ed", "ly", "s", "y", "e")


@dataclasses.dataclass
class Theme:
    """Principles that go by the same words.

    lost, won: critiques that wrote it, by how the policy fared in them.  deficit: sum over the lost ones of (best score -
    policy's score) x weight, in points.  names, descriptions: as the judge wrote them.  examples: ids of lost comparisons.
    """

    lost: int = 0
    won: int = 0
    deficit: float = 0.0
    names: Counter = dataclasses.field(default_factory=Counter)
    descriptions: Counter = dataclasses.field(default_factory=Counter)
    examples: list[str] = dataclasses.field(default_factory=list)


def key_of(name: str) -> str:
    """The words of a principle's name without order, endings and empty words: "Factual accuracy" and "Accurate facts" meet."""
    words = re.findall(r"[^\W\d_]+", name.lower())
    stems = {_stem(word) for word in words if word not in _EMPTY}
    return " ".join(sorted(stems)) or name.strip().lower()


def _stem(word: str) -> str:
    for endings in (_ENDINGS, _SHORT):
        found = next((e for e in endings if word.endswith(e) and len(word) - len(e) >= 4), "")
        word = word.removesuffix(found)
    return word


def policy_index(row: dict, policy: str | None, index: int | None) -> int | None:
    """Which response of a row is the policy's: its place, or where meta["models"] names it; None where it takes no part."""
    if index is not None:
        return index if index < row["n"] else None
    models = (row.get("meta") or {}).get("models") or []
    return models.index(policy) if policy in models else None


def collect(
    rows: Iterable[dict], policy: str | None = None, index: int | None = None
) -> tuple[dict[str, Theme], dict]:
    """Themes by key, and counts of rows. A critique says that the policy lost where another response has a higher score.

    Raises ValueError where no row holds the policy.
    """
    themes: dict[str, Theme] = {}
    counts = Counter()
    for row in rows:
        counts["rows"] += 1
        at = None if row.get("error") else policy_index(row, policy, index)
        if at is None or row["n"] < 2:
            continue
        counts["with the policy"] += 1
        winners = top(row["scores"]) if row["scores"] else []
        verdict = (
            "tied" if len(winners) > 1 and at in winners else "won" if at in winners else "lost"
        )
        counts[verdict] += 1
        for critique in row["critiques"]:
            if critique["status"] == "ok":
                _add(themes, critique, at, verdict, str(row.get("id")))
    if not counts["with the policy"]:
        raise ValueError(
            f"none of {counts['rows']} rows holds the policy {policy or index!r}: name its place, or a model of meta.models"
        )
    return themes, dict(counts)


def _add(themes: dict[str, Theme], critique: dict, at: int, verdict: str, id: str) -> None:
    scores, principles = critique["scores"], critique["principles"]
    behind = max(scores) - scores[at]
    weights = [p["weight"] if p["weight"] is not None else None for p in principles]
    known = [w for w in weights if w is not None]
    fill = (sum(known) / len(known)) if known else 1.0
    total = sum(w if w is not None else fill for w in weights) or 1.0
    for principle, weight in zip(principles, weights):
        theme = themes.setdefault(key_of(principle["name"]), Theme())
        theme.names[principle["name"].strip()] += 1
        if principle["description"]:
            theme.descriptions[principle["description"].strip()] += 1
        if behind > 0:
            theme.lost += 1
            theme.deficit += behind * (weight if weight is not None else fill) / total
            if verdict == "lost" and id not in theme.examples and len(theme.examples) < 5:
                theme.examples.append(id)
        else:
            theme.won += 1


def ranked(themes: dict[str, Theme], least: int = 2) -> list[Theme]:
    """Themes that came up at least `least` times in lost critiques, the largest deficit first."""
    found = [theme for theme in themes.values() if theme.lost >= least]
    return sorted(found, key=lambda t: (-t.deficit, -t.lost, t.names.most_common(1)[0][0]))


def lift(theme: Theme, themes: dict[str, Theme]) -> float:
    """How much more often the theme comes up in lost critiques than in won ones, with one added to each count."""
    lost, won = sum(t.lost for t in themes.values()), sum(t.won for t in themes.values())
    return ((theme.lost + 1) / (lost + 2)) / ((theme.won + 1) / (won + 2))


def report(themes: dict[str, Theme], counts: dict, policy: str, shown: int = 15) -> str:
    """The report as Markdown."""
    lines = [f"# What {policy} loses on", ""]
    lines.append(
        f"{counts.get('with the policy', 0)} comparisons: {counts.get('lost', 0)} lost, {counts.get('won', 0)} won, "
        f"{counts.get('tied', 0)} tied. Themes are principles that the judge wrote, put together by their words. "
        "Deficit: points behind the best response, shared out by the principles' weights, summed over critiques. "
        "Lift: how much more often a theme comes up where the policy lost."
    )
    lines += [
        "",
        "| theme | lost | won | lift | deficit | what the judge asked for | examples |",
        "|---|---|---|---|---|---|---|",
    ]
    for theme in ranked(themes)[:shown]:
        name = theme.names.most_common(1)[0][0]
        asked = theme.descriptions.most_common(1)[0][0] if theme.descriptions else ""
        cells = [
            name,
            theme.lost,
            theme.won,
            f"{lift(theme, themes):.1f}",
            f"{theme.deficit:.1f}",
            asked,
            ", ".join(theme.examples),
        ]
        lines.append(
            "| "
            + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m grm_jax.evals.weakness ROWS.jsonl ... (--policy NAME | --policy_index I) [--out FILE]`."""
    p = argparse.ArgumentParser(
        prog="grm_jax.evals.weakness",
        description="What a policy loses on, from judged comparisons.",
    )
    p.add_argument("rows", nargs="+", help="rows of grm judge or grm eval")
    who = p.add_mutually_exclusive_group(required=True)
    who.add_argument("--policy", help="name of the policy in meta.models")
    who.add_argument("--policy_index", type=int, help="place of the policy's response in every row")
    p.add_argument("--out", help=".md or .json (default: Markdown to the terminal)")
    args = p.parse_args(argv)
    try:
        rows = (row for path in args.rows for row in read_rows(path))
        themes, counts = collect(rows, args.policy, args.policy_index)
    except (ValueError, OSError) as error:
        print(f"weakness: {error}", file=sys.stderr)
        return 2
    name = args.policy or f"response {args.policy_index}"
    text = report(themes, counts, name)
    if args.out and args.out.endswith(".json"):
        listed = [
            dataclasses.asdict(theme) | {"lift": lift(theme, themes)} for theme in ranked(themes)
        ]
        text = (
            json.dumps(
                {"policy": name, "counts": counts, "themes": listed}, indent=1, ensure_ascii=False
            )
            + "\n"
        )
    if args.out:
        Path(args.out).write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
