"""Best-of-k curves of PPE: the truth of the judge's pick among the first k answers of a prompt.

Axes: K answers of a prompt, O random orders of them.
"""

import numpy as np

ORDERS = 100
SEED = 0


def best_of_k(
    scores_K: np.ndarray, truth_K: np.ndarray, orders: int = ORDERS, seed: int = SEED
) -> np.ndarray:
    """Computes two curves over k for each random order of the answers.

    Returns:
      (2, K, O): the truth of the judge's pick among the first k (the first maximum of the scores),
      and the oracle's (the maximum of the truth).
    """
    rng = np.random.default_rng(seed)
    count = len(scores_K)
    index_OxK = np.stack([rng.permutation(count) for _ in range(orders)])
    scores_OxK, truth_OxK = scores_K[index_OxK], truth_K[index_OxK]
    # A position with a new maximum is picked until the next one.
    before = np.maximum.accumulate(
        np.pad(scores_OxK, ((0, 0), (1, 0)), constant_values=-np.inf)[:, :-1], axis=1
    )
    new = scores_OxK > before
    new[:, 0] = True
    pick_OxK = np.maximum.accumulate(np.where(new, np.arange(count), 0), axis=1)
    picked = np.take_along_axis(truth_OxK, pick_OxK, axis=1)
    return np.stack([picked.T, np.maximum.accumulate(truth_OxK, axis=1).T])


def min_max(scores_K: np.ndarray) -> np.ndarray:
    """Scales scores to 0..1 within the prompt; all 0 if they are equal."""
    low, high = scores_K.min(), scores_K.max()
    return (scores_K - low) / (high - low) if high > low else np.zeros_like(scores_K, dtype=float)
