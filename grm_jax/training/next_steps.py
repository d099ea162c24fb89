"""Commands to try on what a run left: a comparison of one's own, the viewer, Python."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.storage import is_remote, write_atomic

# In the wording of the judging world: a plain right answer, and a wrong one that sounds sure.
QUERY, RESPONSES = "sort 7 2 5", ["answer: 2 5 7", "no doubt: 2 7 5"]

LONGEST = 300  # characters of a comparison that fits a command


def python_example(model: str, query: Any = QUERY, responses: Sequence[str] = RESPONSES) -> str:
    """Returns a program that judges one comparison with the judge in the folder `model`."""
    return f"""\
from grm_jax import Comparison, Judge

judge = Judge.load({json.dumps(model)})
comparison = Comparison({json.dumps(query)}, {json.dumps(responses)})
(verdict,) = judge([comparison], k=8)
print(verdict.best, verdict.scores)
for principle in verdict.critiques[0].principles:
    print(principle.weight, principle.name, principle.description)
"""


def write_commands(workdir: Any, is_world: bool) -> list[str]:
    """Returns shell commands that work on what a run left, and writes the program of the last one.

    Args:
      workdir: of the run; for one in a bucket there are no commands.
      is_world: whether the judge is trained on the judging world, whose wording it needs. For other
        data the example is the first comparison of the evaluation.
    """
    if is_remote(workdir):
        return []
    rows = [path for name in ("rft", "rl") if (path := workdir / "eval" / f"{name}.jsonl").exists()]
    models = [path for name in ("rl", "rft") if (path := workdir / name / "hf").exists()]
    if not rows:
        return []
    page = _short(workdir / "eval/judged.html")
    commands = [[*_program("grm"), "report", *map(_short, rows), "-o", page]]
    if models:
        query, responses, model = QUERY, RESPONSES, _short(models[0])
        if not is_world:
            with rows[0].open() as lines:
                first = strict_json.loads(next(lines))
            query, responses = first["query"], first["responses"]
        if len(json.dumps([query, responses])) <= LONGEST and isinstance(query, str):
            texts = ["--query", query, *(w for text in responses for w in ("--response", text))]
            commands.insert(0, [*_program("grm"), "judge", "--model", model, *texts])
        example = workdir / "eval/example.py"
        # The judge's folder is found from the program's own, whatever the current folder is.
        judge = f'Path(__file__).resolve().parents[1] / "{models[0].parent.name}/hf"'
        code = python_example(model, query, responses).replace(json.dumps(model), judge, 1)
        write_atomic(example, f"from pathlib import Path\n\n{code}")
        commands.append([*_program("python"), _short(example)])
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
