"""Tests the conversion of weights for decoding: dtype, sharding, donation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from grm_jax.models import build_model, get_config, quantize
from grm_jax.models.lora import LoraConfig
from grm_jax.sampling import Engine, weights
from grm_jax.sharding import make_mesh, state_shardings, widen_tensor


@pytest.fixture
def trained():
    """(mesh, state) of a float32 training state, split over fsdp and tensor."""
    mesh = make_mesh(1, 2, 4)
    state = nnx.state(build_model(get_config("tiny_gemma2"), nnx.Rngs(0)))
    return mesh, jax.device_put(state, state_shardings(state, mesh))


def leaves(state):
    return jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable))


def test_weights_are_cast_and_sharded_over_tensor_only(trained):
    mesh, state = trained
    before = [np.asarray(v[...]) for v in leaves(state)]
    out = weights.for_sampling(state, mesh, "bfloat16")
    for value, variable, source in zip(before, leaves(out), leaves(state)):
        axes = variable.get_metadata()["axes"]
        # Norms stay float32, as in training: 1 + scale would lose the scale in bfloat16.
        dtype = jnp.float32 if "norm" in axes else jnp.bfloat16
        assert variable[...].dtype == dtype and axes == source.get_metadata()["axes"]
        assert (np.asarray(variable[...]) == value.astype(dtype)).all()
        assert "fsdp" not in jax.tree.leaves(tuple(variable[...].sharding.spec))
        assert not source[...].is_deleted()
    table = out["embedder"]["table_VxD"][...]
    assert table.sharding.spec == PartitionSpec("tensor", None)


def test_weights_move_to_a_mesh_with_a_wider_tensor_axis():
    cfg, mesh = get_config("tiny_gemma2"), make_mesh(1, 4, 2)
    state = nnx.state(build_model(cfg, nnx.Rngs(0)))
    state = jax.device_put(state, state_shardings(state, mesh))
    out = weights.for_sampling(state, widen_tensor(mesh, cfg, 8), "float32")
    for variable, source in zip(leaves(out), leaves(state)):
        np.testing.assert_array_equal(variable[...], source[...])
    table = out["embedder"]["table_VxD"][...]
    assert table.sharding.shard_shape(table.shape)[0] == cfg.vocab_size // 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_donated_sources_are_freed_one_by_one(trained, dtype, monkeypatch):
    mesh, state = trained
    before = [np.asarray(v[...]) for v in leaves(state)]
    # Norms are not converted.
    sources = [v[...] for v in leaves(state) if "norm" not in v.get_metadata()["axes"]]
    deleted = []  # number of deleted sources after each leaf
    wait = jax.block_until_ready

    def watch(value):
        deleted.append(sum(a.is_deleted() for a in sources))
        return wait(value)

    monkeypatch.setattr(weights.jax, "block_until_ready", watch)
    out = weights.for_sampling(state, mesh, dtype, donate=True)
    assert deleted == list(range(len(sources)))  # each is deleted before the next is moved
    assert all(a.is_deleted() for a in sources)
    for value, variable in zip(before, leaves(out)):
        assert (np.asarray(variable[...]) == value.astype(variable[...].dtype)).all()


def test_the_engine_converts_weights_sharded_for_training(trained):
    """Weights sharded over fsdp would be gathered for every token."""
    mesh, state = trained
    graphdef, _ = nnx.split(build_model(get_config("tiny_gemma2"), nnx.Rngs(0)))
    with jax.set_mesh(mesh):
        model = nnx.merge(graphdef, state)
        engine = Engine(model, 2, 2)
        assert "fsdp" in {
            axis
            for v in leaves(nnx.state(model))
            for axis in jax.tree.leaves(tuple(v[...].sharding.spec))
        }
        assert not any(
            "fsdp" in jax.tree.leaves(tuple(v[...].sharding.spec)) for v in leaves(engine.params)
        )
        reconverted = weights.for_decoding(nnx.merge(engine.graphdef, engine.params))
    # A second conversion copies nothing.
    assert all(
        a[...] is b[...] for a, b in zip(leaves(nnx.state(reconverted)), leaves(engine.params))
    )


def test_donating_converted_weights_keeps_them():
    mesh = make_mesh(1, 1, 8, devices=jax.devices())
    graphdef, state = nnx.split(build_model(get_config("tiny_gemma2", num_kv_heads=8), nnx.Rngs(0)))
    first = weights.for_sampling(state, mesh, "float32")
    values = [np.asarray(v[...]) for v in leaves(first)]
    reconverted = weights.for_sampling(first, mesh, "float32", donate=True)
    assert all((np.asarray(v[...]) == value).all() for v, value in zip(leaves(reconverted), values))


def test_a_quantised_copy_has_the_int8_weights_of_the_model(trained):
    mesh, state = trained
    cfg = get_config("tiny_gemma2")
    model = nnx.merge(nnx.graphdef(build_model(cfg, nnx.Rngs(0))), state)
    with jax.set_mesh(mesh):
        copy = weights.quantized(model, "int8")
        assert jax.tree.leaves(nnx.state(weights.for_decoding(copy)))
    assert copy.cfg == cfg.replace(quantize="int8") and not any(
        variable[...].is_deleted() for variable in leaves(state)
    )
    attention = copy.units[0].attn
    values, scale = quantize.quantize(model.units[0].attn.q_DxNxH[...], (-3,))
    np.testing.assert_array_equal(attention.q_DxNxH.values[...], values)
    np.testing.assert_allclose(attention.q_DxNxH.scale[...], scale, rtol=1e-6)
    assert "fsdp" not in str(attention.q_DxNxH.values[...].sharding.spec)
    np.testing.assert_array_equal(copy.final_norm.scale[...], model.final_norm.scale[...])


def test_a_quantised_copy_of_a_model_with_adapters_keeps_them():
    cfg = get_config("tiny_qwen2", lora=LoraConfig(rank=2, alpha=4.0))
    model = build_model(cfg, nnx.Rngs(0))
    copy = weights.quantized(model, "int8")
    one, other = model.units[0].mlp.up_DxF, copy.units[0].mlp.up_DxF
    assert other.base.values[...].dtype == jnp.int8
    assert other.a[...] is one.a[...] and other.b[...] is one.b[...]
    assert (
        weights.quantized(copy, "int8").units[0].mlp.up_DxF.base.values[...]
        is (other.base.values[...])
    )
