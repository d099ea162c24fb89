"""Runs the commands of `grm`: an error becomes one line and an exit status."""

import sys
from collections.abc import Callable
from pathlib import Path


def run_command(name: str, command: Callable[[], int], if_interrupted: str = "") -> int:
    """Runs a command and returns its exit status.

    2 for a ValueError, OSError or MemoryError, printed to stderr as "NAME: message"; 130 after
    Ctrl-C. if_interrupted: how to resume, printed after Ctrl-C.
    """
    try:
        return command()
    except (ValueError, OSError, MemoryError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = f". {if_interrupted}" if if_interrupted else ""
        print(f"\n{name}: interrupted{hint}", file=sys.stderr)
        return 130


def write_output(text: str, path: str | None) -> int:
    """Writes a command's result to a file, or prints it; returns the exit status 0."""
    if path:
        Path(path).write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0
