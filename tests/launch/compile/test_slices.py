"""Google Cloud's accelerator names, and that libtpu knows each of the slices."""

import pytest

from launch.compile.slices import GENERATIONS, all_slices, get_slice, slice_devices

SMALL = [name for name, tpu_slice in all_slices().items() if tpu_slice.chips <= 256]
SHOWN = [
    "v4-8",
    "v4-128",
    "v4-512",
    "v5litepod-1",
    "v5litepod-8",
    "v5litepod-256",
    "v5p-32",
    "v5p-128",
    "v6e-1",
    "v6e-64",
]


@pytest.mark.parametrize("name", SHOWN)
def test_slice_loads_with_its_chips_and_hosts(name):
    tpu_slice = get_slice(name)
    devices = slice_devices(name)
    assert len(devices) == tpu_slice.chips
    assert len({d.process_index for d in devices}) == tpu_slice.hosts
    assert [
        max(d.coords[axis] for d in devices) + 1 for axis in range(len(tpu_slice.shape))
    ] == list(tpu_slice.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_slice_up_to_256_chips_loads(name):
    assert len(slice_devices(name)) == get_slice(name).chips


def test_two_slices_are_told_atpu_slice():
    devices = slice_devices("v5litepod-16", 2)
    assert sorted({d.slice_index for d in devices}) == [0, 1]
    assert len(devices) == 32


@pytest.mark.parametrize(
    "name, topology, chips, hosts",
    [
        ("v4-8", "v4:2x2x1", 4, 1),
        ("v4-384", "v4:4x4x12", 192, 48),
        ("v4-4096", "v4:8x16x16", 2048, 512),
        ("v5litepod-8", "v5e:2x4", 8, 1),
        ("v5e-128", "v5e:8x16", 128, 32),
        ("v5p-64", "v5p:2x4x4", 32, 8),
        ("v5p-768", "v5p:4x8x12", 384, 96),
        ("v5p-12288", "v5p:16x16x24", 6144, 1536),
        ("V6E-256", "v6e:16x16", 256, 64),
    ],
)
def test_names_count_cores_or_chips(name, topology, chips, hosts):
    tpu_slice = get_slice(name)
    assert (tpu_slice.topology_name, tpu_slice.chips, tpu_slice.hosts) == (topology, chips, hosts)


def test_rings_close_as_the_hardware_closes_them():
    assert [get_slice(n).wrap for n in ("v4-64", "v4-128", "v5litepod-64", "v5litepod-128", "v5litepod-256")] == [
        (False, False, False), (True, True, True), (False, False, False), (False, True, False), (True, True, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, said",
    [
        (
            "v5p-100",
            r"'v5p-100' does not exist \(v5p counts TensorCores, two per chip\): .*v5p-64, v5p-128",
        ),
        ("v5litepod-7", r"counts chips\): .*v5litepod-8"),
        ("v5litpod-8", "nearest are v5litepod-8"),
        ("h100", "nearest are v4-8, v5litepod-8"),
        ("v5p-", "v5p-8"),
    ],
)
def test_unknown_slice_names_the_nearest(name, said):
    with pytest.raises(ValueError, match=said):
        get_slice(name)


def test_no_slices_at_all():
    with pytest.raises(ValueError, match="num_slices=0: use 1 or more"):
        slice_devices("v4-8", 0)


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_available_hbm_is_what_the_compiler_says(generation):
    import re

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = slice_devices(f"{generation}-8")
    place = NamedSharding(Mesh(np.array(devices[:1]), ("x",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((2**16, 2**19), jnp.float32, sharding=place)
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x * 2).lower(x).compile()
    stated = float(re.search(r"available HBM \(([\d.]+)G\)", str(error.value)).group(1))
    assert GENERATIONS[generation].hbm_bytes == pytest.approx(stated * 2**30, rel=1e-9)
