"""Command lines: parsing of options, and errors in one line with an exit status."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from grm_jax.storage import write_atomic


class HelpFormatter(argparse.HelpFormatter):
    """Shows numbers as `--max_new_tokens N`."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        numbers: dict[Any, str] = {int: "N", float: "X"}
        return numbers.get(action.type) or super()._get_default_metavar_for_optional(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that takes dashes for underscores, and has short errors.

    An unknown option is answered with the nearest one; every error is one line, exit status 2.

    Attributes:
      passed: beginnings of options that the caller parses itself, such as "--config.".
      hints: what to do instead of an unknown option, by its name.
    """

    passed: tuple[str, ...] = ()
    hints: Mapping[str, str] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Does what argparse does, once every option is spelt as it was added."""
        given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(list(self._spelt(given)), namespace)

    def error(self, message: str) -> NoReturn:
        """Prints the message without the usage, and exits with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")

    def _spelt(self, args: Sequence[str]) -> Iterator[str]:
        """Yields the arguments, with known spellings. Errors for the first unknown option."""
        options = [option for action in self._actions for option in action.option_strings]
        known = {_same(option): option for option in options if option.startswith("--")}
        for i, arg in enumerate(args):
            name, equals, value = arg.partition("=")
            if arg == "--":
                yield from args[i:]
                return
            single = re.fullmatch("-[A-Za-z]", arg) and arg not in options
            if not single and (
                not name.startswith("--") or " " in name or name.startswith(self.passed or " ")
            ):
                yield arg
            elif _same(name) in known:
                yield known[_same(name)] + equals + value
            elif not single and self.allow_abbrev and self._full(name, known):
                yield self._full(name, known) + equals + value
            else:
                name = f"-{name}" if single and f"-{name}" in known.values() else name
                close = difflib.get_close_matches(name, known.values(), n=1, cutoff=0.75)
                hint = self.hints.get(name) or (f"did you mean {close[0]}?" if close else "")
                self.error(f"unknown option {arg.partition('=')[0]!r}{hint and ': '}{hint}")

    def _full(self, name: str, known: Mapping[str, str]) -> str:
        """Returns the option of an abbreviation, or "". Errors for one of several options."""
        matches = [option for key, option in known.items() if key.startswith(_same(name))]
        if len({id(self._option_string_actions[option]) for option in matches}) > 1:
            self.error(f"{name!r} is ambiguous: {', '.join(matches)}")
        return matches[0] if matches else ""


def _same(option: str) -> str:
    return option.replace("-", "_").lower()


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
        write_atomic(path, text)
    else:
        print(text)
    return 0
