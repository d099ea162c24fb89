"""The console script `grm`: one word chooses a tool, whose module is imported only then."""

import difflib
import importlib
import sys

# subcommand -> (module with main(argv), one line of help)
COMMANDS = {
    "judge": ("grm_jax.judging.cli", "score the comparisons of a JSONL file with a trained judge"),
    "eval": ("grm_jax.evals.cli", "run reward-model benchmarks with their official metrics"),
    "convert": (
        "grm_jax.checkpoints.cli",
        "convert checkpoints: Hugging Face, DeepMind Flax, GGUF, Orbax",
    ),
    "report": ("grm_jax.judging.report", "turn judged comparisons into one readable HTML page"),
    "table": ("grm_jax.evals.table", "lay the result files of several evaluations side by side"),
}


def usage() -> str:
    lines = ["usage: grm COMMAND [ARGUMENTS]   (grm COMMAND --help says more)", ""]
    return "\n".join(
        lines + [f"  {name:<8} {help_line}" for name, (_, help_line) in COMMANDS.items()]
    )


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
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(COMMANDS)}"
        print(f"grm: unknown command {command!r}: {hint}", file=sys.stderr)
        return 2
    from grm_jax.devices import choose_platform

    choose_platform()
    tool = importlib.import_module(COMMANDS[command][0])
    return tool.main(rest) or 0


if __name__ == "__main__":
    sys.exit(main())
