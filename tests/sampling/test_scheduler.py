"""Tests the scheduler: number of compilations, share of busy batch rows, isolated errors."""

import contextlib
import threading
import time
import weakref

import jax
import numpy as np
import pytest
from flax import nnx

from grm_jax import sampling
from grm_jax.models import Transformer
from grm_jax.sampling import Engine, Request, buckets, prefixes, scheduler, slots
from grm_jax.sharding import make_mesh, state_shardings, use_mesh

NAME = "tiny_gemma2"


@contextlib.contextmanager
def compilations():
    """Yields the durations of XLA compilations, including those loaded from the disk cache."""
    durations = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield durations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def changed(model: Transformer, **arrays) -> Transformer:
    """The model with some parameters replaced; embedder__table_VxD is `embedder.table_VxD`."""
    graphdef, state = nnx.split(model)
    flat = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}
    for name, value in arrays.items():
        path, variable = flat[name.replace("__", ".")]
        flat[name.replace("__", ".")] = path, variable.replace(value)
    return nnx.merge(graphdef, nnx.from_flat_state(list(flat.values())))


@pytest.fixture(scope="module")
def even(lab):
    """A model with uniform logits: with E stop tokens, a token stops with probability E / 128."""
    model = lab.model(NAME)
    return changed(model, final_norm__scale=-np.ones(32, np.float32))


def mixed_requests(seed: int, n: int = 60) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [
        Request(
            rng.integers(4, 128, rng.integers(1, 49)).tolist(),
            int(rng.integers(1, 6)),
            int(rng.integers(1, 60)),
            temperature=float(rng.choice([0.0, 0.5, 1.0])),
            top_p=float(rng.choice([0.8, 1.0])),
            top_k=int(rng.choice([0, 10])),
            stop=tuple(rng.integers(4, 128, rng.integers(0, 5)).tolist()),
            seed=seed,
            item=i,
        )
        for i in range(n)
    ]


def test_compilations_are_bounded_by_the_declared_buckets(lab):
    engine = lab.engine(NAME)
    jax.clear_caches()
    for cached in (scheduler.programs.build, scheduler.programs.prefill_program):
        cached.cache_clear()
    with compilations() as first:
        completions = list(engine.run(mixed_requests(0)))
    assert len(completions) == sum(r.k for r in mixed_requests(0)) and not any(
        r.error for r in completions
    )
    S, T = len(buckets.PROMPT_BUCKETS), len(buckets.RING_BUCKETS)
    B = 3  # prefill batches of 1, 2 and 4
    declared = {
        "prefill and insertion": 2 * S * B,
        "decode segment": S * T,
        "empty state and admission": 2,
        "longer prefixes and rings, of two kinds of layers": 2 * (S - 1) + 2 * (T - 1),
    }
    assert 0 < len(first) <= sum(declared.values()), declared
    with compilations() as second:
        list(engine.run(mixed_requests(1)))
    assert len(second) <= sum(declared.values()) - len(first)


def tokens(completions):
    """Returns the tokens of completions by request and sample."""
    return {(c.request_index, c.sample_index): c.tokens.tolist() for c in completions}


@pytest.mark.parametrize(
    "axes, prefix", [(None, 12), ({"fsdp": 4, "tensor": 2}, 0)], ids=["prefix", "mesh"]
)
def test_the_first_segment_compiles_in_a_thread_and_not_again(lab, axes, prefix, monkeypatch):
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 4)
    threads = []

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration" and "segment" in fun_name:
            threads.append(threading.current_thread().name)

    requests = [Request([*range(10, 10 + prefix), 5, 6, 7 + i], 3, 20, item=i) for i in range(3)]
    requests.append(Request(list(range(40, 60)), 3, 20, item=3))  # of the next bucket
    mesh = axes and make_mesh(**axes)
    with use_mesh(mesh):
        engine = Engine(lab.model(NAME), 4, 2, segment=32)
        expected = tokens(engine.run(requests))
        engine = Engine(lab.model(NAME), 4, 2, segment=32)
        engine.compile_ahead = True
        scheduler.programs.build.cache_clear()
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            completions = tokens(engine.run(requests)), tokens(engine.run(requests))
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
    assert bool(engine._kept) == bool(prefix)
    assert threads == ["compile a decode segment"]
    assert completions == (expected, expected)


