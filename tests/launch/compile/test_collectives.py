"""Replica groups in all their spellings, bytes sent, and the links that carry them."""

import numpy as np
import pytest

from launch.compile import collectives
from launch.compile.slices import get_slice


@pytest.mark.parametrize(
    "text, groups",
    [
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4], device_ids=(7,6,5,4,3,2,1,0) {'a'}", [[4, 0], [5, 1], [6, 2], [7, 3]]),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_groups(text, groups):
    assert sorted(collectives.parse_groups(text, 8)) == sorted(groups)


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'v7:' are in an unknown notation"):
        collectives.parse_groups("v7:", 8)


def test_bytes_sent_per_member():
    assert collectives.sent_bytes("all-gather", 10, 4) == 30
    assert collectives.sent_bytes("reduce-scatter", 40, 4) == 30
    assert collectives.sent_bytes("all-reduce", 40, 4) == 60
    assert collectives.sent_bytes("collective-permute", 40, 2) == 40
    assert collectives.sent_bytes("all-reduce", 40, 1) == 0


def test_links_follow_the_torus():
    ring, line = get_slice("v5litepod-256"), get_slice("v5litepod-64")

    def grid(n):
        return np.array([(i % n, i // n, 0) for i in range(n * n)])

    row, everybody = [list(range(16))], [list(range(256))]
    assert collectives.links_used(row, grid(16), ring) == 2
    assert collectives.links_used(everybody, grid(16), ring) == 4
    assert collectives.links_used([list(range(8))], grid(8), line) == 1


class Device:
    def __init__(self, *coords):
        self.coords = coords


def test_summary_of_a_program():
    tpu_slice = get_slice("v5litepod-4")
    devices = [Device(x, y, 0) for y in range(2) for x in range(2)]
    sent, seconds = collectives.ici_traffic(
        {("all-gather", "{{0,1},{2,3}}"): 45e9, ("collective-permute", "{{0,0},{1,1}}"): 1e9},
        devices,
        tpu_slice,
    )
    assert sent == {"all-gather": 45e9}
    assert seconds == pytest.approx(1.0)  # 45 GB over one link of 45 GB/s


def test_between_slices_a_hosts_network_is_shared():
    tpu_slice = get_slice("v5p-128")
    assert collectives.dcn_seconds({"all-reduce": 25e9}, tpu_slice, 2) == pytest.approx(4.0)
    assert collectives.dcn_seconds({}, tpu_slice, 1) == 0
