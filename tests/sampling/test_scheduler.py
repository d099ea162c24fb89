"""The scheduler: how many programs it compiles, how busy it keeps the rows, and that one bad request or row harms no other."""

import contextlib
import time

import jax
import numpy as np
import pytest
from flax import nnx

from grm_jax.models import Transformer
from grm_jax.sampling import Engine, Request, buckets, scheduler

NAME = "tiny_gemma2"


@contextlib.contextmanager
def compilations():
    """Counts what XLA compiles meanwhile, read from the persistent cache or not."""
    found = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def changed(model: Transformer, **arrays) -> Transformer:
    """The same network with some parameters replaced: `embedder.table_VxD` is written embedder__table_VxD."""
    graphdef, state = nnx.split(model)
    flat = {".".join(map(str, path)): (path, v) for path, v in nnx.to_flat_state(state)}
    for name, value in arrays.items():
        path, variable = flat[name.replace("__", ".")]
        flat[name.replace("__", ".")] = path, variable.replace(value)
    return nnx.merge(graphdef, nnx.from_flat_state(list(flat.values())))


@pytest.fixture(scope="module")
def even(lab):
    """Every token is as likely as any other, whatever came before: E stop tokens end a row with probability E / 128 at each step."""
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
    with compilations() as found:
        rows = list(engine.run(mixed_requests(0)))
    assert len(rows) == sum(r.k for r in mixed_requests(0)) and not any(r.error for r in rows)
    S, T, B = (
        len(buckets.PROMPT_BUCKETS),
        len(buckets.RING_BUCKETS),
        3,
    )  # prompts are prefilled in batches of 1, 2 and 4
    declared = {
        "prefill and insertion": 2 * S * B,
        "decode segment": S * T,
        "empty state and admission": 2,
        "longer prefixes and rings, of two kinds of layers": 2 * (S - 1) + 2 * (T - 1),
    }
    assert 0 < len(found) <= sum(declared.values()), declared
    with compilations() as again:
        list(engine.run(mixed_requests(1)))
    assert len(again) <= sum(declared.values()) - len(
        found
    )  # only what the first 60 had no use for


