"""Tests learning-rate schedules, weight decay and micro-batches."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from grm_jax.sharding import make_mesh
from grm_jax.training import optim


def section(**fields):
    base = dict(
        steps=100, lr=1e-2, warmup_steps=10, schedule="cosine", final_lr_share=0.1,
        b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=1.0, micro_batches=1, micro_rows=0,
    )  # fmt: skip
    return ml_collections.ConfigDict(base | fields)


@pytest.mark.parametrize("schedule,end", [("constant", 1e-2), ("cosine", 1e-3), ("linear", 1e-3)])
def test_the_schedule_starts_above_zero_and_ends_at_the_final_rate(schedule, end):
    rate = optim.make_schedule(section(schedule=schedule))
    np.testing.assert_allclose(rate(0), 1e-3, rtol=1e-5)
    np.testing.assert_allclose(rate(10), 1e-2, rtol=1e-5)
    assert all(rate(i) < rate(i + 1) for i in range(9))
    np.testing.assert_allclose(rate(100), end, rtol=1e-4)


def test_unknown_schedules_and_long_warmups_are_an_error():
    with pytest.raises(ValueError, match="warmup_steps=100 is not shorter than steps=100"):
        optim.make_schedule(section(warmup_steps=100))
    with pytest.raises(
        ValueError, match="unknown schedule 'step': use one of constant, cosine, linear"
    ):
        optim.make_schedule(section(schedule="step"))


def test_the_schedule_ends_with_the_last_update_of_the_last_rollout():
    rate = optim.make_schedule(section(schedule="linear", updates_per_rollout=2))
    np.testing.assert_allclose([rate(20), rate(110), rate(200)], [1e-2, 5.5e-3, 1e-3], rtol=1e-4)
    with pytest.raises(
        ValueError, match="config.rl.warmup_steps=100 is not shorter than config.rl.steps=100"
    ):
        optim.make_optimizer(section(warmup_steps=100), "rl")
    with pytest.raises(ValueError, match="unknown config.rft.schedule 'step'"):
        optim.make_optimizer(section(schedule="step"), "rft")


def test_norm_scales_of_stacked_layers_do_not_decay():
    from flax import nnx

    from grm_jax.models import build_model, get_config

    params = jax.tree.map(
        jnp.ones_like, nnx.state(build_model(get_config("tiny_gemma2"), nnx.Rngs(0)))
    )
    tx = optim.make_optimizer(section(weight_decay=0.1, warmup_steps=0, schedule="constant"))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    scales = 0
    for variable in jax.tree.leaves(updates, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        is_scale = "norm" in variable.get_metadata()["axes"]
        scales += is_scale and variable.get_value().ndim > 1
        np.testing.assert_allclose(variable.get_value(), 0.0 if is_scale else -1e-3, rtol=1e-5)
    assert scales


def test_only_matrices_decay():
    tx = optim.make_optimizer(section(weight_decay=0.1, warmup_steps=0, schedule="constant"))
    params = {"matrix": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["matrix"], -1e-3, rtol=1e-5)
    np.testing.assert_array_equal(updates["scale"], 0.0)


def test_accumulation_sums_values_and_takes_the_maximum_of_max_metrics():
    x = jnp.arange(12.0).reshape(6, 2)

    def loss(w, batch):
        value = (batch["x"] @ w).sum() / 6
        return value, {"total": batch["x"].sum(), "seen_max": batch["x"].max()}

    w = jnp.float32([1.0, 2.0])
    whole = optim.accumulated_value_and_grad(loss, w, {"x": x}, 1)
    accumulated = optim.accumulated_value_and_grad(loss, w, {"x": x}, 3)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(accumulated), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert accumulated[1]["seen_max"] == 11.0


def test_micro_rows_are_rows_per_shard_of_the_mesh():
    mesh = make_mesh(2, 2, 2)
    assert optim.micro_batch_count(section(micro_rows=2), 32, mesh) == 4
    assert optim.micro_batch_count(section(micro_rows=16), 32, mesh) == 1
    assert optim.micro_batch_count(section(micro_batches=3), 32, mesh) == 3
    with pytest.raises(ValueError, match="12 rows at once, which does not divide 32"):
        optim.micro_batch_count(section(micro_rows=3), 32, mesh)
