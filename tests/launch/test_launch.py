"""The entry point: what it refuses, in one line; what it compiles; what it starts."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launch import checks, tpu
from launch import config as configs
from launch.compile import programs
from launch.errors import LaunchError

ROOT = Path(__file__).resolve().parents[2]
TINY = "experiments/spct_tiny.py"

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config(arg: str = ""):
    return ConfigDict({
        "name": "toy", "stages": ("rft",), "model": arg or "tiny_gemma2", "model_overrides": {"remat": "full", "num_layers": 2},
        "mesh": {"data": 1, "fsdp": 4, "tensor": 1}, "seq_len": 64, "batch_size": 8, "note": None, "init": "", "tensorboard": True,
        "rft": {"lr": 1e-3, "steps": 10, "warmup_steps": 0, "schedule": "constant", "final_lr_share": 0.0, "b1": 0.9, "b2": 0.95,
                "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0, "micro_batches": 1},
    })
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--config", "experiments/spct_tny.py"], "'experiments/spct_tny.py' does not exist: did you mean experiments/spct_tiny.py"),
        (["--config", "experiments/zzz.py"], "use one of experiments/"),
        (["--config", TINY, "--config.rl.betta=1"], "config.rl.betta does not exist: did you mean config.rl.beta?"),
        (["--config", TINY, "--config.batchsize", "8"], "config.batchsize does not exist: did you mean config.batch_size"),
        (["--config", TINY, "--config.model_overrides.qury_chunk=8"], "did you mean config.model_overrides.query_chunk"),
        (["--config", TINY, "--config.batch_size=many"], "config.batch_size='many' is not a whole number: it is"),
        (["--config", TINY, "--config.tensorboard=perhaps"], "is not a boolean: use true or false"),
        (["--config", TINY, "--config.rl=3"], "config.rl is a section"),
        (["--config", TINY, "--config.rl.beta"], "has no value: write --config.rl.beta=VALUE"),
        (["--config", f"{TINY}:nope"], "'nope' is neither an ablation"),
        (["--config", TINY, "--wrkdir", "x"], "unknown option '--wrkdir': did you mean --workdir?"),
        ([], "arguments are required: --config"),
        (["--config", TINY, "--compile_only"], "--compile_only needs --slice TYPE"),
        (["--config", TINY, "--compile_only", "--slice", "v5p-100"], "slice 'v5p-100' does not exist"),
        (["--config", TINY, "--compile_only", "--slice", "v5p-8", "--config.mesh.fsdp=3"], "mesh data=1 x fsdp=3 x tensor=1 does not make 4"),
        (["--config", TINY, "--config.mesh.fsdp=3"], "does not make 8 devices"),
        (["--config", TINY, "--config.mesh.tensor=8"], "mesh tensor=8 does not divide the 2 KV heads"),
        (["--config", TINY, "--config.batch_size=12"], "config.batch_size=12 does not divide over mesh data x fsdp = 8: use a multiple of 8"),
        (["--config", TINY, "--config.rl.prompts=2"], "config.rl.prompts=2 does not divide over mesh data x fsdp = 8"),
        (["--config", TINY, "--process_id", "1"], "--coordinator and --num_processes missing"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_status_2(words, said, capsys):
    assert tpu.main(words) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1 and captured.err.startswith("launch: ")


def test_a_wrong_command_is_quick_and_allocates_nothing():
    """As a user runs it: from anywhere, without the package's heavy imports."""
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


def refused(words, capsys) -> str:
    """The one line that a wrong command prints."""
    assert tpu.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("launch: "), captured.err
    return captured.err


@pytest.fixture
def weights(tmp_path):
    """A folder with the weights of tiny_gemma2 in five layers."""
    from flax import nnx

    from grm_jax import checkpoints
    from grm_jax.models import build_model, get_config

    checkpoints.save(build_model(get_config("tiny_gemma2"), nnx.Rngs(0)), tmp_path / "weights")
    return tmp_path / "weights"


EMULATED = """
import sys
import jax  # as an experiment's file does

sys.path.insert(0, ".")
from grm_jax.training import main
from launch import tpu

main.run = lambda config, workdir: print(len(jax.devices()), jax.config.jax_platforms)
sys.exit(tpu.main(["--config", "experiments/spct_tiny.py", "--emulate", "4", "--workdir", sys.argv[1]]))
"""


