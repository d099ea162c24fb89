"""What each judge of a baseline predicted, stored so that a table can grow seed by seed.

A store is one `RunStore` file per baseline and seed: the config in its header, one record with all
judges. Seeds can be added later, on any machine.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.results import upgraded
from grm_jax.judging.codec import as_tuple
from grm_jax.run_store import IdentityMismatch, RunStore
from grm_jax.training.loop import FREE_FIELDS
from grm_jax.types import Comparison

log = logging.getLogger(__name__)
Scores = Sequence[float] | None

_ENTRY = ("judge", "comparisons", "rule", "headline", "metrics", "content_blind", "parsing", "cost")
# Fields of every experiment that no result depends on.
_UNUSED = ("name", "tensorboard", "export", "stages")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A judge of one seed: its entry of a results file, and the judged comparisons."""

    entry: dict[str, Any]
    judged: Sequence[JudgedComparison]

    @property
    def label(self) -> str:
        """The judge's name, with k if it votes."""
        name, k = self.entry["judge"]["name"], self.entry["judge"]["k"]
        return f"{name}, k = {k}" if k > 1 else name


def config_fields(config: ConfigDict, unused: Sequence[str]) -> dict[str, Any]:
    """Returns {"rft.steps": 3000, ...} without `unused` sections and fields, and `FREE_FIELDS`."""
    skipped = {*_UNUSED, *unused}

    def flatten(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in section.items():
            path = f"{prefix}{name}"
            if path in skipped or name in FREE_FIELDS:
                continue
            if isinstance(value, dict):
                yield from flatten(value, f"{path}.")
            else:
                yield path, value

    return dict(flatten(json.loads(config.to_json_best_effort()), ""))


def save(path: Path, identity: Mapping[str, Any], judges: Sequence[Measured]) -> None:
    """Replaces a store by the judges of one baseline and seed. Scores keep nine digits."""
    with RunStore(path, identity, existing="overwrite") as store:
        store.append(_KEY, {"judges": {judge.label: _to_json(judge) for judge in judges}})


def load(
    path: Path, identity: Mapping[str, Any], comparisons: Sequence[Comparison]
) -> list[Measured] | None:
    """Loads what `save` wrote; None if there is nothing, or with a warning another config."""
    if not path.exists():
        if path.with_suffix(".json").exists():
            log.warning("%s is of an earlier version: ignored", path.with_suffix(".json"))
        return None
    try:
        with RunStore(path, identity) as store:
            judges = store[_KEY]["judges"].values() if _KEY in store else None
    except IdentityMismatch as error:
        log.warning("%s", error)
        return None
    return None if judges is None else [_from_json(judge, comparisons) for judge in judges]


_KEY = "judges"


def _to_json(measured: Measured) -> dict[str, Any]:
    judged = measured.judged
    views = [[[list(order), _short(scores)] for order, scores in j.views] for j in judged]
    return {
        "entry": {key: measured.entry[key] for key in _ENTRY},
        "scores": [_short(j.scores) for j in judged],
        "views": views if any(views) else None,
        "num_votes": [j.num_votes for j in judged] if any(views) else None,
    }


def _from_json(judge: dict[str, Any], comparisons: Sequence[Comparison]) -> Measured:
    views = judge["views"] or [()] * len(comparisons)
    num_votes = judge["num_votes"] or [1] * len(comparisons)
    judged = [
        JudgedComparison(
            comparison,
            as_tuple(scores),
            tuple((tuple(order), as_tuple(view)) for order, view in seen),
            num_votes=votes,
        )
        for comparison, scores, seen, votes in zip(comparisons, judge["scores"], views, num_votes)
    ]
    return Measured(upgraded(judge["entry"]), judged)


def _short(scores: Scores) -> list[float] | None:
    return None if scores is None else [float(f"{score:.9g}") for score in scores]