def test_geometric_lengths_keep_the_slots_busy(even):
    mean, most, prompts, k = 16, 64, 32, 16

    def request(item, k):
        return Request([5, 6, 7], k, most, stop=tuple(range(8)), seed=1, item=item)

    engine, fixed, first = (Engine(even, 4, 2, segment=32) for _ in range(3))
    list(first.run([request(i, 3) for i in range(7)]))  # compiles for all
    start = time.perf_counter()
    lengths = np.array(
        [len(row.tokens) for row in engine.run([request(i, k) for i in range(prompts)])]
    )
    seconds = time.perf_counter() - start
    assert (
        lengths.size == prompts * k
        and lengths.max() == most
        and lengths.mean() == pytest.approx(mean, rel=0.15)
    )
    # Fixed batches of as many rows: the next begins when the last row of this one has ended.
    start = time.perf_counter()
    for batch in range(prompts * k // 8):
        list(fixed.run([request(1000 + 4 * batch + i, 2) for i in range(4)]))
    fixed_seconds = time.perf_counter() - start
    per_step = [e.stats.tokens / e.stats.steps for e in (engine, fixed)]
    print(
        f"continuous: rows busy {engine.stats.utilisation:.1%}, {per_step[0]:.2f} tokens per step, {engine.stats.tokens / seconds:,.0f} per second; "
        f"fixed batches: {fixed.stats.utilisation:.1%}, {per_step[1]:.2f}, {fixed.stats.tokens / fixed_seconds:,.0f}"
    )
    assert engine.stats.utilisation >= 0.85
    assert per_step[0] >= 2 * per_step[1]


def test_bad_requests_say_why_and_the_others_finish(lab, runs):
    requests, rows = runs(NAME)
    good = [i for i, r in enumerate(requests) if r.prompt and r.k and len(r.prompt) < 256]
    assert {i for (i, _), row in rows.items() if row.finish != "error"} == set(good)
    assert all((i, s) in rows for i in good for s in range(requests[i].k))
    assert "empty" in rows[2, 0].error and "k = 0" in rows[5, 0].error
    assert "no room" in rows[6, 0].error and "255" in rows[6, 0].error


@pytest.mark.parametrize(
    "changes, said",
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
def test_what_a_request_may_not_say(lab, changes, said):
    request = Request(**({"prompt": [5, 6], "k": 1, "max_new_tokens": 4} | changes))
    (row,) = lab.engine(NAME).run([request])
    assert row.finish == "error" and said in row.error


def test_nan_in_the_weights_is_each_items_error(lab):
    model = lab.model(NAME)
    table = np.array(model.embedder.table_VxD[...])
    table[17] = np.nan
    engine = Engine(changed(model, embedder__table_VxD=table), 4, 2, segment=32)
    rows = list(engine.run([Request([5, 6], 3, 20), Request([], 1, 20), Request([8] * 30, 1, 20)]))
    assert len(rows) == 5 and all(row.finish == "error" for row in rows)
    assert sum("not finite" in row.error for row in rows) == 4


def test_a_row_of_nan_harms_nobody_who_takes_its_place(lab):
    model = lab.model(NAME)
    # A token that, thanks to the cap on the logits, is chosen wherever one coordinate is positive: one that seldom is. Once it is fed, its row is
    # NaN. The prompts are such that it is not chosen at once.
    tokens = np.random.default_rng(0).integers(18, 128, (1, 256))
    x = np.asarray(
        jax.jit(lambda state, t: nnx.merge(nnx.graphdef(model), state).hidden(t))(
            nnx.state(model), tokens
        )
    )[0]
    signed = np.concatenate([x, -x], axis=1)
    place = int(np.abs((signed > 0).mean(axis=0) - 0.08).argmin())
    table = np.array(model.embedder.table_VxD[...])
    table[17, place % 32] = 1e38 if place < 32 else -1e38
    model = changed(model, embedder__table_VxD=table)
    quiet = [n for n in range(10, 48) if signed[n - 1, place] < 0][:4]
    requests = [Request(tokens[0, :n].tolist(), 8, 30, seed=3, item=n) for n in quiet]

    def ends(R):
        rows = Engine(model, 4, R, segment=32).run(requests)
        return {(r.request_index, r.sample_index): (r.finish, r.tokens.tolist()) for r in rows}

    apart = ends(8)  # every sample has a row of its own
    assert {finish for finish, _ in apart.values()} == {"error", "length"} or len(
        {len(t) for _, t in apart.values()}
    ) > 3
    assert ends(2) == apart  # four samples follow each other in each row


def test_rows_that_end_with_their_first_token(even):
    requests = [Request([5, 6], 7, 1, item=i) for i in range(3)]  # by their limit
    requests += [Request([5, 6], 5, 9, stop=(50,), temperature=0.0, item=9)]
    model = changed(even, final_norm__scale=np.zeros(32, np.float32))
    first = next(
        iter(Engine(model, 4, 2, segment=32).run([Request([5, 6], 1, 2, temperature=0.0)]))
    ).tokens[0]
    requests += [
        Request([5, 6], 5, 9, stop=(int(first),), temperature=0.0, item=9)
    ]  # by a stop token
    rows = list(Engine(model, 4, 2, segment=32).run(requests))
    assert len(rows) == 31
    assert all(len(r.tokens) == 1 and r.finish == "length" for r in rows if r.request_index < 3)
    assert all(len(r.tokens) == 1 and r.finish == "stop" for r in rows if r.request_index == 4)


def test_the_context_is_a_limit(lab):
    prompt = [5] * 40
    engine = lab.engine(NAME)
    cfg, engine.cfg = engine.cfg, engine.cfg.replace(max_length=50)
    try:
        (row,) = engine.run([Request(prompt, 1, 100, seed=2)])
    finally:
        engine.cfg = cfg
    assert len(row.tokens) == 10 and row.finish == "length"


def test_more_samples_than_rows_and_fewer(lab, prompts):
    def tokens(P, R, k):
        rows = Engine(lab.model(NAME), P, R, segment=32).run([Request(prompts[1], k, 12, seed=4)])
        return {r.sample_index: r.tokens.tolist() for r in rows}

    seven = tokens(4, 2, 7)
    assert sorted(seven) == list(range(7)) and len({tuple(t) for t in seven.values()}) == 7
    assert tokens(4, 8, 3) == {s: seven[s] for s in range(3)}


def test_short_prompts_do_not_wait_for_long_ones_nor_run_at_their_length(lab, prompts, monkeypatch):
    seen = []
    prefill = scheduler.programs.prefill_program
    monkeypatch.setattr(
        scheduler.programs,
        "prefill_program",
        lambda graphdef: (
            lambda params, tokens, n: (
                seen.append(tokens.shape[1]),
                prefill(graphdef)(params, tokens, n),
            )[1]
        ),
    )
    rows = list(
        lab.engine(NAME).run(
            [Request(prompts[3], 1, 4), Request(prompts[0], 1, 60), Request(prompts[0], 1, 4)]
        )
    )
    assert seen == [8, 48] and [len(r.tokens) for r in rows] == [4, 4, 60]


def test_a_segment_ends_only_for_something_that_can_start(lab):
    engine = lab.engine(NAME)

    def slot(running, left):
        found = scheduler._Slot(
            0,
            Request([5], running + left, 9),
            [scheduler._Sample(i) for i in range(running)],
            running,
        )
        found.rows += [None] * (8 - running)
        return found

    assert engine._min_running([slot(8, 0), slot(8, 0)], []) == 1  # nothing waits
    assert (
        engine._min_running([slot(8, 5), slot(8, 0)], []) == 16
    )  # a sample waits: the first row to end makes room
    assert (
        engine._min_running([slot(8, 0), slot(3, 0), None], [1]) == 9
    )  # a prompt waits: three rows must end before its slot is free


def test_a_length_past_the_largest_bucket_is_refused(lab):
    with pytest.raises(ValueError, match="300.*224"):
        buckets.ring_bucket(300)
    engine = lab.engine(NAME)
    (row,) = engine.run(
        [Request([5] * 50, 1, 4)]
    )  # the context is 256, but no bucket is declared past 48
    assert row.finish == "error" and "at most 48" in row.error
