"""What each judge of each seed said, kept in small files, so that a table can grow seed by seed, on one machine or on several."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from grm_jax.baselines.report import Measured
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.results import upgraded
from grm_jax.types import Comparison

log = logging.getLogger(__name__)

ENTRY = ("judge", "comparisons", "rule", "headline", "metrics", "content_blind", "parsing", "cost")
# Sections of an experiment that do not decide what a baseline says; of "meta_rm" the scalars take their rows and optimizer.
ASIDE = {
    "llm_judge": ("rl", "meta_rm"),
    "pairwise": ("rl", "meta_rm"),
    "bt": ("rl",),
    "cloud": ("rl",),
    "spct": (),
}
_META_RM_ONLY = (
    "start", "comparisons", "samples", "temperature", "rft_trials", "first_item", "held_out",
    "steps", "lr", "warmup_steps", "save_every", "token_loss", "likelihood",
)  # fmt: skip


def identity(config, name: str, benchmark: str, limit: int | None) -> str:
    """A hash of everything that decides what a judge says on a benchmark."""
    fields = json.loads(config.to_json_best_effort())
    for aside in ("name", "tensorboard", "export", "stages", *ASIDE[name]):
        fields.pop(aside, None)
    if name in ("bt", "cloud"):
        fields["meta_rm"] = {
            key: value for key, value in fields["meta_rm"].items() if key not in _META_RM_ONLY
        }
    text = json.dumps([fields, name, benchmark, limit], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(path: Path, which: str, found: dict[str, Measured], both_orders: bool) -> None:
    """Writes the judges of one runner and seed, all of the same comparisons. which: `identity`.  both_orders: keep the scores of each order too."""
    judges, ids = {}, []
    for label, measured in found.items():
        ids = [judged.comparison.id for judged in measured.judged]
        judges[label] = {
            "entry": {key: measured.entry[key] for key in ENTRY},
            "scores": [_short(judged.scores) for judged in measured.judged],
        }
        if both_orders:
            judges[label] |= {
                "views": [
                    [[list(order), _short(scores)] for order, scores in judged.views]
                    for judged in measured.judged
                ],
                "votes_of": [judged.num_votes for judged in measured.judged],
            }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"identity": which, "ids": ids, "judges": judges}, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8")


def load(path: Path, which: str, comparisons: Sequence[Comparison]) -> dict[str, Measured] | None:
    """What `save` wrote; None where there is nothing, or of another config or other comparisons, which the log says."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["identity"] != which or kept["ids"] != [c.id for c in comparisons]:
        log.warning("%s is of another config or of other comparisons: it is measured again", path)
        return None
    found, several = {}, len(comparisons)
    for label, judge in kept["judges"].items():
        rows = zip(
            comparisons,
            judge["scores"],
            judge.get("views", [()] * several),
            judge.get("votes_of", [1] * several),
        )
        judged = [
            JudgedComparison(
                c,
                _tuple(scores),
                tuple((tuple(order), _tuple(seen)) for order, seen in views),
                num_votes=votes,
            )
            for c, scores, views, votes in rows
        ]
        found[label] = Measured(upgraded(judge["entry"]), judged)
    return found


def _short(scores):
    return None if scores is None else [float(f"{score:.9g}") for score in scores]


def _tuple(scores):
    return None if scores is None else tuple(scores)
