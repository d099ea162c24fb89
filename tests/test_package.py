"""The package as a whole: a quick import, a console script that loads one tool, every import declared."""

import subprocess
import sys
from pathlib import Path

import pytest

import grm_jax
from grm_jax import cli

ROOT = Path(__file__).resolve().parents[1]

IMPORT = """
import sys, time
start = time.perf_counter()
import grm_jax
seconds = time.perf_counter() - start
dir(grm_jax)
heavy = [name for name in ("tensorflow", "torch", "jax", "flax", "seqio", "numpy") if name in sys.modules]
print(seconds, *heavy)
"""


def test_import_is_quick_and_light():
    seconds, *heavy = subprocess.check_output([sys.executable, "-c", IMPORT], text=True).split()
    assert heavy == []
    assert float(seconds) < 1.0


def test_unknown_attribute_names_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'Juge'; it has .*Judge"):
        _ = grm_jax.Juge


def test_cli_dispatches_to_the_named_tool_only(monkeypatch):
    seen = []
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: seen.append(name) or FakeTool)
    assert cli.main(["judge", "in.jsonl", "out.jsonl"]) == 3
    assert seen == ["grm_jax.judging.cli"]


@pytest.mark.parametrize("tool", ["judge", "eval", "convert", "report", "table"])
def test_help_of_a_tool_reads_as_text(tool, capsys):
    """argparse formats the help of options (where a percent sign is doubled) but not descriptions."""
    with pytest.raises(SystemExit) as end:
        cli.main([tool, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "usage: grm" in out and "%%" not in out


class FakeTool:
    @staticmethod
    def main(argv):
        assert argv == ["in.jsonl", "out.jsonl"]
        return 3


@pytest.mark.parametrize(
    "argv, status, text", [([], 2, "usage"), (["--help"], 0, "report"), (["--version"], 0, "0.")]
)
def test_cli_help(argv, status, text, capsys):
    assert cli.main(argv) == status
    assert text in capsys.readouterr().out


def test_cli_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["jugde"]) == 2
    assert "did you mean 'judge'?" in capsys.readouterr().err


def test_every_import_is_declared():
    """What grm_jax and launch import is among the requirements in setup.py, so that a bare environment has it."""
    import ast
    import re

    distribution = {"PIL": "pillow", "absl": "absl-py", "google": "protobuf", "orbax": "orbax-checkpoint", "sklearn": "scikit-learn",
                    "yaml": "pyyaml"}  # fmt: skip
    declared = set(
        re.findall(r'"([a-z0-9_\-]+)(?:\[[a-z0-9]+\])?>=', (ROOT / "setup.py").read_text())
    )
    assert len(declared) > 30
    missing = set()
    for path in [*ROOT.glob("grm_jax/**/*.py"), *ROOT.glob("launch/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module and not node.level
                else []
            )
            for name in (n.partition(".")[0] for n in names):
                own = name in sys.stdlib_module_names or name in (
                    "grm_jax",
                    "launch",
                    "experiments",
                    "benchmarks",
                )
                if not own and distribution.get(name, name).replace("_", "-") not in {
                    d.replace("_", "-") for d in declared
                }:
                    missing.add(f"{name} ({path.relative_to(ROOT)})")
    assert not missing
