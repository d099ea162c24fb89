"""Two experiments fit the slices they are meant for; benchmarks/config_table.py has all."""

import importlib

import pytest

from grm_jax import hub
from grm_jax.models import get_config
from launch.compile import compile_only, programs, slices


@pytest.mark.parametrize(
    "name, slice_name, program",
    [
        pytest.param("spct_2b", "v5litepod-8", "forward", marks=pytest.mark.slow),
        ("spct_27b", "v5p-64", "rollout_decode"),
    ],
)
def test_experiment_fits_its_slice(name, slice_name, program):
    config = importlib.import_module(f"experiments.{name}").get_config()
    mesh = programs.make_slice_mesh(config, slice_name)
    hbm = slices.get_slice(slice_name).generation.hbm_bytes
    (result,) = compile_only.compile_tasks(programs.tasks(config, mesh, [program], hbm), slice_name)
    assert result.fits and result.headroom > 0.1 and result.roofline_seconds > 0, result.error


FULL = ("spct_2b", "spct_9b", "spct_27b")


@pytest.mark.parametrize("name", [*FULL, *(f"{name}_lora" for name in FULL)])
def test_models_are_named_on_the_hub_and_the_sampler_fits_the_slice(name):
    config = importlib.import_module(f"experiments.{name}").get_config()
    size = name.removeprefix("spct_").removesuffix("_lora")
    assert config.init == config.tokenizer == f"google/gemma-2-{size}"
    assert config.rft.sampler == "model" and hub.parse(config.init)
    _, _, sampler, _ = config.rft.sampling.path.split("-")  # google/gemma-2-27b-it
    weights = 2 * get_config(f"gemma2_{sampler}").num_params / config.mesh.tensor  # bfloat16
    assert weights < 0.5 * slices.get_slice(config.slice).generation.hbm_bytes
