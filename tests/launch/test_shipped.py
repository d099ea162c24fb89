"""Two experiments fit the slices they are meant for; benchmarks/config_table.py has all."""

import importlib

import pytest

from launch.compile import compile_only, programs, slices


@pytest.mark.parametrize(
    "name, slice_name, program",
    [("spct_2b", "v5litepod-8", "forward"), ("spct_27b", "v5p-64", "rollout_decode")],
)
def test_experiment_fits_its_slice(name, slice_name, program):
    config = importlib.import_module(f"experiments.{name}").get_config()
    mesh = programs.make_slice_mesh(config, slice_name)
    hbm = slices.get_slice(slice_name).generation.hbm_bytes
    (result,) = compile_only.compile_tasks(programs.tasks(config, mesh, [program], hbm), slice_name)
    assert result.fits and result.headroom > 0.1 and result.roofline_seconds > 0, result.error
