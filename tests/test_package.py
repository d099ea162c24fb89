"""Tests of the package: its import, the console script, declared requirements."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import grm_jax
from grm_jax import cli
from grm_jax.commands import run_command
from grm_jax.hosts.errors import Unavailable, WorkersAbsent

ROOT = Path(__file__).resolve().parents[1]

IMPORT_SCRIPT = """
import sys
before = len(sys.modules)
import grm_jax
count = len(sys.modules) - before
dir(grm_jax)
heavy = {"tensorflow", "torch", "jax", "flax", "seqio", "numpy"}
print(count, *heavy & sys.modules.keys())
"""


def test_import_loads_few_modules_and_no_heavy_one():
    count, *heavy = subprocess.check_output(
        [sys.executable, "-c", IMPORT_SCRIPT], text=True
    ).split()
    assert heavy == []
    assert int(count) < 50


# Valid but for the last three lines.
CLIENT = """
from grm_jax import Comparison, Judge, Ranking, Verdict

judge = Judge.load("folder", dtype="float32")
verdicts: list[Verdict] = judge([Comparison("q", ["a", "b"], label=0)], k=4, vote="sum")
text: str = verdicts[0].explain()
best: int | None = verdicts[0].best
weights: list[float | None] = [p.weight for c in verdicts[0].critiques for p in c.principles]
ranking: Ranking = judge.rank("q", ["a", "b"], k=2)
order: tuple[int, ...] = ranking.order
judge(verdicts)
judge.rank("q", ["a"], max_tokens=3)
from grm_jax import Juge
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder like site-packages, with the package as pip installs it from the repository."""
    folder = tmp_path_factory.mktemp("installed")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "grm_jax", folder / "source/grm_jax", ignore=ignore)
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, *"-m pip wheel -q --no-deps --no-build-isolation".split()]
    command += ["--no-index", "-w", str(folder), str(folder / "source")]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / f"env/lib/python3.{sys.version_info.minor}/site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_the_installed_package_type_checks(site, tmp_path):
    """py.typed, and names that a type checker resolves."""
    venv.create(site.parents[2], with_pip=False)
    (tmp_path / "client.py").write_text(CLIENT)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--hide-error-context"]
    command += ["--python-executable", str(site.parents[2] / "bin/python"), "client.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    lines = CLIENT.splitlines()
    assert [lines[int(error.split(":")[1]) - 1] for error in errors] == lines[-3:], done.stdout
    assert 'incompatible type "list[Verdict]"' in errors[0]
    assert 'did you mean "max_new_tokens"?' in errors[1]
    assert 'maybe "Judge"?' in errors[2]


COMMANDS = """
import json, sys
from pathlib import Path
from flax import nnx
import grm_jax
from grm_jax import checkpoints, cli
from grm_jax.data.world.vocabulary import SIZE, vocabulary_path
from grm_jax.models import build_model, get_config

assert Path(grm_jax.__file__).is_relative_to(sys.argv[1]), grm_jax.__file__
pair = {"prompt": "q", "chosen": "a b", "rejected": "c", "subset": "math-prm"}
Path("data/rewardbench").mkdir(parents=True)
for path in ("pairs.jsonl", "data/rewardbench/filtered.jsonl"):
    Path(path).write_text("".join(json.dumps(pair | {"id": i}) + "\\n" for i in range(2)))
sizes = dict(num_layers=2, d_model=32, d_ff=32, head_dim=8, vocab_size=SIZE, max_length=256)
cfg = get_config("tiny_gemma2", **sizes)
checkpoints.save(build_model(cfg, nnx.Rngs(0)), "toy", like=vocabulary_path())
model = "--model toy --template compact --k 2 --max_new_tokens 4"
benchmark = "eval --benchmark rewardbench --data data"
for command in (
    f"judge pairs.jsonl judged.jsonl {model}",
    "report judged.jsonl",
    f"{benchmark} {model} --out eval",
    f"{benchmark} --judge longest --out longest",
    "table runs eval longest",
):
    assert cli.main(command.split()) == 0, command
