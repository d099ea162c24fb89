"""Command lines: parsing of options, and errors in one line with an exit status."""

import argparse
import dataclasses
import difflib
import math
import numbers
import operator
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from grm_jax.hosts.errors import START_AGAIN, Unavailable, WorkersAbsent
from grm_jax.storage import write_atomic


@dataclasses.dataclass(frozen=True)
class Number:
    """A number with its range: the `type` of an option, and the check of a setting in Python.

    kind: int or float.  low, high: the bounds, which are in the range.  above: a bound that is not.
    use: what to do about a number outside, such as "sample at least one critique"; the bounds if
    empty.
    """

    kind: type
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    use: str = ""

    @property
    def __name__(self) -> str:  # argparse: "invalid int value: 'x'"
        return self.kind.__name__

    def __call__(self, text: str) -> Any:
        """Parses an option of the command line; `Parser` checks its range afterwards."""
        return self.kind(text)

    def check(self, name: str, value: Any) -> Any:
        """Returns the number as an int, or as it is. Raises ValueError that begins with `name`.

        name: with the sign before the value, such as "k = ".
        """
        expected = "an integer" if self.kind is int else "a number"
        is_number = hasattr(value, "__index__") or (
            self.kind is float and isinstance(value, numbers.Real)
        )
        if not is_number or isinstance(value, bool):
            raise ValueError(f"{name}{value!r:.80} is a {type(value).__name__}: use {expected}")
        value = operator.index(value) if hasattr(value, "__index__") else value
        value = value if isinstance(value, int | float) else float(value)
        if not (self.low <= value <= self.high and self.above < value < math.inf):
            shown = f"{value:.12g}" if isinstance(value, float) else short_int(value)
            raise ValueError(f"{name}{shown}: {self.use or f'use {self._range()}'}")
        return value

    def _range(self) -> str:
        if self.above > -math.inf:
            most = f" and at most {self.high:.12g}" if self.high < math.inf else ""
            return f"more than {self.above:g}{most}"
        return f"{self.low:.12g}" + (
            f" to {self.high:.12g}" if self.high < math.inf else " or more"
        )


def short_int(value: int) -> str:
    """Returns an integer as text; one of thousands of digits by its size."""
    return str(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"


class HelpFormatter(argparse.HelpFormatter):
    """Shows numbers as `--max_new_tokens N`."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        metavars: dict[Any, str] = {int: "N", float: "X"}
        kind = action.type.kind if isinstance(action.type, Number) else action.type
        return metavars.get(kind) or super()._get_default_metavar_for_optional(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that takes dashes for underscores, and has short errors.

    An unknown option is answered with the nearest one; every error is one line, exit status 2.
    A `Number` outside its range raises ValueError, so parse inside `run_command`.

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
        parsed, extra = super().parse_known_args(list(self._spelt(given)), namespace)
        for action in self._actions:
            value = getattr(parsed, action.dest, None)
            if isinstance(action.type, Number) and value is not None:
                action.type.check(f"--{action.dest} ", value)
        return parsed, extra

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

    2 for a ValueError, OSError or MemoryError, printed to stderr as "NAME: message" (START_AGAIN
    for those that may pass); 130 after Ctrl-C. if_interrupted: how to resume, printed after Ctrl-C.
    """
    try:
        return command()
    except (ValueError, OSError, MemoryError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return START_AGAIN if isinstance(error, WorkersAbsent | Unavailable) else 2
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


def add_host_arguments(
    parser: argparse.ArgumentParser,
    title: str = "several hosts (detected on TPU VMs and GKE; elsewhere, give all three)",
) -> Callable[..., argparse.Action]:
    """Adds a group of the arguments that `hosts.distributed.find_worker` takes.

    Returns its `add_argument`.
    """
    add = parser.add_argument_group(title).add_argument
    add("--coordinator", metavar="HOST:PORT", help="address of process 0")
    add("--process_id", type=Number(int, 0, 10**6), help="number of this process, from 0")
    add("--num_processes", type=Number(int, 1, 10**6), help="number of all processes")
    return add


def add_lora_argument(add: Callable[..., argparse.Action]) -> None:
    """Adds --lora by the `add_argument` of a parser or group."""
    add(
        "--lora",
        metavar="PATH",
        help="LoRA adapter that is merged into the model's weights: a folder as peft saves it, or "
        "a hub name",
    )


def add_device_arguments(parser: argparse.ArgumentParser) -> Callable[..., argparse.Action]:
    """Adds the group "devices": numbers and mesh; returns its `add_argument`."""
    add = parser.add_argument_group("devices").add_argument
    add(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="of weights and activations (default bfloat16)",
    )
    add(
        "--quantize",
        choices=("int8", "int4"),
        help="load weights of one byte or half of one, of the meta reward model too (default: off)",
    )
    add(
        "--kv_cache_dtype",
        choices=("int8",),
        help="int8: keep the keys and values of prompts and samples in int8 (default: --dtype)",
    )
    add(
        "--mesh",
        metavar="AXES",
        help="data=1,fsdp=8,tensor=1; one axis may be -1 (default: one device)",
    )
    return add
