"""The entry point: errors in one line, checks, runs on this machine."""

import json
import subprocess
import sys
import textwrap
import time
import types
import unittest.mock
from pathlib import Path

import pytest

from grm_jax import hub as hubs
from grm_jax.training.errors import MissingInputs
from launch import checks, config as configs, tpu
from launch.errors import LaunchError

ROOT = Path(__file__).resolve().parents[2]
TINY = "experiments/spct_tiny.py"


@pytest.mark.parametrize(
    "arguments, error",
    [
        ("--config experiments/spct_tny.py", "does not exist: did you mean experiments/spct_tiny"),
        ("--config experiments/zzz.py", "use one of experiments/"),
        ("TINY --config.rl.betta=1", "rl.betta does not exist: did you mean config.rl.beta?"),
        ("TINY --config.batchsize 8", "batchsize does not exist: did you mean config.batch_size"),
        ("TINY --config.model_overrides.qury_chunk=8",
         "did you mean config.model_overrides.query_chunk"),
        ("TINY --config.batch_size=many", "config.batch_size='many' is not a whole number: it is"),
        ("TINY --config.tensorboard=perhaps", "is not a boolean: use true or false"),
        ("TINY --config.rl=3", "config.rl is a section"),
        ("TINY --config.rl.beta", "has no value: write --config.rl.beta=VALUE"),
        ("TINY:nope", "'nope' is neither an ablation"),
        ("TINY --wrkdir x", "unknown option '--wrkdir': did you mean --workdir?"),
        ("", "arguments are required: --config"),
        ("TINY --compile_only", "--compile_only needs --slice TYPE"),
        ("TINY --compile-only", "--compile_only needs --slice TYPE"),
        ("TINY --config.rl.group-size=x", "config.rl.group_size='x' is not a whole number"),
        ("TINY --slice v5p-64", "--slice is an option of --compile_only: add that, or remove"),
        ("TINY --overwrite", "--overwrite is an option of --compile_only"),
        ("TINY --compile_only --slice v5p-100", "slice 'v5p-100' does not exist"),
        ("TINY --compile_only --slice v5p-8 --config.mesh.fsdp=3",
         "mesh data=1 x fsdp=3 x tensor=1 does not make 4"),
        ("TINY --config.mesh.fsdp=3", "does not make 8 devices"),
        ("TINY --config.mesh.tensor=8", "mesh tensor=8 does not divide the 2 KV heads"),
        ("TINY --config.batch_size=12",
         "config.batch_size=12 does not divide over mesh data x fsdp = 8: use a multiple of 8"),
        ("TINY --config.rl.prompts=2", "rl.prompts=2 does not divide over mesh data x fsdp = 8"),
        ("TINY --process_id 1", "--coordinator and --num_processes missing"),
    ],
)  # fmt: skip
def test_a_wrong_command_prints_one_line_and_exits_with_2(arguments, error, refused):
    arguments = arguments.replace("TINY", f"--config {TINY}")
    assert error in refused(arguments.split())


def test_a_wrong_command_fails_before_jax_is_imported():
    check = f"""
        import runpy, sys
        sys.argv = ["tpu.py", "--config", "no.py"]
        try:
            runpy.run_path({str(ROOT / "launch/tpu.py")!r}, run_name="__main__")
        except SystemExit as end:
            print(end.code, "jax" in sys.modules)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(check)], capture_output=True, text=True, cwd="/"
    )
    assert out.stdout.split() == ["2", "False"]


@pytest.fixture
def weights(tmp_path):
    """A folder with weights of tiny_gemma2, five layers."""
    from flax import nnx

    from grm_jax import checkpoints
    from grm_jax.models import build_model, get_config

    checkpoints.save(build_model(get_config("tiny_gemma2"), nnx.Rngs(0)), tmp_path / "weights")
    return tmp_path / "weights"


EMULATED = """
import sys
import jax  # as an experiment's file may do

sys.path.insert(0, ".")
from grm_jax.training import main
from launch import tpu

