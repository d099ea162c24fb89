"""The engine thread: compilations, turns, cancellation, failure, shutdown."""

import concurrent.futures
import dataclasses
import logging
import queue
import threading

import httpx
import numpy as np
import pytest
from flax import nnx
from toy_server import sent, serving, toy_judge, toy_model, toy_service, wait_until

from grm_jax import Comparison
from grm_jax.devices import watch_compilations
from grm_jax.judging.options import Options
from grm_jax.models import build_model
from grm_jax.sampling import Completion, Request
from grm_jax.serving.engine import Context, DeadlineExceeded
from grm_jax.serving.limits import Limits
from grm_jax.serving.service import Lengths, build, template_prefix
from grm_jax.text import rendering

GROUP = {"prompt": "name a moon", "responses": ["a blue moon", "a red cat"]}
LONG = {"messages": [{"role": "user", "content": "name a moon"}], "n": 100, "seed": 1}
FOREVER = 600.0


class Gate:
    """Holds the engine between two steps while it is closed; `free` steps run before that."""

    def __init__(self, service, monkeypatch, free=0):
        self.open, self.waits = threading.Event(), threading.Event()
        step, before = service.engine.engine.step, iter(range(free))

        def gated():
            if not self.open.is_set() and next(before, None) is None:
                self.waits.set()
                self.open.wait()
            return step()

        monkeypatch.setattr(service.engine.engine, "step", gated)

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is not None:  # a failed assertion, which must not wait for the engine
            self.open.set()


def test_requests_within_the_lengths_compile_nothing_once_the_server_is_ready(server):
    compiled = []
    with watch_compilations(lambda n, done: compiled.append(n)):
        for prompt in ("a", "name a moon " * 3, "name a moon " * 15):
            for k in (1, 5):
                fields = {"groups": [dict(GROUP, prompt=prompt)], "k": k, "top_p": 0.9}
                reply = server.post("/v1/score", fields).json()
                assert reply["groups"][0]["rewards"][0]["status"] == "scored", reply
        server.post("/v1/score", {"groups": [GROUP], "temperature": 0, "principles": "first"})
    assert not compiled


