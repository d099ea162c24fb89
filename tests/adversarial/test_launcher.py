"""Odd options of launch/tpu.py: refused in one line, and none is ignored."""

import pytest

from launch import config as configs, tpu
from launch.errors import LaunchError

TINY = ["--config", "experiments/spct_tiny.py"]
OWN = ["--config", "experiments/own_data.py"]
COMPILE = ["--compile_only", "--slice", "v5litepod-8"]
QUEUED = [
    "--on", "queued-resource", "--name", "x", "--zone", "us-east5-a", "--accelerator", "v5p-8",
    "--workdir", "gs://bucket/x", "--dry_run",
]  # fmt: skip
GKE = [
    "--on", "gke", "--print", "--name", "x", "--accelerator", "v5p-8", "--image", "i/x",
    "--workdir", "gs://bucket/x",
]  # fmt: skip


@pytest.mark.parametrize(
    "options, message",
    [
        (["--num_processes", "0"], "--num_processes 0"),
        (["--process_id", "-1"], "--process_id -1"),
        (["--timeout", "0"], "--timeout 0"),
        (["--timeout", "nan"], "--timeout nan"),
        (["--emulate", "0"], "--emulate 0"),
        (["--emulate", "-4"], "--emulate -4"),
        (["--num_slices", "0"], "--num_slices=0: use 1 or more"),
        ([*COMPILE, "--num_slices", "99999999"], "--num_slices=99999999: use 1024 at most"),
        (["--config.rft.lr", "1" * 400], "config.rft.lr"),
        (["--config.rft.lr", "1e999"], "config.rft.lr=inf"),
        (["--workdir", "a\x00b"], "--workdir='a\\x00b' has a control character"),
        (["--workdir", "a\nb"], "--workdir='a\\nb' has a control character"),
        (["--workdir", ""], "--workdir is empty"),
        (["--config", ""], "--config is empty"),
        ([*COMPILE, "--programs", ""], "--programs is empty"),
        ([*COMPILE, "--programs", ","], "--programs=',' names no program"),
        ([*COMPILE, "--programs", "forward, x"], "unknown program 'x'"),
        ([*COMPILE, "--out", " "], "--out is empty"),
        (["--dry_run"], "--dry_run is an option of --on"),
        (["--queue", "q"], "--queue is an option of --on"),
        (["--num_slices", "2"], "--num_slices is an option of --on and --compile_only"),
        ([*COMPILE, "--spot"], "--spot is an option of --on"),
        ([*COMPILE, "--emulate", "8"], "--emulate is for a run on this machine"),
        ([*QUEUED, "--emulate", "8"], "--emulate is for a run on this machine"),
        ([*QUEUED, "--compilation_cache", "x"], "--compilation_cache is for a run on this machine"),
        ([*QUEUED, "--compile_only"], "--compile_only and --on cannot be used together"),
        ([*QUEUED, "--name", "X_Y"], "--name='X_Y' is not valid: "),
        ([*QUEUED, "--name", "a" * 64], "is not valid: start with a letter"),
        ([*QUEUED, "--name", "a b; c"], "--name='a b; c' is not valid"),
        ([*QUEUED, "--zone", "us east"], "--zone='us east' is not valid"),
        ([*QUEUED, "--project=-a"], "--project='-a' is not valid"),
        ([*QUEUED, "--workdir", "gs://"], "'gs://' names no bucket"),
        ([*GKE, "--workdir", "gs:///x"], "'gs:///x' names no bucket"),
        ([*GKE, "--queue", "a b"], "--queue='a b' is not valid"),
        ([*GKE, "--image", "a b"], "--image='a b' is not valid"),
    ],
)
def test_odd_options_of_the_launcher_are_one_line(options, message, capsys):
    assert tpu.main([*TINY, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error, error


@pytest.mark.parametrize("stage, names", [("eval", "forward"), ("rl", "forward, reference_logps")])
def test_a_stage_compiles_without_the_sections_of_others(stage, names, tmp_path, capsys):
    file = tmp_path / "own.py"
    deleted = {"rft", "rl", "meta_rm"} - {stage}
    file.write_text(
        "from experiments.spct_tiny import get_config as base\ndef get_config():\n"
        f"    config = base().unlock()\n    config.stages = ({stage!r},)\n"
        + "".join(f"    del config.{name}\n" for name in sorted(deleted))
        + "    return config\n"
    )
    command = ["--config", str(file), *COMPILE, "--programs", "x", "--workdir", str(tmp_path)]
    assert tpu.main(command) == 2
    assert f"unknown program 'x': use one of {names}" in capsys.readouterr().err


@pytest.mark.parametrize("code", ["get_config = min", "get_config = dict", "get_config = print"])
def test_functions_without_a_signature_are_one_line_with_the_file(code, tmp_path):
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(LaunchError, match="own.py"):
        configs.load(str(tmp_path / "own.py"), {})


def test_a_class_is_no_config(tmp_path):
    text = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict\n"
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(LaunchError, match="returned type: return an ml_collections.ConfigDict"):
        configs.load(str(tmp_path / "own.py"), {})


def test_own_data_takes_the_name_of_a_model():
    config = configs.load("experiments/own_data.py", {"model": "tiny_gemma2"})
    assert config.model == "tiny_gemma2" and config.model_overrides.remat == ""


def test_a_share_below_1_is_named_as_such():
    with pytest.raises(ValueError, match="held_out_share=1.0: use more than 0 and less than 1"):
        configs.load("experiments/own_data.py", {"data.held_out_share": "1"})
