"""Log-probabilities of given tokens, chunked and rematerialised, for training and evaluation.

The (batch, length, 256k) logits are never materialised: `logits_chunk` positions are computed at a
time, and the backward pass recomputes each chunk. If only some positions count (completions, not
prompts or padding), one device sorts them first and skips the other chunks. Several devices skip
nothing: inside a condition, the table's gradient would be summed over the devices once per chunk.

Axes: B batch, L length, D model width, V vocabulary, M targets (any leading shape, flattened),
G completions per prompt, S prompt, T completion.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grm_jax.models.attend import grouped_attention
from grm_jax.models.transformer import Transformer, gathered_table, table_logits
from grm_jax.sharding import constrain, current_mesh


class TokenLogps(NamedTuple):
    """Natural-log probabilities and optional entropies in nats; float32, in the targets' shape."""

    logps: jax.Array
    entropy: jax.Array | None


def token_logps(
    model: Transformer,
    tokens_BxL: jax.Array,
    positions_BxL: jax.Array | None = None,
    segment_ids_BxL: jax.Array | None = None,
    temperature: Any = 1.0,
    entropy: bool = False,
    mask_BxL: jax.Array | None = None,
) -> TokenLogps:
    """Returns log p(token | the tokens before it in its segment), (B, L); 0 for first tokens.

    Args:
      temperature: divides the capped logits; a scalar, may be traced.
      entropy: also returns the entropy of each prediction.
      mask_BxL: nonzero on the tokens to compute; the others are 0, and on one device cost no
        logits.
    """
    x_BxLxD = model.hidden(tokens_BxL, positions_BxL, segment_ids_BxL)
    follows = jnp.ones_like(tokens_BxL[:, 1:], bool)
    if segment_ids_BxL is not None:
        follows = (segment_ids_BxL[:, 1:] == segment_ids_BxL[:, :-1]) & (segment_ids_BxL[:, 1:] > 0)
    mask = None if mask_BxL is None else follows & (mask_BxL[:, 1:] != 0)
    out = target_logps(model, x_BxLxD[:, :-1], tokens_BxL[:, 1:], temperature, entropy, mask)
    return jax.tree.map(lambda a: jnp.pad(jnp.where(follows, a, 0.0), ((0, 0), (1, 0))), out)


def critique_rewards(
    model: Transformer,
    x_BxLxD: jax.Array,
    tokens_BxL: jax.Array,
    segment_ids_BxL: jax.Array,
    starts_B: jax.Array,
    likelihood: float,
) -> jax.Array:
    """Returns the meta reward model's float32 logits (B,) of critiques.

    The logit is the scalar head at each row's last token, plus `likelihood` times the mean
    log-probability, in nats, that the model assigns to the tokens from `starts_B` on. The head
    alone learns from one position; trained by cross-entropy on outcomes, the log-probability is a
    reward as well (arXiv 2412.01981, which uses a reference model in addition).

    Args:
      x_BxLxD: `hidden` of the same rows, one segment each.
      likelihood: 0 uses the head alone, which costs no logits.
    """
    rewards_B = model.last_rewards(x_BxLxD, segment_ids_BxL)
    if not likelihood:
        return rewards_B
    written_BxL = (segment_ids_BxL > 0) & (jnp.arange(tokens_BxL.shape[1]) >= starts_B[:, None])
    written_BxL = written_BxL[:, 1:]  # The first token of a row follows nothing.
    logps_BxL = target_logps(model, x_BxLxD[:, :-1], tokens_BxL[:, 1:], mask=written_BxL).logps
    return rewards_B + likelihood * logps_BxL.sum(axis=1) / jnp.maximum(written_BxL.sum(axis=1), 1)


