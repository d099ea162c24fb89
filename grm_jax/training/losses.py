"""The losses of the three trainings, as pure functions of token log-probabilities.

To add a KL estimator, register a function of log(reference / policy) per token:

    @KL_ESTIMATORS.register("name")
    def name(log_ratio): ...

Axes: B sequences, L positions, P prompts, G samples per prompt, R = P * G completions,
T completion tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.registry import Registry

KL_ESTIMATORS: Registry[Callable[[jax.Array], jax.Array]] = Registry("kl_estimator")


def sft_loss(
    logps_BxL: jax.Array, weights_BxL: jax.Array, denominator: jax.Array | None = None
) -> jax.Array:
    """Computes the mean negative log-likelihood over the weighted tokens of the batch.

    Args:
      logps_BxL: log-probability of each target token, natural log.
      weights_BxL: 1 on the tokens to learn (completions), 0 elsewhere (prompts, padding).
      denominator: number of tokens to divide by; the batch's own if None. Gradient accumulation
        passes that of the whole batch, so that micro-batches add up to the batch's loss.

    Returns:
      Scalar loss in nats per token.
    """
    if denominator is None:
        denominator = jnp.maximum(weights_BxL.sum(), 1.0)
    return -(logps_BxL * weights_BxL).sum() / denominator


def group_advantages(rewards_PxG: jax.Array | np.ndarray, normalise_std: bool = True) -> jax.Array:
    """Computes GRPO advantages: (reward - group mean) / group std (arXiv 2402.03300, 4.1.2).

    The std is the population's: 1 correct of 4 gives +1.73 and -0.58. No epsilon is added to it, so
    rewards {+1, -1} and {1, 0} give the same advantages. A group of equal rewards gets zeros.

    Args:
      rewards_PxG: float32, one reward per sample.
      normalise_std: divide by the std. False is the "Dr. GRPO" variant.

    Returns:
      float32 advantages_PxG.
    """
    centred_PxG = rewards_PxG - rewards_PxG.mean(axis=1, keepdims=True)
    degenerate_Px1 = rewards_PxG.max(axis=1, keepdims=True) == rewards_PxG.min(
        axis=1, keepdims=True
    )
    if normalise_std:
        std_Px1 = jnp.sqrt((centred_PxG**2).mean(axis=1, keepdims=True))
        centred_PxG = centred_PxG / jnp.where(degenerate_Px1, 1.0, std_Px1)
    # A mean that rounds would otherwise leave noise of the std's size: advantages of order one.
    return jnp.where(degenerate_Px1, 0.0, centred_PxG)


@KL_ESTIMATORS.register("k3")
def k3(log_ratio: jax.Array) -> jax.Array:
    """exp(x) - x - 1 (GRPO, arXiv 2402.03300 equation 4): never negative, unbiased in value.

    As a loss its expected gradient is that of KL(reference || policy).
    """
    return jnp.exp(log_ratio) - log_ratio - 1.0


@KL_ESTIMATORS.register("k2")
def k2(log_ratio: jax.Array) -> jax.Array:
    """x^2 / 2. As a loss its expected gradient is that of KL(policy || reference)."""
    return 0.5 * log_ratio**2


def check_kl_estimator(name: str) -> None:
    """Raises ValueError for a name that is not registered, and for k1."""
    if name == "k1":
        raise ValueError(
            "kl_estimator 'k1' has an expected gradient of exactly zero as a loss on the policy's "
            "own samples (the mean of the score function), so beta would have no effect: "
            f"use one of {', '.join(KL_ESTIMATORS)}"
        )
    KL_ESTIMATORS[name]


def kl_per_token(logps: jax.Array, ref_logps: jax.Array, estimator: str = "k3") -> jax.Array:
    """Estimates KL(policy || reference) per token, in nats, from samples of the policy.

    Raises:
      ValueError: the estimator is k1, or not in KL_ESTIMATORS.
    """
    check_kl_estimator(estimator)
    return KL_ESTIMATORS[estimator](ref_logps - logps)


def token_mean(values_RxT: jax.Array, mask_RxT: jax.Array) -> jax.Array:
    """Computes the mean over the tokens of each sequence; a sequence without tokens gives 0."""
    return (values_RxT * mask_RxT).sum(axis=-1) / jnp.maximum(mask_RxT.sum(axis=-1), 1.0)


@dataclasses.dataclass(frozen=True)
class GrpoObjective:
    """Coefficients of the GRPO objective.

    beta: of the KL penalty.  clip: half-width of the interval of the ratio.
    """

    beta: float
    clip: float = 0.2
    kl_estimator: str = "k3"


def grpo_loss(
    logps_RxT: jax.Array,
    ref_logps_RxT: jax.Array,
    mask_RxT: jax.Array,
    advantages_R: jax.Array,
    objective: GrpoObjective,
    old_logps_RxT: jax.Array | None = None,
    completions: int | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the clipped policy objective with a KL penalty in the loss.

    Per token min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A) - beta * KL, averaged over the
    tokens of each completion, then over completions; the loss is its negative (SPCT equation 15;
    GRPO, arXiv 2402.03300 equation 3).

    Args:
      logps_RxT: log-probabilities under the trained policy; the only argument with a gradient.
      ref_logps_RxT: the same tokens under the reference (the RFT model).
      mask_RxT: 1 on completion tokens, the stop token included.
      advantages_R: one advantage per completion, the same for all its tokens.
      objective: its coefficients.
      old_logps_RxT: log-probabilities under the policy that sampled. None if this is the first
        update on its rollouts: the ratio is then exactly 1, its gradient the log-probability's.
      completions: number to divide by; R if None. Gradient accumulation passes that of the whole
        batch.

    Returns:
      (loss, metrics). The metrics are scalars: `kl` in nats per token, `clip_share`, the share of
      tokens whose ratio is outside the interval, and `ratio_max`. Both means are weighted as the
      loss is, so the metrics of micro-batches add up.
    """
    completions = logps_RxT.shape[0] if completions is None else completions
    old_logps_RxT = jax.lax.stop_gradient(logps_RxT if old_logps_RxT is None else old_logps_RxT)
    advantages_Rx1 = jax.lax.stop_gradient(advantages_R)[:, None]
    mask_RxT = mask_RxT.astype(logps_RxT.dtype)
    # Padding may hold minus infinity, and 0 * inf would be NaN, in the gradient too.
    live_RxT = mask_RxT > 0
    logps_RxT, old_logps_RxT, ref_logps_RxT = (
        jnp.where(live_RxT, x, 0.0)
        for x in (logps_RxT, old_logps_RxT, jax.lax.stop_gradient(ref_logps_RxT))
    )

    ratio_RxT = jnp.exp(logps_RxT - old_logps_RxT)
    clipped_RxT = jnp.clip(ratio_RxT, 1.0 - objective.clip, 1.0 + objective.clip)
    surrogate_RxT = jnp.minimum(ratio_RxT * advantages_Rx1, clipped_RxT * advantages_Rx1)
    kl_RxT = kl_per_token(logps_RxT, ref_logps_RxT, objective.kl_estimator)

    loss = token_mean(objective.beta * kl_RxT - surrogate_RxT, mask_RxT).sum() / completions
    outside_RxT = (jnp.abs(ratio_RxT - 1.0) > objective.clip).astype(logps_RxT.dtype)
    metrics = {
        "kl": token_mean(kl_RxT, mask_RxT).sum() / completions,
        "clip_share": token_mean(outside_RxT, mask_RxT).sum() / completions,
        "ratio_max": (ratio_RxT * mask_RxT).max(),
    }
    return loss, jax.lax.stop_gradient(metrics)


def bce_loss(scores_B: jax.Array, labels_B: jax.Array) -> jax.Array:
    """Computes the mean binary cross-entropy of scores (logits) against 0/1 labels."""
    return _bce(scores_B, labels_B).mean()


def token_bce_loss(scores_BxL: jax.Array, labels_B: jax.Array, weights_BxL: jax.Array) -> jax.Array:
    """Computes the binary cross-entropy of one score per token against the sequence's label.

    Mean over a sequence's weighted tokens, then over sequences; one without weights counts 0. With
    weights on a critique's tokens, each prefix predicts whether the critique will be correct, as
    the token-level verifiers of arXiv 2110.14168 (section 4.2) do.
    """
    return token_mean(_bce(scores_BxL, labels_B[:, None]), weights_BxL).mean()


def _bce(scores: jax.Array, labels: jax.Array) -> jax.Array:
    # softplus(-s) = -log sigmoid(s) and softplus(s) = -log(1 - sigmoid(s)) do not overflow.
    return labels * jax.nn.softplus(-scores) + (1.0 - labels) * jax.nn.softplus(scores)
