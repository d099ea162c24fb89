"""Reads a file of labelled comparisons, drops duplicates, and holds a part out by query.

labelled = read_labelled("pairs.jsonl")
train, held_out = split(labelled.comparisons, share=0.2, most=500)
"""

import collections
import dataclasses
import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from grm_jax.data.comparisons import is_distinct, placed, read_rows, simplified
from grm_jax.types import Comparison

log = logging.getLogger(__name__)

_SHOWN = 3
_SPACES = bytes(i for i in range(128) if chr(i).isspace())
# Format characters and variation selectors.
_INVISIBLE = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u115f\u1160\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# A part of `comparisons.detect`'s error that does not apply here.
_BY_NAME = "name one with --format, or with layout= in Python, or "


@dataclasses.dataclass(frozen=True)
class Labelled:
    """The comparisons of a file that can train a judge, and counts of all its rows.

    counts: rows, malformed, unlabelled (no single best response), duplicates, comparisons.
    """

    comparisons: list[Comparison]
    counts: dict[str, int]


def read_labelled(path: str, max_skipped: float = 0.1) -> Labelled:
    """Reads a file in any layout that `comparisons.read_rows` detects.

    The responses are placed in an order drawn from the id, as for all training data. Rows of the
    same query and responses count as duplicates, in whatever order; the first one is used.

    Args:
      path: a file; also what else `records.read_records` takes.
      max_skipped: largest share of malformed rows; they are logged and skipped.

    Raises:
      ValueError: too many malformed rows, or no labelled comparison; with the commonest reasons.
    """
    counts = collections.Counter(rows=0, malformed=0, unlabelled=0, duplicates=0, comparisons=0)
    reasons: collections.Counter[str] = collections.Counter()
    preferred: dict[str, str] = {}  # by digest of query and responses
    ids: set[str] = set()
    comparisons: list[Comparison] = []
    contradictions = 0
    for row in read_rows(path):
        counts["rows"] += 1
        if row.comparison is None:
            counts["malformed"] += 1
            reason = str(row.reason).replace(_BY_NAME, "")
            reasons[f"row {row.number}: {reason}"] += 1
            continue
        comparison = simplified(row.comparison)
        if (label := _preferred(comparison)) is None:
            counts["unlabelled"] += 1
            continue
        if (digest := content_digest(comparison)) in preferred:
            counts["duplicates"] += 1
            contradictions += preferred[digest] != label
            continue
        preferred[digest] = label
        id = str(row.id or f"row-{row.number}")
        id = id if id not in ids else f"{id}/row-{row.number}"
        ids.add(id)
        comparisons.append(placed(dataclasses.replace(comparison, id=id)))
    counts["comparisons"] = len(comparisons)
    examples = "; ".join(reason for reason, _ in reasons.most_common(_SHOWN))
    if counts["malformed"] > max_skipped * counts["rows"]:
        raise ValueError(
            f"{path}: {counts['malformed']} of {counts['rows']} rows are no comparisons: "
            f"{examples}. Fix them, or raise config.data.max_skipped"
        )
    if not comparisons:
        raise ValueError(
            f"{path}: none of {counts['rows']} rows has a single best response ({dict(counts)}): "
            "training needs chosen and rejected, or a label"
        )
    if examples:
        log.warning("%s: skipped %d malformed rows: %s", path, counts["malformed"], examples)
    if contradictions:
        log.warning("%s: %d duplicates prefer another response", path, contradictions)
    return Labelled(comparisons, dict(counts))


def split(
    comparisons: Sequence[Comparison], share: float, most: int, seed: int = 0
) -> tuple[list[Comparison], list[Comparison]]:
    """Returns (training, held-out) comparisons, in the order of the file.

    All comparisons of a query are on one side. The side depends on the query and the seed, and not
    on the order of the file. If every query has too many comparisons to be held out, the one with
    the fewest is.

    Args:
      share: of the comparisons to hold out, at least one. Queries are held out whole, so it may be
        exceeded, at most twofold.
      most: comparisons to hold out at most.

    Raises:
      ValueError: all comparisons have the same query.
    """
    groups: dict[str, list[int]] = {}
    names: dict[str, str] = {}
    for i, comparison in enumerate(comparisons):
        key, name = overlap_key(comparison.turns), query_key(comparison)
        names[key] = min(name, names.get(key, name))  # whichever stands first in the file
        groups.setdefault(key, []).append(i)
    if len(groups) < 2:
        raise ValueError(
            f"all {len(comparisons)} comparisons have the same query, so none can be held out: "
            "give a second file, --config.data.held_out_file=FILE"
        )
    goal = max(1, min(round(share * len(comparisons)), most))
    drawn = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}/{names[key]}".encode()).digest())
    chosen: set[int] = set()
    for key in drawn[:-1]:  # at least one query is trained on
        if len(chosen) >= goal:
            break
        if len(chosen) + len(groups[key]) <= min(most, 2 * goal):
            chosen.update(groups[key])
    if not chosen:  # every query has more comparisons than that
        chosen.update(groups[min(drawn, key=lambda key: len(groups[key]))])
    sides: tuple[list[Comparison], list[Comparison]] = ([], [])
    for i, comparison in enumerate(comparisons):
        sides[i in chosen].append(comparison)
    return sides


def without_queries(
    comparisons: Sequence[Comparison], others: Collection[Comparison]
) -> list[Comparison]:
    """Returns the comparisons whose query is not one of `others`, compared by `overlap_key`."""
    keys = {overlap_key(other.turns) for other in others}
    return [c for c in comparisons if overlap_key(c.turns) not in keys]


def overlap_key(turns: str | Sequence[Mapping[str, str]]) -> str:
    """Returns the text of a query, for finding comparisons that are in training and held out.

    White space, case, invisible characters, compatibility forms of Unicode (full-width letters) and
    system turns are ignored. turns: a text, or chat turns.
    """
    if not isinstance(turns, str):
        turns = "\0".join(turn["content"] for turn in turns if turn["role"] != "system")
    if turns.isascii():  # the same in a tenth of the time
        return turns.encode().translate(None, _SPACES).decode().lower()
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", turns)).casefold()
    return "".join(text.split())


def query_key(comparison: Comparison) -> str:
    """Returns the chat turns as one string, without differences in case and white space."""
    turns = [[turn["role"], " ".join(turn["content"].split())] for turn in comparison.turns]
    return json.dumps(turns).casefold()


def as_row(comparison: Comparison) -> dict[str, Any]:
    """Returns the row of a comparison in our own layout, for `grm judge`."""
    fields = {
        name: value
        for name, value in dataclasses.asdict(comparison).items()
        if value is not None and value != {}
    }
    return {"id": fields.pop("id"), **fields}


def content_digest(comparison: Comparison) -> str:
    """Returns a hash of the query and the responses, whatever their order."""
    fields = [comparison.turns, sorted(comparison.responses)]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def _preferred(comparison: Comparison) -> str | None:
    """The best response, or the score of a single one, 0 or 1; None without a usable label."""
    if comparison.n == 1:
        rewards = comparison.rewards
        return str(rewards[0]) if rewards and rewards[0] in (0.0, 1.0) else None
    best = comparison.best
    usable = best is not None and is_distinct(comparison, best)
    return comparison.responses[best] if usable else None