def test_a_progress_bar_does_not_keep_the_engine_and_its_weights_alive(lab):
    engine = Engine(lab.model(NAME), 4, 2, segment=32)
    assert len(list(sampling._with_bar(engine, [Request([5, 6], 2, 3)]))) == 2
    kept = weakref.ref(engine)
    del engine
    assert kept() is None


def test_the_slots_stay_busy_with_geometric_lengths(even):
    mean, limit, prompts, k = 16, 64, 32, 16

    def request(item, k):
        return Request([5, 6, 7], k, limit, stop=tuple(range(8)), seed=1, item=item)

    engine, fixed, first = (Engine(even, 4, 2, segment=32) for _ in range(3))
    list(first.run([request(i, 3) for i in range(7)]))  # compiles every program
    start = time.perf_counter()
    lengths = np.array([len(c.tokens) for c in engine.run([request(i, k) for i in range(prompts)])])
    seconds = time.perf_counter() - start
    assert lengths.size == prompts * k and lengths.max() == limit
    assert lengths.mean() == pytest.approx(mean, rel=0.15)
    # Fixed batches of the same size: each starts when the last sample of the previous one ends.
    start = time.perf_counter()
    for batch in range(prompts * k // 8):
        list(fixed.run([request(1000 + 4 * batch + i, 2) for i in range(4)]))
    fixed_seconds = time.perf_counter() - start
    per_step = [e.stats.tokens / e.stats.steps for e in (engine, fixed)]
    times = (seconds, fixed_seconds)
    for name, e, rate, time_s in zip(("continuous", "fixed"), (engine, fixed), per_step, times):
        speed = e.stats.tokens / time_s
        print(f"{name}: {e.stats.utilisation:.1%} busy, {rate:.2f} tokens/step, {speed:,.0f}/s")
    assert engine.stats.utilisation >= 0.85
    assert per_step[0] >= 2 * per_step[1]


def test_more_idle_rows_mean_fewer_segments_and_the_same_tokens(even):
    requests = [Request([5, 6, 7], 9, 64, stop=tuple(range(8)), item=i) for i in range(8)]
    engines = [Engine(even, 4, 2, segment=32, idle=idle) for idle in (0.05, 0.5)]
    tokens = [
        {(c.request_index, c.sample_index): c.tokens.tolist() for c in engine.run(requests)}
        for engine in engines
    ]
    assert tokens[0] == tokens[1]
    assert engines[0].stats.segments > engines[1].stats.segments


def test_the_next_step_is_on_the_device_while_the_caller_handles_samples(lab, monkeypatch):
    engine, events = lab.engine("tiny_gemma2"), []
    start, finish = engine._start_step, engine._finish_step
    monkeypatch.setattr(engine, "_start_step", lambda: events.append("start") or start())
    monkeypatch.setattr(engine, "_finish_step", lambda *a: events.append("finish") or finish(*a))
    for _ in engine.run([Request([5, 6, 7], 12, 12, seed=1)]):
        events.append("sample")
    assert "sample" in events
    for before, event in zip(events, events[1:]):
        assert before != "finish" or event == "start"


def test_invalid_requests_return_errors_and_valid_ones_finish(lab, runs):
    requests, completions = runs(NAME)
    valid = [i for i, r in enumerate(requests) if r.prompt and r.k and len(r.prompt) < 256]
    assert {i for (i, _), c in completions.items() if c.finish != "error"} == set(valid)
    assert all((i, s) in completions for i in valid for s in range(requests[i].k))
    assert "empty" in completions[2, 0].error and "k = 0" in completions[5, 0].error
    assert "no room" in completions[6, 0].error and "255" in completions[6, 0].error


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"temperature": -1.0}, "temperature = -1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_p": 0.0}, "top_p = 0"),
        ({"top_p": float("nan")}, "top_p = nan"),
        ({"stop": tuple(range(9))}, "9 stop tokens"),
        ({"prompt": [5, 128]}, "token 128"),
        ({"prompt": [5, -1]}, "token -1"),
        ({"seed": 2**31}, "seed = 2147483648"),
        ({"item": -1}, "item = -1"),
    ],
)
def test_an_invalid_field_of_a_request_returns_an_error(lab, changes, message):
    request = Request(**({"prompt": [5, 6], "k": 1, "max_new_tokens": 4} | changes))
    (completion,) = lab.engine(NAME).run([request])
    assert completion.finish == "error" and message in completion.error


