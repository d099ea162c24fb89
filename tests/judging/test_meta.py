"""The meta reward model with a random tiny model: scores, a mesh, critiques that are too long."""

import math

import jax
import numpy as np
import pytest
from fake_judge import fake_judge, well_formed, world_tokenizer
from flax import nnx

from grm_jax.judging.judge import Unjudged
from grm_jax.judging.meta import MetaRM, TooLong
from grm_jax.judging.options import Options
from grm_jax.models import build_model, get_config
from grm_jax.sharding import make_mesh, state_shardings
from grm_jax.types import Comparison, Verdict


@pytest.fixture(scope="module")
def model():
    cfg = get_config("tiny_gemma2", scalar_head=True)
    vocab_size = world_tokenizer().vocab_size
    return build_model(
        cfg.replace(vocab_size=vocab_size, max_length=256, num_layers=2), nnx.Rngs(0)
    )


@pytest.mark.parametrize("likelihood", [0.0, 5.0])
def test_rewards_are_replicated_over_the_mesh(model, likelihood):
    """Every host reads the result of the program."""
    mesh = make_mesh(2, 2, 2)
    tokens = np.random.default_rng(0).integers(3, 90, (4, 64)).astype(np.int32)
    starts = np.array([3, 10, 40, 0], np.int32)
    with jax.set_mesh(mesh):
        placed = build_model(model.cfg, nnx.Rngs(0))
        nnx.update(
            placed, jax.device_put(nnx.state(model), state_shardings(nnx.state(placed), mesh))
        )
        meta = MetaRM(placed, world_tokenizer(), "compact/meta_rm", mesh, likelihood=likelihood)
        rewards = meta._rewards(placed, tokens, np.ones_like(tokens), starts)
    assert rewards.sharding.is_fully_replicated and len(rewards.sharding.device_set) == 8
    encoded = [row[:length].tolist() for row, length in zip(tokens, (9, 30, 64))]
    alone = MetaRM(model, world_tokenizer(), "compact/meta_rm", likelihood=likelihood).score_tokens(
        encoded, starts[:3]
    )
    np.testing.assert_allclose(meta.score_tokens(encoded, starts[:3]), alone, atol=1e-4)


def test_the_likelihood_is_the_mean_over_the_critiques_own_tokens(model):
    """score = head + weight * mean log p of the critique's tokens, for any batch and padding."""
    family, comparison = "compact", Comparison("which is larger", ("a", "b b b"))
    critiques = [
        (comparison, (1, 0), "1: a right"),
        (comparison, (0, 1), "no " * 20),
        (Comparison("one", ("a",)), (0,), "fine"),
    ]
    tokenizer = world_tokenizer()
    head = MetaRM(model, tokenizer, family, batch=3)
    both = MetaRM(model, tokenizer, family, batch=3, likelihood=2.0)
    for critique, without, score in zip(critiques, head(critiques), both(critiques)):
        ids = both.encode(critique)
        start = both.critique_start(critique, ids)
        logp = np.asarray(jax.nn.log_softmax(np.asarray(model(np.array([ids]))[0], np.float64)))
        own = [logp[at - 1, ids[at]] for at in range(start, len(ids))]
        assert score == pytest.approx(without + 2.0 * np.mean(own), abs=1e-4)
    with pytest.raises(ValueError, match="0 starts for 1 critiques"):
        both.score_tokens([[5, 6]])
    # With a judge's family the model reads the judge's prompt: here that for one response.
    assert tokenizer.decode(both.encode(critiques[2])).count("score}") == 1


def test_a_score_that_is_not_finite_fails_its_comparison_alone():
    scores = iter([0.5, math.nan, 0.5, 0.5])
    meta = lambda critiques: [next(scores) for _ in critiques]
    judge = fake_judge(lambda responses, key: well_formed([9, 1]), meta_rm=meta)
    pairs = [Comparison("q", ("a", "b")), Comparison("q", ("c", "d"))]
    results = dict(judge.stream(pairs, Options(k=2)))
    assert isinstance(results[0], Unjudged) and "scores a critique nan" in results[0].reason
    assert isinstance(results[1], Verdict)


def test_the_prompt_ends_where_the_critique_starts(model):
    meta = MetaRM(model, world_tokenizer(), "compact/meta_rm")
    comparison = Comparison("which is larger", ("a", "b b b"))
    for text in ("1: a right", "no"):
        critique = (comparison, (1, 0), text)
        ids = meta.encode(critique)
        start = meta.critique_start(critique, ids)
        assert 0 < start < len(ids)
        assert ids[:start] == meta.encode((comparison, (1, 0), "yes"))[:start]
        assert text in world_tokenizer().decode(ids[start:])
        assert text not in world_tokenizer().decode(ids[:start])


def test_a_critique_longer_than_the_meta_context_fails_its_comparison_only(model):
    meta = MetaRM(model, world_tokenizer(), "compact/meta_rm")
    long = "so " * 300
    judge = fake_judge(
        lambda responses, key: well_formed([9, 1], long if "long" in responses else "short"),
        meta_rm=meta,
    )
    pairs = [
        Comparison("q", ("a", "b")),
        Comparison("q", ("long", "b")),
        Comparison("q", ("c", "d")),
    ]
    results = dict(judge.stream(pairs, Options(k=2)))
    assert isinstance(results[0], Verdict) and isinstance(results[2], Verdict)
    assert isinstance(results[1], Unjudged)
    assert "the meta model's context 256: lower max_new_tokens" in results[1].reason
    with pytest.raises(TooLong, match="lower max_new_tokens"):
        meta([(pairs[0], (0, 1), long)])
