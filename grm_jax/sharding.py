"""The mesh and the one table that maps logical axes to it.

Mesh axes: `data` (replicas of the weights, laid across slices), `fsdp` (weights and batch split), `tensor` (heads, ffn and vocabulary split).
Everything that has a shape (parameters, optimizer state, activations, caches) names its axes logically and reads this table.
"""

import contextlib

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

RULES = {
    # parameters
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
    # activations and caches
    "batch": ("data", "fsdp"),
    "length": None,
    "act_embed": None,
    "cache_length": None,
}


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Mesh axes for an array with these logical axes. Raises KeyError for a name that the table does not hold."""
    return PartitionSpec(*(RULES[a] if a is not None else None for a in axes))


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A (data, fsdp, tensor) mesh; one axis may be -1 and takes what is left.

    With devices of several slices, `data` is laid across slices (its size must be a multiple of their number) and the rest inside one, so that
    only data-parallel reductions use the network between slices.
    Raises ValueError if the product is not the number of devices, or `data` does not divide over the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    free = [a for a, n in sizes.items() if n == -1]
    known = int(np.prod([n for n in sizes.values() if n != -1]))
    if len(free) == 1 and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    shape = tuple(sizes.values())
    if int(np.prod(shape)) != len(devices) or min(shape) < 1:
        given = " x ".join(f"{a}={n}" for a, n in zip(AXES, (data, fsdp, tensor), strict=True))
        raise ValueError(
            f"mesh {given} does not make {len(devices)} devices: the product must be {len(devices)} (one axis may be -1)"
        )
    num_slices = len({getattr(d, "slice_index", 0) for d in devices})
    return Mesh(_arrange(devices, shape, num_slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(devices, shape, num_slices) -> np.ndarray:
    from jax.experimental import mesh_utils

    if num_slices > 1:
        if shape[0] % num_slices:
            raise ValueError(
                f"mesh data={shape[0]} is not a multiple of the {num_slices} slices: lay `data` across slices, fsdp and tensor inside one"
            )
        inner = (shape[0] // num_slices, *shape[1:])
        return mesh_utils.create_hybrid_device_mesh(
            inner, (num_slices, 1, 1), devices, allow_split_physical_axes=True
        )
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(shape)


def check_fits(cfg, mesh: Mesh) -> None:
    """Refuses a mesh that does not divide a model, before anything is allocated.

    Raises ValueError that names the axis, the dimension and the sizes that do fit.
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    rows = cfg.vocab_size + cfg.vocab_pad
    for size, axis, dims in (
        (
            tensor,
            "tensor",
            {
                "KV heads": cfg.num_kv_heads,
                "query heads": cfg.num_heads,
                "ffn width": cfg.d_ff,
                "vocabulary rows": rows,
            },
        ),
        (fsdp, "fsdp", {"model width": cfg.d_model}),
    ):
        bad = [f"{n} {what}" for what, n in dims.items() if n % size]
        if bad:
            fits = [
                str(i)
                for i in range(1, min(dims.values()) + 1)
                if all(n % i == 0 for n in dims.values())
            ]
            raise ValueError(
                f"mesh {axis}={size} does not divide the {', '.join(bad)} of {cfg.name}: use {_either(fits)}"
            )


def _either(fits: list[str]) -> str:
    return fits[0] if len(fits) == 1 else ", ".join(fits[:-1]) + " or " + fits[-1]


def state_shardings(state, mesh: Mesh):
    """NamedShardings for a state of NNX variables (or their abstract shapes), by the `axes` that each parameter declares."""
    return jax.tree.map(
        lambda v: NamedSharding(mesh, spec(v.get_metadata()["axes"])),
        state,
        is_leaf=lambda v: isinstance(v, nnx.Variable),
    )


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """The sharding of an array with these logical axes."""
    return NamedSharding(mesh, spec(axes))


def one_device() -> bool:
    """Whether the mesh in context (`jax.set_mesh`) is of one device; True without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins an activation to the table under the mesh in context (`jax.set_mesh`); without one it does nothing.

    A mesh axis that does not divide the dimension is left out: a batch of 3 on 8 devices is replicated, not refused.
    """
    if one_device():
        return x
    mesh, fitted = jax.sharding.get_abstract_mesh(), []
    for dim, mesh_axes in zip(x.shape, spec(axes), strict=True):
        names = (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes or ())
        while names and dim % int(np.prod([mesh.shape[n] for n in names])):
            names = names[:-1]
        fitted.append(names or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitted))


def use_mesh(mesh: Mesh | None):
    """A context in which `mesh` is the current mesh; a no-op for None."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
