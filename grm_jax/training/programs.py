"""Jitted programs of all stages: `Program`, and the frame of every update.

A Program has abstract arguments, so `program.lower().compile()` compiles it for a slice without
that slice.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax.judging.metadata import JudgeMetadata
from grm_jax.models import LayerSpec, TransformerConfig, get_config
from grm_jax.models.lora import TARGETS, LoraConfig
from grm_jax.sharding import named, state_shardings
from grm_jax.training import optim, state as states

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # {name: (shape, dtype)}
Metrics = dict[str, Any]
AUTO = "auto"  # config.model_overrides.remat: chosen by `memory.choose`


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the arguments it is compiled for.

    Attributes:
      name: for logs and tables.
      fn: the jitted function. Call and lower it under `jax.set_mesh(mesh)`.
      args: its arguments as jax.ShapeDtypeStruct with shardings.
    """

    name: str
    fn: jax.stages.Wrapped
    args: tuple[Any, ...]

    def lower(self) -> jax.stages.Lowered:
        return self.fn.lower(*self.args)


def model_config(config: ConfigDict, scalar_head: bool = False) -> TransformerConfig:
    """Returns the model of an experiment: `config.model` with `config.model_overrides`.

    With `config.lora` it has adapters, and a base in bfloat16, int8 or int4.

    The override `windows`, (64, None) for example, is short for `pattern`: the attention windows of
    the layers that repeat, None for global attention.
    """
    overrides = dict(config.get("model_overrides", {}))
    overrides = {name: value for name, value in overrides.items() if value != ""}  # still open
    if overrides.get("remat") == AUTO:
        overrides["remat"] = "full"  # until `memory.choose`
    if windows := overrides.pop("windows", ()):
        overrides["pattern"] = tuple(LayerSpec(window) for window in windows)
    overrides |= lora_overrides(config)
    return get_config(config.model, **{**overrides, "scalar_head": scalar_head})


def critique_tokens(config: ConfigDict) -> int:
    """Returns the longest critique: of `config.rl`, else of `rft.sampling`, else a judge's default.

    The default is at most half of the model's context.
    """
    for section in (config.get("rl"), config.get("rft", {}).get("sampling")):
        if section and section.get("max_new_tokens"):
            return int(section["max_new_tokens"])
    return min(JudgeMetadata.max_new_tokens, model_config(config).max_length // 2)


def lora_overrides(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of a model that `config.lora` sets.

    The base is stored as it is used, because it has no master weights.
    """
    if (adapters := lora_config(config)) is None:
        return {}
    base = config.lora.get("base", "bfloat16")
    quantize = None if base == "bfloat16" else base
    return {"lora": adapters, "param_dtype": "bfloat16", "quantize": quantize}


def lora_config(config: ConfigDict) -> LoraConfig | None:
    """Returns the adapters of `config.lora`, None without the section or with rank 0."""
    section = config.get("lora") or {}
    if not section.get("rank", 0):
        return None
    return LoraConfig(section["rank"], section["alpha"], tuple(section.get("targets", TARGETS)))


def build_update(
    name: str,
    loss_fn: Callable[[Any, Any, Any], tuple[jax.Array, Metrics]],
    section: ConfigDict,
    mesh: Mesh,
    params: Any,
    batch_shapes: Shapes,
    denominator: Callable[[Any], Any],
) -> Program:
    """Builds one optimizer update: (state, batch, frozen) -> (state, metrics).

    Gradients are accumulated over micro-batches, AdamW keeps the old state if they are not finite,
    and the state's buffers are donated. With LoRA only the adapters are differentiated; without,
    `frozen` is an empty tree (`states.split`).

    Args:
      name: of the program.
      loss_fn: (params, micro-batch, denominator of the whole batch) -> (loss, metrics), already
        divided by that denominator, so that micro-batches add up.
      section: a stage of the config, with its optimizer and micro-batch fields.
      mesh: of the program.
      params: all parameters as jax.ShapeDtypeStruct with shardings.
      batch_shapes: of the whole batch.
      denominator: whole batch -> its number of tokens or sequences.
    """
    tx = optim.make_optimizer(section)
    trained, frozen = states.split(params)
    state = states.abstract_state(trained, tx, mesh)
    batch = states.abstract_batch(batch_shapes, mesh)
    micro_batches = optim.micro_batch_count(section, jax.tree.leaves(batch)[0].shape[0], mesh)

    def update(state: states.State, batch: Any, frozen: Any) -> tuple[states.State, Metrics]:
        total = denominator(batch)
        loss, metrics, grads = optim.accumulated_value_and_grad(
            lambda p, micro: loss_fn(states.join(p, frozen), micro, total),
            *(state["params"], batch, micro_batches),
        )
        params, opt_state, norms = optim.guarded_update(
            tx, grads, state["opt_state"], state["params"], loss
        )
        step = state["step"] + norms["finite"].astype(jnp.int32)
        state = {**state, "params": params, "opt_state": opt_state, "step": step}
        return state, {"loss": loss, **metrics, **norms}

    fn = jax.jit(
        update,
        in_shardings=(
            state_shardings(state, mesh),
            states.batch_shardings(batch, mesh),
            state_shardings(frozen, mesh),
        ),
        out_shardings=(state_shardings(state, mesh), named(mesh)),
        donate_argnums=(0,),
    )
    return Program(name, fn, (state, batch, frozen))