def test_nan_in_the_weights_is_an_error_of_every_sample(lab):
    model = lab.model(NAME)
    table = np.array(model.embedder.table_VxD[...])
    table[17] = np.nan
    engine = Engine(changed(model, embedder__table_VxD=table), 4, 2, segment=32)
    completions = list(
        engine.run([Request([5, 6], 3, 20), Request([], 1, 20), Request([8] * 30, 1, 20)])
    )
    assert len(completions) == 5 and all(c.finish == "error" for c in completions)
    assert sum("not finite" in c.error for c in completions) == 4


@pytest.mark.parametrize("kv_cache_dtype", [None, pytest.param("int8", marks=pytest.mark.slow)])
def test_nan_in_a_sample_does_not_affect_its_successor(lab, kv_cache_dtype):
    model = lab.model(NAME)
    # One coordinate of token 17's embedding is huge, with the sign that its activation rarely has.
    # Where it has it, token 17 is sampled, and its embedding makes the batch row NaN. No prompt
    # ends at such a position.
    tokens = np.random.default_rng(0).integers(18, 128, (1, 256))
    hidden = jax.jit(lambda state, t: nnx.merge(nnx.graphdef(model), state).hidden(t))
    x = np.asarray(hidden(nnx.state(model), tokens))[0]
    signed = np.concatenate([x, -x], axis=1)
    index = int(np.abs((signed > 0).mean(axis=0) - 0.08).argmin())
    table = np.array(model.embedder.table_VxD[...])
    table[17, index % 32] = 1e38 if index < 32 else -1e38
    model = changed(model, embedder__table_VxD=table)
    model.cfg = model.cfg.replace(kv_cache_dtype=kv_cache_dtype)
    lengths = [n for n in range(10, 48) if signed[n - 1, index] < 0][:4]
    requests = [Request(tokens[0, :n].tolist(), 8, 30, seed=3, item=n) for n in lengths]

    def results(R):
        completions = Engine(model, 4, R, segment=32).run(requests)
        return {
            (r.request_index, r.sample_index): (r.finish, r.tokens.tolist()) for r in completions
        }

    separate = results(8)  # every sample has its own batch row
    finishes = {finish for finish, _ in separate.values()}
    assert finishes == {"error", "length"} or len({len(t) for _, t in separate.values()}) > 3
    assert results(2) == separate  # four samples use each batch row in turn


def test_samples_may_finish_at_their_first_token(even):
    requests = [Request([5, 6], 7, 1, item=i) for i in range(3)]  # at the limit
    requests += [Request([5, 6], 5, 9, stop=(50,), temperature=0.0, item=9)]
    model = changed(even, final_norm__scale=np.zeros(32, np.float32))
    greedy = Request([5, 6], 1, 2, temperature=0.0)
    first = int(next(iter(Engine(model, 4, 2, segment=32).run([greedy]))).tokens[0])
    # at a stop token
    requests += [Request([5, 6], 5, 9, stop=(first,), temperature=0.0, item=9)]
    completions = list(Engine(model, 4, 2, segment=32).run(requests))
    assert len(completions) == 31
    assert all(
        len(r.tokens) == 1 and r.finish == "length" for r in completions if r.request_index < 3
    )
    assert all(
        len(r.tokens) == 1 and r.finish == "stop" for r in completions if r.request_index == 4
    )


