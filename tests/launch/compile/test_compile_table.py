"""The table of models on slices: judges, rows in progress, resuming, one version per file."""

import dataclasses
import json
import re

import jax
import pytest
from jax.experimental.layout import Layout

from benchmarks import common, compile_table
from grm_jax.models import abstract_model, get_config
from grm_jax.sampling import cache, programs
from grm_jax.sharding import make_mesh
from launch.compile import compile_only, results
from launch.compile.slices import slice_devices


@pytest.fixture
def table(tmp_path, monkeypatch, capsys):
    """Runs the program on stand-in results; returns (exit status, lines, rows compiled)."""
    monkeypatch.setattr(compile_table, "OUT", tmp_path / "compile_table")

    def run(*arguments, slices="v4-8,v5p-8", fails=(), versions="jax 9"):
        compiled = []

        def compile_row(_, flag, model, slice_name, program):
            if slice_name in fails:
                raise fails[slice_name]
            compiled.append((program, slice_name))
            row = results.Result(f"{model} {program}", slice_name, 1, 4, {}, hbm_available=8)
            return dataclasses.asdict(row)

        monkeypatch.setattr(common, "run_apart", compile_row)
        monkeypatch.setattr(results, "versions", lambda *_: versions)
        command = ["compile_table.py", "--models", "gemma2_27b", "--slices", slices, *arguments]
        monkeypatch.setattr("sys.argv", command)
        status = compile_table.main()
        return status, capsys.readouterr().out.splitlines(), compiled

    return run


def test_an_interrupted_table_resumes(table, tmp_path):
    status, lines, _ = table(fails={"v5p-8": KeyboardInterrupt()})
    assert status == 130 and lines[-1] == "interrupted: the same command compiles the rest"
    status, lines, compiled = table()
    assert status == 0 and compiled == [("forward", "v5p-8"), ("sft_update", "v5p-8")]
    assert lines[0] == "2 of 4 programs from an earlier run"
    assert lines[1].startswith("3 of 4: gemma2_27b forward on v5p-8: compiled in 0 s")
    rows = json.loads((tmp_path / "compile_table.json").read_text())["results"]
    # By program, then by slice.
    assert [row["slice"] for row in rows] == ["v4-8", "v5p-8", "v4-8", "v5p-8"]


def test_rows_of_another_compiler_are_not_mixed_in(table, tmp_path):
    table()
    status, lines, compiled = table(versions="jax 10")
    assert status == 2 and not compiled
    assert "is of jax 9, this is jax 10: add --again to replace it" in lines[0]
    table("--again", slices="v5p-8", versions="jax 10")
    content = json.loads((tmp_path / "compile_table.json").read_text())
    assert content["about"]["versions"] == "jax 10" and len(content["results"]) == 2


def test_a_row_that_fails_is_reported_and_the_others_are_compiled(table):
    status, lines, compiled = table(fails={"v4-8": RuntimeError("the compiler crashed")})
    assert status == 1 and compiled == [("forward", "v5p-8"), ("sft_update", "v5p-8")]
    assert lines[1].startswith("3 of 4: gemma2_27b forward on v5p-8")


@pytest.mark.parametrize(
    ("model", "slice_name", "program", "tokens"),
    [
        ("qwen3_8b", "v5litepod-4", "judge_prefill", 4 * 2048),
        ("qwen3_8b", "v5litepod-4", "judge_decode", 128),
        ("llama3_70b", "v4-8", "judge_decode", 256),  # not one critique fits: the whole batch
    ],
)
def test_programs_of_a_judge_have_the_batch_that_fits(model, slice_name, program, tokens):
    config = compile_table.config_for(model, slice_name)
    assert compile_table.judge_task(config, slice_name, program).tokens == tokens


def ring_copies(slots, rows):
    """Returns how many rings a compiled decode segment copies; 27B int8 with 4 of its layers."""
    numbers = {"dtype": "bfloat16", "param_dtype": "bfloat16", "quantize": "int8"}
    cfg = get_config("gemma2_27b", num_layers=4, vocab_size=1024, **numbers)
    mesh = make_mesh(1, 1, 8, devices=slice_devices("v5litepod-8"))
    with jax.set_mesh(mesh), compile_only._no_compilation_cache():
        model = abstract_model(cfg, mesh, ("tensor",))
        shape = programs.Shape(slots, rows, 512, 512)
        _, decode, arguments = programs.abstract_programs(*model, cfg, shape, 32, mesh)[1]
        text = decode.lower(*arguments).compile().as_text()
    return len(re.findall(rf"\[2,{slots},2,{rows},512,128\]\S* copy\(", text))


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "rows"), [(1, 32), (4, 4)])
def test_a_decode_segment_copies_no_ring(slots, rows, monkeypatch):
    assert ring_copies(slots, rows) == 0
    other = Layout(major_to_minor=(0, 1, 2, 4, 3, 5))
    monkeypatch.setattr(cache, "ring_layout", lambda *_: other)
    monkeypatch.setattr(cache, "keep_ring_layout", lambda ring, *_: ring)
    monkeypatch.setattr(cache, "_one_slot", lambda _: True)
    programs.build.cache_clear()
    assert ring_copies(slots, rows) == 8  # keys and values of two caches, in and out
    programs.build.cache_clear()
