"""Commands to try on what a run left: a comparison of one's own, the viewer, Python."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from grm_jax.storage import is_remote

# In the wording of the judging world: a plain right answer, and a wrong one that sounds sure.
QUERY, RESPONSES = "sort 7 2 5", ["answer: 2 5 7", "no doubt: 2 7 5"]


def python_example(model: str) -> str:
    """Returns the README's program, for the judge in the folder `model`."""
    return f"""\
from grm_jax import Comparison, Judge

judge = Judge.load({json.dumps(model)})
comparison = Comparison({json.dumps(QUERY)}, {json.dumps(RESPONSES)})
(verdict,) = judge([comparison], k=8)
print(verdict.best, verdict.scores)
for principle in verdict.critiques[0].principles:
    print(principle.weight, principle.name, principle.description)
"""


def write_commands(workdir: Any, is_world: bool) -> list[str]:
    """Returns shell commands that work on what a run left, and writes the program of the last one.

    Args:
      workdir: of the run; for one in a bucket there are no commands.
      is_world: whether the judge is trained on the judging world, whose wording it needs.
    """
    if is_remote(workdir):
        return []
    evaluation, commands = workdir / "eval", []
    rows = [path for name in ("rft", "rl") if (path := evaluation / f"{name}.jsonl").exists()]
    if rows:
        page = _short(evaluation / "judged.html")
        commands.append([*_program("grm"), "report", *map(_short, rows), "-o", page])
    models = [path for name in ("rl", "rft") if (path := workdir / name / "hf").exists()]
    if models and is_world:
        model, example = _short(models[0]), evaluation / "example.py"
        responses = [part for text in RESPONSES for part in ("--response", text)]
        judge = [*_program("grm"), "judge", "--model", model, "--query", QUERY, *responses]
        example.write_text(python_example(model))
        commands = [judge, *commands, [*_program("python"), _short(example)]]
    return [shlex.join(command) for command in commands]


def _short(path: Any) -> str:
    """Returns a path relative to the current folder, if it is below it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _program(name: str) -> list[str]:
    """Returns the words that call a program of this environment, whatever the shell's PATH."""
    own = Path(sys.executable).parent / name
    if shutil.which(name) == str(own):
        return [name]
    return [_short(own)] if own.exists() else [sys.executable, "-m", "grm_jax.cli"]
