"""The registry of benchmarks: its order, its docs, and a benchmark that is added as one file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grm_jax
from grm_jax.evals.benchmarks import BENCHMARKS, PAPER, markdown_table

ROOT = Path(__file__).resolve().parents[2]
RENEW = "python -c 'from grm_jax.evals.benchmarks import markdown_table; print(markdown_table())'"


def test_the_order_of_results():
    assert list(BENCHMARKS) == [
        "rewardbench", "rewardbench2", "ppe_preference", "ppe_correctness", "ppe_best_of_k", "rmb",
        "rmb_pairs", "realmistake", "rm_bench", "judgebench", "judgebench_claude", "llmbar",
        "pandalm", "gsm8k", "humanevalpack", "hh_rlhf", "prometheus_hhh", "llamafactory_dpo_demo",
        "llamafactory_kto_demo", "world", "world_held_out",
    ]  # fmt: skip
    assert PAPER == ("rewardbench", "ppe_preference", "ppe_correctness", "rmb")


def test_the_docs_list_every_benchmark():
    page = (ROOT / "docs/evaluation.md").read_text()
    assert markdown_table() in page, (
        f"replace the table in docs/evaluation.md by the output of {RENEW}"
    )


def example_of_the_docs() -> str:
    page = (ROOT / "docs/adding_a_benchmark.md").read_text()
    return page.split("```python\n")[1].split("```")[0]


def test_one_new_file_adds_a_benchmark_everywhere(tmp_path):
    """The example of the docs, saved in a copy of the package: help, --benchmark, reports, docs."""
    package = tmp_path / "grm_jax"
    shutil.copytree(Path(grm_jax.__file__).parent, package)
    (package / "evals/benchmarks/mine.py").write_text(example_of_the_docs())
    data = tmp_path / "data/mine"
    data.mkdir(parents=True)
    rows = [
        {"question": f"q{i}", "good": "long " * (i % 3 + 1), "bad": "x", "kind": "ab"[i % 2]}
        for i in range(8)
    ]
    (data / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(*args: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, *args], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "mine" in run("-m", "grm_jax.cli", "eval", "--help")
    flags = ("--data", str(tmp_path / "data"), "--judge", "longest", "--draws", "20")
    run("-m", "grm_jax.cli", "eval", "--benchmark", "all", *flags, "--out", "out")
    entries = json.loads((tmp_path / "out/results.json").read_text())
    assert [entry["benchmark"] for entry in entries] == ["world", "world_held_out", "mine"]
    assert entries[-1]["comparisons"] == 8 and "subset/a" in entries[-1]["metrics"]["official"]
    page = (tmp_path / "out/results.html").read_text()
    assert "Mine" in page and page.count("<svg") >= len(entries)  # a plot of each one's subsets
    assert "Mine" in (tmp_path / "out/results.md").read_text()
    assert "Mine" in run("-m", "grm_jax.cli", "table", "runs", "longest=out")
    listed = run(
        "-c", "from grm_jax.evals.benchmarks import markdown_table; print(markdown_table())"
    )
    assert "| `mine` | accuracy |" in listed