def target_logps(
    model: Transformer,
    x: jax.Array,
    targets: jax.Array,
    temperature: Any = 1.0,
    entropy: bool = False,
    mask: Any = None,
) -> TokenLogps:
    """Returns log p(target) from the final-normed activations that predict it, in chunks.

    Args:
      x: (B, ..., D).
      targets: (B, ...).
      mask: of the targets' shape; targets where it is zero or False get 0.
    """
    cfg = model.cfg
    B, D = x.shape[0], x.shape[-1]
    x_BxMxD, targets_BxM = x.reshape(B, -1, D), targets.reshape(B, -1)
    M = targets_BxM.shape[1]
    chunk = min(cfg.logits_chunk, M)
    pad = -M % chunk
    mask_BxM = jnp.ones((B, M), bool) if mask is None else (mask != 0).reshape(B, M)
    if sort := mask is not None and M > chunk and current_mesh() is None:
        order_BxM = jnp.argsort(~mask_BxM, axis=1, stable=True)
        x_BxMxD = jnp.take_along_axis(x_BxMxD, order_BxM[..., None], axis=1)
        targets_BxM, sorted_BxM = (
            jnp.take_along_axis(a, order_BxM, axis=1) for a in (targets_BxM, mask_BxM)
        )
    else:
        sorted_BxM = mask_BxM
    x_BxMxD = jnp.pad(x_BxMxD, ((0, 0), (0, pad), (0, 0)))
    targets_BxM, sorted_BxM = (jnp.pad(a, ((0, 0), (0, pad))) for a in (targets_BxM, sorted_BxM))
    # Gathered over `fsdp` once, here, and not once per chunk.
    table_VxD = gathered_table(model.embedder.output_table_VxD[...], x.dtype)

    def chunk_logps(x_BxCxD: jax.Array, targets_BxC: jax.Array) -> Any:
        logits_BxCxV = constrain(
            table_logits(cfg, table_VxD, x_BxCxD) / temperature, "batch", "length", "vocab"
        )
        lse_BxC = jax.nn.logsumexp(logits_BxCxV, axis=-1)
        # A one-hot sum keeps the vocabulary sharded, unlike a gather; XLA fuses it into one pass.
        hit = jnp.arange(logits_BxCxV.shape[-1]) == targets_BxC[..., None]
        logp = jnp.sum(jnp.where(hit, logits_BxCxV, 0.0), axis=-1) - lse_BxC
        if not entropy:
            return logp, None
        p = jnp.exp(logits_BxCxV - lse_BxC[..., None])
        return logp, lse_BxC - jnp.sum(jnp.where(p > 0, p * logits_BxCxV, 0.0), axis=-1)

    def skip_chunk(x_BxCxD: jax.Array, targets_BxC: jax.Array) -> Any:
        zeros = jnp.zeros(targets_BxC.shape, jnp.float32)
        return zeros, zeros if entropy else None

    @jax.checkpoint
    def compute(x_BxCxD: jax.Array, targets_BxC: jax.Array, mask_BxC: jax.Array) -> Any:
        if not sort:
            return chunk_logps(x_BxCxD, targets_BxC)
        return jax.lax.cond(mask_BxC.any(), chunk_logps, skip_chunk, x_BxCxD, targets_BxC)

    if M + pad == chunk:
        logps, ent = compute(x_BxMxD, targets_BxM, sorted_BxM)
    else:
        chunks = (M + pad) // chunk
        chunked = lambda a: a.reshape(B, chunks, chunk, *a.shape[2:]).swapaxes(0, 1)
        xs = (chunked(x_BxMxD), chunked(targets_BxM), chunked(sorted_BxM))
        _, (logps, ent) = jax.lax.scan(lambda _, xs: (None, compute(*xs)), None, xs)
        logps, ent = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(B, -1)[:, :M], (logps, ent))

    def placed(a_BxM: jax.Array) -> Any:
        if sort:
            a_BxM = jnp.take_along_axis(a_BxM, jnp.argsort(order_BxM, axis=1), axis=1)
        if mask is not None:
            a_BxM = jnp.where(mask_BxM, a_BxM, 0.0)
        return a_BxM.reshape(targets.shape)

    return TokenLogps(*jax.tree.map(placed, (logps, ent)))


def grouped_token_logps(
    model: Transformer,
    prompts_BxS: jax.Array,
    prompt_lengths_B: jax.Array,
    completions_BxGxT: jax.Array,
    temperature: Any = 1.0,
    entropy: bool = False,
    mask_BxGxT: jax.Array | None = None,
) -> TokenLogps:
    """Returns log-probs (B, G, T) of G completions of each prompt; each prompt runs once.

    Prompts are left-padded to S. Completions may be padded on the right with any token: mask the
    result, or set `mask_BxGxT`. Equals `token_logps` of prompt + completion, with G times fewer
    prompt tokens (`grouped_attention`).
    """
    B, S = prompts_BxS.shape
    _, G, T = completions_BxGxT.shape
    positions, attend = grouped_attention(model.cfg, prompt_lengths_B, S, G, T)
    tokens = jnp.concatenate([prompts_BxS, completions_BxGxT.reshape(B, G * T)], axis=1)
    x, _, _ = model.trunk(model.embedder.encode(tokens), positions, attend)
    x = model.final_norm(x)
    last_BxGx1xD = jnp.broadcast_to(x[:, None, S - 1 : S], (B, G, 1, x.shape[-1]))
    own_BxGxTxD = x[:, S:].reshape(B, G, T, -1)
    predicting_BxGxTxD = jnp.concatenate([last_BxGx1xD, own_BxGxTxD[:, :, :-1]], axis=2)
    return target_logps(
        model, predicting_BxGxTxD, completions_BxGxT, temperature, entropy, mask_BxGxT
    )
