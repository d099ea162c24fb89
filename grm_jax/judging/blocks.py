"""Overlapping blocks of a group that is too large for one prompt, and values that compare them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def design(n: int, most: int) -> list[tuple[int, ...]]:
    """Returns the blocks of n responses, each a tuple of at most `most` indices.

    n <= most: one block. Else the responses, in their order, are cut into m = ceil(n / (most // 2))
    runs whose lengths differ by at most 1, and block b is run b followed by run b + 1, the last one
    followed by the first. So every response is in exactly 2 blocks, neighbouring blocks share a
    run, and all blocks are connected. most = 1: every response alone, in 1 block.

        design(5, 4) == [(0, 1, 2), (1, 2, 3, 4), (3, 4, 0)]     runs: 0 | 1 2 | 3 4
    """
    if n <= most:
        return [tuple(range(n))]
    if most == 1:
        return [(i,) for i in range(n)]
    m = math.ceil(n / (most // 2))
    runs = [tuple(range(b * n // m, (b + 1) * n // m)) for b in range(m)]
    return [runs[b] + runs[(b + 1) % m] for b in range(m)]


def combine(blocks: Sequence[Mapping[int, float]], weights: Sequence[float]) -> dict[int, float]:
    """Returns one value per response from its values in several blocks.

    A judge scores relative to what a prompt shows, so a weak block gets higher scores. The fit

        minimise  sum over blocks b and responses i in b of  weight[b] (value[b][i] - q[i] - o[b])^2

    separates a response's value q[i] from the offset o[b] of its block: a judge that adds a
    constant to all scores of a block changes no difference of two responses. The offsets of
    connected blocks add up to 0, so q has the scale of the values; it can leave their range by the
    offset. One block alone has offset 0.

    Args:
      blocks: {response: value} of each block.
      weights: number of critiques of each block.
    """
    if len(blocks) == 1:
        return dict(blocks[0])
    totals: dict[int, float] = {}  # of the weights, by response
    for block, weight in zip(blocks, weights):
        for i in block:
            totals[i] = totals.get(i, 0.0) + weight
    means = _means(blocks, weights, totals, [0.0] * len(blocks))
    # The normal equations, after q is eliminated: laplacian @ offsets = residuals.
    laplacian = np.zeros((len(blocks), len(blocks)))
    residuals = np.zeros(len(blocks))
    for a, block in enumerate(blocks):
        laplacian[a, a] = weights[a] * len(block)
        residuals[a] = weights[a] * math.fsum(block[i] - means[i] for i in block)
        for b, other in enumerate(blocks):
            shared = math.fsum(1 / totals[i] for i in block if i in other)
            laplacian[a, b] -= weights[a] * weights[b] * shared
    offsets = np.linalg.pinv(laplacian, rcond=1e-9, hermitian=True) @ residuals
    return _means(blocks, weights, totals, offsets.tolist())


def _means(
    blocks: Sequence[Mapping[int, float]],
    weights: Sequence[float],
    totals: Mapping[int, float],
    offsets: Sequence[float],
) -> dict[int, float]:
    """Returns the weighted mean of each response's values, without the offsets of their blocks."""
    sums = dict.fromkeys(totals, 0.0)
    for block, weight, offset in zip(blocks, weights, offsets):
        for i, value in block.items():
            sums[i] += weight * (value - offset)
    return {i: total / totals[i] for i, total in sums.items()}
