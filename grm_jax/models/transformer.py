"""Decoder-only transformers as one Flax NNX module; families differ by `TransformerConfig` only.

Gemma 2 and 3, Llama 3, Qwen 2.5 and 3.

Axes: B batch, L length, D model width, F ffn width, N query heads, K KV heads, H head width,
V vocabulary rows, U repeats of the layer pattern (units).

The layers of each place in the pattern are stacked over U and scanned, so that compile time does
not grow with depth; layers after the last whole unit are in `tail`. Attention is pluggable: a layer
passes (q, k, v) to an `attend` function, which is full self-attention here and cached attention in
the sampler.

Sources: arXiv 2408.00118 (Gemma 2), 2503.19786 (Gemma 3), 2407.21783 (Llama 3), 2412.15115 (Qwen
2.5), 2505.09388 (Qwen 3).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from grm_jax.models import cpu, quantize, weights
from grm_jax.models.attend import Attend, LayerRef, full_attention
from grm_jax.models.attention import default_positions, soft_cap
from grm_jax.models.config import REMAT, TransformerConfig
from grm_jax.models.rope import rope_angles, rotate
from grm_jax.sharding import constrain


def remat_policy(name: str) -> Callable[..., Any]:
    """Returns the jax.checkpoint policy of a `TransformerConfig.remat` other than "none"."""
    if name == "dots":
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint_policies.save_only_these_names(*REMAT[name])


class RMSNorm(nnx.Module):
    """Computes x / rms(x) * (norm_offset + scale) in float32, then casts to x's dtype."""

    def __init__(
        self, cfg: TransformerConfig, size: int, rngs: nnx.Rngs, stack: tuple[int, ...] = ()
    ) -> None:
        self.eps, self.offset = cfg.norm_eps, float(cfg.norm_offset)
        self.scale = weights.param(rngs, cfg, stack, (size,), ("norm",), 0)
        if not cfg.norm_offset:  # an untrained norm multiplies by 1
            self.scale[...] = jnp.ones_like(self.scale[...])

    def __call__(self, x: jax.Array) -> Any:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * (self.offset + self.scale[...].astype(jnp.float32))).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention; `attend` computes softmax attention over the keys of its choice."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()) -> None:
        D, N, K, H = cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        self.cfg = cfg
        weight = functools.partial(weights.weight, rngs, cfg, stack)
        self.q_DxNxH = weight(
            "q_proj", (D, N, H), ("embed", "heads", "head_dim"), D, contracted=(-3,)
        )
        self.k_DxKxH = weight(
            "k_proj", (D, K, H), ("embed", "kv_heads", "head_dim"), D, contracted=(-3,)
        )
        self.v_DxKxH = weight(
            "v_proj", (D, K, H), ("embed", "kv_heads", "head_dim"), D, contracted=(-3,)
        )
        self.o_NxHxD = weight(
            "o_proj", (N, H, D), ("heads", "head_dim", "embed"), N * H, contracted=(-3, -2)
        )
        if cfg.qkv_bias:
            self.q_bias_NxH = weights.param(rngs, cfg, stack, (N, H), ("heads", "head_dim"), 0)
            self.k_bias_KxH = weights.param(rngs, cfg, stack, (K, H), ("kv_heads", "head_dim"), 0)
            self.v_bias_KxH = weights.param(rngs, cfg, stack, (K, H), ("kv_heads", "head_dim"), 0)
        if cfg.qk_norm:
            self.q_norm = RMSNorm(cfg, H, rngs, stack)
            self.k_norm = RMSNorm(cfg, H, rngs, stack)

    def __call__(
        self, x_BxLxD: jax.Array, angles: Any, layer: LayerRef, attend: Attend, state: Any
    ) -> Any:
        cfg, dtype = self.cfg, x_BxLxD.dtype
        q = weights.project(weights.TO_HEADS, x_BxLxD, self.q_DxNxH[...])
        k = weights.project(weights.TO_HEADS, x_BxLxD, self.k_DxKxH[...])
        v = weights.project(weights.TO_HEADS, x_BxLxD, self.v_DxKxH[...])
        if cfg.qkv_bias:
            q = q + self.q_bias_NxH[...].astype(dtype)
            k = k + self.k_bias_KxH[...].astype(dtype)
            v = v + self.v_bias_KxH[...].astype(dtype)
        if cfg.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = constrain(
            rotate(q, angles) * jnp.asarray(cfg.query_pre_attn_scalar**-0.5, dtype),
            "batch",
            "length",
            "heads",
            "head_dim",
        )
        k = constrain(rotate(k, angles), "batch", "length", "kv_heads", "head_dim")
        v = constrain(v, "batch", "length", "kv_heads", "head_dim")
        q, k, v = checkpoint_name((q, k, v), "qkv")
        o, state, y = attend(layer, q, k, v, state)
        o = checkpoint_name(o.astype(dtype), "attended")
        out = weights.project(weights.FROM_HEADS, o, self.o_NxHxD[...])
        return checkpoint_name(out, "attn_out"), state, y


