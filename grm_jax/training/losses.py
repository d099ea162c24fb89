"""The losses of the three trainings, as pure functions of token log-probabilities.

Axes: B sequences, L positions, P prompts, G samples per prompt, R = P * G rows, T completion tokens.
"""

import jax
import jax.numpy as jnp

KL_ESTIMATORS = ("k3", "k2")


def sft_loss(logps_BxL, weights_BxL, denominator=None):
    """Mean negative log-likelihood over the weighted tokens of the batch.

    Args:
      logps_BxL: log-probability of each target token, natural log.
      weights_BxL: 1 on the tokens to learn (completions), 0 elsewhere (prompts, padding).
      denominator: token count to divide by; the batch's own when None. Gradient accumulation passes the count of the
        whole batch, so that the sum over micro-batches is exactly the loss of the batch.

    Returns:
      Scalar loss in nats per token.
    """
    if denominator is None:
        denominator = jnp.maximum(weights_BxL.sum(), 1.0)
    return -(logps_BxL * weights_BxL).sum() / denominator


def group_advantages(rewards_PxG, normalise_std=True):
    """Advantages of the samples of one prompt against each other (GRPO, arXiv 2402.03300 section 4.1.2).

    (r - mean) / std over the group, with the population std: 1 right of 4 gives +1.73 and -0.58. No epsilon is added to
    the std, so rewards {+1, -1} and {1, 0} give the same advantages; a group of equal rewards has none to compare and
    gets zeros.

    Args:
      rewards_PxG: one reward per sample.
      normalise_std: False leaves out the division (the "Dr. GRPO" variant).
    """
    centred_PxG = rewards_PxG - rewards_PxG.mean(axis=1, keepdims=True)
    degenerate_Px1 = rewards_PxG.max(axis=1, keepdims=True) == rewards_PxG.min(
        axis=1, keepdims=True
    )
    if normalise_std:
        std_Px1 = jnp.sqrt((centred_PxG**2).mean(axis=1, keepdims=True))
        centred_PxG = centred_PxG / jnp.where(degenerate_Px1, 1.0, std_Px1)
    # Without the mask a mean that rounds leaves noise of the size of the std, i.e. advantages of order one.
    return jnp.where(degenerate_Px1, 0.0, centred_PxG)


def kl_per_token(logps, ref_logps, estimator="k3"):
    """Per-token estimate of the divergence between policy and reference, from samples of the policy.

    k3 = ref/policy - log(ref/policy) - 1 (GRPO, arXiv 2402.03300 equation 4): never negative, unbiased in value; as a
    loss its expected gradient is that of KL(ref || policy). k2 = (log ref/policy)^2 / 2 has the expected gradient of
    KL(policy || ref).

    Raises:
      ValueError: for k1 (see the message), or a name that is not an estimator.
    """
    log_ratio = ref_logps - logps
    if estimator == "k3":
        return jnp.exp(log_ratio) - log_ratio - 1.0
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k1":
        raise ValueError(
            "kl_estimator 'k1' has an expected gradient of exactly zero when it is a loss on the policy's own samples "
            "(the mean of the score function), so beta would do nothing: use 'k3' (the paper's family) or 'k2'"
        )
    raise ValueError(
        f"kl_estimator {estimator!r} is not known: use one of {', '.join(KL_ESTIMATORS)}"
    )


def row_mean(values_RxT, mask_RxT):
    """Mean over the tokens of each row; a row without tokens gives 0."""
    return (values_RxT * mask_RxT).sum(axis=-1) / jnp.maximum(mask_RxT.sum(axis=-1), 1.0)


def grpo_loss(
    logps_RxT,
    ref_logps_RxT,
    mask_RxT,
    advantages_R,
    *,
    beta,
    old_logps_RxT=None,
    clip=0.2,
    kl_estimator="k3",
    rows=None,
):
    """Clipped policy objective with a KL penalty in the loss (SPCT equation 15; GRPO, arXiv 2402.03300 equation 3).

    Per token min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A) - beta * KL, averaged over the tokens of each row, then
    over the rows; the loss is its negative.

    Args:
      logps_RxT: log-probabilities under the policy that is trained; the only argument with a gradient.
      ref_logps_RxT: the same tokens under the reference (the RFT model).
      mask_RxT: 1 on completion tokens, the stop token included.
      advantages_R: one advantage per row, the same for all its tokens.
      beta: coefficient of the KL penalty.
      old_logps_RxT: log-probabilities under the policy that sampled. None says that this update is the first on its
        rollouts: the ratio is then exactly 1, and its gradient that of the log-probability.
      clip: half-width of the ratio's interval.
      rows: number of rows to divide by; R when None (gradient accumulation passes the count of the whole batch).

    Returns:
      (loss, metrics): metrics are scalars, `kl` in nats per token, `clip_share` the share of tokens whose ratio lies
      outside the interval, `ratio_max` the largest ratio. Both means use the loss's own weighting and `rows`, so the
      metrics of micro-batches add up.
    """
    rows = logps_RxT.shape[0] if rows is None else rows
    old_logps_RxT = jax.lax.stop_gradient(logps_RxT if old_logps_RxT is None else old_logps_RxT)
    advantages_Rx1 = jax.lax.stop_gradient(advantages_R)[:, None]
    mask_RxT = mask_RxT.astype(logps_RxT.dtype)
    # Padding may hold anything, minus infinity included: 0 * inf would be NaN, in the gradient as well.
    live_RxT = mask_RxT > 0
    logps_RxT, old_logps_RxT, ref_logps_RxT = (
        jnp.where(live_RxT, x, 0.0)
        for x in (logps_RxT, old_logps_RxT, jax.lax.stop_gradient(ref_logps_RxT))
    )

    ratio_RxT = jnp.exp(logps_RxT - old_logps_RxT)
    clipped_RxT = jnp.clip(ratio_RxT, 1.0 - clip, 1.0 + clip)
    surrogate_RxT = jnp.minimum(ratio_RxT * advantages_Rx1, clipped_RxT * advantages_Rx1)
    kl_RxT = kl_per_token(logps_RxT, ref_logps_RxT, kl_estimator)

    loss = row_mean(beta * kl_RxT - surrogate_RxT, mask_RxT).sum() / rows
    outside_RxT = (jnp.abs(ratio_RxT - 1.0) > clip).astype(logps_RxT.dtype)
    metrics = {
        "kl": row_mean(kl_RxT, mask_RxT).sum() / rows,
        "clip_share": row_mean(outside_RxT, mask_RxT).sum() / rows,
        "ratio_max": (ratio_RxT * mask_RxT).max(),
    }
    return loss, jax.lax.stop_gradient(metrics)


def bce_loss(scores_B, labels_B):
    """Mean binary cross-entropy of scalar scores (logits) against 0/1 labels: the meta reward model's loss."""
    return _bce(scores_B, labels_B).mean()


def token_bce_loss(scores_BxL, labels_B, weights_BxL):
    """Binary cross-entropy of a score per token against the label of its row: weighted mean over a row's tokens, then the mean over rows.

    Weights of 1 on a critique's tokens ask of each prefix whether the critique will be right, as the token-level verifiers of
    arXiv 2110.14168 (section 4.2) are trained. A row without weights counts 0.
    """
    return row_mean(_bce(scores_BxL, labels_B[:, None]), weights_BxL).mean()


def _bce(scores, labels):
    # softplus(-s) and softplus(s) are -log sigmoid(s) and -log(1 - sigmoid(s)), without overflow for large |s|.
    return labels * jax.nn.softplus(-scores) + (1.0 - labels) * jax.nn.softplus(scores)
