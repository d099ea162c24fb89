"""Collectives of a compiled program: groups, bytes sent per chip, minimum time on the links."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.compile.slices import Slice


def parse_groups(text: str, partitions: int) -> list[list[int]]:
    """Parses groups of partition numbers from any of XLA's notations.

        {{0,1},{2,3}}              the groups themselves (or the pairs of a permute)
        [2,2]<=[2,2]T(1,0)         0..3 as a 2x2 array, transposed; its rows: {0,2} {1,3}
        mesh['a'=2,'b'=2] {'b'}    one group per index of the other axes: {0,1} {2,3}
        mesh[...], device_ids=([2,2]T(1,0)) {'b'}    the same in another device order: {0,2} {1,3}
        {}                         one group of all partitions

    Raises ValueError for any other notation.
    """
    text = text.strip()
    if text in ("", "{}", "{{}}"):
        return [list(range(partitions))]
    if text.startswith("mesh["):
        return _mesh_groups(text)
    shape, arrow, layout = text.partition("<=")
    if arrow:
        return _iota(layout).reshape(_ints(shape)).tolist()
    if text.startswith("{{"):
        return [_ints(group) for group in re.findall(r"\{([\d,]*)\}", text)]
    raise ValueError(
        f"replica groups {text[:120]!r} are in an unknown notation: add it to parse_groups"
    )


def _mesh_groups(text: str) -> list[list[int]]:
    head, _, tail = text.partition("]")
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", head)}
    numbers = np.arange(math.prod(axes.values()))
    order = re.search(r"device_ids=\((.*?)\) \{", tail)
    if order:
        is_iota = order[1].startswith("[")
        numbers = _iota(order[1]).reshape(-1) if is_iota else np.array(_ints(order[1]))
    # 'a':(2)4 is a sub-axis: the factor of size 4 after a factor of size 2.
    chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", tail[tail.index("{") : tail.index("}")])
    shape: list[int] = []
    grouped: list[int] = []
    for name, size in axes.items():
        sub_axis = next(((int(before), int(n)) for a, before, n in chosen if a == name and n), None)
        if sub_axis:
            before, n = sub_axis
            grouped.append(len(shape) + 1)
            shape += [before, n, size // (before * n)]
        else:
            if any(a == name for a, _, _ in chosen):
                grouped.append(len(shape))
            shape.append(size)
    rest = [d for d in range(len(shape)) if d not in grouped]
    width = math.prod(shape[d] for d in grouped)
    return numbers.reshape(shape).transpose(rest + grouped).reshape(-1, width).tolist()


def _iota(text: str) -> np.ndarray:
    """Parses `[16,4]T(1,0)`: 0..63 as a 16 x 4 array, transposed."""
    shape, transposed, order = text.partition("T")
    layout = _ints(shape)
    numbers = np.arange(math.prod(layout)).reshape(layout)
    return numbers.transpose(_ints(order)) if transposed else numbers


def _ints(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def sent_bytes(kind: str, payload: float, members: int) -> float:
    """Bytes that each member of a group sends, for `payload` bytes of input per member.

    all-gather: its shard to every other member. reduce-scatter and all-to-all: all but its own
    share. all-reduce: a reduce-scatter and an all-gather.
    """
    if members <= 1:
        return 0.0
    others = (members - 1) / members
    if kind == "all-gather":
        return payload * (members - 1)
    if kind == "all-reduce":
        return 2 * payload * others
    if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return payload * others
    return payload


def links_used(groups: Sequence[Sequence[int]], coordinates: np.ndarray, tpu_slice: Slice) -> int:
    """Links of one chip that a collective can use at once.

    For each torus axis that its groups span: two on a ring, one on an open line.
    """
    spans = np.zeros(coordinates.shape[1], bool)
    for group in itertools.islice(groups, 64):
        members = coordinates[list(group)]
        spans |= (members != members[0]).any(axis=0)
    links = sum((2 if tpu_slice.wrap[axis] else 1) for axis in np.flatnonzero(spans))
    return max(links, 1)


def ici_traffic(
    collectives: Mapping[tuple[str, str], float], devices: Sequence[Any], tpu_slice: Slice
) -> tuple[dict[str, float], float]:
    """Bytes that each chip sends to others of its slice, and the minimum seconds for them.

    Args:
      collectives: (kind, XLA's groups) -> input bytes per chip.
      devices: of one slice, in the order of the program's partitions.

    Returns:
      (kind -> bytes, seconds of all collectives one after another).
    """
    coordinates = np.array([d.coords for d in devices])
    sent: dict[str, float] = {}
    seconds = 0.0
    for (kind, text), payload in collectives.items():
        groups = parse_groups(text, len(devices))
        if kind == "collective-permute":
            groups = [pair for pair in groups if pair[0] != pair[1]]
            if not groups:
                continue
        amount = sent_bytes(kind, payload, max(map(len, groups)))
        sent[kind] = sent.get(kind, 0.0) + amount
        links = links_used(groups, coordinates, tpu_slice)
        if kind == "collective-permute":
            # A pair has one route; XLA splits a ring's traffic into a permute per direction.
            links = min(links, 2)
        seconds += amount / (tpu_slice.generation.ici_link_bandwidth * links)
    return sent, seconds


def dcn_seconds(dcn: Mapping[str, float], tpu_slice: Slice, num_slices: int) -> float:
    """Minimum seconds of the traffic between slices.

    The chips of a host share its network; an all-reduce over n slices sends 2 (n - 1) / n of its
    bytes.
    """
    per_chip = tpu_slice.generation.dcn_host_bandwidth / tpu_slice.chips_per_host
    factor = 2 * (num_slices - 1) / num_slices if num_slices > 1 else 1.0
    return sum(factor * n if kind == "all-reduce" else n for kind, n in dcn.items()) / per_chip
