"""Chooses a model's mesh for the devices at hand, and estimates the memory of its training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from grm_jax.models.build import weight_bytes
from grm_jax.models.config import REMAT, TransformerConfig
from grm_jax.models.quantize import array_bytes
from grm_jax.sampling.plan import device_memory
from grm_jax.sharding import check_fits, resolve_mesh

_SAMPLER_SHARE = 0.4  # largest share of a device's memory for the sampler's weights


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices of a run.

    Attributes:
      devices: number of devices on all slices.
      memory: bytes of each device.
      platform: "tpu", "gpu" or "cpu".
      slices: number of TPU slices; 1 elsewhere.
    """

    devices: int
    memory: int
    platform: str
    slices: int = 1

    @classmethod
    def here(cls) -> "Machine":
        """Returns the devices of this process group."""
        devices = jax.devices()
        slices = len({getattr(device, "slice_index", 0) for device in devices})
        return cls(len(devices), device_memory()[0], devices[0].platform, slices)


def mesh_for(
    cfg: TransformerConfig, machine: Machine, dtype: str, mesh: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Chooses the axes of a mesh that are 0; the others are kept.

    `fsdp` splits the weights as far as the model's width allows, and `data` takes the remaining
    devices. `tensor` is above 1 only if the sampler's weights, which `fsdp` does not split, would
    take more than `_SAMPLER_SHARE` of a device.

    Args:
      cfg: of the model.
      machine: the devices.
      dtype: of the sampler's weights.
      mesh: sizes of "data", "fsdp" and "tensor"; 0 is open, -1 the remaining devices.

    Returns:
      (axes for the config, the same with -1 replaced by its size).

    Raises:
      ValueError: the mesh does not fit the devices or the model.
    """
    per_slice = machine.devices // machine.slices
    weights = cfg.num_params * jnp.dtype(dtype).itemsize
    tensor = mesh["tensor"] or next(
        (
            n
            for n in divisors(per_slice)
            if weights / n <= _SAMPLER_SHARE * machine.memory and cfg.num_kv_heads % n == 0
        ),
        1,
    )
    rest = max(1, per_slice // tensor)
    fsdp = mesh["fsdp"] or max(n for n in divisors(rest) if cfg.d_model % n == 0)
    data = mesh["data"] or machine.slices * (rest // fsdp if fsdp > 0 else 1)
    chosen = {"data": data, "fsdp": fsdp, "tensor": tensor}
    sizes = resolve_mesh(chosen, machine.devices, machine.slices)
    check_fits(cfg, sizes)
    return chosen, sizes


def divisors(number: int) -> list[int]:
    """Returns the divisors of a number, in increasing order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def state_bytes(cfg: TransformerConfig, dtype: str) -> int:
    """Estimates the bytes of a training state, summed over all devices.

    Counts float32 weights, gradients and two Adam moments, and in `dtype` the weights in use and
    the reference's. With LoRA, the base and its copy for the sampler.
    """
    if cfg.lora is not None:
        return 2 * weight_bytes(cfg.replace(dtype=dtype))
    return cfg.num_params * (16 + 2 * jnp.dtype(dtype).itemsize)


def saved_bytes(cfg: TransformerConfig, tokens: int, remat: str, tensor: int = 1) -> float:
    """Estimates the bytes per device of activations saved for the backward pass.

    Args:
      cfg: of the model.
      tokens: processed at once on the device.
      remat: a policy of `TransformerConfig.remat`.
      tensor: size of the mesh axis `tensor`, which splits heads and the MLP's width.
    """
    heads, kv_heads = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    sizes = {
        "qkv": (heads + 2 * kv_heads) / tensor,
        "attended": heads / tensor,
        "attn_out": cfg.d_model,
        "gate_up": 2 * cfg.d_ff / tensor,
        "mlp_out": cfg.d_model if cfg.post_norms else 0,  # only a post-norm reads it
    }
    saved = REMAT["products"] if remat in ("none", "dots") else REMAT[remat]
    layer = sum(sizes[name] for name in saved)
    if remat == "none":  # also the norms, in float32, and the parts of the gate
        layer += 10 * cfg.d_model + 3 * cfg.d_ff / tensor
    width = jnp.dtype(cfg.dtype).itemsize
    return tokens * width * (cfg.num_layers * layer + cfg.num_units * cfg.d_model)


def argument_bytes(args: Any) -> int:
    """Returns the bytes per device of abstract arguments; without a sharding, one is replicated."""

    def count(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return array_bytes(shape, leaf.dtype)

    return sum(map(count, jax.tree.leaves(args)))


def sequence_bytes(cfg: TransformerConfig, tokens: int, dtype: str, remat: str) -> float:
    """Estimates the bytes of activations of one sequence in an update, gradients included."""
    width, unit = jnp.dtype(dtype).itemsize, len(cfg.pattern)
    heads = cfg.num_heads + 2 * cfg.num_kv_heads
    # Projections, residuals and feed-forward of a layer, each also as a gradient.
    layer = 2 * width * (8 * cfg.d_model + 4 * heads * cfg.head_dim + 3 * cfg.d_ff)
    layers = cfg.num_layers if remat == "none" else unit
    saved = cfg.num_units * cfg.d_model * width
    scores = 4 * 4 * cfg.num_heads * min(cfg.query_chunk, tokens) * tokens * layers
    logits = 3 * 4 * min(cfg.logits_chunk, tokens) * (cfg.vocab_size + cfg.vocab_pad)
    return tokens * (layers * layer + saved) + scores + logits