main.prepare = lambda config, workdir: None
main.train = lambda shared: print(len(jax.devices()), jax.config.jax_platforms)
config = "experiments/spct_tiny.py"
sys.exit(tpu.main(["--config", config, "--emulate", "4", "--workdir", sys.argv[1]]))
"""


def test_emulated_devices_do_not_use_the_chips(tmp_path):
    import os

    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_PLATFORMS", "XLA_FLAGS")
    }
    command = [sys.executable, "-c", EMULATED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (0, "4 cpu\n"), done.stderr[-2000:]
    assert "Unable to initialize backend" not in done.stderr


def test_weights_of_another_model_are_refused_before_the_workdir_is_created(
    experiment, weights, tmp_path, refused
):
    arguments = ["--config", experiment, "--config.mesh.fsdp=8", "--workdir", str(tmp_path / "w")]
    error = refused([*arguments, f"--config.init={weights}"])
    assert "does not hold tiny_gemma2 (2 layers of width 32). unexpected: model.layers.2." in error
    assert "config.init names no-such, which does not exist or is not readable" in refused(
        [*arguments, "--config.init=no-such"]
    )
    assert not (tmp_path / "w").exists()


def test_weights_of_the_same_model_are_accepted(experiment, weights):
    overrides = {"init": str(weights), "mesh.fsdp": "8", "model_overrides.num_layers": "5"}
    checks.check_initial_weights(configs.load(experiment, overrides))


def test_a_workdir_with_checkpoints_of_another_model_is_refused(tmp_path, refused):
    config = configs.load(TINY, {"model_overrides.d_model": "64"})
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    arguments = ["--config", TINY, "--workdir", str(tmp_path)]
    error = f"{tmp_path} belongs to another run: d_model was 64 and is 128. Use another workdir"
    assert error in refused(arguments)
    error = "belongs to another run: name was 'spct_tiny' and is 'other', d_model"
    assert error in refused([*arguments, "--config.name=other"])
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_overrides"]["d_model"] == 64  # unchanged


def test_a_workdir_that_is_not_writable_is_refused(tmp_path, refused):
    (tmp_path / "file").write_text("")
    arguments = ["--config", TINY, "--workdir", str(tmp_path / "file")]
    assert f"--workdir={tmp_path}/file is not writable: [Errno 17] File exists" in refused(
        arguments
    )


@pytest.mark.parametrize(
    "mkdir, patience, error",
    [
        (lambda: time.sleep(300), 0.3, "no answer within 0 s"),
        (lambda: 1 / 0, 60, "division by zero"),
        (lambda: None, 60, None),
    ],
)
def test_a_bucket_that_does_not_answer_times_out(mkdir, patience, error, monkeypatch):
    from grm_jax import storage

    bucket = unittest.mock.MagicMock()
    bucket.mkdir = lambda parents, exist_ok: mkdir()
    monkeypatch.setattr(storage, "as_path", lambda path: bucket)
    if error is None:
        checks.check_workdir("gs://b/x")
    else:
        with pytest.raises(
            LaunchError, match=f"--workdir=gs://b/x is not writable: {error}; check its name"
        ):
            checks.check_workdir("gs://b/x", patience=patience)


def test_checkpoints_of_another_run_are_refused_in_one_line(
    experiment, tmp_path, refused, monkeypatch
):
    from grm_jax.training import checkpoint, main

    def fail(*_):
        raise checkpoint.CheckpointError(
            "the checkpoints in x are of another run: use\nanother workdir"
        )

    arguments = ["--config", experiment, "--config.mesh.fsdp=8", "--workdir", str(tmp_path)]
    monkeypatch.setattr(main, "prepare", fail)
    assert "are of another run: use another workdir" in refused(arguments)
    monkeypatch.setattr(main, "prepare", lambda config, workdir: None)
    monkeypatch.setattr(main, "train", fail)
    assert "are of another run: use another workdir" in refused(arguments)


@pytest.fixture
def fail_in(experiment, tmp_path, monkeypatch):
    """Returns the arguments of a run whose `prepare` or `train` raises an error."""
    from grm_jax.training import main

    def arguments(phase, error):
        def fail(*_):
            raise error

        monkeypatch.setattr(main, "prepare", lambda config, workdir: None)
        monkeypatch.setattr(main, phase, fail)
        return ["--config", experiment, "--config.mesh.fsdp=8", "--workdir", str(tmp_path)]

    return arguments


def test_an_error_of_the_data_prints_one_line_and_exits_with_1(fail_in, capsys):
    from grm_jax.run_store import IdentityMismatch
    from grm_jax.training import errors, rft_samplers

    for error in (
        rft_samplers.TooManyFailed([None] * 4, 0.05, "http://x answered 400: no\nmore"),
        rft_samplers.SamplingError("other\nfiles"),
        MemoryError("8 GiB\nneeded"),
        errors.TrainingError("all 8 prompts are too long:\nraise config.rl.prompt_len"),
        IdentityMismatch("the store was begun\nwith k = 8"),
    ):
        arguments = fail_in("train", error)
        assert tpu.main(arguments) == 1
        assert capsys.readouterr().err == f"launch: {' '.join(str(error).split())}\n"
        with pytest.raises(type(error)):
            tpu.main([*arguments, "--traceback"])


def test_ctrl_c_prints_one_line_and_exits_with_130(fail_in, capsys):
    assert tpu.main(fail_in("train", KeyboardInterrupt())) == 130
    message = "launch: interrupted: run the same command again to resume\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_a_bug_during_training_prints_its_traceback_and_exits_with_1(kind, fail_in, capsys):
    error = kind("shapes (2,) and (3,) differ")
    assert tpu.main(fail_in("train", error)) == 1
    printed = capsys.readouterr().err
    assert "Traceback (most recent call last)" in printed and ", in fail" in printed
    assert f"{kind.__name__}: shapes (2,) and (3,) differ" in printed


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_the_same_error_of_a_check_before_training_exits_with_2(kind, fail_in, refused):
    assert "launch: shapes differ" in refused(fail_in("prepare", kind("shapes differ")))


def test_the_argument_after_the_colon_reaches_the_experiment(experiment):
    assert configs.load(f"{experiment}:tiny_gemma3", {}).model == "tiny_gemma3"


def test_a_file_without_get_config_is_refused(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("a = 1\n")
    with pytest.raises(LaunchError, match="has no get_config"):
        configs.load(str(path), {})


@pytest.mark.parametrize("name, tpu_slice", [("27b", "v5p-64"), ("9b", "v5p-16")])
def test_a_machine_that_cannot_hold_the_experiment_answers_in_three_lines(name, tpu_slice, capsys):
    assert tpu.main(["--config", f"experiments/spct_{name}.py"]) == 2
    needs, here, ways, end = capsys.readouterr().err.split("\n")
    assert f"spct_{name} trains gemma2_{name}" in needs and f"a {tpu_slice} (docs/" in needs
    assert here.startswith("here: 8 x CPU") and not end
    assert f"--on queued-resource --accelerator {tpu_slice}" in ways
    assert f"--compile_only --slice {tpu_slice}" in ways and "experiments/spct_tiny.py" in ways


def test_a_cpu_is_named_as_too_small_for_an_experiment_of_a_slice_unless_emulated(experiment):
    config = configs.load(experiment, {})
    checks.check_machine(config)
    config.slice = "v5p-8"
    checks.check_machine(config, emulated=True)
    with pytest.raises(LaunchError, match="here: 8 x CPU, no accelerator"):
        checks.check_machine(config)


@pytest.mark.parametrize(
    "chips, gib, fits", [(8, 15.75, False), (4, 95.7, False), (32, 95.7, True)]
)
def test_a_slice_that_is_too_small_is_refused_by_its_memory(monkeypatch, chips, gib, fits):
    import jax

    stats = {"bytes_limit": int(gib * 2**30)}
    local = types.SimpleNamespace(memory_stats=lambda: stats)
    client = types.SimpleNamespace(local_devices=lambda: [local])
    chip = types.SimpleNamespace(platform="tpu", device_kind="TPU v5", client=client)
    monkeypatch.setattr(jax, "devices", lambda: [chip] * chips)
    config = configs.load("experiments/spct_27b.py", {})
    if fits:
        checks.check_machine(config)
    else:
        with pytest.raises(LaunchError, match=f"\nhere: {chips} x TPU v5, {chips * gib:,.0f} GiB"):
            checks.check_machine(config)


def test_all_missing_and_gated_inputs_are_in_one_message(hub, tmp_path, capsys, monkeypatch):
    hub.add("google/gemma-2-27b", {"config.json": b"{}", "model.safetensors": b""}, gated=True)
    hub.add("org/sampler", {"config.json": b"{}", "model.safetensors": b"12"})
    overrides = {"rft.sampling.path": "org/sampler", "data.folder": str(tmp_path), "stages": "rft"}
    config = configs.load("experiments/spct_27b.py", overrides)
    with pytest.raises(MissingInputs) as caught:
        checks.check_inputs(config, str(tmp_path / "work"))
    title, first, *others = str(caught.value).split("\n")
    assert title == f"{len(others) + 1} inputs are missing:"
    page = "https://huggingface.co/google/gemma-2-27b"
    assert f"config.init: google/gemma-2-27b is gated: accept its terms at {page}" in first
    assert "org/sampler" not in str(caught.value) and "config.data.general" in others[-1]
    tpu._print_error(caught.value)
    assert capsys.readouterr().err.count("\n") == len(others) + 2
    assert "model.safetensors" not in hub.downloads()
    monkeypatch.setattr(hubs.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1))
    with pytest.raises(MissingInputs, match="the download needs 0.0 GB in .* set HF_HOME"):
        checks.check_inputs(config, str(tmp_path / "work"))


def test_workers_that_check_one_new_workdir_at_once_do_not_disturb_each_other(tmp_path):
    import threading

    errors = []

    def check(folder):
        try:
            checks.check_workdir(str(folder))
        except LaunchError as error:
            errors.append(str(error))

    for i in range(40):
        threads = [threading.Thread(target=check, args=(tmp_path / str(i),)) for _ in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert not errors
