"""Compile-only: figures of an experiment's programs on a slice, memory limits, FLOP formulas."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grm_jax.models import get_config
from grm_jax.sampling import Request
from grm_jax.sharding import make_mesh
from launch import config as configs, tpu
from launch.compile import compile_only, programs, results, slices
from launch.compile.compile_only import Task, compile_task

TINY = "experiments/spct_tiny.py"
ROOT = Path(__file__).resolve().parents[3]


def compile_for(slice_name, experiment):
    return ["--config", experiment, "--compile_only", "--slice", slice_name]


def test_compile_only_writes_a_table(experiment, tmp_path, capsys):
    out = tmp_path / "result"
    assert tpu.main([*compile_for("v5litepod-4", experiment), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2: forward on v5litepod-4: compiled in" in printed
    assert "2 of 2: sft_update on v5litepod-4: compiled in" in printed
    assert "earlier run" not in printed
    forward, update = json.loads(out.with_suffix(".json").read_text())["results"]
    assert (forward["program"], update["program"], update["chips"]) == ("forward", "sft_update", 4)
    # Three forwards and one rematerialised; at this size masked attention costs as much again.
    assert 1.0 < update["flops"] / update["model_flops"] < 2.5
    # Float32 master weights and two moments are donated: the outputs reuse their memory.
    assert update["aliased"] > 0.9 * update["outputs"] > 0
    assert update["peak"] >= update["arguments"] and 0 < update["headroom"] < 1
    assert update["ici_bytes"] and not update["dcn_bytes"] and update["roofline_seconds"] > 0
    assert "| sft_update | v5litepod-4 | 1 x 4 x 1 |" in out.with_suffix(".md").read_text()


def test_rollouts_compile_with_a_resident_training_state():
    config = configs.load(TINY, {})
    config.mesh = dict(data=1, fsdp=2, tensor=2)
    hbm = slices.get_slice("v5litepod-4").generation.hbm_bytes
    mesh = programs.make_slice_mesh(config, "v5litepod-4")
    assert "rollout_decode" not in {task.name for task in programs.tasks(config, mesh)}
    tasks = programs.tasks(config, mesh, ["rollout_prefill", "rollout_decode"], hbm)
    # Decoding replicates weights along fsdp; the training state stays resident.
    assert not any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(tasks[0].args[0]))
    # Rollouts use neither top-p nor top-k.
    assert [task.cheapest_branches for task in tasks] == [False, True]
    prefill, decode = compile_only.compile_tasks(tasks, "v5litepod-4")
    assert (
        prefill.resident == decode.resident > 0
        and decode.peak > decode.resident + decode.arguments > 0
    )
    assert decode.tokens == config.rl.prompts * config.rl.group_size  # one batch
    # One iteration of the loop; the caches of a small model are as large as its weights.
    assert (
        0.5 < decode.flops / decode.model_flops < 3
        and 0.5 < prefill.flops / prefill.model_flops < 3
    )


def test_only_programs_with_a_backward_pass_choose_their_recomputation():
    config = configs.load(TINY, {"model_overrides.remat": "auto"})
    config.mesh = dict(data=1, fsdp=2, tensor=2)
    mesh, stages = programs.make_slice_mesh(config, "v5litepod-4"), []

    def settle(config, stage):
        stages.append(stage)
        return config

    hbm = slices.get_slice("v5litepod-4").generation.hbm_bytes
    programs.tasks(config, mesh, ["rollout_prefill", "rollout_decode"], hbm, settle)
    assert stages == []
    programs.tasks(config, mesh, ["reference_logps", "sft_update"], hbm, settle)
    assert stages == ["rft", "rl"]


def test_a_stage_takes_the_policy_whose_compiled_update_fits(monkeypatch):
    config = configs.load(TINY, {"model_overrides.remat": "auto"})
    config.mesh = dict(data=1, fsdp=2, tensor=2)
    mesh, compiled, lines = programs.make_slice_mesh(config, "v5litepod-4"), [], []
    hbm = slices.get_slice("v5litepod-4").generation.hbm_bytes

    def compile_tasks(tasks, slice_name, num_slices, report, store):
        compiled.append(tasks[0].name)
        result = results.Result(tasks[0].name, slice_name, 1, 4, {}, hbm_available=hbm)
        result.set_peak(hbm // 2 if len(compiled) > 1 else hbm)
        return [result]

    monkeypatch.setattr(programs, "compile_tasks", compile_tasks)
    settle = programs.settle_by_compiling(mesh, "v5litepod-4", report=lines.append)
    chosen = settle(config, "meta_rm")
    # "products" takes all of the HBM, "full" fits, and then so does what saves most beside it.
    assert compiled == ["meta_rm_update"] * 3
    assert chosen.model_overrides.remat == "mlp"
    assert lines[-1].startswith("meta_rm: remat=mlp, micro_rows=")
    assert "peak 7.9 of 15.8 GiB per device; compiled 3 of 4 choices" in lines[-1]


def test_other_arrays_on_a_chip_leave_a_smaller_batch():
    config = configs.load(TINY, {})
    config.model, config.model_overrides = "qwen3_8b", {}
    config.mesh = dict(data=1, fsdp=1, tensor=4)
    mesh = programs.make_slice_mesh(config, "v5litepod-4")
    cfg, requests = get_config(config.model), [Request([0] * 2048, 8, 1024)] * 64
    hbm = slices.get_slice("v5litepod-4").generation.hbm_bytes
    for resident, rows in ((0, 128), (4 << 30, 64)):
        decode = programs.sampler_tasks(cfg, mesh, requests, hbm, resident=resident)[1]
        assert (decode.tokens, decode.resident) == (rows, resident)


def test_slices_exchange_only_gradients_and_scalars(experiment, tmp_path):
    """Data parallelism across slices: one all-reduce, about as large as the parameters."""
    out = tmp_path / "result"
    arguments = [*compile_for("v5litepod-4", experiment), "--num_slices", "2"]
    more = ["--config.mesh.data=2", "--programs", "sft_update", "--out", str(out)]
    assert tpu.main([*arguments, *more]) == 0
    (update,) = json.loads(out.with_suffix(".json").read_text())["results"]
    assert set(update["dcn_bytes"]) == {"all-reduce"}
    gradients = 4 * get_config("tiny_gemma2", num_layers=2).num_params
    # Small arrays are padded to whole tiles.
    assert gradients / 4 < update["dcn_bytes"]["all-reduce"] < 4 * gradients
    assert update["dcn_seconds"] > 0


def test_a_mesh_whose_fsdp_spans_slices_is_refused(experiment, refused):
    arguments = [*compile_for("v5litepod-4", experiment), "--num_slices", "2"]
    error = refused([*arguments, "--config.mesh.fsdp=8"])
    assert "mesh data=1 is not a multiple of the 2 slices" in error


def test_a_program_that_does_not_fit_is_reported_and_exits_with_1(experiment, capsys, tmp_path):
    arguments = [*compile_for("v5litepod-1", experiment), "--programs", "forward"]
    large = {"mesh.fsdp": 1, "model_overrides.d_ff": 2097152, "model_overrides.num_layers": 60}
    arguments += [f"--config.{field}={value}" for field, value in large.items()]
    assert tpu.main([*arguments, "--out", str(tmp_path / "r")]) == 1
    out = capsys.readouterr().out
    assert "does not fit: the arguments alone need" in out and "v5litepod-1 has 15.75" in out
    (result,) = json.loads((tmp_path / "r.json").read_text())["results"]
    assert result["peak"] > result["hbm_available"] and result["error"]


def test_a_program_whose_arguments_fit_can_still_exceed_the_hbm():
    mesh = Mesh(np.array(slices.slice_devices("v5litepod-1")), ("x",))
    x = jax.ShapeDtypeStruct(
        (2**10, 2**20), "float32", sharding=NamedSharding(mesh, PartitionSpec())
    )
    result = compile_task(
        Task("grow", jax.jit(lambda x: [x * i for i in range(5)]), (x,), mesh), "v5litepod-1"
    )
    assert "does not fit: the program needs" in result.error
    assert result.peak > result.hbm_available > result.arguments == 2**32
    # The compiler accepts this program: it ignores resident arrays.
    resident = result.hbm_available - 2**32 - 2**20
    result = compile_task(
        Task("twice", jax.jit(lambda x: x * 2), (x,), mesh, resident=resident), "v5litepod-1"
    )
    assert "does not fit: the program and the resident arrays need" in result.error
    assert result.headroom < 0


def committed_cases():
    return json.loads((ROOT / "benchmarks/results/config_table.json").read_text())


@pytest.mark.parametrize("out", ["gemma2.5", "gemma2.5.json", "gemma2.5.md"])
def test_a_dot_in_the_name_of_the_result_files_is_kept(out, tmp_path):
    (row,) = [results.from_json(row) for row in committed_cases()[0]["programs"][:1]]
    files = results.write([row], tmp_path / out, {"what": "a test"})
    assert [file.name for file in files] == ["gemma2.5.json", "gemma2.5.md"]
    assert files[1].read_text().startswith("# gemma2.5\n")
    with results.open_store(tmp_path / out) as store:
        assert store.path.name == "gemma2.5.programs.jsonl"


def test_results_of_earlier_versions_are_read():
    """The committed tables have earlier names of some fields."""
    for case in committed_cases():
        read = {row["program"]: results.from_json(row) for row in case["programs"]}
        assert read["rollout_decode"].resident > 0
        if not case["config"].endswith("_lora"):  # of those, only the RL programs are compiled
            assert read["sft_update"].resident == 0


def test_the_printed_table_has_six_columns_and_fits_80_characters(capsys):
    hbm = 100 * slices.GIB
    large = results.Result("rollout_prefill", "v5p-64", 1, 32, {}, hbm_available=hbm)
    large.set_peak(20 * hbm)
    large.error, large.compile_seconds = "does not fit", 3600
    for case in committed_cases():
        large.slice = case["slice"]
        rows = [*map(results.from_json, case["programs"]), large]
        results.print_table(rows)
        printed = capsys.readouterr().out.splitlines()
        assert re.split("  +", printed[1]) == [
            *("program", "fits", "peak of HBM", "roofline", "bound", "compile s")
        ]
        lines = printed[2 : 2 + len(rows)]
        assert [line.split()[0] for line in lines] == [row.program for row in rows]
        assert lines[-1].split()[1:5] == ["no", "2000.00", "of", "100.00"]
        assert max(map(len, printed)) <= 80
    large.slice = "v5p-64"
    results.print_table([large, results.from_json(case["programs"][0])])
    assert "slice" in capsys.readouterr().out  # only where there are several


# ---------------------------------------------------------------- resuming


def toy_tasks(*factors, slice_name="v5litepod-1", **figures):
    """Programs `x * factor`, one per factor."""
    mesh = Mesh(np.array(slices.slice_devices(slice_name)[:1]), ("x",))
    x = jax.ShapeDtypeStruct((8, 128), "float32", sharding=NamedSharding(mesh, PartitionSpec()))

    def task(factor):
        return Task(f"times_{factor}", jax.jit(lambda x: x * factor), (x,), mesh, **figures)

    return [task(factor) for factor in factors]


@pytest.fixture
def compiled(monkeypatch):
    """Names of the programs that the compiler has been given; times_9 is interrupted."""
    names = []
    compile_ = compile_only._compile

    def record(task, result, lowered):
        if task.name == "times_9":
            raise KeyboardInterrupt
        names.append(task.name)
        return compile_(task, result, lowered)

    monkeypatch.setattr(compile_only, "_compile", record)
    return names


def test_an_interrupted_run_resumes_with_the_programs_that_are_missing(tmp_path, capsys, compiled):
    def run(*factors, overwrite=False, **figures):
        with results.open_store(tmp_path / "out", overwrite) as store:
            tasks = toy_tasks(*factors, **figures)
            compiled_now = compile_only.compile_tasks(tasks, "v5litepod-1", store=store)
        return compiled_now, capsys.readouterr().out.splitlines()

    with pytest.raises(KeyboardInterrupt):
        run(2, 3, 9)
    assert capsys.readouterr().out.splitlines()[-1] == "3 of 3: times_9 on v5litepod-1: "
    first, _ = run(2, 3)
    again, lines = run(3, 4, 2)
    assert compiled == ["times_2", "times_3", "times_4"]
    assert lines[:2] == [
        "2 of 3 programs from an earlier run",
        "1 of 3: times_3 on v5litepod-1: compiled by an earlier run",
    ]
    assert lines[2].startswith("2 of 3: times_4 on v5litepod-1: compiled in ")
    assert [again[2], again[0]] == first  # every figure, compile times included
    run(2, resident=8)  # other figures
    run(2, overwrite=True)
    assert compiled[3:] == ["times_2", "times_2"]
    assert run(2)[1][0] == "1 of 1 programs from an earlier run"
    assert "1 of 1: times_3 on v5litepod-1: compiled in" in run(3)[1][0]  # overwritten


def test_the_key_of_a_program_covers_what_its_figures_depend_on(monkeypatch):
    def key(factor=2, slice_name="v5litepod-1", name="times", **figures):
        (task,) = toy_tasks(factor, slice_name=slice_name, **figures)
        task = dataclasses.replace(task, name=name)
        return compile_only.program_key(task, *compile_only._lower(task, slice_name, 1))

    first = key()
    assert key() == first  # another function object of the same program
    others = [key(3), key(slice_name="v6e-1"), key(name="other"), key(tokens=1), key(resident=1)]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_enable_latency_hiding_scheduler=false")
    others.append(key())
    monkeypatch.undo()
    monkeypatch.setattr(compile_only, "versions", lambda *names: "libtpu 9")
    others.append(key())
    monkeypatch.setattr(compile_only, "_source_digest", lambda: "edited")
    others.append(key())
    assert len({first, *others}) == 1 + len(others)


def test_every_module_is_in_the_key_or_needs_no_place_there():
    """results.py prints; what the others compute is in the key as values."""
    modules = {file.stem for file in (ROOT / "launch/compile").glob("*.py")}
    others = {"__init__", "results", "programs", "flops", "slices"}
    assert modules == others | set(compile_only.FIGURE_MODULES)


# Processes in the background of a shell ignore SIGINT.
RUN_IN_FOREGROUND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, ".")
from launch import tpu
sys.exit(tpu.main(sys.argv[1:]))
"""


