"""Chooses the common prefix: the tokens with which many prompts begin, prefilled once for all.

A prompt uses the whole prefix or none of it, and keeps at least one token of its own, whose
activation predicts the first new token:

    prompts          sorted, common lengths      prefix of 3 tokens, used by three prompts
    a b c d e        a b c d e   \\ 4             a b c | d e
    a b c d f g      a b c d f g / \\ 3           a b c | d f g
    a b c h          a b c h     / \\ 0           a b c | h
    x y              x y         /               x y

The prefix of the largest saving, (prompts - 1) x length, is the largest rectangle under the common
lengths of neighbours. Prompts of several templates form several groups, which run one after the
other: a state has one common prefix.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from grm_jax.sampling.request import Request

MIN_TOKENS = 64  # of a prefix; a shorter one saves less time than its programs take to compile
MIN_PROMPTS = 8  # of a second group: rows are idle while the last samples of a group finish
KEPT = 2  # common prefixes that an engine keeps for later runs
KEPT_SHARE = 0.9  # of the best prefix's saving at which that of the previous run is kept

Tokens = Sequence[int]


def choose_prefix(prompts: Sequence[Tokens], least: int | None = None) -> tuple[int, ...]:
    """Returns the tokens of the prefix that saves the most prefill, () if none is worth it.

    Args:
      least: fewest tokens of a prefix; default MIN_TOKENS.
    """
    # The bytes of big-endian numbers sort as the numbers do.
    ordered = sorted(np.asarray(prompt, ">i4").tobytes() for prompt in prompts)
    arrays = [np.frombuffer(prompt, ">i4") for prompt in ordered]
    common = [_common(a, b) for a, b in zip(arrays, arrays[1:])]
    length, first = _largest_rectangle(common)
    if length < max(1, MIN_TOKENS if least is None else least):
        return ()
    return tuple(arrays[first][:length].tolist())


def num_used(prompt: Tokens, prefix: tuple[int, ...]) -> int:
    """Returns how many tokens of the prefix a prompt uses: all of them or 0."""
    n = len(prefix)
    return n if len(prompt) > n and tuple(prompt[:n]) == prefix else 0


def common_length(prompts: Sequence[Tokens]) -> int:
    """Returns how many first tokens all prompts share, fewer than the shortest prompt has."""
    first, *others = [np.asarray(prompt) for prompt in prompts]
    return min((_common(first, other) for other in others), default=len(first) - 1)


def group_requests(
    requests: Sequence[Request], kept: Iterable[tuple[int, ...]] = ()
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Returns (prefix, indices of requests) of groups that together have every request.

    Requests that state their prefix form a group per prefix, whatever the other requests are, so
    that the arithmetic of a sample does not depend on them; `choose_groups` divides the others.
    """
    stated: dict[tuple[int, ...], list[int]] = {}
    others = []
    for i, request in enumerate(requests):
        if request.common_prefix is None:
            others.append(i)
        else:
            stated.setdefault(tuple(request.prompt[: request.common_prefix]), []).append(i)
    chosen = choose_groups([requests[i].prompt for i in others], kept)
    return [*stated.items(), *((prefix, [others[i] for i in part]) for prefix, part in chosen)]


def choose_groups(
    prompts: Sequence[Tokens], kept: Iterable[tuple[int, ...]] = ()
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Returns (prefix, indices of prompts) of groups that together have every prompt.

    Prompts without a prefix are in the first group. The only prefix is () if none is worth it.

    Args:
      kept: prefixes of earlier runs, which cost no prefill.
    """
    chosen: list[tuple[tuple[int, ...], list[int]]] = []
    left = list(range(len(prompts)))
    while left:
        rest = [prompts[i] for i in left]
        prefix = choose_prefix(rest)
        for other in kept:
            prefix = prefer_kept(other, prefix, rest)
        users = [i for i in left if num_used(prompts[i], prefix)]
        if not users or (chosen and len(users) < MIN_PROMPTS):
            break
        chosen.append((prefix, users))
        left = sorted(set(left) - set(users))
    if left and chosen:
        chosen[0][1].extend(left)
    elif left:
        chosen.append(((), left))
    return chosen


def prefer_kept(
    kept: tuple[int, ...], best: tuple[int, ...], prompts: Sequence[Tokens]
) -> tuple[int, ...]:
    """Returns the kept prefix if it saves `KEPT_SHARE` of what the best one does after its prefill.

    It is returned only if it leaves no prompt longer than the best one does.
    """

    def rest(prefix: tuple[int, ...]) -> list[int]:
        return [len(prompt) - num_used(prompt, prefix) for prompt in prompts]

    if not kept or kept == best:
        return best
    total, kept_rest, best_rest = sum(map(len, prompts)), rest(kept), rest(best)
    saved = total - sum(kept_rest)
    enough = saved and saved >= KEPT_SHARE * (total - sum(best_rest) - len(best))
    return kept if enough and max(kept_rest) <= max(best_rest) else best


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many first tokens are equal; at most one less than the shorter prompt has."""
    n = max(0, min(len(a), len(b)) - 1)
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if different.size else n


def _largest_rectangle(heights: Sequence[int]) -> tuple[int, int]:
    """Returns (height, first index) of the largest rectangle under a histogram; (0, 0) if none."""
    best, height, start = 0, 0, 0
    open_: list[tuple[int, int]] = []  # (first index, height) of bars that still extend, rising
    for i, bar in enumerate([*heights, 0]):
        first = i
        while open_ and open_[-1][1] >= bar:
            first, tall = open_.pop()
            if tall * (i - first) > best:
                best, height, start = tall * (i - first), tall, first
        open_.append((first, bar))
    return height, start
