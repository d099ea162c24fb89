"""AdamW with a schedule and clipping, and gradients accumulated over micro-batches.

Axes: M micro-batches, B rows of the whole batch.
"""

import jax
import jax.numpy as jnp
import optax

from grm_jax.training.state import is_variable

SCHEDULES = ("constant", "cosine", "linear")


def make_schedule(section, stage=""):
    """Learning rate by update: linear warm-up over `warmup_steps`, then `constant`, or down to `lr * final_lr_share` at `steps`.

    Args:
      section: a stage of a config with lr, steps, warmup_steps, schedule, final_lr_share, and where a step makes several updates,
        updates_per_rollout.
      stage: its name, for errors.

    Raises:
      ValueError: for a schedule that is not one of SCHEDULES, or a warm-up that is not shorter than the run.
    """
    where = f"config.{stage}." if stage else ""
    if section.warmup_steps and section.warmup_steps >= section.steps:
        raise ValueError(
            f"{where}warmup_steps={section.warmup_steps} is not shorter than {where}steps={section.steps}: lower {where}warmup_steps"
        )
    updates = section.get("updates_per_rollout", 1)
    warmup, steps, final = (
        section.warmup_steps * updates,
        section.steps * updates,
        section.lr * section.final_lr_share,
    )
    after = {
        "constant": lambda: optax.constant_schedule(section.lr),
        "cosine": lambda: optax.cosine_decay_schedule(
            section.lr, max(steps - warmup, 1), section.final_lr_share
        ),
        "linear": lambda: optax.linear_schedule(section.lr, final, max(steps - warmup, 1)),
    }
    if section.schedule not in after:
        raise ValueError(
            f"{where}schedule {section.schedule!r} is not known: use one of {', '.join(SCHEDULES)}"
        )
    if not warmup:
        return after[section.schedule]()
    # The first update has 1/warmup of the rate, not 0: a step that does nothing is a step lost.
    ramp = optax.linear_schedule(section.lr / warmup, section.lr, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after[section.schedule]()], [warmup])


def make_optimizer(section, stage=""):
    """optax AdamW with global-norm clipping; weight decay on matrices only (never on norms' scales).

    Args:
      section: a stage of a config with the fields of `make_schedule` and b1, b2, eps, weight_decay, clip_norm (0: none).
      stage: its name, for errors.
    """
    parts = [optax.clip_by_global_norm(section.clip_norm)] if section.clip_norm else []
    adamw = optax.adamw(
        make_schedule(section, stage),
        b1=section.b1,
        b2=section.b2,
        eps=section.eps,
        weight_decay=section.weight_decay,
        mask=_decayed,
    )
    return optax.chain(*parts, adamw)


def _decayed(params):
    """Whether each array decays: matrices do. The layers' norm scales are stacked into one matrix, and known by their axes."""

    def decays(leaf):
        axes = leaf.get_metadata().get("axes", ()) if is_variable(leaf) else ()
        return jax.tree.map(lambda x: x.ndim > 1 and "norm" not in axes, leaf)

    return jax.tree.map(decays, params, is_leaf=is_variable)


def micro_batch_count(section, rows, mesh):
    """Into how many micro-batches a batch of `rows` is cut: `micro_batches`, or what `micro_rows` (rows at once on each data-parallel
    shard) comes to on this mesh, so that one config fits any slice.

    Raises ValueError if the rows cannot be cut so.
    """
    if not section.get("micro_rows", 0):
        return section.micro_batches
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    at_once = ways * section.micro_rows
    if rows % at_once and rows > at_once:
        raise ValueError(
            f"micro_rows={section.micro_rows} on {ways} data-parallel shards takes {at_once} rows at once, which does not divide {rows}: "
            f"use another micro_rows or batch size"
        )
    return max(1, rows // at_once)


def split_batch(batch, micro_batches):
    """Leaves (B, ...) as (M, B / M, ...). Micro-batch m takes every M-th row, so each device keeps the rows it has.

    Raises:
      ValueError: if M does not divide B.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % micro_batches:
        raise ValueError(
            f"micro_batches={micro_batches} does not divide the {rows} rows of the batch: use a divisor"
        )

    def split(x):
        return x.reshape(rows // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def accumulated_value_and_grad(loss_fn, params, batch, micro_batches):
    """Sum of loss, metrics and gradient over micro-batches, one at a time in memory.

    Args:
      loss_fn: (params, batch) -> (loss, metrics), already divided by the counts of the WHOLE batch, so that sums are right;
        metrics is a dict, and one whose name ends in "_max" takes the maximum instead.
      params: tree to differentiate.
      batch: tree of arrays with the same leading axis B.
      micro_batches: M; 1 takes the batch in one piece.

    Returns:
      (loss, metrics, gradients).
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        (loss, metrics), grads = value_and_grad(params, batch)
        return loss, metrics, grads

    def body(carry, micro):
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


def guarded_update(tx, grads, opt_state, params, loss):
    """One optimizer update that keeps the old state when the loss or any gradient is not finite.

    The caller stops the run on `finite == 0`; because nothing was written, what it saves then is the last good state.

    Returns:
      (params, opt_state, metrics): metrics are `grad_norm` (before clipping), `update_norm` and `finite` (1.0 or 0.0).
    """
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, new_opt_state = tx.update(grads, opt_state, params)
    new_params = optax.apply_updates(params, updates)

    def keep(new, old):
        return jnp.where(finite, new, old)

    metrics = {
        "grad_norm": grad_norm,
        "update_norm": optax.global_norm(updates),
        "finite": finite.astype(jnp.float32),
    }
    return (
        jax.tree.map(keep, new_params, params),
        jax.tree.map(keep, new_opt_state, opt_state),
        metrics,
    )