def test_a_small_request_does_not_wait_for_a_large_one(server):
    thread, order = server.service.engine, []

    def run(name, count):
        requests = [Request([5, 6, 7], 4, 8, seed=i) for i in range(count)]
        samples = [e for e in thread.events(requests, Context(FOREVER))]
        assert len(samples) == 4 * count
        order.append(name)

    large = threading.Thread(target=run, args=("large", 100))
    large.start()
    wait_until(lambda: thread.engine.running_rows)
    run("small", 1)
    large.join()
    assert order == ["small", "large"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_rows(texts, monkeypatch, stream):
    service, thread = texts.service, texts.service.engine
    with Gate(service, monkeypatch, free=2) as gate:
        fields = LONG | {"stream": stream, "n": 128}
        with sent(texts.url, "/v1/chat/completions", fields) as connection:
            gate.waits.wait()
            assert thread.engine.running_rows and len(service.contexts) == 1
            if stream:
                assert b"200 OK" in connection.recv(65536)
        wait_until(lambda: not service.contexts and thread._left)
        steps = thread.engine.stats.segments
        gate.open.set()
    wait_until(lambda: not thread.engine.busy)
    assert thread.engine.stats.segments <= steps + 1  # the one that was held
    assert texts.post("/v1/chat/completions", LONG | {"n": 1}).status_code == 200


def test_a_caller_that_stops_early_leaves_nothing_in_the_engine(server):
    thread = server.service.engine
    events = thread.events([Request([5, 6], 8, 24)] * 20, Context(FOREVER), with_tokens=True)
    next(events)
    events.close()
    wait_until(lambda: not thread.engine.busy and not thread.waiting)
    assert not thread._live and not thread._owners


def test_a_request_too_long_for_the_server_gets_an_error_per_sample(server):
    thread = server.service.engine
    requests = [Request([5] * 129, 2, 4), Request([5], 1, 25), Request([], 1, 4)]
    errors = [e for e in thread.events(requests, Context(FOREVER)) if isinstance(e, Completion)]
    assert len(errors) == 4 and all(e.finish == "error" for e in errors)
    assert sum("this server takes 128 and 24" in e.error for e in errors) == 3


def test_one_request_too_many_is_refused_with_a_time_to_wait(monkeypatch):
    service = toy_service(queue=1)
    with serving(service) as running, concurrent.futures.ThreadPoolExecutor(1) as pool:
        gate = Gate(service, monkeypatch)
        first = pool.submit(running.post, "/v1/score", {"groups": [GROUP]})
        gate.waits.wait()
        reply = running.post("/v1/score", {"groups": [GROUP]})
        gate.open.set()
        assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
        assert "--queue" in reply.json()["error"]["message"]
        assert first.result().status_code == 200
        assert "grm_queue_full_total 1.0" in running.client.get("/metrics").text


@pytest.mark.parametrize("grace, status", [(FOREVER, 200), (0.0, 503)])
def test_a_server_that_stops_finishes_or_fails_what_runs(monkeypatch, grace, status):
    service = toy_service(grace=grace)
    with serving(service) as running, concurrent.futures.ThreadPoolExecutor(1) as pool:
        gate = Gate(service, monkeypatch)
        first = pool.submit(running.post, "/v1/score", {"groups": [GROUP]})
        gate.waits.wait()
        service.stop()
        wait_until(lambda: service.draining)
        # Accepts no connection; one that was made just before it stopped is reset.
        with gate, pytest.raises(httpx.TransportError):
            while True:
                reply = httpx.post(f"{running.url}/v1/score", json={"groups": [GROUP]})
                assert reply.status_code == 503, reply.text
        if status == 503:
            reply = first.result()
            assert "was shut down before the request finished" in reply.text
        gate.open.set()
        assert first.result().status_code == status
    assert not running.thread.is_alive()


def test_to_stop_a_server_that_has_ended_does_nothing():
    service = toy_service()
    with serving(service) as running:
        pass
    assert not running.thread.is_alive()
    service.stop()


def test_a_server_that_stops_fails_the_groups_that_miss_responses(caplog):
    body = {
        "responses_create_params": {"input": "name a moon"},
        "response": {"output": [{"type": "message", "content": "a blue moon"}]},
    }
    service = toy_service(grace=FOREVER, cohort_timeout=FOREVER)
    with (
        caplog.at_level(logging.INFO, "grm_jax.serving"),
        serving(service) as running,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(running.post, "/verify", body)
        wait_until(lambda: service.cohorts._cohorts)
        service.stop()
        reply = waiting.result()  # long before the grace time has passed
        assert reply.status_code == 503 and reply.headers["retry-after"]
        assert "shutting down" in reply.json()["error"]["message"]
    events = [record.getMessage() for record in caplog.records]
    assert events[-1] == "stopped" and "stopping" in events


def test_a_failed_engine_fails_every_request_with_the_reason(monkeypatch):
    service = toy_service()
    with serving(service) as running, concurrent.futures.ThreadPoolExecutor(2) as pool:

        def fail():
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nlong details")

        gate = Gate(service, monkeypatch)
        sent = [pool.submit(running.post, "/v1/score", {"groups": [GROUP]}) for _ in range(2)]
        gate.waits.wait()
        wait_until(lambda: len(service.contexts) == 2)
        monkeypatch.setattr(service.engine.engine, "_fill_slots", lambda state: fail())
        gate.open.set()
        replies = [task.result() for task in sent]
        replies.append(running.post("/v1/score", {"groups": [GROUP]}))
        replies.append(running.client.get("/healthz"))
        replies.append(running.client.get("/readyz"))
        for reply in replies:
            message = reply.json()["error"]["message"]
            assert reply.status_code == 503, reply.text
            assert message == "the engine failed: RuntimeError: RESOURCE_EXHAUSTED: out of memory"


def test_weights_with_nan_end_the_start_with_the_reason():
    graphdef, state = nnx.split(toy_model())
    scale = state["final_norm"]["scale"]
    state["final_norm"]["scale"] = scale.replace(np.full_like(scale[...], np.nan))
    service = toy_service(toy_judge(model=nnx.merge(graphdef, state)))
    with serving(service, wait=False) as running:
        running.thread.join()
    assert isinstance(running.error, ValueError) and "not finite" in str(running.error)


def test_a_server_shares_the_prefix_of_its_template():
    config = toy_model().cfg.replace(max_length=8192)
    judge = toy_judge(model=build_model(config, nnx.Rngs(0)), context=8192)
    judge = dataclasses.replace(judge, template="grm")
    prefix = template_prefix(judge, 4096)
    comparison = Comparison("Name a prime.", ("Seven.", "Eight."))
    prompt = judge.tokenizer.encode_chat(
        rendering.render(judge.template_for(comparison, Options()), comparison, (1, 0))
    )
    assert len(prefix) >= 64 and tuple(prompt[: len(prefix)]) == prefix
    assert template_prefix(judge, len(prefix)) == ()  # prompts are too short to hold it
    lengths = Lengths(len(prefix) + 200, 8)
    served = build(judge, Limits(), lengths, (2, 2))
    assert served.engine.engine._common == prefix


def test_a_result_past_the_deadline_is_not_returned():
    results = queue.SimpleQueue()
    results.put(1)
    assert Context(FOREVER).get(results) == 1
    results.put(2)
    with pytest.raises(DeadlineExceeded, match="was not finished after 0 s"):
        Context(0).get(results)
