"""The console script `grm`: imports the module of one command and runs it."""

import importlib
import sys
import traceback

from grm_jax.hosts.errors import CRASHED
from grm_jax.registry import nearest

# command -> (module with main(argv), one line of help)
COMMANDS = {
    "judge": ("grm_jax.judging.cli", "score the comparisons of a file with a judge"),
    "eval": ("grm_jax.evals.cli", "run reward-model benchmarks with their official metrics"),
    "merge": ("grm_jax.evals.merge", "join the shards of grm judge or grm eval --shard I/N"),
    "serve": ("grm_jax.serving.cli", "serve a judge over HTTP: rewards for trainers, completions"),
    "convert": (
        "grm_jax.checkpoints.cli",
        "convert checkpoints: Hugging Face, DeepMind Flax, GGUF, Orbax",
    ),
    "report": ("grm_jax.judging.report", "write judged comparisons as one HTML page"),
    "table": ("grm_jax.evals.table", "compare the results of several evaluations in one table"),
}


def usage() -> str:
    """Returns the help text of `grm`."""
    lines = [f"  {name:<8} {help_line}" for name, (_, help_line) in COMMANDS.items()]
    return "\n".join(["usage: grm COMMAND [ARGUMENTS]   (help: grm COMMAND --help)", "", *lines])


def main(argv: list[str] | None = None) -> int:
    """Runs `grm COMMAND ...`; returns the exit status (2 for a wrong command line)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from grm_jax import __version__

        print(f"grm_jax {__version__}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        print(f"grm: unknown command {command!r}: {nearest(command, COMMANDS)}", file=sys.stderr)
        return 2
    from grm_jax.devices import choose_platform

    choose_platform()
    return importlib.import_module(COMMANDS[command][0]).main(rest) or 0


def console() -> int:
    """Returns the exit status of `main` for a shell, CRASHED after an error of the program.

    Python's own status for it is 1, which says that the work is done, with error rows.
    """
    try:
        return main()
    except Exception:  # noqa: BLE001
        traceback.print_exc()
        return CRASHED


if __name__ == "__main__":
    sys.exit(console())
