"""Injects every known fault of a Gemma implementation; the parity check must fail for each of them.

test_faults_plain.py does the same for Llama and Qwen.

The faults come from other codebases and their issue threads: constants, masks, caps, norms,
layouts, inputs.
"""

import functools
import json

import faults
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import changed, registry, with_layers, with_parameters
from flax import nnx
from parity_cases import CASES, batch, weights
from parity_ours import LOGITS, distance, folder, golden, logits_of, model_of, parity
from safetensors.numpy import save_file

from grm_jax.checkpoints import load, open_checkpoint
from grm_jax.models import attend, attention, token_logps, transformer

FAULTS, fault = registry()
fault("gemma2_left")(faults.padding_attended_to)
fault("gemma3")(faults.queries_and_keys_not_normed)
fault("gemma2", "gemma3")(faults.rope_on_neighbouring_pairs)
fault("gemma2")(faults.heads_tiled_instead_of_grouped)
fault("gemma2")(faults.gate_and_up_exchanged)


def replaced(spec, **changes):
    """The layer spec with some fields changed."""
    fields = {name: getattr(spec, name) for name in ("window", "rope_theta", "rope_scale")}
    return type(spec)(**fields | changes)


# ---------------------------------------------------------------- constants


@fault("gemma2", "gemma3")
def query_scale_from_the_head_width(_, case):
    return changed(case, query_pre_attn_scalar=CASES[case].config["head_dim"])


@fault("gemma2", "gemma3")
def layer_kinds_swapped(_, case):
    pattern = open_checkpoint(folder(CASES[case])).model_config().pattern
    return changed(case, pattern=pattern[-1:] + pattern[:-1])


@fault("gemma2")
def every_layer_global(_, case):
    return with_layers(case, lambda s: replaced(s, window=None))


@fault("gemma2", "gemma2_left", "gemma3")
def window_one_too_wide(_, case):
    return with_layers(case, lambda s: replaced(s, window=s.window and s.window + 1))


@fault("gemma2", "gemma3_right")
def window_one_too_narrow(_, case):
    return with_layers(case, lambda s: replaced(s, window=s.window and s.window - 1))


@fault("gemma3")
def one_rope_base_for_local_layers_too(_, case):
    return with_layers(case, lambda s: replaced(s, rope_theta=1_000_000.0))


@fault("gemma3")
def old_rope_base_for_global_layers(_, case):
    return with_layers(case, lambda s: replaced(s, rope_theta=10_000.0))


@fault("gemma3")
def global_positions_not_scaled(_, case):
    return with_layers(case, lambda s: replaced(s, rope_scale=1.0))


@fault("gemma3")
def local_positions_scaled_too(_, case):
    return with_layers(case, lambda s: replaced(s, rope_scale=8.0))


# ---------------------------------------------------------------- caps and masks


@fault("gemma2_caps", "gemma2_tight")
def attention_cap_dropped(_, case):
    return changed(case, attn_cap=None)


@fault("gemma2_caps")
def final_cap_dropped(_, case):
    return changed(case, final_cap=None)


