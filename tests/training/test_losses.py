"""Tests losses against float64 references from the formulas, and by exact enumeration."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import spct_tiny
from grm_jax.training import grpo, losses


def reference_grpo(logps, old, ref, mask, adv, beta, clip):
    """Returns the loss and its gradient with respect to `logps`, token by token in float64."""
    rows, tokens = logps.shape
    loss, grad = 0.0, np.zeros((rows, tokens))
    for r in range(rows):
        length = mask[r].sum()
        for t in range(tokens):
            if not mask[r, t]:
                continue
            ratio = np.exp(logps[r, t] - old[r, t])
            clipped = min(max(ratio, 1 - clip), 1 + clip)
            unclipped, bounded = ratio * adv[r], clipped * adv[r]
            surrogate = min(unclipped, bounded)
            # d ratio / d logp = ratio; the gradient is 0 where the clipped term is the minimum.
            d_surrogate = ratio * adv[r] if unclipped <= bounded else 0.0
            u = ref[r, t] - logps[r, t]
            kl, d_kl = np.exp(u) - u - 1, 1 - np.exp(u)
            loss -= (surrogate - beta * kl) / length / rows
            grad[r, t] -= (d_surrogate - beta * d_kl) / length / rows
    return loss, grad


def random_case(seed, rows=8, tokens=13):
    rng = np.random.default_rng(seed)
    logps = -rng.exponential(1.0, (rows, tokens))
    old = logps + rng.normal(0, 0.3, (rows, tokens))
    ref = logps + rng.normal(0, 0.5, (rows, tokens))
    lengths = rng.integers(1, tokens + 1, rows)
    mask = (np.arange(tokens)[None] < lengths[:, None]).astype(np.float64)
    return logps, old, ref, mask, rng.normal(0, 1, rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.0, 0.08])
def test_grpo_loss_and_gradient_equal_the_float64_reference(seed, beta):
    logps, old, ref, mask, adv = random_case(seed)
    expected, expected_grad = reference_grpo(logps, old, ref, mask, adv, beta, 0.2)

    def loss(x):
        return losses.grpo_loss(
            x,
            jnp.float32(ref),
            jnp.float32(mask),
            jnp.float32(adv),
            losses.GrpoObjective(beta, clip=0.2),
            jnp.float32(old),
        )[0]

    value, grad = jax.value_and_grad(loss)(jnp.float32(logps))
    np.testing.assert_allclose(value, expected, atol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, atol=1e-5)


def test_without_old_logps_the_current_policy_is_the_old_one():
    logps, _, ref, mask, adv = (jnp.float32(x) for x in random_case(0))

    def loss(x, old):
        return losses.grpo_loss(x, ref, mask, adv, losses.GrpoObjective(0.04), old)[0]

    without = jax.value_and_grad(loss)(logps, None)
    same = jax.value_and_grad(loss)(logps, logps)
    np.testing.assert_array_equal(without[0], same[0])
    np.testing.assert_array_equal(without[1], same[1])


def test_padding_does_not_affect_loss_or_gradient():
    logps, old, ref, mask, adv = (jnp.float32(x) for x in random_case(1))

    def loss(x, pad):
        x, padded_ref, padded_old = [jnp.where(mask > 0, y, pad) for y in (x, ref, old)]
        objective = losses.GrpoObjective(0.08)
        return losses.grpo_loss(x, padded_ref, mask, adv, objective, padded_old)[0]

    zero, zero_grad = jax.value_and_grad(loss)(logps, 0.0)
    inf, inf_grad = jax.value_and_grad(loss)(logps, -jnp.inf)
    np.testing.assert_array_equal(zero, inf)
    np.testing.assert_array_equal(zero_grad, inf_grad)


def test_losses_of_micro_batches_sum_to_the_loss_of_the_batch():
    logps, old, ref, mask, adv = (jnp.float32(x) for x in random_case(2))
    objective = losses.GrpoObjective(0.08)
    whole, whole_metrics = losses.grpo_loss(logps, ref, mask, adv, objective, old)
    halves = [
        losses.grpo_loss(logps[s], ref[s], mask[s], adv[s], objective, old[s], completions=8)
        for s in (slice(0, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(halves[0][0] + halves[1][0], whole, rtol=1e-6)
    for name in ("kl", "clip_share"):
        np.testing.assert_allclose(
            halves[0][1][name] + halves[1][1][name], whole_metrics[name], rtol=1e-5
        )


def exact_kl(p, q):
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


def expected_kl_gradient(estimator, theta, ref):
    """Returns the expected gradient of the KL term under the policy, by exact enumeration."""

    def kl(theta, outcome):
        return losses.kl_per_token(
            jax.nn.log_softmax(theta)[outcome], jnp.log(ref)[outcome], estimator
        )

    grads = jax.vmap(jax.grad(kl), (None, 0))(theta, jnp.arange(theta.size))
    return jax.nn.softmax(theta) @ grads


def test_the_expected_gradient_is_forward_kl_for_k3_and_reverse_kl_for_k2():
    rng = np.random.default_rng(3)
    theta = jnp.float32(rng.normal(0, 1, 7))
    ref = jax.nn.softmax(jnp.float32(rng.normal(0, 1, 7)))
    forward = jax.grad(lambda t: exact_kl(ref, jax.nn.softmax(t)))(theta)
    reverse = jax.grad(lambda t: exact_kl(jax.nn.softmax(t), ref))(theta)
    np.testing.assert_allclose(expected_kl_gradient("k3", theta, ref), forward, atol=1e-6)
    np.testing.assert_allclose(expected_kl_gradient("k2", theta, ref), reverse, atol=1e-6)
    assert (
        float(jnp.abs(forward - reverse).max()) > 0.01
    )  # the two gradients differ for these distributions


def test_the_expected_value_of_k3_is_the_kl():
    rng = np.random.default_rng(4)
    policy, ref = (jax.nn.softmax(jnp.float32(rng.normal(0, 1, 9))) for _ in range(2))
    value = policy @ losses.kl_per_token(jnp.log(policy), jnp.log(ref), "k3")
    np.testing.assert_allclose(value, exact_kl(policy, ref), rtol=1e-5)


def test_k1_and_unknown_kl_estimators_are_an_error():
    with pytest.raises(ValueError, match="zero.*use one of k3, k2"):
        losses.kl_per_token(jnp.zeros(2), jnp.zeros(2), "k1")
    with pytest.raises(ValueError, match="unknown kl_estimator 'kl3': did you mean 'k3'"):
        losses.kl_per_token(jnp.zeros(2), jnp.zeros(2), "kl3")


def test_one_registration_adds_a_kl_estimator(monkeypatch):
    config = spct_tiny.get_config("rl.kl_estimator=half_k3")
    with pytest.raises(ValueError, match="unknown kl_estimator 'half_k3'"):
        grpo.check(config)
    estimators = losses.Registry("kl_estimator")
    estimators.update(losses.KL_ESTIMATORS)
    monkeypatch.setattr(losses, "KL_ESTIMATORS", estimators)
    losses.KL_ESTIMATORS.add("half_k3", lambda log_ratio: losses.k3(log_ratio) / 2)

    grpo.check(config)
    logps, old, ref, mask, adv = (jnp.float32(x) for x in random_case(0))
    kl, half = (
        losses.grpo_loss(logps, ref, mask, adv, losses.GrpoObjective(1.0, 0.2, name), old)[1]["kl"]
        for name in ("k3", "half_k3")
    )
    np.testing.assert_allclose(half, kl / 2, rtol=1e-6)
    with pytest.raises(ValueError, match="use one of k3, k2, half_k3"):
        losses.check_kl_estimator("k1")


def test_docs_list_every_kl_estimator():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert all(f"`{name}`" in page for name in losses.KL_ESTIMATORS)


def test_group_advantages_follow_the_formula_and_are_affine_invariant():
    signs = jnp.float32([[1, -1, -1, -1], [1, 1, -1, -1], [1, 1, 1, -1]])
    adv = losses.group_advantages(signs)
    expected = [
        [1.7320508, -0.57735, -0.57735, -0.57735],
        [1, 1, -1, -1],
        [0.57735, 0.57735, 0.57735, -1.7320508],
    ]
    np.testing.assert_allclose(adv, expected, atol=1e-5)
    np.testing.assert_allclose(adv, losses.group_advantages((signs + 1) / 2), atol=1e-6)
    np.testing.assert_allclose(
        losses.group_advantages(signs, normalise_std=False)[0], [1.5, -0.5, -0.5, -0.5]
    )


@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, 1e-3])
def test_a_group_of_equal_rewards_has_zero_advantages(value):
    # The float32 mean of three 0.1 is not 0.1; this error must not be divided by its own std.
    adv = losses.group_advantages(jnp.full((2, 3), value, jnp.float32))
    np.testing.assert_array_equal(adv, 0.0)


def test_a_group_of_equal_rewards_contributes_only_the_kl_term():
    logps, old, ref, mask, _ = (jnp.float32(x) for x in random_case(5))
    adv = losses.group_advantages(jnp.full((2, 4), -1.0)).reshape(-1)

    def loss(x, beta):
        return losses.grpo_loss(x, ref, mask, adv, losses.GrpoObjective(beta), old)[0]

    value, grad = jax.value_and_grad(loss)(logps, 0.0)
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)
    assert float(jnp.abs(jax.grad(loss)(logps, 0.08)).max()) > 0


def test_sft_loss_is_the_token_mean_and_sums_over_micro_batches():
    rng = np.random.default_rng(6)
    logps = jnp.float32(-rng.exponential(1, (4, 6)))
    weights = jnp.float32(rng.integers(0, 2, (4, 6)))
    whole = losses.sft_loss(logps, weights)
    np.testing.assert_allclose(whole, -np.sum(logps * weights) / np.sum(weights), rtol=1e-6)
    total = sum(
        losses.sft_loss(logps[i : i + 1], weights[i : i + 1], weights.sum()) for i in range(4)
    )
    np.testing.assert_allclose(total, whole, rtol=1e-6)
    assert losses.sft_loss(logps, jnp.zeros((4, 6))) == 0.0


def test_token_bce_loss_is_the_mean_over_sequences_of_the_mean_over_tokens():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(0, 20, (3, 7)), np.array([1.0, 0.0, 1.0])
    weights = np.array([[0, 0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0], [0] * 7], np.float64)
    losses_BxL = np.logaddexp(0.0, np.where(labels[:, None] == 1, -scores, scores))
    expected = (losses_BxL[0, 2:5].mean() + losses_BxL[1, 1] + 0.0) / 3
    loss = losses.token_bce_loss(*(jnp.float32(x) for x in (scores, labels, weights)))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_bce_loss_equals_the_float64_reference_for_large_scores():
    scores = np.array([-15.78, 1.31, 1.67, 60.0, -60.0])
    labels = np.array([0.0, 1.0, 1.0, 1.0, 0.0])
    expected = np.mean(np.logaddexp(0.0, np.where(labels == 1, -scores, scores)))
    np.testing.assert_allclose(
        losses.bce_loss(jnp.float32(scores), jnp.float32(labels)), expected, atol=1e-6
    )
    assert np.isfinite(losses.bce_loss(jnp.float32([1e4, -1e4]), jnp.float32([0.0, 1.0])))
