"""The notebooks run from top to bottom in their small setting, and are committed without outputs or paths of a machine."""

import re
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
    """(what it printed, its HTML and pictures) in the small setting, as Jupyter would run it from its own folder."""
    from nbclient import NotebookClient

    monkeypatch.setenv("GRM_NOTEBOOK_SMALL", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.delenv("XLA_FLAGS")  # one device, unless the notebook asks for more
    book, code = read(name)
    NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    outputs = [output for cell in code for output in cell.outputs]
    shown = [
        output.data
        for output in outputs
        if output.output_type in ("display_data", "execute_result")
    ]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    return printed, "".join(
        f"{kind}: {content}\n" for data in shown for kind, content in data.items()
    )


def test_there_are_three():
    assert NAMES == ["emulate_a_pod", "judge", "spct_world"]


@pytest.mark.parametrize("name", NAMES)
def test_committed_clean(name):
    book, code = read(name)
    nbformat.validate(book)
    assert not any(cell.outputs or cell.execution_count for cell in code)
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"/(home|root|Users|tmp|work|content)/", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_is_the_same_everywhere_and_installs_on_colab_only(name, monkeypatch):
    import subprocess
    import sys

    _, (first, *_) = read(name)
    assert first.source == read(NAMES[0])[1][0].source
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: calls.append(words))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(FOLDER)
    space: dict = {}
    exec(first.source, space)
    assert calls == [] and space["ROOT"] == ROOT and sys.path[0] == str(ROOT)
    monkeypatch.setitem(sys.modules, "google.colab", subprocess)
    exec(first.source, {})
    assert [words[0] for words in calls] == ["git", sys.executable] and calls[1][-1].startswith(
        "./grm"
    )


def test_judge(monkeypatch, tmp_path):
    printed, shown = run("judge", monkeypatch, tmp_path)
    assert re.search(
        r"prime +scores \(.*\)  best .*  labelled 1  \(\d of 4 critiques read\)", printed
    )
    # The report, in a frame of its own, with all of the 4 x 4 critiques in it.
    assert "<iframe srcdoc=" in shown and shown.count("&quot;sample&quot;:") == 16
    assert "Is 91 prime?" in shown


def test_spct_world(monkeypatch, tmp_path):
    printed, shown = run("spct_world", monkeypatch, tmp_path)
    assert shown.count("image/png: ") == 1  # each picture takes the place of the one before
    for row in (
        "chance",
        "rft               Voting@2",
        "rl                Greedy",
        "--- rft: scores",
        "--- rl: scores",
    ):
        assert row in printed, row
    assert "<iframe srcdoc=" in shown and "Held-out accuracy" in shown


def test_emulate_a_pod(monkeypatch, tmp_path):
    printed, shown = run("emulate_a_pod", monkeypatch, tmp_path)
    assert "cpu:0 cpu:1" in printed and "cpu:7" in printed
    assert "embed" in printed and float(re.search(r"log-probabilities: (\S+)", printed)[1]) < 1e-4
    assert "sft_update on v5litepod-4: compiled in" in printed and "of 15.75 GiB" in printed
    assert (
        "CPU 7" in printed + shown
        and "image/png: " in shown
        and "| sft_update | v5litepod-4 |" in shown
    )
