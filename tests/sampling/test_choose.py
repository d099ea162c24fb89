"""Tests sampling of tokens: chi-square against exact distributions, and edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from grm_jax.sampling import choose as module
from grm_jax.sampling.choose import invert_cdf, ordered_bits, threshold

choose = jax.jit(module.choose)  # every shape takes seconds to compile
DRAWS = 50_000
# Logits with ties at every cut-off.
TIED = np.array([2, 1, 1, 1, 0.5, 0, -1, -1, -3, 2, -6, 0.5], np.float32)


def distribution(logits, temperature, top_p, top_k) -> np.ndarray:
    """Returns the exact distribution, by sorting. Ties with the last kept token are kept."""
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.sort(p)[::-1]
    if top_k > 0:
        p = np.where(p >= order[min(top_k, p.size) - 1], p, 0.0)
    if top_p < 1:
        order = np.sort(p)[::-1]
        last = np.searchsorted(np.cumsum(order), top_p * p.sum())
        p = np.where(p >= order[last], p, 0.0)
    return p / p.sum()


@pytest.fixture(scope="module")
def draw():
    """A function draw(logits_V, temperature, top_p, top_k) that returns DRAWS tokens."""

    @jax.jit
    def run(logits_V, key, temperature, top_p, top_k):
        logits = jnp.broadcast_to(logits_V, (DRAWS, logits_V.size))
        settings = (jnp.full(DRAWS, x) for x in (temperature, top_p, top_k))
        return module.choose(logits, jax.random.uniform(key, DRAWS), *settings).token

    return lambda logits, *settings: np.asarray(run(logits, jax.random.key(3), *settings))


@pytest.mark.parametrize(
    "temperature, top_p, top_k",
    [
        (1.0, 1.0, 0),
        (0.5, 1.0, 0),
        (2.0, 1.0, 0),
        (1.0, 1.0, 1),  # two tokens tie for first
        (1.0, 1.0, 3),  # three tokens tie for third
        (1.0, 1.0, 7),
        (1.0, 1.0, 500),  # more than the vocabulary
        (1.0, 0.3, 0),
        (1.0, 0.75, 0),
        (0.7, 0.9, 0),
        (1.0, 1e-6, 0),
        (1.3, 0.8, 6),
        (0.6, 0.95, 4),
        (1.0, 0.5, 500),
    ],
)
def test_draws_follow_the_exact_distribution(draw, temperature, top_p, top_k):
    counts = np.bincount(draw(TIED, temperature, top_p, top_k), minlength=TIED.size)
    exact = distribution(TIED, temperature, top_p, top_k)
    assert counts[exact == 0].sum() == 0
    kept = exact > 0
    assert chisquare(counts[kept], exact[kept] * DRAWS).pvalue > 1e-3


def test_the_chi_square_test_detects_a_wrong_temperature(draw):
    counts = np.bincount(draw(TIED, 1.0, 1.0, 0), minlength=TIED.size)
    assert chisquare(counts, distribution(TIED, 1.03, 1.0, 0) * DRAWS).pvalue < 1e-3


def test_draws_from_a_larger_vocabulary_follow_the_exact_distribution(draw):
    size = 300  # drawn in blocks of 4
    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    counts = np.bincount(draw(logits, 0.9, 0.95, 60), minlength=size)
    exact = distribution(logits, 0.9, 0.95, 60)
    kept = exact > 0
    assert counts[~kept].sum() == 0
    assert chisquare(counts[kept], exact[kept] * DRAWS).pvalue > 1e-3


@pytest.mark.parametrize("size", [64, 12, 7])  # several blocks; a prime has one token per block
def test_invert_cdf_inverts_the_cumulative_distribution(size):
    weights = np.random.default_rng(size).integers(0, 4, (40, size)).astype(np.float32)
    weights[:, 3] += 1
    uniform = np.linspace(0, 0.9999, 40, dtype=np.float32)
    exact = (
        np.cumsum(weights, axis=1) <= uniform[:, None] * weights.sum(axis=1, keepdims=True)
    ).sum(axis=1)
    assert (np.asarray(jax.jit(invert_cdf)(weights, uniform)) == exact).all()


def test_the_threshold_equals_that_of_a_sort():
    rng = np.random.default_rng(0)
    x = (
        np.round(rng.standard_normal((200, 128)) * 4).astype(np.float32) / 4
    )  # many ties, both signs, zeros
    k = rng.choice([1, 2, 17, 127, 128], 200)
    is_kept = jax.jit(
        lambda x, k: ordered_bits(x) >= threshold(ordered_bits(x), jnp.ones_like(x), k)[:, None]
    )
    kth = np.take_along_axis(-np.sort(-x, axis=1), k[:, None] - 1, axis=1)
    assert (np.asarray(is_kept(x, k.astype(np.float32))) == (x >= kth)).all()
    ordered = np.sort(
        rng.standard_normal(1000).astype(np.float32) * 10.0 ** rng.integers(-30, 30, 1000)
    )
    assert (np.diff(np.asarray(jax.jit(ordered_bits)(ordered)).astype(np.int64)) >= 0).all()


def test_filters_match_a_sort_on_many_rows():
    rng = np.random.default_rng(1)
    R, V = 200, 128
    logits = (rng.standard_normal((R, V)) * 3).astype(np.float32)
    top_p = rng.uniform(0.05, 1.0, R).astype(np.float32)
    top_k = rng.integers(0, 150, R).astype(np.int32)
    scaled = logits - logits.max(axis=1, keepdims=True)
    kept = np.asarray(jax.jit(module._filter)(np.exp(scaled), scaled, top_p, top_k)) > 0
    for row in range(R):
        # A cut-off within rounding error of top_p may keep or drop the last token.
        low, high = (
            distribution(logits[row], 1.0, p, top_k[row]) > 0
            for p in (top_p[row] - 1e-5, top_p[row] + 1e-5)
        )
        assert (kept[row] >= low).all() and (kept[row] <= high).all(), row


def choose_padded(logits, uniform, temperature, top_p=1.0, top_k=0):
    """Calls `choose` for up to 8 rows of up to 64 tokens, padded to one shape."""
    R, V = logits.shape
    padded = np.full((8, 64), -1e30, np.float32)
    padded[:R, :V] = logits

    def repeat(x, dtype=np.float32):
        return np.resize(np.asarray(x, dtype), 8)

    out = choose(
        padded, repeat(uniform), repeat(temperature), repeat(top_p), repeat(top_k, np.int32)
    )
    return jax.tree.map(lambda a: np.asarray(a)[:R], out)


def test_log_probs_ignore_the_filters():
    temperature = np.array([0.0, 0.5, 1.0, 2.0], np.float32)
    out = choose_padded(np.tile(TIED, (4, 1)), 0.4, temperature, 0.6, 3)
    for row in range(4):
        for logprob, t in ((out.logprob, temperature[row] or 1.0), (out.logprob_1, 1.0)):
            exact = np.log(distribution(TIED, t, 1.0, 0))[out.token[row]]
            assert logprob[row] == pytest.approx(exact, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-44])  # 1 / 1e-44 overflows float32
def test_temperatures_of_zero_and_nearly_zero_are_greedy(temperature):
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((8, 64)).astype(np.float32)
    out = choose_padded(logits, rng.random(8, np.float32), temperature)
    assert (out.token == logits.argmax(axis=1)).all() and np.isfinite(out.logprob).all()


@pytest.mark.parametrize("temperature", [1e-8, 1e-12, 1e-30])
def test_a_tiny_temperature_is_greedy_after_a_fused_soft_cap(temperature):
    """The compiler may round the capped logits differently for the maximum and the difference."""

    @jax.jit
    def capped(logits_RxV, uniform_R, temperature):
        settings = (jnp.full(8, x) for x in (temperature, 1.0, 0))
        return module.choose(30 * jnp.tanh(logits_RxV / 30), uniform_R, *settings).token

    rng = np.random.default_rng(2)
    logits = 5 * rng.standard_normal((8, 64)).astype(np.float32)
    tokens = capped(logits, rng.random(8, np.float32), np.float32(temperature))
    assert tokens.tolist() == logits.argmax(axis=1).tolist()


def test_extreme_uniforms_never_choose_a_token_of_probability_0():
    logits = np.full((2, 40), -1e30, np.float32)
    logits[:, [7, 23]] = 0.0
    uniform = [0.0, np.nextafter(np.float32(1), np.float32(0))]
    assert choose_padded(logits, uniform, 1.0).token.tolist() == [7, 23]


def test_rows_with_non_finite_logits_are_reported():
    logits = np.zeros((4, 64), np.float32)
    logits[1, 3], logits[2], logits[3, 0] = np.nan, -np.inf, np.inf
    assert choose_padded(logits, 0.5, 1.0).finite.tolist() == [True, False, False, False]


def test_a_sum_that_rises_by_rounding_draws_no_token_of_weight_0(monkeypatch):
    """XLA sums many blocks in parallel, so that a sum may rise where the weight is 0."""
    weights = np.array([[1, 0, 0, 1]], np.float32)
    sums = np.array([[1, 1 + 2**-20, 1, 2]], np.float32)
    monkeypatch.setattr(module.jnp, "cumsum", lambda *_, **__: sums)
    uniform = np.array([0.5], np.float32)  # the target is 1.0
    (index,), _ = module._first_above(weights, uniform, None)
    assert index == 3


def test_the_smallest_top_p_keeps_the_most_likely_token(draw):
    logits = np.array([0.0, 1.0, 3.0, 2.0], np.float32)
    assert set(draw(logits, 1.0, 1e-38, 0).tolist()) == {2}