@fault("gemma2_tight")
def attention_cap_after_the_mask(monkeypatch, _):
    def attend_part(q, k, v, mask, cap):
        B, L, N, H = q.shape
        K = k.shape[2]
        logits = jnp.einsum("blkgh,bskh->bkgls", q.reshape(B, L, K, N // K, H), k)
        logits = jnp.where(mask[:, None, None], logits, attention.MASKED)
        p = jax.nn.softmax(cap * jnp.tanh(logits / cap), axis=-1)
        return jnp.einsum("bkgls,bskh->blkgh", p, v).reshape(B, L, N, H), jnp.zeros((B, L, N))

    monkeypatch.setattr(attention, "attend_part", attend_part)


@fault("gemma2_gap", peer="deepmind")
def window_by_slot_and_not_by_position(monkeypatch, _):
    original = attend.self_attention

    def self_attention(q, k, v, positions, segment_ids, window, *rest):
        slots = jnp.broadcast_to(jnp.arange(positions.shape[1]), positions.shape)
        return original(q, k, v, slots if window else positions, segment_ids, window, *rest)

    monkeypatch.setattr(attend, "self_attention", self_attention)


# ---------------------------------------------------------------- arithmetic of a layer


@fault("gemma2", "gemma3")
def exact_gelu(monkeypatch, _):
    original = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate=True: original(x, approximate=False))


@fault("gemma2", "gemma3")
def norm_without_the_one(monkeypatch, _):
    def call(self, x):
        return (
            x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.scale[...]
        )

    monkeypatch.setattr(transformer.RMSNorm, "__call__", call)


@fault("gemma2")
def embeddings_not_normalised(monkeypatch, _):
    monkeypatch.setattr(
        transformer.Embedder, "encode", lambda self, tokens: self.table_VxD[...][tokens]
    )


# ---------------------------------------------------------------- layout of the weights


def _untransposed(variable):
    """The same numbers in the order of the transposed layout: (F, D) taken for (D, F)."""
    value = variable[...]
    return jnp.swapaxes(value, -1, -2).reshape(value.shape)


@fault("gemma2", "gemma3")
def gate_not_transposed(_, case):
    return with_parameters(
        case,
        lambda block: setattr(block.mlp, "gate_DxF", nnx.Param(_untransposed(block.mlp.gate_DxF))),
    )


@fault("gemma2")
def norms_before_and_after_exchanged(_, case):
    def change(block):
        block.post_attn_norm, block.pre_ffw_norm = block.pre_ffw_norm, block.post_attn_norm

    return with_parameters(case, change)


# ---------------------------------------------------------------- the checks


@pytest.mark.parametrize(
    ("case", "peer"), sorted({(case, peer) for _, case, peer in FAULTS.values()})
)
def test_parity_without_a_fault(case, peer):
    assert parity(case, peer=peer) <= LOGITS


@pytest.mark.parametrize("name", FAULTS)
def test_parity_fails_with_the_fault(monkeypatch, name):
    inject, case, peer = FAULTS[name]
    assert parity(case, inject(monkeypatch, case), peer) > LOGITS


def test_at_least_20_faults_are_registered():
    assert len({function for function, _, _ in FAULTS.values()}) >= 20


@pytest.mark.parametrize("faulty", [False, True])
def test_doubled_bos(faulty):
    """The logits of the prompt's tokens must equal the peer's; a second BOS changes them."""
    tokens, mask = batch(CASES["gemma2"])
    theirs = golden("transformers")["gemma2/logits"]
    if faulty:
        tokens, mask = (np.concatenate([a[:, :1], a], axis=1) for a in (tokens, mask))
    ours = logits_of(model_of("gemma2"), tokens, mask)[:, -theirs.shape[1] :]
    assert (distance(ours, theirs) > LOGITS) == faulty


@pytest.mark.parametrize("faulty", [False, True])
def test_unrounded_embedding_scale(monkeypatch, faulty):
    """bfloat16 embeddings equal the peer's bit for bit, unless their scale stays in float32."""

    def encode(self, tokens):
        scale = jnp.sqrt(jnp.float32(self.cfg.d_model))
        return (self.table_VxD[...][tokens].astype(jnp.float32) * scale).astype(self.cfg.dtype)

    if faulty:
        monkeypatch.setattr(transformer.Embedder, "encode", encode)
    ours = model_of("gemma2", "bfloat16").embedder.encode(jnp.asarray(batch(CASES["gemma2"])[0]))
    theirs = golden("transformers")["gemma2/embedded_bf16"]
    assert np.array_equal(np.asarray(ours, np.float32), theirs) == (not faulty)


@functools.cache
def padded_folder(tmp):
    """The toy with 8 large embedding rows beyond its vocabulary (DeepMind's tables have 128)."""
    case, path = CASES["gemma2"], tmp / "padded"
    path.mkdir()
    values = weights(case)
    table = values["model.embed_tokens.weight"]
    save_file(
        values | {"model.embed_tokens.weight": np.concatenate([table, 3 * table[:8]])},
        path / "model.safetensors",
    )
    (path / "config.json").write_text(json.dumps(case.config))
    return path


@pytest.mark.parametrize("faulty", [False, True])
def test_leaking_padding_rows(tmp_path, faulty):
    """Log-probabilities and entropies cover the vocabulary, not all rows of the table."""
    path = padded_folder(tmp_path)
    cfg = open_checkpoint(path).model_config()
    cfg = cfg.replace(vocab_size=cfg.vocab_size + 8) if faulty else cfg.replace(vocab_pad=8)
    tokens = batch(CASES["gemma2"])[0]
    ours = token_logps(load(path, dtype="float32", cfg=cfg), jnp.asarray(tokens), entropy=True)
    theirs = np.asarray(
        jax.nn.log_softmax(golden("transformers")["gemma2/logits"][:, :-1]), np.float64
    )
    logps = np.take_along_axis(theirs, tokens[:, 1:, None], -1)[..., 0]
    entropy = -(np.exp(theirs) * theirs).sum(-1)
    largest = max(
        np.abs(ours.logps[:, 1:] - logps).max(), np.abs(ours.entropy[:, 1:] - entropy).max()
    )
    assert largest > 0.01 if faulty else largest < 1e-4
