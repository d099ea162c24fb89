"""Executes the notebooks in their small setting; their stored outputs are of such an execution."""

import base64
import html
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
sys.path.append(str(FOLDER))

import colab  # noqa: E402
import execute  # noqa: E402

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name):
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    return book, [cell for cell in book.cells if cell.cell_type == "code"]


def cell_with(name, text) -> str:
    (cell,) = (cell for cell in read(name)[1] if text in cell.source)
    return cell.source


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """What spct_world.ipynb leaves is what judge.ipynb and spct_2b_lora.ipynb load."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def spct_world(scratch, without_extras) -> tuple[str, str]:
    return run("spct_world", scratch, without_extras)


def run(name, scratch, without_extras) -> tuple[str, str]:
    """Executes a notebook without the packages of the extras; checks it against the stored one.

    Returns the printed text, and the displayed HTML and images as lines "MIME TYPE: content".
    """
    book = execute.execute(name, scratch, {"PYTHONPATH": str(without_extras)})
    stored = read(name)[0]
    assert execute.kinds(stored) == execute.kinds(book), "run `make notebooks`"
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    display_types = ("display_data", "execute_result")
    displayed = [output.data for output in outputs if output.output_type in display_types]
    lines = [f"{kind}: {content}\n" for data in displayed for kind, content in data.items()]
    return printed, "".join(lines)


def test_the_notebooks_exist():
    names = ["emulate_a_pod", "judge", "spct_2b_lora", "spct_world"]
    assert NAMES == names == sorted(execute.NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_of_the_code_beside_them(name):
    book, code = read(name)
    nbformat.validate(book)
    assert book.metadata["outputs_of"] == execute.digest(book), "run `make notebooks`"
    assert any(cell.outputs for cell in code) and all(cell.execution_count for cell in code)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"/(home|root|Users|tmp|work|content)/", text)
    assert len(text) < 500_000


# ---------------------------------------------------------------- Colab


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_is_shared_and_installs_only_on_colab(name, monkeypatch):
    _, (first, *_) = read(name)
    assert first.source == read(NAMES[0])[1][0].source
    assert first.source.count("https://") == 1  # the repository's address
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command))
    monkeypatch.setattr(colab, "install", lambda root: calls.append(["install", root]))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(FOLDER)
    variables: dict = {}
    exec(first.source, variables)
    assert calls == [] and variables["ROOT"] == ROOT and sys.path[0] == str(ROOT)
    monkeypatch.setitem(sys.modules, "google.colab", subprocess)
    exec(first.source, {})
    assert [command[0] for command in calls] == ["git", "install"]
    assert calls[0][-2:] == [variables["REPOSITORY"], "grm"] and calls[1][1] == ROOT


def test_colab_keeps_its_numpy_and_what_the_session_has_imported():
    lock = (ROOT / "requirements.lock").read_text()
    lines = colab.constraints(lock, "2.0.2", {"requests"}).splitlines()
    assert [line for line in lines if line.startswith("numpy")] == ["numpy==2.0.2"]
    assert not any(line.startswith("requests") for line in lines)
    assert {line for line in lock.splitlines() if line.startswith("jax==")} <= set(lines)


@pytest.mark.parametrize("changed, restart", [({}, False), ({"jinja2": "9"}, True)])
def test_colab_asks_for_a_restart_where_an_imported_package_was_replaced(
    changed, restart, monkeypatch, tmp_path
):
    import jinja2  # noqa: F401

    (tmp_path / "requirements.lock").write_text("jinja2==9\n")
    commands, answers = [], [colab.versions(), colab.versions() | changed]
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(colab, "versions", lambda: answers.pop(0))
    if restart:
        with pytest.raises(colab.RestartRequired, match="^jinja2 changed.*Restart session"):
            colab.install(tmp_path)
    else:
        colab.install(tmp_path)
    assert commands[0][-2:] == ["-e", f"{tmp_path}{colab.extra()}"]


@pytest.mark.parametrize("gated, logins", [(False, 0), ("manual", 1)])
def test_the_log_in_is_for_gated_models_only(gated, logins, monkeypatch):
    import huggingface_hub

    class Hub:
        def model_info(self, name):
            assert name == "google/gemma-2-9b-it"
            return type("Info", (), {"gated": gated})

    calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "login", lambda: calls.append(1))
    source = cell_with("judge", "login()")
    variables = {"os": __import__("os"), "Path": Path, "ROOT": ROOT, "SMALL": False}
    monkeypatch.delenv("GRM_MODEL", raising=False)
    exec(source, dict(variables))
    assert len(calls) == logins
    monkeypatch.setenv("GRM_MODEL", str(ROOT))  # a folder
    exec(source, dict(variables))
    assert len(calls) == logins


# ---------------------------------------------------------------- executions


def test_spct_world(spct_world):
    printed, displayed = spct_world
    assert displayed.count("image/png: ") == 1  # a new plot replaces the previous one
    table = ("chance", "rft               Voting@2", "rl                Greedy")
    for text in (*table, "--- rft: scores", "--- rl: scores"):
        assert text in printed, text
    assert "<iframe srcdoc=" in displayed and "Held-out accuracy" in displayed


def test_judge(spct_world, scratch, without_extras):
    printed, displayed = run("judge", scratch, without_extras)
    result = r"two digits +scores \(.*\)  best .*  labelled 1  \(\d of 8 critiques parsed\)"
    assert re.search(result, printed)
    rates = [int(rate) for rate in re.findall(r"\((\d) of 8 critiques parsed\)", printed)]
    assert len(rates) == 4 and sum(rates) >= 16  # the toy has learned the format
    assert "Ranking(order=" in displayed and "<td" in displayed
    # The report with its 4 x 8 critiques.
    (page,) = re.findall(r'<iframe srcdoc="(.*?)"', displayed, re.DOTALL)
    data = re.search(
        r'type="application/json"[^>]*>(.*?)</script>', html.unescape(page), re.DOTALL
    )[1]
    parts = [json.loads(zlib.decompress(base64.b64decode(p))) for p in json.loads(data)["parts"]]
    assert json.dumps(parts).count('"sample":') == 32 and "sort 9 7" in json.dumps(parts)


@pytest.mark.slow
def test_spct_2b_lora(spct_world, scratch, without_extras):
    printed, displayed = run("spct_2b_lora", scratch, without_extras)
    for text in ("rft  20/20  loss ", "rl  2/2  reward ", "rl done in "):
        assert text in printed
    sizes = dict(re.findall(r"^(\S+|whole model) +(\S+) kB$", printed, re.M))
    assert float(sizes["adapter_model.safetensors"]) < 0.3 * float(sizes["whole model"])
    assert "Ranking(order=" in displayed and "image/png: " in displayed


def test_emulate_a_pod(tmp_path, without_extras):
    printed, displayed = run("emulate_a_pod", tmp_path, without_extras)
    assert "cpu:0 cpu:1" in printed and "cpu:7" in printed
    assert "embed" in printed and float(re.search(r"log-probabilities: (\S+)", printed)[1]) < 1e-4
    assert "sft_update on v5litepod-4: compiled in" in printed and "of 15.75 GiB" in printed
    assert "CPU 7" in printed + displayed and "image/png: " in displayed
    assert "| sft_update | v5litepod-4 |" in displayed
