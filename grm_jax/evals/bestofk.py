"""Best-of-k curves as in PPE: what the judge's pick among the first k of a prompt's answers is worth.

Axes: K answers of a prompt, O random orders of them.
"""

from __future__ import annotations

import numpy as np

ORDERS = 100
SEED = 0


def best_of_k(
    scores_K: np.ndarray, truth_K: np.ndarray, orders: int = ORDERS, seed: int = SEED
) -> np.ndarray:
    """(2, K, O): truth of the running pick (first maximum of the scores) and of the oracle (running maximum of the truth)."""
    rng = np.random.default_rng(seed)
    count = len(scores_K)
    places_OxK = np.stack([rng.permutation(count) for _ in range(orders)])
    shown_OxK, truth_OxK = scores_K[places_OxK], truth_K[places_OxK]
    # A place is a new maximum where it beats everything before it; the pick stays until then.
    before = np.maximum.accumulate(
        np.pad(shown_OxK, ((0, 0), (1, 0)), constant_values=-np.inf)[:, :-1], axis=1
    )
    new = shown_OxK > before
    new[:, 0] = True
    pick_OxK = np.maximum.accumulate(np.where(new, np.arange(count), 0), axis=1)
    picked = np.take_along_axis(truth_OxK, pick_OxK, axis=1)
    return np.stack([picked.T, np.maximum.accumulate(truth_OxK, axis=1).T])


def min_max(scores_K: np.ndarray) -> np.ndarray:
    """Scores scaled to 0..1 within the prompt; all 0 where they are equal."""
    low, high = scores_K.min(), scores_K.max()
    return (scores_K - low) / (high - low) if high > low else np.zeros_like(scores_K, dtype=float)