def test_the_context_limits_the_length(lab):
    prompt = [5] * 40
    engine = lab.engine(NAME)
    cfg, engine.cfg = engine.cfg, engine.cfg.replace(max_length=50)
    try:
        (completion,) = engine.run([Request(prompt, 1, 100, seed=2)])
    finally:
        engine.cfg = cfg
    assert len(completion.tokens) == 10 and completion.finish == "length"


def test_tokens_are_equal_with_more_or_fewer_samples_than_rows(lab, prompts):
    def tokens(P, R, k):
        completions = Engine(lab.model(NAME), P, R, segment=32).run(
            [Request(prompts[1], k, 12, seed=4)]
        )
        return {r.sample_index: r.tokens.tolist() for r in completions}

    seven = tokens(4, 2, 7)
    assert sorted(seven) == list(range(7)) and len({tuple(t) for t in seven.values()}) == 7
    assert tokens(4, 8, 3) == {s: seven[s] for s in range(3)}


def test_short_prompts_run_first_in_their_own_bucket(lab, prompts, monkeypatch):
    prompt_lengths = []
    original = scheduler.programs.prefill_program

    def prefill_program(graphdef):
        def prefill(params, tokens, n):
            prompt_lengths.append(tokens.shape[1])
            return original(graphdef)(params, tokens, n)

        return prefill

    monkeypatch.setattr(scheduler.programs, "prefill_program", prefill_program)
    settings = ((prompts[3], 4), (prompts[0], 60), (prompts[0], 4))
    completions = list(lab.engine(NAME).run([Request(p, 1, limit) for p, limit in settings]))
    assert prompt_lengths == [8, 48] and [len(r.tokens) for r in completions] == [4, 4, 60]


def test_weights_on_a_mesh_of_one_device_give_the_same_samples(lab):
    """A run on one accelerator: the parameters have the mesh's shardings, no mesh is in context."""
    model, request = lab.model(NAME), Request([5, 6, 7], 2, 4, seed=3)
    mesh = make_mesh(devices=jax.devices()[:1])
    graphdef, state = nnx.split(model)
    placed = nnx.merge(graphdef, jax.device_put(state, state_shardings(state, mesh)))
    for one, other in zip(
        Engine(placed, 1, 2).run([request]), Engine(model, 1, 2).run([request]), strict=True
    ):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_a_segment_ends_early_only_if_a_sample_or_prompt_can_start():

    def slot(running, left):
        rows = [slots.Sample(i) for i in range(running)] + [None] * (8 - running)
        return slots.Slot(0, Request([5], running + left, 9), rows, running)

    assert slots.min_running([slot(8, 0), slot(8, 0)], [], 0.05) == 1  # no sample or prompt waits
    # A waiting sample can start when any running sample finishes.
    assert slots.min_running([slot(8, 5), slot(8, 0)], [], 0.05) == 16
    # A waiting prompt can start when the three samples of the second slot have finished.
    assert slots.min_running([slot(8, 0), slot(3, 0), None], [1], 0.05) == 9


def test_a_length_above_the_largest_bucket_is_an_error(lab):
    with pytest.raises(ValueError, match="300.*224"):
        buckets.ring_bucket(300)
    engine = lab.engine(NAME)
    # The context is 256, but the largest prompt bucket is 48.
    (completion,) = engine.run([Request([5] * 50, 1, 4)])
    assert completion.finish == "error" and "at most 48" in completion.error
