"""The benchmark of real judges: command lines of `grm eval`, and tables from its results."""

import dataclasses
import json
import shutil
import types
from xml.etree import ElementTree

import pytest
from fake_judge import fake_judge, well_formed

from benchmarks import common, eval_real_weights as program
from grm_jax.judging.codec import read_judged_rows
from grm_jax.judging.run import RunConfig

RESULTS = common.RESULTS / "eval_qwen2.5_coder_1.5b"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the program on a `grm eval` that leaves the 1.5B's results; returns its commands."""
    from grm_jax.evals import cli

    commands, work = [], tmp_path / "work"

    def evaluate(argv):
        commands.append(argv)
        for file in ("results.json", "results.md"):
            shutil.copy(RESULTS / file, work / file)
        with (work / "results.md").open("a") as file:
            file.write(f"template {common.ROOT}/benchmarks/judge_small_model.jinja\n")
        return 0

    monkeypatch.setattr(cli, "main", evaluate)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")

    def run(*arguments):
        paths = ["--model", "m", "--data", "d", "--work", str(work)]
        monkeypatch.setattr("sys.argv", ["program", *paths, *arguments])
        program.main()
        return list(commands)

    work.mkdir()
    run.work, run.out = work, tmp_path / "results"
    return run


def test_an_instruct_model_judges_four_benchmarks_sampled_and_greedy(run):
    commands = run("--judge", "qwen2.5_coder_0.5b")
    names = [argv[argv.index("--benchmark") + 1] for argv in commands]
    assert names == ["pandalm", "humanevalpack", "gsm8k", "rm_bench"]
    assert all("--no_greedy" not in argv for argv in commands)
    assert [argv[argv.index("--subset") + 1] for argv in commands if "--subset" in argv] == [
        "python",
        "chat",
    ]
    seconds = json.loads((run.out / "eval_qwen2.5_coder_0.5b" / "seconds.json").read_text())
    assert [seconds[name]["sessions"] for name in names] == [1] * 4


def test_a_base_model_is_sampled_only_unless_greedy_is_asked_for(run):
    (run.work / "results.html").write_text("page")
    (without,) = run("--sets", "pandalm")
    *_, with_greedy = run("--sets", "pandalm", "--greedy")
    assert "--no_greedy" in without and "--no_greedy" not in with_greedy
    assert (run.out / "eval_gemma3_270m" / "results.html").read_text() == "page"


def test_results_name_no_folder_of_this_machine(run):
    run("--judge", "qwen2.5_coder_0.5b", "--sets", "pandalm")
    out = run.out / "eval_qwen2.5_coder_0.5b"
    text = (out / "results.md").read_text()
    assert str(common.ROOT) not in text and "template benchmarks/judge_small_model.jinja" in text
    text = (out / "pandalm.svg").read_text()  # no page gives it namespaces and colours
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text and "currentColor" not in text and "#2f6fb0" in text
    assert (out / "tables.md").read_text() == program.tables(
        json.loads((RESULTS / "results.json").read_text())
    )


def test_tables_have_every_vote_and_the_rates_of_the_results():
    entries = json.loads((RESULTS / "results.json").read_text())
    lines = program.tables(entries).splitlines()
    assert (
        "| PandaLM | sum of scores | 51.1 (50.0 to 52.8) | 51.0 (50.1 to 52.1) "
        "| 51.9 (50.3 to 53.9) | 53.1 (50.0 to 56.4) | 55.6 (49.4 to 61.1) |"
    ) in lines
    assert sum("| majority | - |" in line for line in lines) == 2
    (rates,) = [line for line in lines if line.startswith("| PandaLM | 100 |")]
    assert rates.endswith("| 77.0 | 63.0 | 0.0 (0.0 to 0.0) | 264 | 38 | 5517 |")


def test_committed_tables_are_those_of_their_results(run):
    folder = run.work / "copy"
    shutil.copytree(RESULTS, folder)
    (folder / "tables.md").unlink()
    run("--tables", str(folder))
    assert (folder / "tables.md").read_text() == (RESULTS / "tables.md").read_text()