def test_ctrl_c_ends_the_compiler_at_once_and_keeps_what_is_done(experiment, tmp_path, capsys):
    arguments = [*compile_for("v5litepod-4", experiment), "--out", str(tmp_path / "result")]
    command = [sys.executable, "-c", RUN_IN_FOREGROUND, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline().startswith("1 of 2: forward on v5litepod-4: compiled in ")
        assert process.stdout.read(8) == "2 of 2: "
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT
    assert not (tmp_path / "result.json").exists()
    assert tpu.main([*arguments, "--programs", "forward"]) == 0
    assert capsys.readouterr().out.startswith("1 of 1 programs from an earlier run\n")
    assert json.loads((tmp_path / "result.json").read_text())["results"][0]["flops"] > 0


def test_two_runs_cannot_write_one_store(experiment, tmp_path, refused):
    with results.open_store(tmp_path / "result"):
        arguments = [*compile_for("v5litepod-4", experiment), "--out", str(tmp_path / "result")]
        assert "is being written by another run: wait for it" in refused(arguments)


def test_compiling_without_libtpu_names_the_package_to_install(experiment, monkeypatch, refused):
    from jax.experimental import topologies

    def absent(**_):
        raise RuntimeError("no libtpu\nand a trace")

    monkeypatch.setattr(topologies, "get_topology_desc", absent)
    error = refused(compile_for("v5litepod-4", experiment))
    assert "the TPU compiler rejects v5litepod-4 (v5e:2x2): no libtpu; compiling" in error
    assert 'needs libtpu, on Linux: pip install -e ".[tpu]" in the clone' in error


def test_an_unknown_program_is_refused(experiment, refused):
    error = refused([*compile_for("v5litepod-4", experiment), "--programs", "grpo"])
    assert "unknown program 'grpo': use one of forward, sft_update" in error


def test_each_program_of_rl_counts_the_resident_arrays_of_the_others():
    config = configs.load(TINY, {"rl.reference_dtype": "bfloat16", "mesh.fsdp": "1"})
    tasks = {t.name: t for t in programs.tasks(config, make_mesh(devices=jax.devices()[:1]))}
    floats = sum(x.size for x in jax.tree.leaves(tasks["sft_update"].args[0]["params"]))
    assert tasks["sft_update"].resident == tasks["meta_rm_update"].resident == 0
    # Weights and two moments in float32; the reference in bfloat16, but for float32 norm scales.
    assert 12 * floats <= tasks["reference_logps"].resident < 12 * floats + 1000
    assert 2 * floats <= tasks["grpo_update"].resident < 2.1 * floats


def test_the_programs_of_a_policy_count_the_weights_of_the_judge_beside_them():
    config = configs.load("experiments/policy_world.py", {})
    mesh, hbm = make_mesh(devices=jax.devices()[:1]), 1 << 30
    served = {t.name: t for t in programs.tasks(config, mesh, hbm=hbm)}
    config.policy.judge = dict(source="colocated", path="", model="tiny_gemma2", quantize="int8")
    tasks = {t.name: t for t in programs.tasks(config, mesh, hbm=hbm)}
    assert tasks.keys() - served.keys() == {"judge_prefill", "judge_decode"}
    weights = get_config("tiny_gemma2").num_params  # int8, and scales; as loaded and as decoded
    for name in ("policy_reference_logps", "policy_grpo_update", "policy_rollout_decode"):
        assert 2 * weights < tasks[name].resident - served[name].resident < 8 * weights
    assert tasks["judge_decode"].resident > served["policy_rollout_decode"].resident
