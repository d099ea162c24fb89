"""Tests common prefixes: which one is chosen, and that samples equal those of whole prompts."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, strategies as st

from grm_jax.judging.sampler import EngineSampler
from grm_jax.models import attention, cpu
from grm_jax.models.attention import self_attention
from grm_jax.sampling import Engine, Request, cache, plan, prefill, prefixes, weights
from grm_jax.sampling.slots import Slot, find_prefill_groups, packed
from grm_jax.sharding import make_mesh

NAME = "tiny_gemma2"
PREFIX = np.random.default_rng(5).integers(4, 128, 30).tolist()


@pytest.fixture(autouse=True)
def short_prefixes(monkeypatch):
    """Toy prompts have at most 48 tokens; their common prefixes may be short."""
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 4)


# ---------------------------------------------------------------- the choice


def saving(prompts, prefix):
    users = sum(prefixes.num_used(prompt, prefix) > 0 for prompt in prompts)
    return (users - 1) * len(prefix)


short_lists = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), max_size=7)


@given(short_lists)
def test_the_chosen_prefix_saves_the_most_and_leaves_every_user_a_token(prompts):
    prefix = prefixes.choose_prefix(prompts, least=1)
    candidates = [tuple(p[:n]) for p in prompts for n in range(1, len(p))]
    best = max((saving(prompts, candidate) for candidate in candidates), default=0)
    assert (saving(prompts, prefix) if prefix else 0) == max(0, best)
    assert not prefix or sum(prefixes.num_used(p, prefix) > 0 for p in prompts) >= 2


@given(short_lists, st.integers(1, 5))
def test_a_prefix_has_at_least_the_least_length(prompts, least):
    prefix = prefixes.choose_prefix(prompts, least)
    assert not prefix or len(prefix) >= least


def test_prefixes_of_large_token_ids_are_found():
    prompts = [[255, 256, 70_000, 1], [255, 256, 70_000, 2], [65_536, 1, 2, 3]]
    assert prefixes.choose_prefix(map(np.array, prompts), 1) == (255, 256, 70_000)


def test_a_kept_prefix_is_used_again_if_it_saves_about_as_much_and_lengthens_no_prompt():
    kept, longer = tuple(range(100)), tuple(range(104))
    prompts = [[*longer, i] for i in range(9)]
    assert prefixes.prefer_kept(kept, longer, prompts) == longer  # the rests would be longer
    prompts.append([7] * 20)  # now the longest rest does not depend on the prefix
    assert prefixes.prefer_kept(kept, longer, prompts) == kept
    assert prefixes.prefer_kept((7, 7), longer, prompts) == longer
    assert prefixes.prefer_kept((), (), []) == () == prefixes.prefer_kept(kept, (), [[5]])


@given(short_lists)
def test_groups_have_every_prompt_once(prompts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "MIN_TOKENS", 1)
        patch.setattr(prefixes, "MIN_PROMPTS", 2)
        groups = prefixes.choose_groups(prompts)
    assert sorted(i for _, part in groups for i in part) == list(range(len(prompts)))
    for n, (prefix, part) in enumerate(groups):
        used = [prefixes.num_used(prompts[i], prefix) for i in part]
        assert n == 0 or min(used) == len(prefix) > 0  # only the first group has prompts without it


# ---------------------------------------------------------------- samples


def mixed(prefix=PREFIX, k=2, new=12):
    """Requests with and without the prefix, of rests shorter and longer than the windows."""
    rng = np.random.default_rng(1)
    own = [rng.integers(4, 128, n).tolist() for n in (1, 2, 5, 9, 18, 17)]
    prompts = [[*prefix, *o] for o in own] + [own[4], [*prefix], [*prefix[:-1], 3], own[5] * 2]
    return [
        Request(p, k, new, temperature=0.9, seed=3, item=i, stop=(1, 2))
        for i, p in enumerate(prompts)
    ]


def results(engine, requests):
    return {(c.request_index, c.sample_index): c for c in engine.run(requests)}


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for key, completion in got.items():
        assert completion.error is None
        assert completion.tokens.tolist() == expected[key].tokens.tolist(), key
        np.testing.assert_allclose(completion.logprobs, expected[key].logprobs, atol=1e-5)
        np.testing.assert_allclose(completion.logprobs_1, expected[key].logprobs_1, atol=1e-5)


OTHERS = ("tiny_gemma3", "tiny_llama3", "tiny_qwen2", "tiny_qwen3")


@pytest.fixture(scope="module")
def plain(lab):
    """Samples of an engine that shares no prefixes, by model: (completions by index, stats)."""

    @functools.cache
    def run(name=NAME):
        engine = Engine(lab.model(name), 4, 2, segment=32, share_prefixes=False)
        return results(engine, mixed(new=40)), engine.stats

    return run


@pytest.mark.parametrize(
    "name", [NAME, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_samples_equal_those_of_whole_prompts(lab, plain, name):
    """The prefix, 29 tokens, is longer than the windows, 6 and 5; rings grow from 32 to 224."""
    engine = Engine(lab.model(name), 4, 2, segment=32)
    expected, stats = plain(name)
    assert_equal(results(engine, mixed(new=40)), expected)
    assert list(engine._kept) == [tuple(PREFIX[:-1])]  # of eight prompts; the whole PREFIX has six
    assert engine.stats.prompt_tokens == stats.prompt_tokens
    assert engine.stats.prefill_tokens < stats.prefill_tokens
    computed = engine.stats.prefill_tokens
    assert_equal(results(engine, mixed(new=40)), expected)  # a later run uses the kept prefix
    assert engine.stats.prefill_tokens == 2 * computed - 48  # but for the prefix, of bucket 48


def test_a_stated_prefix_is_used_whatever_the_other_requests_are(lab, plain):
    stated = [dataclasses.replace(r, common_prefix=10) for r in mixed(new=40)]
    stated[6] = dataclasses.replace(stated[6], common_prefix=0)  # begins with other tokens
    engine = Engine(lab.model(NAME), 4, 2, segment=32)
    for part in (stated[2:3], stated):  # alone, the engine would find no prefix
        expected = {k: c for k, c in plain()[0].items() if stated[k[0]] in part}
        got = results(engine, part)
        assert_equal(
            {(k[0] + (2 if len(part) == 1 else 0), k[1]): c for k, c in got.items()}, expected
        )
        assert tuple(PREFIX[:10]) in engine._kept
    assert engine.stats.prompt_tokens == sum(len(r.prompt) for r in [stated[2], *stated])


@pytest.mark.parametrize("prefix", [-1, 5, 6])
def test_a_prefix_is_shorter_than_its_prompt(lab, prefix):
    request = Request([5] * 5, 1, 1, common_prefix=prefix)
    (failed,) = Engine(lab.model(NAME), 1, 1).run([request])
    assert failed.error == f"common_prefix = {prefix}: use 0 to 4, less than the prompt's tokens"


def test_requests_of_a_server_share_the_reserved_prefix(lab, plain):
    """The requests arrive one by one; one is cancelled, one equals the prefix, some lack it."""
    engine = Engine(lab.model(NAME), 4, 2, segment=32)
    engine.reserve(48, 64, PREFIX)
    keys, finished = {}, []
    for i, request in enumerate(mixed(new=40)):
        keys[engine.submit(request)] = i
        cancelled = engine.submit(request)
        finished += engine.step()
        engine.cancel(cancelled)
        assert engine._state is None or engine.shape.Z == 48
    while engine.busy:
        finished += engine.step()
    got = {(keys[c.request_index], c.sample_index): c for c in finished if c.request_index in keys}
    assert_equal(got, plain()[0])
    assert set(engine._state.common_length_P.tolist()) == {0, 30}
    engine.reserve(48, 64)


@pytest.mark.parametrize(
    "shape", [(1, 2, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in
    ((1, 1, 1), (2, 2, 2), (1, 8, 1)))]
)  # fmt: skip
def test_samples_with_a_common_prefix_do_not_depend_on_the_mesh(lab, plain, shape):
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    graphdef, state = nnx.split(lab.model(NAME))
    with jax.set_mesh(mesh):
        model = nnx.merge(graphdef, weights.for_sampling(state, mesh, "float32"))
        engine = Engine(model, 4, 2, segment=32)
        run = engine.run(mixed(new=40))
        first = next(run)
        arrays = jax.tree.leaves(engine._state.common)
        if shape[2] > 1:  # of one device, arrays may have a sharding without names
            assert {array.sharding.spec[1] for array in arrays} == {"tensor"}
        got = {(c.request_index, c.sample_index): c for c in [first, *run]}
    assert_equal(got, plain()[0])


def test_prompts_of_two_templates_run_in_two_groups(lab, monkeypatch):
    monkeypatch.setattr(prefixes, "MIN_PROMPTS", 3)
    other = PREFIX[::-1][:20]
    requests = [
        Request([*prefix, 5 + i, 6], 1, 3, seed=2, item=i)
        for i, prefix in enumerate([PREFIX, other, PREFIX, other, PREFIX, other, [], PREFIX])
    ]
    engine = Engine(lab.model(NAME), 4, 2, segment=32)
    expected = Engine(lab.model(NAME), 4, 2, segment=32, share_prefixes=False).run(requests)
    expected = {(c.request_index, c.sample_index): c for c in expected}
    assert_equal(results(engine, requests), expected)
    assert list(engine._kept) == [tuple(PREFIX), tuple(other)]
    assert engine.stats.prefill_tokens == 2 * 48 + 8 * 8  # two prefixes, and rests of bucket 8
    again = {(n, 0): expected[i, 0] for n, i in enumerate(range(1, 8, 2))}
    assert_equal(results(engine, requests[1::2]), again)
    # The second prefix is kept. One prompt begins with the first one, and is no group.
    assert engine.stats.prefill_tokens == 2 * 48 + 8 * 8 + 3 * 8 + 48


def test_a_sampler_uses_one_engine_and_its_prefixes_for_every_chunk(lab, plain):
    sampler = EngineSampler(lab.model(NAME), prompt_slots=4, rows=2)
    requests = mixed(new=40)
    for _ in range(2):
        got = {(c.request_index, c.sample_index): c for c in sampler(requests)}
        assert_equal(got, plain()[0])
    (engine,) = sampler._spare
    assert engine.stats.prompts == 2 * len(requests)  # of both chunks
    assert engine.stats.prefill_tokens == 48 + 2 * (5 * 8 + 5 * 48)  # the prefix once
    abandoned = sampler(requests)
    next(abandoned)
    other = sampler(requests[:4])  # while the engine is in use
    next(other)
    assert engine.busy and not sampler._spare
    abandoned.close()
    assert not engine.busy


def test_prefills_compute_a_third_of_the_tokens_if_prompts_share_seven_tenths(lab):
    rng = np.random.default_rng(2)
    prompts = [[*PREFIX, *rng.integers(4, 128, 8).tolist()] for _ in range(24)]
    computed = []
    for share in (True, False):
        engine = Engine(lab.model(NAME), 4, 2, segment=32, share_prefixes=share)
        list(engine.run([Request(prompt, 1, 1, item=i) for i, prompt in enumerate(prompts)]))
        assert engine.stats.prompt_tokens == 24 * 38 and engine.stats.prompts == 24
        computed.append(engine.stats.prefill_tokens)
    assert computed == [48 + 24 * 8, 24 * 48]  # the prefix and rests of bucket 8; whole prompts
    assert computed[0] <= 0.35 * computed[1]


def test_a_prefix_with_nan_affects_only_the_prompts_that_begin_with_it(lab):
    model = lab.model("tiny_llama3")  # its output table is another one
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda x: x, state)
    table = state["embedder"]["table_VxD"]
    state["embedder"]["table_VxD"] = table.replace(table[...].at[9].set(np.nan))
    requests = [
        Request(
            [9] * 20 + [5] * 10 + [i] * 12, 1, 4, item=i, group=1, common_prefix=20, group_prefix=30
        )
        for i in (6, 7)  # a group, and not one without the prefix, which would need 74 tokens
    ]
    requests += [Request([9] * 20 + [7], 1, 4, item=7), Request([5, 6, 7], 1, 4, item=8)]
    got = results(Engine(nnx.merge(graphdef, state), 4, 2, segment=32), requests)
    assert [got[i, 0].finish for i in range(3)] == ["error"] * 3
    assert got[3, 0].error is None and len(got[3, 0].tokens) == 4


# ---------------------------------------------------------------- memory


def test_the_memory_estimate_counts_the_prefix_once_and_the_rests_of_the_prompts(lab):
    cfg, sizes = lab.model(NAME).cfg, (2, 4, 8, 32, 48)
    state = jax.eval_shape(lambda: cache.empty_state(cfg, *sizes))
    estimate = plan.state_bytes(cfg, *sizes)
    for name in ("common", "prefix"):
        arrays = jax.tree.leaves(getattr(state, name))
        assert estimate[name] == sum(a.size * a.dtype.itemsize for a in arrays) > 0


def test_more_prompts_fit_if_they_share_a_prefix(lab):
    cfg = lab.model(NAME).cfg
    requests = [Request([*PREFIX, i, i], 1, 4, item=i) for i in range(4, 68)]
    fits = {memory: plan.fit(cfg, requests, memory=memory) for memory in range(2**19, 2**21, 2**15)}
    with_prefix = {
        memory: plan.fit(cfg, requests, memory=memory, share_prefixes=True) for memory in fits
    }
    assert all(with_prefix[memory] >= fits[memory] for memory in fits)
    assert any(with_prefix[memory] > fits[memory] for memory in fits)


# ---------------------------------------------------------------- prefill groups


def grouped(k=2, new=40):
    """Two groups under the common prefix, one without it, and a request of the first group alone.

    The shared tokens are longer and shorter than the windows; one prompt adds a single token.
    """
    rng = np.random.default_rng(2)
    draw = lambda n: rng.integers(4, 128, n).tolist()
    requests, item = [], 0
    for group, (prefix, shared, own) in enumerate(
        [(PREFIX, 9, (1, 4)), (PREFIX, 3, (6, 9)), ([], 12, (11, 7))]
    ):
        begin = [*prefix, *draw(shared)]
        for n in own:
            prompt = [*begin, *draw(n)]
            request = Request(prompt, k, new, temperature=0.9, seed=3, item=item, stop=(1, 2))
            item += 1
            stated = {"group": group, "common_prefix": len(prefix), "group_prefix": len(begin)}
            requests.append(dataclasses.replace(request, **stated))
    others = [[*PREFIX, *draw(6)], draw(20)]
    return requests + [
        Request(prompt, k, new, temperature=0.9, seed=3, item=9 + i, stop=(1, 2), group_prefix=5)
        for i, prompt in enumerate(others)
    ]


@pytest.fixture(scope="module")
def alone(lab):
    """The samples of `grouped`, each prompt prefilled whole, by model."""

    @functools.cache
    def run(name=NAME):
        engine = Engine(lab.model(name), 4, 2, segment=32, share_prefixes=False)
        return results(engine, grouped()), engine.stats

    return run


@pytest.mark.parametrize(
    "name", [NAME, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_samples_equal_those_of_prompts_prefilled_alone(lab, alone, name):
    engine = Engine(lab.model(name), 4, 2, segment=32)
    expected, stats = alone(name)
    assert_equal(results(engine, grouped()), expected)
    assert (engine.stats.prompts, engine.stats.prompt_tokens) == (8, stats.prompt_tokens)
    assert engine.stats.prefill_tokens == 6 * 48  # the prefix, three groups, and two alone


@pytest.mark.slow
def test_prefill_groups_do_not_depend_on_the_mesh(lab, alone):
    mesh = make_mesh(2, 2, 2, devices=jax.devices())
    graphdef, state = nnx.split(lab.model(NAME))
    with jax.set_mesh(mesh):
        model = nnx.merge(graphdef, weights.for_sampling(state, mesh, "float32"))
        assert_equal(results(Engine(model, 4, 2, segment=32), grouped()), alone()[0])


def test_a_prefill_group_needs_equal_tokens_enough_slots_and_a_shorter_row():
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 9, 7]]

    def slots(largest=2, bucket=lambda n: n):
        requests = [Request(p, 1, 1, group=1, group_prefix=3) for p in prompts]
        made = [Slot(i, r, []) for i, r in enumerate(requests)]
        find_prefill_groups(made, largest, bucket)
        return made

    def groups_of(**options):
        return [
            s.prefill_group and (s.prefill_group.size, s.prefill_group.length)
            for s in slots(**options)
        ]

    tokens, lengths = packed(slots()[:2], 7)
    assert tokens.tolist() == [[0, 1, 2, 3, 4, 5, 6]] and lengths.tolist() == [[3, 1, 2]]
    assert groups_of() == [(2, 6), (2, 6), None]
    assert groups_of(largest=1) == [None] * 3
    assert groups_of(bucket=lambda n: 4 if n < 6 else 8) == [None] * 3


def test_the_row_of_a_prefill_group_needs_no_more_memory_than_its_prompts():
    """Long ones are prefilled one by one; no row is longer than the largest bucket."""

    def lengths(count, length):
        begin = [5] * 200
        prompts = [[*begin, 7 + i, *[6] * (length - 201)] for i in range(count)]
        requests = [Request(prompt, 1, 4, group=0, group_prefix=200) for prompt in prompts]
        made = [Slot(i, r, []) for i, r in enumerate(requests)]
        find_prefill_groups(made, 8, lambda n: n)  # without padding
        return {slot.prefill_group and slot.prefill_group.length for slot in made}

    assert lengths(8, 17_000) == lengths(2, 5000) == {None}
    assert lengths(2, 2100) == {4000} and lengths(8, 600) == {3400}


def test_a_branch_sees_the_keys_inside_its_window_from_any_chunk():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 16, 1, 4)) for i in range(3))
    segments = np.array([[1] * 6 + [2] * 5 + [3] * 5])
    positions = np.array([[*range(6), *range(6, 11), *range(6, 11)]])
    whole, chunks = (
        self_attention(q, k, v, positions, segments, 4, None, chunk, branches=True)[0]
        for chunk in (16, 4)
    )
    np.testing.assert_allclose(chunks, whole, atol=1e-6)


def test_long_prompts_are_prefilled_in_chunks_on_a_cpu(lab, monkeypatch):
    graphdef, params = nnx.split(lab.model(NAME))
    tokens = np.random.default_rng(0).integers(4, 128, (1, 512))
    lengths, prefix_lengths = np.array([[200, 150, 140]]), np.array([30])

    def prefills(params):
        model = nnx.merge(graphdef, params)
        pairs, _ = prefill.prefill(model, np.array([PREFIX]), prefix_lengths)
        prefix = [tuple(a[:, 0] for a in pair) for pair in pairs], prefix_lengths
        alone = prefill.prefill(model, tokens, np.array([490]), *prefix)
        return alone, prefill.prefill_groups(model, tokens, lengths, 350, *prefix)

    chunks: set[int] = set()
    part = attention.attend_part
    monkeypatch.setattr(
        attention, "attend_part", lambda q, *rest: chunks.add(q.shape[1]) or part(q, *rest)
    )
    results = jax.jit(lambda params: prefills(params))(params)
    assert chunks == {30, 128}  # of the prefix, and of 512 tokens
    monkeypatch.setattr(cpu, "query_chunk", lambda chunk, length: chunk)
    expected = jax.jit(lambda params: prefills(params))(params)
    assert chunks == {30, 128, 512}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), results, expected)
