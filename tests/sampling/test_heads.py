"""Tests shared heads: which head is chosen, and that samples equal those without shared heads."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from grm_jax.sampling import Engine, Request, heads

NAME = "tiny_gemma2"
HEAD = np.random.default_rng(5).integers(4, 128, 30).tolist()


@pytest.fixture(autouse=True)
def short_heads(monkeypatch):
    """Toy prompts have at most 48 tokens; their heads may be short."""
    monkeypatch.setattr(heads, "LEAST_TOKENS", 4)


# ---------------------------------------------------------------- the choice


def saving(prompts, head):
    users = sum(heads.used(prompt, head) > 0 for prompt in prompts)
    return (users - 1) * len(head)


short_lists = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), max_size=7)


@given(short_lists)
def test_the_chosen_head_saves_the_most_and_leaves_every_user_a_token(prompts):
    head = heads.choose_head(prompts, least=1)
    candidates = [tuple(p[:n]) for p in prompts for n in range(1, len(p))]
    best = max((saving(prompts, candidate) for candidate in candidates), default=0)
    assert (saving(prompts, head) if head else 0) == max(0, best)
    assert not head or sum(heads.used(p, head) > 0 for p in prompts) >= 2


@given(short_lists, st.integers(1, 5))
def test_a_head_has_at_least_the_least_length(prompts, least):
    head = heads.choose_head(prompts, least)
    assert not head or len(head) >= least


def test_heads_of_large_token_ids_are_found():
    prompts = [[255, 256, 70_000, 1], [255, 256, 70_000, 2], [65_536, 1, 2, 3]]
    assert heads.choose_head(map(np.array, prompts), 1) == (255, 256, 70_000)


def test_a_kept_head_is_used_again_if_it_saves_about_as_much_and_lengthens_no_prompt():
    kept, longer = tuple(range(100)), tuple(range(104))
    prompts = [[*longer, i] for i in range(9)]
    assert heads.better(kept, longer, prompts) == longer  # the rests would be longer
    prompts.append([7] * 20)  # now the longest rest does not depend on the head
    assert heads.better(kept, longer, prompts) == kept
    assert heads.better((7, 7), longer, prompts) == longer
    assert heads.better((), (), []) == () == heads.better(kept, (), [[5]])


# ---------------------------------------------------------------- samples


def mixed(head=HEAD, k=2, new=12):
    """Requests with and without the head, of rests shorter and longer than the windows."""
    rng = np.random.default_rng(1)
    own = [rng.integers(4, 128, n).tolist() for n in (1, 2, 5, 9, 18, 17)]
    prompts = [[*head, *o] for o in own] + [own[4], [*head], [*head[:-1], 3], own[5] * 2]
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


MODELS = [NAME, "tiny_gemma3", "tiny_llama3"] + [
    pytest.param(name, marks=pytest.mark.slow) for name in ("tiny_qwen2", "tiny_qwen3")
]


@pytest.mark.parametrize("name", MODELS)
def test_samples_equal_those_without_shared_heads(lab, name):
    """The head, 30 tokens, is longer than the windows, 6 and 5; rings grow from 32 to 224."""
    requests = mixed(new=40)
    shared = Engine(lab.model(name), 4, 2, segment=32)
    plain = Engine(lab.model(name), 4, 2, segment=32, share_heads=False)
    assert_equal(results(shared, requests), results(plain, requests))
    assert shared._kept[0] == tuple(HEAD[:-1])  # of eight prompts; the whole HEAD has six
    assert shared.stats.prompt_tokens == plain.stats.prompt_tokens
    assert shared.stats.prefill_tokens < plain.stats.prefill_tokens
