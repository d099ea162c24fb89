"""Command-line options of launch/tpu.py."""

import argparse

from grm_jax.commands import HelpFormatter, Number, Parser, add_host_arguments
from grm_jax.devices import CACHE
from launch.compile.slices import example_names
from launch.errors import LaunchError

TIMEOUT = 300  # seconds for all workers to join


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, HelpFormatter):
    """Keeps the line breaks of the description."""


class _Parser(Parser):
    passed = ("--config.",)

    def error(self, message: str) -> None:  # type: ignore[override]
        raise LaunchError(f"{message} (--help lists the options)")


def parse(argv: list[str], description: str = "") -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns (options, overrides: dotted config field -> text).

    Raises LaunchError for an unknown option, an empty one or an override without a value.
    """
    parser = _parser(description)
    at = argv.index("--") if "--" in argv else len(argv)
    options, rest = parser.parse_known_args(_join_overrides(argv[:at]))
    options.command = tuple(argv[at + 1 :])
    if options.config is None and not options.shards:
        parser.error("the following arguments are required: --config")
    overrides = {}
    for argument in rest:
        field, equals, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config."):
            raise LaunchError(f"unexpected argument {argument!r}: --help lists the options")
        if not equals:
            raise LaunchError(f"{argument} has no value: write {argument}=VALUE")
        overrides[field.replace("-", "_")] = text
    for name, value in vars(options).items():
        if isinstance(value, str) and not value.strip():
            raise LaunchError(f"--{name} is empty: give a value, or remove it")
        if isinstance(value, str) and not value.isprintable():
            raise LaunchError(f"--{name}={value!r:.80} has a control character: remove it")
    return options, overrides


def _parser(description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="launch/tpu.py",
        usage="launch/tpu.py --config FILE.py[:arg] [--config.field=value ...] [options]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="FILE.py[:arg]", help="the experiment")
    add(
        "--workdir",
        metavar="DIR",
        help="folder of checkpoints, logs and results; may be gs:// (default runs/NAME)",
    )
    add(
        "--compilation_cache",
        metavar="DIR",
        help=f"folder of compiled programs, or 'off' (default {CACHE})",
    )
    add("--emulate", type=Number(int, 1, 4096), metavar="N", help="use N emulated CPU devices")
    add("--traceback", action="store_true", help="print the traceback of an error")

    add = add_host_arguments(
        parser, "workers (detected on TPU VMs and GKE; elsewhere, give the first three)"
    )
    add(
        "--timeout",
        type=Number(float, above=0, high=1e6),
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"time for all workers to join (default {TIMEOUT})",
    )

    title = "from a laptop: a queued resource of Google Cloud (needs gcloud), or GKE"
    add = parser.add_argument_group(title).add_argument
    add(
        "--on",
        choices=["queued-resource", "gke"],
        help="queued-resource: create it, run this commit, follow the log, restart after a "
        "preemption, delete it; gke: needs --print",
    )
    add("--name", metavar="NAME", help="name of the queued resource or JobSet")
    add("--zone", metavar="ZONE", help="zone of the queued resource, such as us-east5-a")
    add("--project", metavar="ID", help="project (default: gcloud's)")
    add("--accelerator", metavar="TYPE", help="accelerator type, such as v5p-64")
    add("--spot", action="store_true", help="use preemptible capacity")
    add("--keep", action="store_true", help="do not delete the resource at the end")
    add(
        "--send_hf_token",
        action="store_true",
        help="copy this machine's Hugging Face token to the workers, for gated models",
    )
    add("--dry_run", action="store_true", help="print the commands; run none")
    add("--print", action="store_true", help="print the JobSet manifest; create nothing")
    add(
        "--image",
        help="container image with this tree in /grm_jax (default: pods fetch this commit)",
    )
    add("--queue", metavar="NAME", help="Kueue's local queue")
    add(
        "--shards",
        type=Number(int, 1, 99_999),
        metavar="N",
        help="with gke, instead of --config: print N shards of the grm command after --, and their "
        "merge",
    )

    add = parser.add_argument_group("compile only, without TPUs").add_argument
    add("--compile_only", action="store_true", help="compile; run nothing")
    add("--slice", metavar="TYPE", help=f"accelerator type, such as {', '.join(example_names())}")
    add("--num_slices", type=int, default=1, help="number of slices (default 1)")
    add("--programs", metavar="NAMES", help="compile only these, comma-separated")
    add(
        "--out", metavar="PATH", help="result files, without suffix (default WORKDIR/compile_SLICE)"
    )
    add("--overwrite", action="store_true", help="compile again what an earlier run has compiled")
    return parser


def _join_overrides(argv: list[str]) -> list[str]:
    """`--config.a.b value` becomes `--config.a.b=value`."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1].startswith("--config.") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined
