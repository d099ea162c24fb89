"""Who talks to whom in a compiled program, how many bytes each chip sends, and the least time that the links need for it."""

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from launch.compile.slices import Slice


def parse_groups(text: str, partitions: int) -> list[list[int]]:
    """Groups of partition numbers, from any of the ways in which XLA writes them.

        {{0,1},{2,3}}                  as they are (or the pairs of a permute)
        [2,2]<=[2,2]T(1,0)             0..3 laid out as 2x2, transposed, read as rows: {0,2} {1,3}
        mesh['a'=2,'b'=2] {'b'}        a row for each choice of the axes that are not named: {0,1} {2,3}
        mesh[...], device_ids=([2,2]T(1,0)) {'b'}     the same with the devices in another order: {0,2} {1,3}
        {}                             everybody

    Raises ValueError for a form that is none of these.
    """
    text = text.strip()
    if text in ("", "{}", "{{}}"):
        return [list(range(partitions))]
    if text.startswith("mesh["):
        return _mesh_groups(text)
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, layout, order = ([int(n) for n in g.split(",")] if g else [] for g in iota.groups())
        numbers = np.arange(math.prod(layout)).reshape(layout)
        return (numbers.transpose(order) if order else numbers).reshape(shape).tolist()
    if text.startswith("{{"):
        return [
            [int(n) for n in group.split(",") if n] for group in re.findall(r"\{([\d,]*)\}", text)
        ]
    raise ValueError(
        f"replica groups {text[:120]!r} are in a form that launch/compile/collectives.py does not know"
    )


def _mesh_groups(text: str) -> list[list[int]]:
    head, _, tail = text.partition("]")
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", head)}
    numbers = np.arange(math.prod(axes.values()))
    order = re.search(r"device_ids=\((.*?)\) \{", tail)
    if order:
        numbers = _device_order(order.group(1))
    # A part of an axis is written 'a':(2)4: of its factors, the one of size 4 that stands after 2.
    chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", tail[tail.index("{") : tail.index("}")])
    shape: list[int] = []
    grouped: list[int] = []
    for name, size in axes.items():
        part = next(((int(before), int(n)) for a, before, n in chosen if a == name and n), None)
        if part:
            before, n = part
            grouped.append(len(shape) + 1)
            shape += [before, n, size // (before * n)]
        else:
            if any(a == name for a, _, _ in chosen):
                grouped.append(len(shape))
            shape.append(size)
    rest = [d for d in range(len(shape)) if d not in grouped]
    width = math.prod(shape[d] for d in grouped)
    return numbers.reshape(shape).transpose(rest + grouped).reshape(-1, width).tolist()


def _device_order(text: str) -> np.ndarray:
    """`[16,4]T(1,0)`: 0..63 laid out as 16 x 4, transposed, read in order; or the numbers themselves, `0,4,8,12`."""
    iota = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not iota:
        return np.array([int(n) for n in text.split(",")])
    layout = [int(n) for n in iota.group(1).split(",")]
    numbers = np.arange(math.prod(layout)).reshape(layout)
    return (
        numbers.transpose([int(n) for n in iota.group(2).split(",")]) if iota.group(2) else numbers
    ).reshape(-1)


def sent_bytes(kind: str, payload: float, members: int) -> float:
    """Bytes that each member of a group must send, for `payload` bytes of input per member.

    all-gather: its shard to each other member.  reduce-scatter, all-to-all: all but its own share.  all-reduce: both after each other.
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


def links_used(groups: Sequence[Sequence[int]], coordinates: np.ndarray, part: Slice) -> int:
    """Links out of one chip that a collective can use at once: per torus axis that its groups span, two on a ring, one on an open line."""
    spans = np.zeros(coordinates.shape[1], bool)
    for group in itertools.islice(groups, 64):
        members = coordinates[list(group)]
        spans |= (members != members[0]).any(axis=0)
    links = sum((2 if part.wrap[axis] else 1) for axis in np.flatnonzero(spans))
    return max(links, 1)


def summarise(collectives: dict, devices: Sequence, part: Slice) -> tuple[dict[str, float], float]:
    """(bytes each chip sends over its links by kind, least seconds for all of them one after another).

    collectives: (kind, groups as text) -> input bytes per chip. devices: those of ONE slice, in the order of the program's partitions.
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
        links = links_used(groups, coordinates, part)
        if kind == "collective-permute":
            # Each pair has one way to go; XLA sends half of a ring's traffic each way round, as two permutes at a time.
            links = min(links, 2)
        seconds += amount / (part.chip.ici_link * links)
    return sent, seconds


def dcn_seconds(dcn: dict[str, float], part: Slice, num_slices: int) -> float:
    """Least seconds between slices: each host's network is shared by its chips; a reduction over n slices moves 2 (n - 1) / n of it."""
    per_chip = part.chip.dcn_host / part.chips_per_host
    factor = 2 * (num_slices - 1) / num_slices if num_slices > 1 else 1.0
    return sum(factor * n if kind == "all-reduce" else n for kind, n in dcn.items()) / per_chip
