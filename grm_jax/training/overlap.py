"""Drops training comparisons whose queries are in the evaluation."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from grm_jax import strict_json
from grm_jax.data.splits import overlap_key
from grm_jax.storage import write_atomic
from grm_jax.training.errors import TrainingError

log = logging.getLogger(__name__)
FILE = "overlap.json"
DROPPED = "%d of %d comparisons of %s have a query of %s and are dropped"


def drop(
    views: Mapping[str, Any], others: Iterable[Mapping[str, Any]], name: str, folder: Any = None
) -> list[np.ndarray]:
    """Drops the comparisons whose query is held out, whatever their file and id.

    Args:
      views: {task: the view of its lines}, which has `lines` and their `file`.
      others: the held-out rows of an index.
      name: their config field, for messages.
      folder: where process 0 writes overlap.json, the number dropped from each task.

    Returns:
      The lines of each view that remain.

    Raises:
      TrainingError: no comparison of a task remains.
    """
    keys = {overlap_key(row["query"]) for row in others}
    remaining, counts = [], {}
    for task, view in views.items():
        lines = [i for i in view.lines if overlap_key(view.file[int(i)]["query"]) not in keys]
        if not lines:
            raise TrainingError(
                f"{name} has the queries of all {len(view):,} comparisons of {task}: train on "
                "other comparisons than those of the evaluation"
            )
        if dropped := len(view) - len(lines):
            log.warning(DROPPED, dropped, len(view), task, name)
        remaining.append(np.array(lines))
        counts[task] = dropped
    if folder is not None and jax.process_index() == 0:
        record = {"held_out": name, "dropped": counts}
        write_atomic(folder / FILE, strict_json.dumps(record) + "\n")
    return remaining
