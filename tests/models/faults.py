"""Faults to inject into a toy model, and the pieces that they are made of."""

from collections.abc import Callable

import jax.numpy as jnp
from parity_cases import CASES
from parity_ours import folder, model_of

from grm_jax.checkpoints import open_checkpoint
from grm_jax.models import attend, transformer

# Name -> (function(monkeypatch, case) -> the faulty model or None, case, peer).
Faults = dict[str, tuple[Callable, str, str]]


def registry() -> tuple[Faults, Callable]:
    """Returns an empty table, and the decorator `fault(*cases, peer=...)` that fills it.

    The function returns the faulty model, or None if it only patches code.
    """
    faults: Faults = {}

    def fault(*cases: str, peer: str = "transformers"):
        def register(function):
            for case in cases:
                faults[f"{function.__name__}-{case}"] = (function, case, peer)
            return function

        return register

    return faults, fault


def changed(case: str, **changes):
    """The case's model with other config fields than those of its checkpoint."""
    return model_of(case, **changes)


def config_of(case: str):
    return open_checkpoint(folder(CASES[case])).model_config()


def with_layers(case: str, change):
    """The case's model with `change` applied to every layer's spec."""
    return changed(case, pattern=tuple(change(spec) for spec in config_of(case).pattern))


def with_parameters(case: str, change):
    """The case's model with `change(block)` applied to every block."""
    model = model_of(case)
    for block in (*model.units, *model.tail):
        change(block)
    return model


# ---------------------------------------------------------------- faults of several families


def padding_attended_to(monkeypatch, _):
    original = attend.self_attention
    monkeypatch.setattr(
        attend,
        "self_attention",
        lambda q, k, v, pos, seg, *rest: original(q, k, v, pos, jnp.ones_like(seg), *rest),
    )


def rope_on_neighbouring_pairs(monkeypatch, _):
    def rotate(x, angles):
        cos, sin = angles
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)

    monkeypatch.setattr(transformer, "rotate", rotate)


def queries_and_keys_not_normed(monkeypatch, case):
    original, width = transformer.RMSNorm.__call__, CASES[case].config["head_dim"]
    monkeypatch.setattr(
        transformer.RMSNorm,
        "__call__",
        lambda self, x: x if x.shape[-1] == width else original(self, x),
    )


def heads_tiled_instead_of_grouped(_, case):
    """Query head n uses KV head n % K instead of n // G."""

    def change(block):
        q = block.attn.q_DxNxH[...]
        *leading, n, h = q.shape
        block.attn.q_DxNxH[...] = (
            q.reshape(*leading, 2, n // 2, h).swapaxes(-2, -3).reshape(q.shape)
        )

    return with_parameters(case, change)


def gate_and_up_exchanged(_, case):
    """The activation of the up projection instead of the gate's."""

    def change(block):
        gate, up = block.mlp.gate_DxF[...], block.mlp.up_DxF[...]
        block.mlp.gate_DxF[...], block.mlp.up_DxF[...] = up, gate

    return with_parameters(case, change)
