"""The table of models on slices: judges, rows in progress, resuming, one version per file."""

import dataclasses
import json

import pytest

from benchmarks import common, compile_table
from launch.compile import results


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
