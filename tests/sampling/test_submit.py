"""Requests that are submitted to and cancelled in a running engine."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from test_scheduler import compilations

from grm_jax.sampling import Engine, Request, cache, scheduler

NAME = "tiny_gemma2"


@pytest.fixture(scope="module")
def requests(prompts):
    """Requests of both prompt buckets, longer ones first: a queue is not sorted."""
    return [
        Request(prompts[i], 3, limit, temperature=0.9, seed=5, item=i)
        for i, limit in ((3, 40), (0, 30), (1, 50), (0, 20), (2, 12))
    ]


@pytest.fixture(scope="module")
def alone(lab, requests):
    """{(request, sample): tokens} of each request sampled alone."""
    return {
        (i, c.sample_index): c.tokens.tolist()
        for i, request in enumerate(requests)
        for c in lab.engine(NAME).run([request])
    }


def steps(engine) -> list:
    finished = []
    while engine.busy:
        finished += engine.step()
    return finished


@pytest.mark.parametrize("reserved", [False, True])
def test_requests_that_arrive_while_others_run_get_the_samples_of_a_run_alone(
    lab, requests, alone, reserved
):
    engine = Engine(lab.model(NAME), 2, 2, segment=8)
    if reserved:
        engine.reserve(48, 64)
    keys, finished = {}, []
    for i, request in enumerate(requests):
        keys[engine.submit(request)] = i
        finished += engine.step() + engine.step()
    finished += steps(engine)
    got = {(keys[c.request_index], c.sample_index): c.tokens.tolist() for c in finished}
    assert len(finished) == len(got) and got == alone
    assert (engine._state is not None) == reserved  # caches are freed unless they are reserved


def test_a_cancelled_request_frees_its_rows_and_changes_no_other_sample(lab, requests, alone):
    engine = Engine(lab.model(NAME), 2, 2, segment=8)
    long = engine.submit(requests[2])
    kept = engine.submit(requests[0])
    waiting = engine.submit(requests[1])
    engine.step(), engine.step()
    assert engine.running_rows == 4 and engine.waiting == 1
    engine.cancel(long)
    assert engine.running_rows == 2
    last = engine.submit(requests[4])
    engine.cancel(waiting)  # it has not started
    engine.cancel(12345)  # no such request
    finished = steps(engine)
    names = {kept: 0, last: 4}
    got = {(names[c.request_index], c.sample_index): c.tokens.tolist() for c in finished}
    assert got == {key: tokens for key, tokens in alone.items() if key[0] in (0, 4)}


def test_rows_of_a_cancelled_request_do_not_keep_a_segment_running(lab, requests):
    engine = Engine(lab.model(NAME), 2, 2, segment=32)
    long, short = (engine.submit(requests[i]) for i in (2, 0))
    engine.step()
    engine.cancel(long)
    engine.step()
    running = np.asarray(engine._state.finish_PxR) == cache.RUNNING
    assert running.sum() == engine.running_rows == 2 and not running[0].any()
    engine.cancel(short)
    assert not engine.busy and engine.step() == []


def test_a_listener_gets_every_token_once_and_in_order(lab, requests):
    engine, heard = Engine(lab.model(NAME), 2, 2, segment=8), {}

    def listen(sample, tokens, logprobs, logprobs_1):
        assert len(tokens) == len(logprobs) == len(logprobs_1) > 0
        heard.setdefault(sample, []).append((tokens, logprobs))

    engine.submit(requests[2], listen)
    engine.submit(requests[1])
    finished = [c for c in steps(engine) if c.request_index == 0]
    assert len(finished) == 3 and min(map(len, heard.values())) > 3  # in several parts
    for completion in finished:
        tokens, logprobs = zip(*heard[completion.sample_index])
        assert sum(tokens, []) == completion.tokens.tolist()
        np.testing.assert_array_equal(np.float32(sum(logprobs, [])), completion.logprobs)


def test_a_reserved_engine_compiles_nothing_for_requests_within_its_lengths(lab, requests):
    engine = Engine(lab.model(NAME), 2, 2, segment=8)
    engine.reserve(48, 64)
    for length in (8, 48):  # one of each prompt bucket
        engine.submit(Request([5] * length, 3, 4))
        steps(engine)
    with compilations() as compiled:
        for request in requests:
            key = engine.submit(request)
            engine.step()
        engine.cancel(key)
        steps(engine)
    assert not compiled


def test_an_engine_that_runs_requests_refuses_a_list(lab, requests):
    engine = Engine(lab.model(NAME), 2, 2, segment=8)
    key = engine.submit(requests[0])
    with pytest.raises(RuntimeError, match="use submit and step"):
        next(engine.run(requests))
    engine.cancel(key)
    run = engine.run(requests)
    next(run)
    run.close()  # a caller that stops early leaves nothing behind
    assert not engine.busy and engine._state is None


def test_submit_refuses_a_request_that_cannot_run(lab):
    with pytest.raises(ValueError, match="prompt is empty"):
        lab.engine(NAME).submit(Request([], 1, 4))
    assert not lab.engine(NAME).busy


def test_samples_do_not_depend_on_a_clock_near_its_limit(lab, requests, alone, monkeypatch):
    """The clock is reduced while rows run, by a multiple of every ring's length."""
    engine = Engine(lab.model(NAME), 2, 2, segment=8)
    engine.reserve(48, 64)
    keys = {engine.submit(request): i for i, request in enumerate(requests)}
    finished = engine.step() + engine.step()
    rings = {keys.shape[4] for keys, _ in engine._state.suffix}
    assert len(rings) > 1
    advance = 1000 * math.lcm(*rings)
    clock = jax.device_put(engine._state.clock + advance, engine._state.clock.sharding)
    engine._state = dataclasses.replace(engine._state, clock=clock)
    monkeypatch.setattr(scheduler, "MAX_CLOCK", advance + 20)
    engine._steps += advance
    finished += steps(engine)
    got = {(keys[c.request_index], c.sample_index): c.tokens.tolist() for c in finished}
    assert got == alone
    assert int(jax.device_get(engine._state.clock)) < advance < engine.stats.steps + advance
