"""Slices agree with libtpu in shape, hosts and HBM; one registration adds a generation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from launch import tpu
from launch.cluster import gcloud
from launch.compile.slices import (
    GENERATIONS,
    GIB,
    Generation,
    all_slices,
    get_slice,
    register,
    slice_devices,
)

SMALL = [name for name, tpu_slice in all_slices().items() if tpu_slice.chips <= 256]
SAMPLES = [
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


@pytest.mark.parametrize("name", SAMPLES)
def test_libtpu_has_the_chips_and_hosts_of_a_slice(name):
    tpu_slice = get_slice(name)
    devices = slice_devices(name)
    assert len(devices) == tpu_slice.chips
    assert len({device.process_index for device in devices}) == tpu_slice.hosts
    axes = range(len(tpu_slice.shape))
    sizes = [max(device.coords[axis] for device in devices) + 1 for axis in axes]
    assert sizes == list(tpu_slice.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_libtpu_has_every_slice_up_to_256_chips(name):
    assert len(slice_devices(name)) == get_slice(name).chips


def test_devices_of_two_slices_have_different_slice_indices():
    devices = slice_devices("v5litepod-16", 2)
    assert sorted({device.slice_index for device in devices}) == [0, 1]
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


def test_rings_close_as_in_the_hardware():
    wraps = {
        "v4-64": (False, False, False),
        "v4-128": (True, True, True),
        "v5litepod-64": (False, False, False),
        "v5litepod-128": (False, True, False),
        "v5litepod-256": (True, True, False),
    }
    assert {name: get_slice(name).wrap for name in wraps} == wraps


@pytest.mark.parametrize(
    "name, error",
    [
        ("v5p-100", r"\(v5p counts TensorCores, two per chip\): .*v5p-64, v5p-128"),
        ("v5litepod-7", r"counts chips\): .*v5litepod-8"),
        ("v5litpod-8", "nearest are v5litepod-8"),
        ("h100", "nearest are v4-8, v5litepod-8"),
        ("v5p-", "v5p-8"),
    ],
)  # fmt: skip
def test_an_unknown_slice_lists_the_nearest(name, error):
    with pytest.raises(ValueError, match=error):
        get_slice(name)


def test_zero_slices_are_refused():
    with pytest.raises(ValueError, match="num_slices=0: use 1 or more"):
        slice_devices("v4-8", 0)


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_hbm_is_what_the_compiler_grants(generation):
    devices = slice_devices(f"{generation}-8")
    sharding = NamedSharding(Mesh(np.array(devices[:1]), ("x",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((2**16, 2**19), jnp.float32, sharding=sharding)
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x * 2).lower(x).compile()
    stated = float(re.search(r"available HBM \(([\d.]+)G\)", str(error.value)).group(1))
    assert GENERATIONS[generation].hbm_bytes == pytest.approx(stated * GIB, rel=1e-9)


@pytest.fixture
def generation():
    """An invented generation; the compiler compiles for a v6e in its place."""
    yield register(
        Generation(
            name="v99x",
            aliases=("v99",),
            names_count="cores",
            topology_prefix="v6e",
            chip_config="default",
            runtime_version="v2-alpha-tpuv99x",
            gke_accelerator="tpu-v99x-slice",
            bf16_flops=1e15,
            hbm_bytes=32 * GIB,
            hbm_bandwidth=2e12,
            ici_link_bandwidth=1e11,
            shapes=((2, 2), (4, 4)),
        )
    )
    del GENERATIONS["v99x"]


def test_one_registration_adds_a_generation_everywhere(generation, capsys, tmp_path):
    assert get_slice("v99-8") == get_slice("v99x-8") and get_slice("v99x-8").chips == 4
    with pytest.raises(ValueError, match="v99x counts TensorCores.*nearest are v99x-8, v99x-32"):
        get_slice("v99x-9")
    with pytest.raises(SystemExit):
        tpu.main(["--help"])
    assert "v99x-8" in capsys.readouterr().out

    tiny = ["--config", "experiments/spct_tiny.py", "--config.stages=rft"]
    compiling = ["--compile_only", "--slice", "v99x-8", "--programs", "forward"]
    assert tpu.main([*tiny, *compiling, "--out", str(tmp_path / "table")]) == 0
    assert "forward on v99x-8: compiled in" in capsys.readouterr().out
    assert "| forward | v99x-8 |" in (tmp_path / "table.md").read_text()

    remote = ["--name", "a", "--accelerator", "v99x-32", "--workdir", "gs://b/x"]
    jobset = [*remote, "--on", "gke", "--print", "--image", "i"]
    assert tpu.main([*tiny, "--config.mesh.tensor=2", *jobset]) == 0
    text = capsys.readouterr().out
    job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == 4
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v99x-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    create = gcloud.Resource("a", "z", "v99x-8").create()
    assert {"--accelerator-type=v99x-8", "--runtime-version=v2-alpha-tpuv99x"} <= set(create)