def test_emulated_devices_leave_the_chips_alone(tmp_path):
    import os

    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_PLATFORMS", "XLA_FLAGS")
    }
    words = [sys.executable, "-c", EMULATED, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (0, "4 cpu\n"), done.stderr[-2000:]
    assert "Unable to initialize backend" not in done.stderr


def test_weights_of_another_model_are_refused_before_anything_is_made(
    experiment, weights, tmp_path, capsys
):
    words = ["--config", experiment, "--config.mesh.fsdp=8", "--workdir", str(tmp_path / "w")]
    said = refused([*words, f"--config.init={weights}"], capsys)
    assert "does not hold a tiny_gemma2 (2 layers of width 32). unexpected: model.layers.2." in said
    assert "no-such does not exist: give a Hugging Face folder" in refused(
        [*words, "--config.init=no-such"], capsys
    )
    assert not (tmp_path / "w").exists()


def test_the_weights_of_the_model_itself_pass(experiment, weights):
    overrides = {"init": str(weights), "mesh.fsdp": "8", "model_overrides.num_layers": "5"}
    checks.check_initial_weights(configs.load(experiment, overrides))


def test_a_workdir_with_checkpoints_of_another_model(tmp_path, capsys):
    config = configs.load(TINY, {"model_overrides.d_model": "64"})
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    words = ["--config", TINY, "--workdir", str(tmp_path)]
    assert (
        f"{tmp_path} belongs to another run: d_model was 64 and is 128. Use another workdir"
        in refused(words, capsys)
    )
    assert "belongs to another run: name was 'spct_tiny' and is 'other', d_model" in refused(
        [*words, "--config.name=other"], capsys
    )
    assert (
        json.loads((tmp_path / "config.json").read_text())["model_overrides"]["d_model"] == 64
    )  # and is left as it was


def test_a_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["--config", TINY, "--workdir", str(tmp_path / "file")]
    assert f"--workdir={tmp_path}/file is not writable: [Errno 17] File exists" in refused(
        words, capsys
    )


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda: time.sleep(30), "no answer within 0 s"),
        (lambda: 1 / 0, "division by zero"),
        (lambda: None, None),
    ],
)
def test_a_bucket_that_does_not_answer_is_not_waited_for(answer, said, monkeypatch):
    from grm_jax import storage

    class Bucket:
        def mkdir(self, parents, exist_ok):
            return answer()

    monkeypatch.setattr(storage, "as_path", lambda path: Bucket())
    if said is None:
        checks.check_workdir("gs://b/x")
    else:
        with pytest.raises(
            LaunchError, match=f"--workdir=gs://b/x is not writable: {said}; check its name"
        ):
            checks.check_workdir("gs://b/x", patience=0.3)


def test_checkpoints_of_another_run_are_one_line(experiment, tmp_path, capsys, monkeypatch):
    from grm_jax.training import checkpoint, main

    def run(config, workdir):
        raise checkpoint.CheckpointError(
            "the checkpoints in x are of another run: use\nanother workdir"
        )

    monkeypatch.setattr(main, "run", run)
    words = ["--config", experiment, "--config.mesh.fsdp=8", "--workdir", str(tmp_path)]
    assert "are of another run: use another workdir" in refused(words, capsys)


def test_what_sampling_cannot_do_is_one_line_and_status_1(
    experiment, tmp_path, capsys, monkeypatch
):
    from grm_jax.training import main, rft_samplers

    words = ["--config", experiment, "--config.mesh.fsdp=8", "--workdir", str(tmp_path)]
    failed = rft_samplers.TooManyFailed([None], 4, 4, 0.05, "http://x answered 400: no\nmore")
    for error in (failed, rft_samplers.SamplingError("other\nfiles"), MemoryError("8 GiB\nneeded")):

        def run(config, workdir, error=error):
            raise error

        monkeypatch.setattr(main, "run", run)
        assert tpu.main(words) == 1
        assert capsys.readouterr().err == f"launch: {' '.join(str(error).split())}\n"
        with pytest.raises(type(error)):
            tpu.main([*words, "--traceback"])


def test_what_stays_beside_each_program_of_rl_is_counted():
    import jax

    from grm_jax.sharding import make_mesh

    config = configs.load(TINY, {"rl.reference_dtype": "bfloat16", "mesh.fsdp": "1"})
    found = {t.name: t for t in programs.tasks(config, make_mesh(devices=jax.devices()[:1]))}
    floats = sum(x.size for x in jax.tree.leaves(found["sft_update"].args[0]["params"]))
    assert found["sft_update"].resident == found["meta_rm_update"].resident == 0
    assert (
        12 * floats <= found["reference_logps"].resident < 12 * floats + 1000
    )  # weights and two moments in float32
    assert 2 * floats <= found["grpo_update"].resident < 2.1 * floats  # norm scales stay in float32


