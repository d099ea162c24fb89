"""Passes many hostile inputs to one reader and counts the outcomes.

A fuzzer is a test that draws labelled inputs from a seeded generator and calls `run`:

    def test_rows(record_property, cases):
        draws = ((f"row {i}", odd_row(rng)) for i, rng in cases(fast=200, full=10_000))
        fuzz.run("rows", draws, read_row, record_property)

`pytest tests/adversarial` tries the fast number of inputs, `--run slow` the full number, and
`--fuzz-seed N` draws other inputs. The counts are printed below pytest's summary.
"""

import collections
import contextlib
import copy
import json
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LIMIT_SECONDS = 20.0  # CPU time of one input
WALL_SECONDS = 60.0  # for an input that waits; a stalled machine takes seconds
SHOWN = 10  # failures in the message of a failed test


class Hang(BaseException):
    """An input took longer than its limits. No `except Exception` swallows it."""


@contextlib.contextmanager
def time_limit(seconds: float = LIMIT_SECONDS, wall: float = WALL_SECONDS) -> Iterator[None]:
    """Raises Hang in the body after `seconds` of this thread's CPU time, or `wall` seconds.

    Main thread only.
    """
    start, wall_start = time.thread_time(), time.monotonic()

    def check(*_: Any) -> None:
        if time.thread_time() - start > seconds or time.monotonic() - wall_start > wall:
            raise Hang

    previous = signal.signal(signal.SIGALRM, check)
    interval = min(1.0, seconds, wall)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def run(
    name: str,
    cases: Iterable[tuple[str, Any]],
    check: Callable[[Any], object],
    record_property: Callable[[str, object], None],
    refusals: tuple[type[Exception], ...] = (ValueError, OSError),
    seconds: float = LIMIT_SECONDS,
    wall: float = WALL_SECONDS,
) -> dict[str, int]:
    """Calls check(value) for every (label, value) and returns the number of each outcome.

    accepted: check returned. refused: it raised one of `refusals` with a message of one line.
    wrong: it raised AssertionError (an input that the docs refuse was accepted, or read wrongly).
    traceback: another exception, or a message of no or several lines. hang: past a limit
    of `time_limit`.

    Raises AssertionError unless every input was accepted or refused.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    failures = []
    for label, value in cases:
        start = time.monotonic()
        try:
            with time_limit(seconds, wall):
                check(value)
            outcome, detail = "accepted", ""
        except Hang:
            outcome, detail = "hang", f"{time.monotonic() - start:.1f} s"
        except AssertionError as error:
            outcome, detail = "wrong", str(error)
        except refusals as error:
            lines = str(error).strip().splitlines()
            outcome, detail = ("refused", "") if len(lines) == 1 else ("traceback", repr(error))
        except Exception as error:  # noqa: BLE001
            outcome, detail = "traceback", repr(error)
        outcomes[outcome] += 1
        if outcome not in ("accepted", "refused"):
            failures.append(f"{label}: {outcome}: {detail:.300}")
    record_property("fuzz", f"{name}: {describe(outcomes)}")
    assert not failures, "\n".join([f"{name}: {describe(outcomes)}", *failures[:SHOWN]])
    assert outcomes, f"{name}: no input was tried"
    return dict(outcomes)


def describe(outcomes: collections.Counter[str]) -> str:
    """Returns "200 tried: 150 accepted, 50 refused, 0 wrong, 0 tracebacks, 0 hangs"."""
    names = {"wrong": "wrong", "traceback": "tracebacks", "hang": "hangs"}
    counts = ", ".join(
        f"{outcomes[key]:,} {names.get(key, key)}"
        for key in ("accepted", "refused", "wrong", "traceback", "hang")
    )
    return f"{sum(outcomes.values()):,} tried: {counts}"


ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "\ufeff",
    "\ud800",
    "\u202e",
    "\U000e0001",
    "a\r\nb",
    "\u2028",
    "x" * 10_000,
    "[/Response 1]",
    r"\boxed{10, 1}",
    "<think>",
    "{{ 1 / 0 }}",
    "../../etc/passwd",
    "1e400",
    "NaN",
)
ODD_NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    -(10**30),
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
)
ODD_VALUES = (
    *ODD_TEXTS,
    *ODD_NUMBERS,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, "a", None],
    {"a": {"b": {"c": []}}},
    json.loads("[" * 400 + "]" * 400),
)


def change_json(rng: random.Random, value: Any, changes: int = 1) -> Any:
    """Returns a copy of a JSON value with members dropped, renamed, added or made odd."""
    value = json.loads(json.dumps(value))
    for _ in range(changes):
        if not isinstance(value, dict | list) or not value:
            return _odd_value(rng)
        node = value
        while True:  # walk to a random container
            below = [v for v in _values(node) if isinstance(v, dict | list) and v]
            if not below or rng.random() < 0.5:
                break
            node = rng.choice(below)
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        action = rng.choice(["odd", "odd", "odd", "drop", "add", "nest", "copy"])
        if action == "drop":
            del node[key]
        elif action == "nest":
            node[key] = rng.choice([[node[key]], {"value": node[key]}, str(node[key])])
        elif action == "copy":
            node[key] = rng.choice(_values(node))
        elif action == "add" and isinstance(node, dict):
            node[f"{key}{rng.choice(['', '_', '2'])}"] = _odd_value(rng)
        elif action == "add":
            node.insert(key, _odd_value(rng))
        else:
            node[key] = _odd_value(rng)
    return value


def _odd_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(ODD_VALUES))  # later changes must not reach the constant


def _values(node: dict | list) -> list:
    return list(node.values()) if isinstance(node, dict) else list(node)


def change_bytes(rng: random.Random, data: bytes, changes: int = 1) -> bytes:
    """Returns the bytes with some flipped, cut off, removed, repeated or overwritten."""
    out = bytearray(data)
    for _ in range(changes):
        place = rng.randrange(len(out) + 1)
        length = rng.choice([1, 2, 4, 8, 64])
        action = rng.choice(["flip", "flip", "cut", "remove", "repeat", "ones", "zeros", "noise"])
        if action == "flip" and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif action == "cut":
            del out[place:]
        elif action == "remove":
            del out[place : place + length]
        elif action == "repeat":
            out[place:place] = out[place : place + length]
        elif action == "noise":
            out[place : place + length] = rng.randbytes(length)
        else:
            out[place : place + length] = bytes([0xFF if action == "ones" else 0]) * length
    return bytes(out)
