"""Shared by the speed benchmarks: the machine, processes of their own for peers, result files.

Imports only the standard library, because peers import it in environments without ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def argument_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the docstring of the program."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def machine() -> dict[str, Any]:
    """Describes the machine, for result files."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def run_apart(
    script: str | Path,
    *arguments: object,
    python: str = "",
    path: Sequence[object] = (),
    timeout: float | None = None,
) -> Any:
    """Runs a script in a process of its own, on the CPU unless JAX_PLATFORMS is set.

    Args:
      python: command of the interpreter; ours by default.
      path: folders in front of the repository in PYTHONPATH.
      timeout: seconds after which the process is killed; None waits until it exits.

    Returns:
      The JSON value on the last line of its output.

    Raises:
      RuntimeError: with the end of its error output, if it fails.
      subprocess.TimeoutExpired: it ran longer than `timeout`.
    """
    command, environment = _command(script, arguments, python, path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command[1:])} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def stream_apart(
    script: str | Path, *arguments: object, python: str = "", timeout: float
) -> Iterator[Any]:
    """Runs a script as `run_apart` does; yields the JSON value of each line as it is printed.

    Lines that are not JSON objects are skipped.

    Raises:
      TimeoutError: if it runs longer than `timeout` seconds; it is killed.
      RuntimeError: with the end of its error output, if it fails.
    """
    command, environment = _command(script, arguments, python, ())
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            expired = threading.Event()
            timer = threading.Timer(timeout, lambda: (expired.set(), process.kill()))
            timer.start()
            try:
                yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
            finally:
                timer.cancel()
                if sys.exc_info()[0]:
                    process.kill()
        if expired.is_set():
            raise TimeoutError(f"{shlex.join(command[1:])}: {timeout:.0f} s are over")
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{shlex.join(command[1:])} failed:\n{errors.read()[-3000:]}")


def _command(
    script: str | Path, arguments: Sequence[object], python: str, path: Sequence[object]
) -> tuple[list[str], dict[str, str]]:
    """Returns the command line and environment of a process of its own."""
    environment = {"JAX_PLATFORMS": "cpu", **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*path, ROOT)))
    command = [*(shlex.split(python) or [sys.executable]), str(script), *map(str, arguments)]
    return command, environment


def flags(options: Mapping[str, object]) -> list[str]:
    """Returns a command line: {"k": 8} becomes --k 8."""
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


def base_model_tokenizer(tokenizer: Path, folder: Path) -> Path:
    """Writes a tokenizer folder whose chat format is BOS and the texts, for base models."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}\n\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def read_json(path: Path, default: Any) -> Any:
    """Reads an earlier result file; `default` if there is none."""
    return json.loads(path.read_text()) if path.exists() else default


def result_file(out: Path, suffix: str) -> Path:
    """Returns the path of `--out` with a suffix such as ".md"; the ".5b" of a model is none."""
    stem = out.with_suffix("") if out.suffix in (".json", ".md", ".png") else out
    return Path(f"{stem}{suffix}")


def write_json(path: Path, value: Any) -> None:
    """Writes a result file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def markdown_table(columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table. columns: title -> "left" or "right"."""
    rules = ["---:" if side == "right" else "---" for side in columns.values()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (list(columns), rules, *rows))