def test_overrides_keep_the_kind_of_the_field(experiment):
    changed = configs.load(
        experiment,
        {"batch_size": "32", "rft.lr": "3e-4", "stages": "rft,rl", "init": "gs://b/x:1", "note": "7", "tensorboard": "no",
         "rft.weight_decay": "1", "model_overrides.query_chunk": "128"},
    )  # fmt: skip
    assert (changed.batch_size, changed.rft.lr, changed.stages, changed.init) == (
        32,
        3e-4,
        ("rft", "rl"),
        "gs://b/x:1",
    )
    assert (
        changed.note,
        changed.tensorboard,
        changed.rft.weight_decay,
        changed.model_overrides.query_chunk,
    ) == (7, False, 1.0, 128)
    assert isinstance(changed.rft.weight_decay, float)


def test_the_argument_after_the_colon_reaches_the_experiment(experiment):
    assert configs.load(f"{experiment}:tiny_gemma3", {}).model == "tiny_gemma3"


def test_a_file_that_is_no_experiment(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("a = 1\n")
    with pytest.raises(LaunchError, match="has no get_config"):
        configs.load(str(path), {})


def test_compile_only_writes_a_table(experiment, tmp_path, capsys):
    out = tmp_path / "result"
    words = ["--config", experiment, "--compile_only", "--slice", "v5litepod-4", "--out", str(out)]
    assert tpu.main(words) == 0
    assert "forward on v5litepod-4: compiled in" in capsys.readouterr().out
    forward, update = json.loads(out.with_suffix(".json").read_text())["results"]
    assert (forward["program"], update["program"], update["chips"]) == ("forward", "sft_update", 4)
    # Three forwards' worth and the rematerialised fourth; at this size what is masked in the attention weighs as much as the rest.
    assert 1.0 < update["flops"] / update["model_flops"] < 2.5
    # Float32 master weights and two moments, donated: what goes in comes out in the same place.
    assert update["aliased"] > 0.9 * update["outputs"] > 0
    assert update["peak"] >= update["arguments"] and 0 < update["headroom"] < 1
    assert update["ici_bytes"] and not update["dcn_bytes"] and update["roofline_seconds"] > 0
    assert "| sft_update | v5litepod-4 | 1 x 4 x 1 |" in out.with_suffix(".md").read_text()


def test_rollouts_are_compiled_beside_the_training_state():
    import jax

    from experiments import spct_tiny
    from launch.compile import compile_only, slices

    config = spct_tiny.get_config()
    config.mesh = dict(data=1, fsdp=2, tensor=2)
    hbm = slices.get_slice("v5litepod-4").generation.hbm_bytes
    mesh = programs.make_slice_mesh(config, "v5litepod-4")
    assert "rollout_decode" not in {task.name for task in programs.tasks(config, mesh)}
    tasks = programs.tasks(config, mesh, ["rollout_prefill", "rollout_decode"], hbm)
    # The weights of decoding are whole along fsdp, and those of training stay beside them.
    assert not any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(tasks[0].args[0]))
    prefill, decode = compile_only.compile_tasks(tasks, "v5litepod-4")
    assert (
        prefill.resident == decode.resident > 0
        and decode.peak > decode.resident + decode.arguments > 0
    )
    assert (
        decode.tokens == config.rl.prompts * config.rl.group_size
    )  # all at once: an accelerator wants the rows
    # One step of the loop, not the program with its whole bound; the rings and prefixes of a small model weigh as much as its weights.
    assert (
        0.5 < decode.flops / decode.model_flops < 3
        and 0.5 < prefill.flops / prefill.model_flops < 3
    )