class MLP(nnx.Module):
    """A gated MLP: GeGLU with the tanh approximation of GELU, or SwiGLU."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()) -> None:
        D, F = cfg.d_model, cfg.d_ff
        self.activation = cfg.activation
        weight = functools.partial(weights.weight, rngs, cfg, stack)
        self.gate_DxF = weight("gate_proj", (D, F), ("embed", "mlp"), D, contracted=(-2,))
        self.up_DxF = weight("up_proj", (D, F), ("embed", "mlp"), D, contracted=(-2,))
        self.down_FxD = weight("down_proj", (F, D), ("mlp", "embed"), F, contracted=(-2,))

    def __call__(self, x_BxLxD: jax.Array) -> Any:
        activation = jax.nn.silu if self.activation == "silu" else jax.nn.gelu
        gated = lambda gate, up: activation(gate) * up
        if cpu.float32_products(x_BxLxD):
            gated = jax.checkpoint(gated)  # to compute again costs less than to store and load
        gate = weights.dense(x_BxLxD, self.gate_DxF[...])
        up = weights.dense(x_BxLxD, self.up_DxF[...])
        gate, up = checkpoint_name((gate, up), "gate_up")
        h_BxLxF = constrain(gated(gate, up), "batch", "length", "mlp")
        return checkpoint_name(weights.dense(h_BxLxF, self.down_FxD[...]), "mlp_out")


class Block(nnx.Module):
    """Attention and MLP, each with a norm before and, with `post_norms`, a norm after."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()) -> None:
        self.pre_attn_norm = RMSNorm(cfg, cfg.d_model, rngs, stack)
        self.attn = Attention(cfg, rngs, stack)
        self.pre_ffw_norm = RMSNorm(cfg, cfg.d_model, rngs, stack)
        self.mlp = MLP(cfg, rngs, stack)
        self.post_norms = cfg.post_norms
        if cfg.post_norms:
            self.post_attn_norm = RMSNorm(cfg, cfg.d_model, rngs, stack)
            self.post_ffw_norm = RMSNorm(cfg, cfg.d_model, rngs, stack)

    def __call__(
        self, x_BxLxD: jax.Array, angles: Any, layer: LayerRef, attend: Attend, state: Any
    ) -> Any:
        h, state, y = self.attn(self.pre_attn_norm(x_BxLxD), angles, layer, attend, state)
        h = self.post_attn_norm(h) if self.post_norms else h
        x_BxLxD = constrain(x_BxLxD + h, "batch", "length", "act_embed")
        h = self.mlp(self.pre_ffw_norm(x_BxLxD))
        h = self.post_ffw_norm(h) if self.post_norms else h
        return constrain(x_BxLxD + h, "batch", "length", "act_embed"), state, y


