"""Tests the choice of platform on a machine without a TPU, and the compilation cache."""

import os
import subprocess
import sys

import jax
import pytest

from grm_jax import devices
from grm_jax.devices import has_chips

SCRIPT = """
{first_line}
from grm_jax import devices
devices.choose_platform()
import jax
print(jax.default_backend(), jax.config.jax_platforms)
"""


@pytest.mark.parametrize(
    "first_line", ["", "import jax"], ids=["jax not imported", "jax imported before"]
)
def test_choose_platform_selects_the_cpu_without_tpu_chips(first_line):
    if has_chips():
        pytest.skip("this machine has TPU chips")
    environment = dict(os.environ)
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        environment.pop(name, None)
    command = [sys.executable, "-c", SCRIPT.format(first_line=first_line)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "cpu" in process.stdout and "TPU" not in process.stderr


@pytest.fixture
def no_platform(monkeypatch):
    """A process in which neither the environment nor JAX has a platform; a backend is running."""
    before = jax.config.jax_platforms, jax.devices()
    monkeypatch.delenv("JAX_PLATFORMS")
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", before[0])
    os.environ["JAX_PLATFORMS"] = "cpu"
    assert jax.devices() == before[1] and float(jax.numpy.ones(3).sum()) == 3


def test_choose_platform_keeps_a_platform_set_in_jax(no_platform):
    jax.config.update("jax_platforms", "cpu,tpu")
    devices.choose_platform()
    assert jax.config.jax_platforms == "cpu,tpu" and "JAX_PLATFORMS" not in os.environ


@pytest.mark.parametrize(
    "plugin, gpu, platforms",
    [("xla_cuda12", True, "cuda,cpu"), ("xla_cuda12", False, "cpu"), ("xla_rocm", False, None)],
)
def test_choose_platform_opens_cuda_only_with_a_gpu_and_keeps_other_plugins(
    no_platform, monkeypatch, plugin, gpu, platforms
):
    monkeypatch.setattr(devices, "has_chips", lambda: False)
    monkeypatch.setattr(devices, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(devices, "_plugins", lambda: [plugin])
    devices.choose_platform()
    assert jax.config.jax_platforms == os.environ.get("JAX_PLATFORMS") == platforms


COMPILE = """
from grm_jax import devices
folder = devices.use_compilation_cache()
import jax
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
jax.jit(lambda x: x + 1)(1.0), jax.jit(lambda x: x * 2)(1.0)
print(folder, events.count("cache_hits"), events.count("cache_misses"))
"""


def test_a_second_process_loads_its_programs_and_a_damaged_cache_costs_one_line(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        environment.pop(name, None)

    def run(**more):
        command = [sys.executable, "-c", COMPILE]
        process = subprocess.run(command, env=environment | more, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return process.stdout.split(), process.stderr.splitlines()

    folder = tmp_path / ".cache" / "grm_jax" / "xla"
    assert run() == ([str(folder), "0", "2"], [])
    assert run() == ([str(folder), "2", "0"], [])
    assert folder.stat().st_mode & 0o077 == 0  # programs are code: nobody else may write them
    for entry in folder.iterdir():
        entry.write_bytes(entry.read_bytes()[:20])
    counts, lines = run()
    assert counts == [str(folder), "0", "2"]
    assert len(lines) == 1 and str(folder) in lines[0] and "reading" in lines[0]
    assert run() == ([str(folder), "2", "0"], [])
    # A folder of the user's is kept, with JAX's defaults: small programs are not stored.
    own = str(tmp_path / "own")
    assert run(JAX_COMPILATION_CACHE_DIR=own) == ([own, "0", "0"], [])
    (tmp_path / "home").touch()
    (none, *_), lines = run(HOME=str(tmp_path / "home"))
    assert none == "None" and len(lines) == 1 and "no compilation cache" in lines[0]