def test_two_slices_talk_only_in_reductions(experiment, tmp_path):
    """Data parallel across slices: what crosses is one all-reduce of the gradients, about the parameters' bytes, and a few scalars."""
    out = tmp_path / "result"
    words = [
        "--config",
        experiment,
        "--config.mesh.data=2",
        "--compile_only",
        "--slice",
        "v5litepod-4",
        "--num_slices",
        "2",
    ]
    assert tpu.main([*words, "--programs", "sft_update", "--out", str(out)]) == 0
    (update,) = json.loads(out.with_suffix(".json").read_text())["results"]
    assert set(update["dcn_bytes"]) == {"all-reduce"}
    from grm_jax.models import get_config

    gradients = 4 * get_config("tiny_gemma2", num_layers=2).num_params
    assert (
        gradients / 4 < update["dcn_bytes"]["all-reduce"] < 4 * gradients
    )  # whole tiles are sent: small arrays swell
    assert update["dcn_seconds"] > 0


def test_slices_that_a_mesh_would_tear_apart_are_refused(experiment, capsys):
    words = [
        "--config",
        experiment,
        "--config.mesh.fsdp=8",
        "--compile_only",
        "--slice",
        "v5litepod-4",
        "--num_slices",
        "2",
    ]
    assert tpu.main(words) == 2
    assert "mesh data=1 is not a multiple of the 2 slices" in capsys.readouterr().err


def test_a_program_that_does_not_fit_is_said_and_is_status_1(experiment, capsys, tmp_path):
    words = [
        "--config",
        experiment,
        "--compile_only",
        "--slice",
        "v5litepod-1",
        "--config.mesh.fsdp=1",
        "--programs",
        "forward",
    ]
    large = [
        "--config.model_overrides.d_ff=2097152",
        "--config.model_overrides.num_layers=60",
        "--out",
        str(tmp_path / "r"),
    ]
    assert tpu.main([*words, *large]) == 1
    out = capsys.readouterr().out
    assert "does not fit: the arguments alone need" in out and "v5litepod-1 has 15.75" in out
    (row,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert row["peak"] > row["hbm_available"] and row["error"]


def test_the_compiler_is_asked_where_the_arguments_fit():
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from launch.compile.compile_only import Task, compile_task
    from launch.compile.slices import slice_devices

    mesh = Mesh(np.array(slice_devices("v5litepod-1")), ("x",))
    x = jax.ShapeDtypeStruct(
        (2**10, 2**20), "float32", sharding=NamedSharding(mesh, PartitionSpec())
    )
    result = compile_task(
        Task("swell", jax.jit(lambda x: [x * i for i in range(5)]), (x,), mesh), "v5litepod-1"
    )
    assert "does not fit: the program needs" in result.error
    assert result.peak > result.hbm_available > result.arguments == 2**32
    # Here the compiler sees nothing wrong: it does not know what else lies there.
    resident = result.hbm_available - 2**32 - 2**20
    result = compile_task(
        Task("twice", jax.jit(lambda x: x * 2), (x,), mesh, resident=resident), "v5litepod-1"
    )
    assert (
        "does not fit: the program and the resident arrays need" in result.error
        and result.headroom < 0
    )


def test_a_machine_without_the_tpu_compiler(experiment, monkeypatch, capsys):
    from jax.experimental import topologies

    def absent(**_):
        raise RuntimeError("no libtpu\nand a trace")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    said = refused(["--config", experiment, "--compile_only", "--slice", "v5litepod-4"], capsys)
    assert (
        "the TPU compiler rejects v5litepod-4 (v5e:2x2): no libtpu; compiling for a slice needs libtpu, on Linux: pip install"
        in said
    )


def test_an_unknown_program_is_refused(experiment, capsys):
    assert (
        tpu.main(
            [
                "--config",
                experiment,
                "--compile_only",
                "--slice",
                "v5litepod-4",
                "--programs",
                "grpo",
            ]
        )
        == 2
    )
    assert "unknown program 'grpo': use one of forward, sft_update" in capsys.readouterr().err


def test_attention_flops_are_the_visible_pairs():
    from grm_jax.models import get_config

    cfg = get_config(
        "tiny_gemma2"
    )  # five layers, alternating window 6 and the whole past; 8 heads of 8
    window, whole = 1 + 2 + 3 + 4 + 5 + 6 + 6 + 6, 36
    assert programs.attention_flops(cfg, 8) == 4 * 8 * 8 * (3 * window + 2 * whole)


def test_training_is_three_forwards():
    from grm_jax.models import get_config

    cfg = get_config("gemma2_27b")
    forward = programs.model_flops(cfg, 1, 4096, False)
    assert programs.model_flops(cfg, 1, 4096, True) == 3 * forward
    assert forward == pytest.approx(2 * 27.2e9 * 4096 * 1.03, rel=0.01)