def test_an_unknown_set_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--sets", "humanevalpack")
    assert "--sets humanevalpack: use some of rm_bench, pandalm, gsm8k" in capsys.readouterr().err


@pytest.fixture
def sampled(tmp_path, monkeypatch, shared_data):
    """Four judged comparisons of PandaLM in WORK, and what `add_expected` needs for them.

    `stop` is the number of critiques with expected scores after which it raises KeyboardInterrupt.
    """
    from grm_jax.evals import cli
    from grm_jax.judging import arguments

    def write(responses, key):
        scores = [(len(text) + len(prompts)) % 9 + 1 for text in responses]
        return well_formed(scores) if key[1] else "no scores"

    def expected(samples, template):
        run.stop -= len(samples)
        if run.stop < 0:
            raise KeyboardInterrupt
        scores = [critique.scores for *_, critique in samples]
        return [one and tuple(score + 0.5 for score in one) for one in scores]

    prompts = []
    judge = fake_judge(write, prompts=prompts, expected=expected)
    monkeypatch.setattr(arguments, "judge_from", lambda args: judge)
    monkeypatch.setattr(arguments, "fill_unset", lambda args: None)
    options = {"benchmark": "pandalm", "data": shared_data, "model": "m", "k": 4, "limit": 3}
    argv = [*common.flags(options | {"max_new_tokens": 9}), "--quiet"]
    args = cli.parser().parse_args(argv)
    (task,) = cli.load(args)
    again = dataclasses.replace(task.comparisons[0], id="again")  # with other samples, by rounding
    task = dataclasses.replace(task, comparisons=[*task.comparisons, again])
    monkeypatch.setattr(cli, "load", lambda args: [task])
    work, config = tmp_path / "work", RunConfig("resume", progress=False)
    work.mkdir()
    cli.judge_benchmark(judge, task, work, arguments.options_from(args), config)
    argv += ["--expected", "--chunk", "1"]
    run = types.SimpleNamespace(work=work, argv=argv, prompts=prompts, stop=99)
    return run


def test_stored_critiques_get_expected_scores_without_sampling(sampled, capsys):
    work, argv = sampled.work, sampled.argv
    num_prompts = len(sampled.prompts)
    sampled.stop = 9  # within the third of four comparisons
    with pytest.raises(KeyboardInterrupt):
        program.add_expected("pandalm", argv, work, work / "expected")
    sampled.stop = 99
    program.add_expected("pandalm", argv, work, work / "expected")
    assert len(sampled.prompts) == num_prompts
    assert "pandalm: 0 parsed critiques without" in capsys.readouterr().out
    before, after = (
        list(read_judged_rows(folder / "pandalm.jsonl")) for folder in (work, work / "expected")
    )
    assert len(before) == len(after) == 4
    for old, new in zip(before, after, strict=True):
        assert new["expected"] and "expected" in new["votes"] and "expected" not in old["votes"]
        for a, b in zip(old["critiques"], new["critiques"], strict=True):
            scores = b.pop("expected_scores")
            assert scores == (a["scores"] and [score + 0.5 for score in a["scores"]])
            assert b | {"expected_scores": None} == a
    greedy = "pandalm.greedy.jsonl"
    assert (work / greedy).read_bytes() == (work / "expected" / greedy).read_bytes()


def test_critiques_without_a_greedy_run_get_expected_scores(sampled, monkeypatch):
    from grm_jax.evals import cli

    commands = []
    monkeypatch.setattr(cli, "main", lambda argv: commands.append(argv) or 1)
    (sampled.work / "pandalm.greedy.jsonl").unlink()
    paths = ["--model", "m", "--data", "d", "--work", str(sampled.work), "--sets", "pandalm"]
    argv = ["program", "--judge", "qwen2.5_coder_0.5b", "--expected", "--k", "4", *paths]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit):
        program.main()
    assert "--no_greedy" in commands[0]
    files = {path.name for path in (sampled.work / "expected").iterdir()}
    assert "pandalm.jsonl" in files and "pandalm.greedy.jsonl" not in files
