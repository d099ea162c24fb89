"""The counting of outcomes itself: each kind of failure is noticed."""

import time

import fuzz
import pytest


def test_outcomes_of_inputs_that_are_handled(record_property):
    def check(value):
        if value < 0:
            raise ValueError(f"value = {value}: give at least 0")

    counts = fuzz.run("handled", [("a", 1), ("b", -1)], check, record_property)
    assert counts == {"accepted": 1, "refused": 1}


@pytest.mark.parametrize(
    "outcome, fault",
    [
        ("traceback", KeyError("x")),
        ("traceback", ValueError("two\nlines")),
        ("traceback", ValueError("")),
        ("wrong", AssertionError("accepted a NaN")),
    ],
)
def test_every_fault_fails_the_run(outcome, fault):
    def check(_):
        raise fault

    with pytest.raises(AssertionError, match=f"case 1: {outcome}"):
        fuzz.run("faulty", [("case 1", None)], check, lambda *_: None)


@pytest.mark.parametrize("limits", [{"seconds": 0.1, "wall": 600}, {"wall": 0.1}])
def test_a_hang_ends_at_its_limit(limits):
    """Of CPU time for work without end; of wall time for an input that waits."""

    def check(_):
        try:
            while True:
                time.sleep(0 if "seconds" in limits else 0.01)
        except Exception:
            pass

    with pytest.raises(fuzz.Hang), fuzz.time_limit(**limits):
        check(None)
    with pytest.raises(AssertionError, match="case 1: hang"):
        fuzz.run("hanging", [("case 1", None)], check, lambda *_: None, **limits)


def test_a_pause_of_the_machine_is_no_hang():
    with fuzz.time_limit(0.2):
        time.sleep(1)


def test_draws_are_reproducible(cases):
    def draw():
        value = {"a": [1, {"b": "c"}], "d": "e"}
        return [
            (repr(fuzz.change_json(rng, value, 2)), fuzz.change_bytes(rng, b"0123456789", 2))
            for _, rng in cases(20, 20)
        ]

    assert draw() == draw()
    assert len(set(draw())) > 10
