"""The device mesh, and the one table that maps logical array axes to mesh axes.

Mesh axes: `data` replicates the weights and spans slices; `fsdp` splits weights and batch; `tensor`
splits heads, ffn width and vocabulary. Parameters, optimizer state, activations and caches name
their axes logically:

    q_DxNxH   ("embed", "heads", "head_dim")    ->  PartitionSpec("fsdp", "tensor", None)
    x_BxLxD   ("batch", "length", "act_embed")  ->  PartitionSpec(("data", "fsdp"), None, None)
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
    "lora_rank": None,
    # activations and caches
    "batch": BATCH_AXES,
    "length": None,
    "act_embed": None,
    "cache_length": None,
}


def resolve_mesh(
    mesh: Mapping[str, int], num_devices: int, num_slices: int = 1, label: str = "devices"
) -> dict[str, int]:
    """Returns the size of each mesh axis for a number of devices, without needing the devices.

    Args:
      mesh: sizes by axis name. A missing axis has size 1; one axis may be -1 (what remains).
      num_devices: devices of all slices together.
      num_slices: `data` must be a multiple of it, because only `data` spans slices.
      label: names the devices in the error, as in "chips of v5p-128".

    Raises:
      ValueError: the product is not the number of devices, or `data` does not divide over slices.
    """
    sizes = {axis: mesh.get(axis, 1) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and fixed > 0 and num_devices % fixed == 0:
        sizes[free[0]] = num_devices // fixed
    if math.prod(sizes.values()) != num_devices or min(sizes.values()) < 1:
        described = " x ".join(f"{axis}={mesh.get(axis, 1)}" for axis in AXES)
        raise ValueError(
            f"mesh {described} does not make {num_devices} {label}: "
            f"the product must be {num_devices} (one axis may be -1)"
        )
    if sizes["data"] % num_slices:
        raise ValueError(
            f"mesh data={sizes['data']} is not a multiple of the {num_slices} slices: "
            f"fsdp and tensor stay inside one slice, set data={num_slices} or a multiple"
        )
    return sizes


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Builds a (data, fsdp, tensor) mesh over `devices` (default: all); one axis may be -1.

    `data` spans slices and the other axes stay inside one, so that only data-parallel reductions
    cross the network between slices.

    Raises:
      ValueError: as `resolve_mesh`.
    """
    from jax.experimental import mesh_utils

    devices = list(jax.devices() if devices is None else devices)
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    shape = tuple(resolve_mesh(sizes, len(devices), num_slices).values())
    if num_slices > 1:
        array = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // num_slices, *shape[1:]),
            (num_slices, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    elif devices[0].platform == "tpu":
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        array = np.asarray(devices).reshape(shape)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_fits(cfg: Any, mesh: Mesh | Mapping[str, int]) -> None:
    """Checks that a mesh, or its sizes from `resolve_mesh`, divides a model's dimensions.

    Raises:
      ValueError: names the mesh axis, the dimension, and the sizes that divide it.
    """
    sizes = mesh.shape if isinstance(mesh, Mesh) else mesh
    dimensions = {
        "tensor": {
            "KV heads": cfg.num_kv_heads,
            "query heads": cfg.num_heads,
            "ffn width": cfg.d_ff,
            "vocabulary rows": cfg.vocab_size + cfg.vocab_pad,
        },
        "fsdp": {"model width": cfg.d_model},
    }
    for axis, lengths in dimensions.items():
        bad = [f"{n} {name}" for name, n in lengths.items() if n % sizes[axis]]
        if bad:
            common = math.gcd(*lengths.values())
            *fits, last = (str(i) for i in range(1, common + 1) if common % i == 0)
            raise ValueError(
                f"mesh {axis}={sizes[axis]} does not divide the {', '.join(bad)} of {cfg.name}: "
                f"use {', '.join(fits)}{' or ' if fits else ''}{last}"
            )


def widen_tensor(mesh: Mesh, cfg: Any, most: int) -> Mesh:
    """Returns a mesh of the same devices in the same order, with the largest `tensor` up to `most`.

    `fsdp` becomes smaller by the same factor. Arrays move between the two meshes inside a jitted
    function. For sampling, where a chip reads 1/tensor of the weights for every token. A mesh whose
    `tensor` is at least `most` stays; so does one for which no other size divides the model.
    """
    data, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    dimensions = (cfg.num_kv_heads, cfg.num_heads, cfg.d_ff, cfg.vocab_size + cfg.vocab_pad)

    def fits(factor: int) -> bool:
        size = tensor * factor
        return fsdp % factor == 0 and size <= most and not any(n % size for n in dimensions)

    factor = max(filter(fits, range(2, fsdp + 1)), default=1)
    if factor == 1:
        return mesh
    devices = mesh.devices.reshape(data, fsdp // factor, tensor * factor)
    return Mesh(devices, AXES, axis_types=mesh.axis_types)


def current_mesh() -> Mesh | jax.sharding.AbstractMesh | None:
    """Returns the mesh in context (`jax.set_mesh`), or None without one or for a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def device_mesh() -> Mesh | None:
    """Returns the mesh of devices in context, or None without one or for a single device."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """Returns the platform ("tpu", "gpu", "cpu") that the program being traced is compiled for.

    It is the platform of the mesh in context, whose devices need not exist on this machine, or else
    JAX's default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_shards(mesh: Any) -> int:
    """Returns into how many shards a mesh splits the batch axis; 1 for None."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def spec(axes: Sequence[str | None], mesh_axes: Sequence[str] = AXES) -> PartitionSpec:
    """Returns the mesh axes of an array with these logical axes, restricted to `mesh_axes`.

    Raises:
      KeyError: an axis that is not in the table.
    """

    def restrict(rule: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(rule, tuple):
            return tuple(axis for axis in rule if axis in mesh_axes) or None
        return rule if rule in mesh_axes else None

    return PartitionSpec(*(restrict(RULES[axis]) if axis is not None else None for axis in axes))


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Returns the sharding of an array with these logical axes; without axes it is replicated."""
    return NamedSharding(mesh, spec(axes))


def is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def state_shardings(tree: Any, mesh: Mesh, mesh_axes: Sequence[str] = AXES) -> Any:
    """Returns a NamedSharding for each NNX variable of a tree, by the logical axes it declares.

    Leaves that are not variables are replicated. Arrays are split over `mesh_axes` only.
    """

    def place(leaf: Any) -> NamedSharding:
        axes = leaf.get_metadata()["axes"] if is_variable(leaf) else ()
        return NamedSharding(mesh, spec(axes, mesh_axes))

    return jax.tree.map(place, tree, is_leaf=is_variable)


def with_shardings(tree: Any, shardings: Any) -> Any:
    """Returns the tree as jax.ShapeDtypeStruct with shardings, for compilation and for restoring.

    shardings: a tree of the same structure, or a prefix of it.
    """

    def attach(sharding: Any, subtree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), subtree
        )

    return jax.tree.map(attach, shardings, tree)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation to the table's sharding under the mesh in context, if any.

    Drops a mesh axis that does not divide the dimension: a batch of 3 is replicated on 8 devices.
    """
    if (mesh := current_mesh()) is None:
        return x
    fitted: list[tuple[str, ...] | None] = []
    for dim, mesh_axes in zip(x.shape, spec(axes), strict=True):
        names = (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes or ())
        while names and dim % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        fitted.append(names or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitted))


def use_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which `mesh` is the current mesh; a no-op for None."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
