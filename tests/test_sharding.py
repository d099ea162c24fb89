"""Tests meshes, the sharding of parameters, and the errors raised before any allocation."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from grm_jax import sharding
from grm_jax.models import CONFIGS, build_model, get_config


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a TPU device that a mesh needs."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_an_axis_of_minus_1_gets_the_remaining_devices():
    assert sharding.resolve_mesh({"fsdp": -1, "tensor": 4}, 64) == sizes(fsdp=16, tensor=4)
    assert dict(sharding.make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_a_mesh_of_the_wrong_size_is_an_error_with_the_sizes():
    with pytest.raises(ValueError, match="data=1 x fsdp=3 x tensor=2 does not make 8 devices"):
        sharding.make_mesh(1, 3, 2)
    with pytest.raises(ValueError, match="does not make 8 devices"):
        sharding.make_mesh(3, -1, 1)


def test_slices_are_along_the_data_axis():
    devices = [Device(i, i // 4, i // 4) for i in range(8)]
    mesh = sharding.make_mesh(2, 2, 2, devices)
    assert [{d.slice_index for d in block.flat} for block in mesh.devices] == [{0}, {1}]
    with pytest.raises(ValueError, match="data=1 is not a multiple of the 2 slices"):
        sharding.make_mesh(1, 4, 2, devices)


def test_a_wider_tensor_axis_has_the_same_devices_in_the_same_order():
    cfg = get_config("tiny_gemma2", num_kv_heads=2)
    mesh = sharding.make_mesh(2, 4, 1)
    wide = sharding.widen_tensor(mesh, cfg, 8)
    assert dict(wide.shape) == sizes(data=2, fsdp=2, tensor=2)
    assert list(wide.devices.flat) == list(mesh.devices.flat)
    assert sharding.widen_tensor(mesh, cfg, 1) is mesh
    assert sharding.widen_tensor(wide, cfg, 8) is wide  # 4 would not divide the KV heads
    large = get_config("gemma2_27b")
    assert dict(sharding.widen_tensor(mesh, large, 3).shape) == sizes(data=2, fsdp=2, tensor=2)


def sizes(**axes):
    return {"data": 1, "fsdp": 1, "tensor": 1} | axes


def test_a_mesh_that_does_not_divide_the_model_is_an_error():
    with pytest.raises(
        ValueError, match="mesh tensor=8 does not divide the 4 KV heads of gemma2_2b: use 1, 2 or 4"
    ):
        sharding.check_fits(get_config("gemma2_2b"), sizes(tensor=8))
    with pytest.raises(ValueError, match="mesh fsdp=5 does not divide the 4608 model width"):
        sharding.check_fits(get_config("gemma2_27b"), sizes(fsdp=5))
    with pytest.raises(
        ValueError, match="mesh tensor=2 does not divide the 1 KV heads of gemma3_270m: use 1$"
    ):
        sharding.check_fits(get_config("gemma3_270m"), sizes(tensor=2))
    for tensor in (1, 2, 4, 8, 16):
        sharding.check_fits(get_config("gemma2_27b"), sizes(tensor=tensor, fsdp=16))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_parameter_has_axes_for_each_of_its_dimensions(name):
    state = nnx.state(
        nnx.eval_shape(lambda: build_model(get_config(name, scalar_head=True), nnx.Rngs(0)))
    )
    for variable in jax.tree.leaves(state, is_leaf=lambda v: isinstance(v, nnx.Variable)):
        axes = variable.get_metadata()["axes"]
        assert len(axes) == variable.get_value().ndim
        assert len(sharding.spec(axes)) == len(axes)


def test_an_axis_that_does_not_divide_is_not_sharded():
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        x = jax.jit(lambda x: sharding.constrain(x, "batch", "heads"))(jnp.zeros((6, 3)))
    assert x.sharding.spec == PartitionSpec("data")
    assert sharding.constrain(jnp.zeros((3,)), "batch").shape == (3,)
