"""The commands that a run ends with, for judges of other data than the judging world."""

import json
import shlex

from grm_jax.storage import as_path
from grm_jax.training import next_steps


def make_run(folder, query, responses, models=("rft",)):
    for name in models:
        (folder / name / "hf").mkdir(parents=True)
    (folder / "eval").mkdir(parents=True)
    row = {"query": query, "responses": responses}
    (folder / "eval/rft.jsonl").write_text(json.dumps(row) + "\n")
    return as_path(folder)


def test_a_judge_of_other_data_judges_its_first_held_out_comparison(tmp_path):
    run = make_run(tmp_path, 'say "a b"', ["it's a", "b"], models=("rft", "rl"))
    judge, report, example = next_steps.write_commands(run, is_world=False)
    assert shlex.split(judge)[1:] == [
        *("judge", "--model", f"{run}/rl/hf", "--query", 'say "a b"'),
        *("--response", "it's a", "--response", "b"),
    ]
    assert shlex.split(report)[1:] == ["report", f"{run}/eval/rft.jsonl", "-o",
                                       f"{run}/eval/judged.html"]  # fmt: skip
    code = (tmp_path / "eval/example.py").read_text()
    compile(code, "example.py", "exec")
    assert 'Judge.load(Path(__file__).resolve().parents[1] / "rl/hf")' in code
    assert example.endswith("/eval/example.py") and '"it\'s a"' in code


def test_a_long_comparison_is_no_command(tmp_path):
    chat = [{"role": "user", "content": "q"}]
    for query, responses in (("q " * 200, ["a", "b"]), (chat, ["a", "b"])):
        folder = tmp_path / str(len(query))
        commands = next_steps.write_commands(make_run(folder, query, responses), is_world=False)
        assert [shlex.split(c)[1].split("/")[-1] for c in commands] == ["report", "example.py"]
        compile((folder / "eval/example.py").read_text(), "example.py", "exec")


def test_without_exported_models_there_is_the_report_alone(tmp_path):
    (report,) = next_steps.write_commands(make_run(tmp_path, "q", ["a"], ()), is_world=True)
    assert " report " in report
    assert next_steps.write_commands(as_path("gs://bucket/run"), is_world=True) == []