class Embedder(nnx.Module):
    """The embedding table, which encodes tokens, and the output head: the same table if tied."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        shape, axes = (cfg.vocab_size + cfg.vocab_pad, cfg.d_model), ("vocab", "embed")
        args = (rngs, cfg, (), "embed_tokens", shape, axes, cfg.d_model)
        table = functools.partial(weights.weight, *args)
        self.table_VxD = table(contracted=(-1,))
        if not cfg.tied:
            self.head_VxD = table(contracted=(-1,))

    @property
    def output_table_VxD(self) -> Any:
        """The table that decodes logits."""
        return self.table_VxD if self.cfg.tied else self.head_VxD

    def encode(self, tokens_BxL: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.cfg.dtype)
        # Gathered over `fsdp` before the lookup; otherwise every device gathers rows of the whole
        # batch.
        table_VxD = gathered_table(self.table_VxD[...], dtype)
        if isinstance(table_VxD, quantize.Int8Array):
            x_BxLxD = quantize.lookup(table_VxD, tokens_BxL, dtype)
        else:
            x_BxLxD = table_VxD[tokens_BxL]
        if self.cfg.scale_embedding:
            # Released models were trained with a scale rounded to the activation dtype: sqrt(3584)
            # is 59.75 in bfloat16.
            x_BxLxD = x_BxLxD * jnp.sqrt(jnp.float32(self.cfg.d_model)).astype(dtype)
        return constrain(x_BxLxD, "batch", "length", "act_embed")

    def decode(self, x: jax.Array) -> jax.Array:
        """Returns capped float32 logits (..., V) of x (..., D), as `table_logits`."""
        return table_logits(self.cfg, self.output_table_VxD[...], x)


def gathered_table(table_VxD: Any, dtype: Any) -> Any:
    """Returns a table in `dtype`, or an int8 table, split over the vocabulary only."""
    if isinstance(table_VxD, quantize.Int8Array):
        values = constrain(table_VxD.values, "vocab", "act_embed")
        return dataclasses.replace(table_VxD, values=values)
    return constrain(table_VxD.astype(dtype), "vocab", "act_embed")


def table_logits(cfg: TransformerConfig, table_VxD: Any, x: jax.Array) -> jax.Array:
    """Returns capped float32 logits (..., V) of final-normed activations (..., D).

    Padding rows of the table get the lowest float.
    """
    product = functools.partial(jnp.einsum, "...d,vd->...v")
    with cpu.products(cfg.cpu_products):
        float32_products = cpu.float32_products(x)
    if isinstance(table_VxD, quantize.Int8Array):
        logits = quantize.product(product, x, table_VxD)
    elif float32_products:
        logits = cpu.logits(x, table_VxD.astype(x.dtype))
    elif cpu.on_cpu():
        logits = cpu.matmul(product, x, table_VxD.astype(x.dtype))
    else:
        logits = product(x, table_VxD.astype(x.dtype), preferred_element_type=jnp.float32)
    logits = soft_cap(logits, cfg.final_cap)
    if cfg.vocab_pad:
        logits = jnp.where(
            jnp.arange(logits.shape[-1]) < cfg.vocab_size, logits, jnp.finfo(jnp.float32).min
        )
    return logits


class Transformer(nnx.Module):
    """The whole model. Policy, reference and meta RM are states of one graph (`nnx.split`)."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs) -> None:
        self.cfg = cfg
        self.embedder = Embedder(cfg, rngs)
        self.units = nnx.List([Block(cfg, rngs, (cfg.num_units,)) for _ in cfg.pattern])
        self.tail = nnx.List([Block(cfg, rngs) for _ in cfg.tail])
        self.final_norm = RMSNorm(cfg, cfg.d_model, rngs)
        if cfg.scalar_head:
            # Trained beside adapters, whose base may be stored in bfloat16.
            head = cfg.replace(param_dtype="float32") if cfg.lora else cfg
            self.score_D = weights.param(rngs, head, (), (cfg.d_model,), ("norm",), cfg.d_model)

    def __call__(
        self,
        tokens_BxL: jax.Array,
        positions_BxL: jax.Array | None = None,
        segment_ids_BxL: jax.Array | None = None,
    ) -> Any:
        """Returns float32 logits_BxLxV.

        Args:
          positions_BxL: default counts each sequence from 0.
          segment_ids_BxL: 0 is padding; sequences of other ids do not attend to each other. By
            default a row is one sequence without padding.
        """
        logits = self.embedder.decode(self.hidden(tokens_BxL, positions_BxL, segment_ids_BxL))
        return constrain(logits, "batch", "length", "vocab")

    def hidden(
        self,
        tokens_BxL: jax.Array,
        positions_BxL: jax.Array | None = None,
        segment_ids_BxL: jax.Array | None = None,
    ) -> jax.Array:
        """Returns final-normed activations x_BxLxD; arguments as for a call."""
        if segment_ids_BxL is None:
            segment_ids_BxL = jnp.ones_like(tokens_BxL)
        if positions_BxL is None:
            positions_BxL = default_positions(segment_ids_BxL)
        attend = full_attention(self.cfg, positions_BxL, segment_ids_BxL)
        x, _, _ = self.trunk(self.embedder.encode(tokens_BxL), positions_BxL, attend)
        return self.final_norm(x)

    def rewards(self, tokens_BxL: jax.Array, segment_ids_BxL: jax.Array | None = None) -> jax.Array:
        """Returns float32 rewards (B,): the scalar head at each row's last real token.

        Raises:
          ValueError: the model has no scalar head.
        """
        segments_BxL = jnp.ones_like(tokens_BxL) if segment_ids_BxL is None else segment_ids_BxL
        return self.last_rewards(self.hidden(tokens_BxL, None, segment_ids_BxL), segments_BxL)

    def last_rewards(self, x_BxLxD: jax.Array, segment_ids_BxL: jax.Array) -> jax.Array:
        """Returns float32 rewards (B,) from activations of `hidden`, at each row's last token."""
        last_B = last_real(segment_ids_BxL)
        return self.rewards_of(jnp.take_along_axis(x_BxLxD, last_B[:, None, None], axis=1)[:, 0])

    def rewards_of(self, x: jax.Array) -> jax.Array:
        """Applies the scalar head to activations (..., D) of `hidden`; returns float32 (...).

        Raises:
          ValueError: the model has no scalar head.
        """
        if not self.cfg.scalar_head:
            raise ValueError(
                f"{self.cfg.name} has no scalar head: build it with scalar_head=True, "
                "or load a sequence classifier"
            )
        return jnp.einsum(
            "...d,d->...", x, self.score_D[...].astype(x.dtype), preferred_element_type=jnp.float32
        )

    def trunk(
        self, x_BxLxD: jax.Array, positions_BxL: jax.Array, attend: Attend, state: Any = None
    ) -> Any:
        """Runs all layers with the given attention.

        Returns:
          (x_BxLxD before the final norm, state, (unit ys by place, stacked over U; tail ys)).
        """
        with cpu.products(self.cfg.cpu_products):
            return self._trunk(x_BxLxD, positions_BxL, attend, state)

    def _trunk(
        self, x_BxLxD: jax.Array, positions_BxL: jax.Array, attend: Attend, state: Any
    ) -> Any:
        cfg = self.cfg
        angles = {s.rope: rope_angles(positions_BxL, s, cfg.head_dim) for s in cfg.pattern}

        def layer(block: Any, x: jax.Array, ref: LayerRef, state: Any) -> Any:
            return block(x, angles[ref.spec.rope], ref, attend, state)

        graphdef, stacked = nnx.split(self.units)

        def unit(carry: Any, xs: Any) -> Any:
            (x, state), (params, index) = carry, xs
            ys = []
            for place, block in enumerate(nnx.merge(graphdef, params)):  # type: ignore[arg-type]
                x, state, y = layer(block, x, LayerRef(cfg.pattern[place], place, index), state)
                ys.append(y)
            return (x, state), ys

        if cfg.remat != "none":
            unit = jax.checkpoint(unit, policy=remat_policy(cfg.remat), prevent_cse=False)
        indices = jnp.arange(cfg.num_units)
        (x, state), unit_ys = jax.lax.scan(
            unit, (x_BxLxD, state), (stacked, indices), unroll=cfg.unroll
        )
        tail_ys = []
        for place, block in enumerate(self.tail):
            x, state, y = layer(block, x, LayerRef(cfg.tail[place], place, None), state)
            tail_ys.append(y)
        return x, state, (unit_ys, tail_ys)


def last_real(segment_ids_BxL: jax.Array) -> jax.Array:
    """Returns the position of each row's last token with a segment id above 0, int32 (B,)."""
    return jnp.max(jnp.where(segment_ids_BxL > 0, jnp.arange(segment_ids_BxL.shape[1]), 0), axis=1)