"""


def test_the_installed_package_judges_and_evaluates_without_the_extras(
    site, without_extras, tmp_path
):
    environment = {**os.environ, "PYTHONPATH": f"{without_extras}:{site}"}
    del environment["XLA_FLAGS"]
    command = [sys.executable, "-c", COMMANDS, str(site)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert [row["error"] for row in rows] == [None, None]
    assert "longest" in done.stdout


def test_an_error_of_the_program_is_not_the_status_of_error_rows():
    """A shard that exits with 1 is done, and is not started again."""
    code = "from grm_jax import cli; cli.COMMANDS['judge'] = ('os', ''); exit(cli.console())"
    done = subprocess.run([sys.executable, "-c", code, "judge"], capture_output=True, text=True)
    assert done.returncode == 70 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    "code, names",
    [
        ("import grm_jax\ngrm_jax.Judge.lo", ["load"]),
        ("from grm_jax import Judge\nJudge.load('x').rank('q', ['a']).verdict.ex", ["explain"]),
    ],
)
def test_editors_complete_the_public_names(code, names):
    jedi = pytest.importorskip("jedi")  # what IPython completes with
    script = jedi.Script(code, project=jedi.Project(ROOT))
    assert [completion.name for completion in script.complete()] == names


def test_an_unknown_attribute_raises_an_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'Juge'; it has .*Judge"):
        _ = grm_jax.Juge


def test_cli_imports_only_the_named_tool(monkeypatch):
    imported = []

    def import_module(name):
        imported.append(name)
        return FakeTool

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    assert cli.main(["judge", "in.jsonl", "out.jsonl"]) == 3
    assert imported == ["grm_jax.judging.cli"]


@pytest.mark.parametrize("tool", ["judge", "eval", "convert", "report", "table"])
def test_help_of_a_tool_has_no_doubled_percent_signs(tool, capsys):
    """argparse formats the help of options, where "%" is written "%%", but not descriptions."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main([tool, "--help"])
    out = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert "usage: grm" in out and "%%" not in out


class FakeTool:
    @staticmethod
    def main(argv):
        assert argv == ["in.jsonl", "out.jsonl"]
        return 3


@pytest.mark.parametrize("command", [*cli.COMMANDS, "launch"])
def test_help_fits_80_columns_and_explains_every_option(command, monkeypatch, capsys):
    from launch import tpu

    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        tpu.main(["--help"]) if command == "launch" else cli.main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    options = [i for i, line in enumerate(lines) if re.match(r"  -\S", line)]
    assert len(options) >= 3
    for i in options:  # on its line, or, if the option is long, on the next one
        assert "  " in lines[i].strip() or lines[i + 1].startswith(" " * 24), f"{lines[i]}: no help"


@pytest.mark.parametrize(
    "argv, status, text", [([], 2, "usage"), (["--help"], 0, "report"), (["--version"], 0, "0.")]
)
def test_cli_help(argv, status, text, capsys):
    assert cli.main(argv) == status
    assert text in capsys.readouterr().out


def test_cli_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["jugde"]) == 2
    assert "did you mean 'judge'?" in capsys.readouterr().err


# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
OWN_PACKAGES = {"grm_jax", "launch", "experiments", "benchmarks"}


def imported_modules(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports by absolute name."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return {name.partition(".")[0] for name in names}


# Imported where they are installed, or in the one module that needs them: the extra that has them.
EXTRAS = {
    "data": ({"seqio", "tensorflow", "tensorflow-datasets"}, {"grm_jax/data/mixtures.py"}),
    "tensorboard": ({"tensorboard"}, {"grm_jax/training/metrics.py"}),
    "serve": (
        {"h11", "prometheus-client", "pydantic", "starlette", "uvicorn"},
        {path.relative_to(ROOT).as_posix() for path in ROOT.glob("grm_jax/serving/*.py")},
    ),
    "test": ({"pandas", "datasets"}, {"grm_jax/judging/frames.py"}),
}


def declared(monkeypatch) -> dict[str, set[str]]:
    """Names of the distributions that setup.py declares, by extra; "" for the core."""
    fields: dict = {}
    monkeypatch.setattr("setuptools.setup", lambda **kwargs: fields.update(kwargs))
    runpy.run_path(str(ROOT / "setup.py"))
    lists = {"": fields["install_requires"], **fields["extras_require"]}
    name = re.compile(r"[\w-]+")
    return {extra: {canonical(name.match(r)[0]) for r in lists[extra]} for extra in lists}


def canonical(name: str) -> str:
    return DISTRIBUTIONS.get(name, name).replace("_", "-")


def test_every_import_is_declared(monkeypatch):
    """The core has the distribution of every module that is imported, except those of EXTRAS."""
    names = declared(monkeypatch)
    assert len(names[""]) > 20 and "jax" in names[""]
    missing = []
    for file in [*ROOT.glob("grm_jax/**/*.py"), *ROOT.glob("launch/**/*.py")]:
        path = file.relative_to(ROOT).as_posix()
        allowed = set(names[""])
        for extra, (modules, files) in EXTRAS.items():
            if path in files:
                allowed |= modules & names[extra]
        imported = imported_modules(file) - OWN_PACKAGES - sys.stdlib_module_names
        missing += [f"{name} ({path})" for name in imported if canonical(name) not in allowed]
    assert not missing


def test_imports_have_no_cycle_and_point_downwards():
    """`make graph`: the layers are those of pyproject.toml."""
    command = [sys.executable, str(ROOT / ".ci/import_graph.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^cycles +0\nupward imports +0\n", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "error, status",
    [(ValueError("x"), 2), (OSError("x"), 2), (Unavailable("x"), 75), (WorkersAbsent("x"), 75)],
)
def test_errors_that_may_pass_have_a_status_of_their_own(error, status, capsys):
    """On GKE another start is tried after 75, and none after 2."""

    def command():
        raise error

    assert run_command("grm judge", command) == status
    assert capsys.readouterr().err == "grm judge: x\n"
