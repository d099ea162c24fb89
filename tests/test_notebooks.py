"""Runs the notebooks in their small setting; checks that they are committed without outputs."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name):
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return book, [cell for cell in book.cells if cell.cell_type == "code"]


def run(name, monkeypatch, tmp_path) -> tuple[str, str]:
    """Runs a notebook as Jupyter does, from its own folder, in the small setting.

    Returns the printed text, and the displayed HTML and images as lines "MIME TYPE: content".
    """
    from nbclient import NotebookClient

    monkeypatch.setenv("GRM_NOTEBOOK_SMALL", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.delenv("XLA_FLAGS")  # one device, unless the notebook sets more
    book, code = read(name)
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(book, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in code for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    display_types = ("display_data", "execute_result")
    displayed = [output.data for output in outputs if output.output_type in display_types]
    lines = [f"{kind}: {content}\n" for data in displayed for kind, content in data.items()]
    return printed, "".join(lines)


def test_the_three_notebooks_exist():
    assert NAMES == ["emulate_a_pod", "judge", "spct_world"]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_without_outputs_or_local_paths(name):
    book, code = read(name)
    nbformat.validate(book)
    assert not any(cell.outputs or cell.execution_count for cell in code)
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"/(home|root|Users|tmp|work|content)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_is_shared_and_installs_only_on_colab(name, monkeypatch):
    _, (first, *_) = read(name)
    assert first.source == read(NAMES[0])[1][0].source
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(FOLDER)
    variables: dict = {}
    exec(first.source, variables)
    assert calls == [] and variables["ROOT"] == ROOT and sys.path[0] == str(ROOT)
    monkeypatch.setitem(sys.modules, "google.colab", subprocess)
    exec(first.source, {})
    assert [command[0] for command in calls] == ["git", sys.executable]
    assert calls[1][-1].startswith("./grm")


def test_judge(monkeypatch, tmp_path):
    printed, displayed = run("judge", monkeypatch, tmp_path)
    result = r"prime +scores \(.*\)  best .*  labelled 1  \(\d of 4 critiques parsed\)"
    assert re.search(result, printed)
    # The report with its 4 x 4 critiques.
    assert "<iframe srcdoc=" in displayed and displayed.count("&quot;sample&quot;:") == 16
    assert "Is 91 prime?" in displayed


def test_spct_world(monkeypatch, tmp_path):
    printed, displayed = run("spct_world", monkeypatch, tmp_path)
    assert displayed.count("image/png: ") == 1  # a new plot replaces the previous one
    table = ("chance", "rft               Voting@2", "rl                Greedy")
    for text in (*table, "--- rft: scores", "--- rl: scores"):
        assert text in printed, text
    assert "<iframe srcdoc=" in displayed and "Held-out accuracy" in displayed


def test_emulate_a_pod(monkeypatch, tmp_path):
    printed, displayed = run("emulate_a_pod", monkeypatch, tmp_path)
    assert "cpu:0 cpu:1" in printed and "cpu:7" in printed
    assert "embed" in printed and float(re.search(r"log-probabilities: (\S+)", printed)[1]) < 1e-4
    assert "sft_update on v5litepod-4: compiled in" in printed and "of 15.75 GiB" in printed
    assert "CPU 7" in printed + displayed and "image/png: " in displayed
    assert "| sft_update | v5litepod-4 |" in displayed
