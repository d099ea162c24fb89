"""AdamW with a schedule and clipping, and gradients accumulated over micro-batches.

Axes: M micro-batches, B sequences of the whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax.sharding import batch_shards, is_variable

SCHEDULES = ("constant", "cosine", "linear")


def check_schedule(field: str, name: Any) -> None:
    """Raises ValueError for an unknown schedule."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown {field} {name!r:.80}: use one of {', '.join(SCHEDULES)}")


def make_schedule(section: ConfigDict, stage: str = "") -> optax.Schedule:
    """Returns the learning rate by update: a linear warm-up, then the schedule.

    The schedule is `constant`, or falls as `cosine` or `linear` to `lr * final_lr_share` at the
    last update.

    Args:
      section: a stage of a config: lr, steps, warmup_steps, schedule, final_lr_share, and for a
        stage whose steps make several updates, updates_per_rollout.
      stage: its name, for errors.

    Raises:
      ValueError: there is no such schedule, or the warm-up is not shorter than the run.
    """
    where = f"config.{stage}." if stage else ""
    check_schedule(f"{where}schedule", section.schedule)
    if section.warmup_steps and section.warmup_steps >= section.steps:
        raise ValueError(
            f"{where}warmup_steps={section.warmup_steps} is not shorter than "
            f"{where}steps={section.steps}: lower {where}warmup_steps"
        )
    updates = section.get("updates_per_rollout", 1)
    lr, share, warmup = section.lr, section.final_lr_share, section.warmup_steps * updates
    decay_steps = max(section.steps * updates - warmup, 1)
    schedules = {
        "constant": lambda: optax.constant_schedule(lr),
        "cosine": lambda: optax.cosine_decay_schedule(lr, decay_steps, share),
        "linear": lambda: optax.linear_schedule(lr, lr * share, decay_steps),
    }
    if not warmup:
        return schedules[section.schedule]()
    # The first update has 1/warmup of the rate: at 0 it would be wasted.
    ramp = optax.linear_schedule(lr / warmup, lr, max(warmup - 1, 1))
    return optax.join_schedules([ramp, schedules[section.schedule]()], [warmup])


def make_optimizer(section: ConfigDict, stage: str = "") -> optax.GradientTransformation:
    """Returns AdamW with global-norm clipping; weight decay on matrices, not on norm scales.

    Args:
      section: a stage of a config: the fields of `make_schedule` and b1, b2, eps, weight_decay,
        clip_norm (0: no clipping).
      stage: its name, for errors.
    """
    clipping = [optax.clip_by_global_norm(section.clip_norm)] if section.clip_norm else []
    adamw = optax.adamw(
        make_schedule(section, stage),
        b1=section.b1,
        b2=section.b2,
        eps=section.eps,
        weight_decay=section.weight_decay,
        mask=_decayed,
    )
    return optax.chain(*clipping, adamw)


def _decayed(params: Any) -> Any:
    # Stacked norm scales are matrices, and have a "norm" axis.
    def decays(leaf: Any) -> Any:
        axes = leaf.get_metadata().get("axes", ()) if is_variable(leaf) else ()
        return jax.tree.map(lambda x: x.ndim > 1 and "norm" not in axes, leaf)

    return jax.tree.map(decays, params, is_leaf=is_variable)


def micro_batch_count(section: ConfigDict, batch_size: int, mesh: Mesh) -> int:
    """Returns the number of micro-batches of a batch: `micro_batches`, or from `micro_rows`.

    `micro_rows` is the number of sequences on each data-parallel shard at once, so that one config
    fits any slice.

    Raises:
      ValueError: the batch cannot be split so.
    """
    if not section.get("micro_rows", 0):
        return section.micro_batches
    shards = batch_shards(mesh)
    micro_batch_size = shards * max(1, section.micro_rows)  # -1: 1 until `memory.choose`
    if batch_size % micro_batch_size and batch_size > micro_batch_size:
        raise ValueError(
            f"micro_rows={section.micro_rows} on {shards} data-parallel shards takes "
            f"{micro_batch_size} rows at once, which does not divide {batch_size}: "
            "use another micro_rows or batch size"
        )
    return max(1, batch_size // micro_batch_size)


def split_batch(batch: Any, micro_batches: int) -> Any:
    """Reshapes leaves (B, ...) to (M, B / M, ...).

    Micro-batch m takes every M-th sequence, so each device keeps the sequences it has.

    Raises:
      ValueError: M does not divide B.
    """
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    if batch_size % micro_batches:
        raise ValueError(
            f"micro_batches={micro_batches} does not divide the {batch_size} rows of the batch: "
            "use a divisor"
        )

    return jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)


def accumulated_value_and_grad(
    loss_fn: Callable[[Any, Any], tuple[jax.Array, dict[str, Any]]],
    params: Any,
    batch: Any,
    micro_batches: int,
) -> tuple[jax.Array, dict[str, Any], Any]:
    """Sums loss, metrics and gradients over micro-batches, with one at a time in memory.

    Args:
      loss_fn: (params, batch) -> (loss, metrics), divided by the counts of the WHOLE batch, so that
        they add up. A metric whose name ends in "_max" takes the maximum instead.
      params: tree to differentiate.
      batch: tree of arrays with the same leading axis B.
      micro_batches: M; 1 processes the batch in one piece.

    Returns:
      (loss, metrics, gradients).
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        (loss, metrics), grads = value_and_grad(params, batch)
        return loss, metrics, grads

    def body(carry: Any, micro: Any) -> tuple[Any, None]:
        loss, metrics, grads = carry
        (new_loss, new_metrics), new_grads = value_and_grad(params, micro)
        metrics = {
            name: jnp.maximum(old, new_metrics[name])
            if name.endswith("_max")
            else old + new_metrics[name]
            for name, old in metrics.items()
        }
        return (loss + new_loss, metrics, jax.tree.map(jnp.add, grads, new_grads)), None

    micros = split_batch(batch, micro_batches)
    shapes = jax.eval_shape(value_and_grad, params, jax.tree.map(lambda x: x[0], micros))
    (loss, metrics), grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    carry, _ = jax.lax.scan(body, (loss, metrics, grads), micros)
    return carry


def guarded_update(
    tx: optax.GradientTransformation, grads: Any, opt_state: Any, params: Any, loss: jax.Array
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Applies one optimizer update, or keeps the old state if loss or gradients are not finite.

    The train loop stops on `finite == 0` and saves that last good state.

    Returns:
      (params, opt_state, metrics): `grad_norm` (before clipping), `update_norm` and `finite` (1.0
      or 0.0).
    """
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, new_opt_state = tx.update(grads, opt_state, params)
    new_params = optax.apply_updates(params, updates)

    metrics = {
        "grad_norm": grad_norm,
        "update_norm": optax.global_norm(updates),
        "finite": finite.astype(jnp.float32),
    }
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (new_params, new_opt_state),
        (params, opt_state),
    )
    return params, opt_state, metrics
