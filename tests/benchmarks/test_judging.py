"""The benchmark of judging: tables from results, time-outs, resuming, other settings."""

import json

import pytest

from benchmarks import common, judging
from grm_jax import checkpoints
from grm_jax.types import Comparison


def totals(done, seconds, **more):
    return {"comparisons": done, "seconds": seconds, "new_tokens": 512 * done} | {
        "cpu_seconds": 2 * seconds,
        "peak_gib": 1.25,
        **more,
    }


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the program on stand-in systems; returns (exit status, output, systems that ran)."""
    out = tmp_path / "judging_1.5b"
    monkeypatch.setattr(judging, "prepare", lambda args, folder: folder / "work.json")

    def run(*arguments, rows=(), fails=None):
        ran = []

        def stream(script, flag, system, path, python, timeout):
            ran.append(system)
            yield from rows
            if fails:
                raise fails

        monkeypatch.setattr(common, "stream_apart", stream)
        paths = ["--gguf", "m.gguf", "--data", "d", "--out", str(out)]
        status = judging.main([*paths, "--llama", "P", "--limit", "2", *arguments])
        return status, capsys.readouterr().out, ran

    run.out = out
    return run


def test_the_table_compares_rates_and_prefill_tokens():
    results = {
        "before": {"status": "done", "of": 2, "rows": [totals(2, 60.0, prefill_tokens=4000)]},
        "after": {"status": "done", "of": 2, "rows": [totals(2, 24.0, prefill_tokens=1000)]},
        "llama.cpp": {"status": "timed out after 9 s", "of": 2, "rows": []},
    }
    table = judging.table(results).splitlines()[2:]
    assert (
        table[0]
        == "| before | 2 of 2 | 2.00 | 1.00 | 2,000 | 1,024 | 17.1 | - | - | 120 | 1.2 |  |"
    )
    assert table[1].startswith("| after | 2 of 2 | 5.00 | 2.50 | 500 | 1,024 | 42.7 |")
    assert table[2].startswith("| llama.cpp | 0 of 2 | - |")
    assert table[2].endswith("| timed out after 9 s |")


def test_systems_that_are_done_do_not_run_again(run):
    status, output, ran = run(rows=[totals(1, 2.0), totals(2, 4.0)])
    assert status == 0 and ran == ["before", "after", "llama.cpp"]
    assert "transformers: skipped, no interpreter given" in output
    files = {path.name for path in run.out.parent.iterdir()}
    assert files == {"judging_1.5b.json", "judging_1.5b.md"}
    status, output, ran = run(rows=[totals(2, 4.0)])
    assert status == 0 and not ran and "| after | 2 of 2 | 30.00 |" in output
    status, output, ran = run("--new_tokens", "9")
    assert status == 2 and not ran and "add --again to replace it" in output
    assert len(run("--new_tokens", "9", "--again", rows=[totals(2, 1.0)])[2]) == 3
    about = json.loads(common.result_file(run.out, ".json").read_text())["about"]
    assert about["settings"]["new_tokens"] == 9


def test_a_time_out_keeps_what_was_completed_and_an_interrupted_system_runs_again(run):
    status, output, _ = run("--systems", "before", rows=[totals(1, 2.0)], fails=TimeoutError())
    assert status == 0 and "| before | 1 of 2 |" in output and "timed out after 1200 s" in output
    with pytest.raises(KeyboardInterrupt):
        run("--systems", "after", rows=[totals(1, 2.0)], fails=KeyboardInterrupt())
    saved = json.loads(common.result_file(run.out, ".json").read_text())["systems"]["after"]
    assert saved["status"] == "running" and len(saved["rows"]) == 1
    _, _, ran = run("--systems", "before,after", rows=[totals(2, 2.0)])
    assert ran == ["after"]


def test_a_failed_system_is_reported_and_runs_again(run):
    status, output, _ = run("--systems", "before", fails=RuntimeError("x\nout of memory"))
    assert status == 1 and "failed: out of memory" in output
    assert run("--systems", "before", rows=[totals(2, 2.0)])[2] == ["before"]


def test_float32_runs_only_if_it_is_named(run):
    assert "float32" not in run(rows=[totals(2, 4.0)])[2]
    assert run("--systems", "after,float32", rows=[totals(2, 4.0)])[2] == ["float32"]


@pytest.mark.parametrize(("system", "dtype"), [("after", "bfloat16"), ("float32", "float32")])
def test_the_dtype_of_a_system_is_that_of_its_weights(monkeypatch, system, dtype):
    class LoadedError(Exception):
        pass

    def load(folder, dtype):
        raise LoadedError(dtype)

    monkeypatch.setattr(checkpoints, "load", load)
    with pytest.raises(LoadedError, match=dtype):
        next(judging.SYSTEMS[system]({"folder": "model"}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "vllm"], "unknown system 'vllm': use one of before, after, llama.cpp"),
        (["--limit", "51"], "--limit 51: use 1 to 50"),
    ],
)
def test_wrong_arguments_are_refused(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err


def test_output_of_another_process_is_read_line_by_line_until_its_time_is_over(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, threading\n"
        "if sys.argv[1] == 'hang': threading.Event().wait()\n"
        "print('log'); print('{\"n\": 1}', flush=True)\n"
        "sys.exit('broken')\n"
    )
    with pytest.raises(TimeoutError):
        list(common.stream_apart(script, "hang", timeout=0.5))
    lines = common.stream_apart(script, "fail", timeout=600)
    assert next(lines) == {"n": 1}
    with pytest.raises(RuntimeError, match="broken"):
        next(lines)


def test_a_group_of_solutions_becomes_a_pair_of_right_and_wrong():
    group = Comparison("q", ("a", "b", "c", "d"), "answer", (0.0, 0.0, 1.0, 1.0), "gsm8k-1")
    pair = judging.pair(group)
    assert pair.responses == ("a", "c") and pair.label == (0.0, 1.0) and pair.reference is None
    assert judging.pair(pair) is pair
