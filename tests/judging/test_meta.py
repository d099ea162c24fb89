"""The meta reward model around a random tiny model: its place on a mesh, and critiques that it cannot hold."""

import jax
import numpy as np
import pytest
from fake_judge import fake_judge, well_formed, words
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
    return build_model(
        cfg.replace(vocab_size=words().vocab_size, max_length=256, num_layers=2), nnx.Rngs(0)
    )


@pytest.mark.parametrize("likelihood", [0.0, 5.0])
def test_every_host_of_a_mesh_has_all_of_the_rewards(model, likelihood):
    """On several hosts each reads what the program returns, so no part of it may be elsewhere."""
    mesh = make_mesh(2, 2, 2)
    tokens = np.random.default_rng(0).integers(3, 90, (4, 64)).astype(np.int32)
    starts = np.array([3, 10, 40, 0], np.int32)
    with jax.set_mesh(mesh):
        placed = build_model(model.cfg, nnx.Rngs(0))
        nnx.update(
            placed, jax.device_put(nnx.state(model), state_shardings(nnx.state(placed), mesh))
        )
        meta = MetaRM(placed, words(), "compact/meta_rm", mesh, likelihood=likelihood)
        rewards = meta._rewards(placed, tokens, np.ones_like(tokens), starts)
    assert rewards.sharding.is_fully_replicated and len(rewards.sharding.device_set) == 8
    encoded = [row[:length].tolist() for row, length in zip(tokens, (9, 30, 64))]
    alone = MetaRM(model, words(), "compact/meta_rm", likelihood=likelihood).score_tokens(
        encoded, starts[:3]
    )
    np.testing.assert_allclose(meta.score_tokens(encoded, starts[:3]), alone, atol=1e-4)


def test_the_likelihood_of_a_critique_is_that_of_its_own_tokens(model):
    """Score = head + weight * mean log p of the critique's tokens, whatever the rows beside it and however long the padding."""
    family, comparison = "compact", Comparison("which is larger", ("a", "b b b"))
    judged = [
        (comparison, (1, 0), "1: a right"),
        (comparison, (0, 1), "no " * 20),
        (Comparison("one", ("a",)), (0,), "fine"),
    ]
    head, both = (
        MetaRM(model, words(), family, batch=3, likelihood=weight) for weight in (0.0, 2.0)
    )
    plain, scores = head(judged), both(judged)
    for one, without, score in zip(judged, plain, scores):
        ids = both.encode(one)
        start = both.critique_start(one, ids)
        logp = np.asarray(jax.nn.log_softmax(np.asarray(model(np.array([ids]))[0], np.float64)))
        own = [logp[at - 1, ids[at]] for at in range(start, len(ids))]
        assert score == pytest.approx(without + 2.0 * np.mean(own), abs=1e-4)
    with pytest.raises(ValueError, match="0 starts for 1 critiques"):
        both.score_tokens([[5, 6]])
    # A judge's family reads what the judge read: the member for one response, not the one for several.
    assert words().decode(both.encode(judged[2])).count("score}") == 1


def test_the_prompt_ends_where_the_critique_starts(model):
    meta = MetaRM(model, words(), "compact/meta_rm")
    comparison = Comparison("which is larger", ("a", "b b b"))
    for text in ("1: a right", "no"):
        judged = (comparison, (1, 0), text)
        ids = meta.encode(judged)
        start = meta.critique_start(judged, ids)
        assert 0 < start < len(ids)
        assert ids[:start] == meta.encode((comparison, (1, 0), "yes"))[:start]
        assert text in words().decode(ids[start:])
        assert text not in words().decode(ids[:start])


def test_a_critique_beyond_the_meta_models_context_fails_its_comparison_only(model):
    meta = MetaRM(model, words(), "compact/meta_rm")
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
    found = dict(judge.stream(pairs, Options(k=2)))
    assert isinstance(found[0], Verdict) and isinstance(found[2], Verdict)
    assert (
        isinstance(found[1], Unjudged)
        and "the meta model's context 256: lower max_new_tokens" in found[1].reason
    )
    with pytest.raises(TooLong, match="lower max_new_tokens"):
        meta([(pairs[0], (0, 1), long)])
