"""The one entry point: `python launch/tpu.py --config experiments/NAME.py[:arg] --workdir DIR [--config.field=value]`.

here                       CPU, GPU or one TPU VM
on each worker of a slice  the same command; the place among the workers is found, or given by --coordinator, --process_id, --num_processes
--on queued-resource       from a laptop: creates the slice, runs there, follows, resumes after a preemption, deletes it
--on gke --print           a JobSet manifest for a Kubernetes cluster, with or without Kueue
--compile_only --slice S   compiles the experiment's programs for a slice that is not there, and says what they need
"""

import argparse
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from launch import config as configs  # noqa: E402
from launch.errors import FAILED, START_AGAIN, WRONG_COMMAND, LaunchError  # noqa: E402

CACHE = "~/.cache/grm_jax/xla"


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise LaunchError(f"{message} (--help lists the options)")


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """(options, {field: text} of the --config.field=value). Raises LaunchError for what is neither."""
    parser = _Parser(
        prog="launch/tpu.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:arg]",
        help="the experiment; --config.field=value changes one value",
    )
    parser.add_argument(
        "--workdir", help="checkpoints, logs and results go here (default: runs/NAME); may be gs://"
    )
    parser.add_argument(
        "--compilation_cache",
        metavar="DIR",
        help=f"compiled programs are kept here (default {CACHE}); off: none",
    )
    parser.add_argument(
        "--emulate",
        type=int,
        metavar="N",
        help="N CPU devices on this machine, to try a mesh without a slice",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    workers = parser.add_argument_group(
        "on the workers of a slice (found by themselves on TPU VMs and GKE)"
    )
    workers.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    workers.add_argument("--process_id", type=int)
    workers.add_argument("--num_processes", type=int)
    workers.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long to wait for the others (default 300)",
    )
    away = parser.add_argument_group(
        "from a laptop, on a slice that Google Cloud queues (needs gcloud), or on GKE"
    )
    away.add_argument(
        "--on",
        choices=["queued-resource", "gke"],
        help="queued-resource: create it, copy this commit, run, follow, start again after preemption, delete; gke: see --print",
    )
    away.add_argument("--name", help="of the queued resource or JobSet")
    away.add_argument("--zone")
    away.add_argument("--project", help="default: gcloud's own")
    away.add_argument("--accelerator", metavar="NAME", help="as --slice")
    away.add_argument("--spot", action="store_true")
    away.add_argument("--keep", action="store_true", help="do not delete it at the end")
    away.add_argument("--dry_run", action="store_true", help="print the commands and call none")
    away.add_argument(
        "--print", action="store_true", help="print the JobSet manifest; nothing is created"
    )
    away.add_argument(
        "--image",
        help="holds this tree in /grm_jax (default: pods fetch this commit from its remote)",
    )
    away.add_argument("--queue", metavar="NAME", help="Kueue's local queue")
    compiling = parser.add_argument_group("without the slice")
    compiling.add_argument("--compile_only", action="store_true")
    compiling.add_argument(
        "--slice",
        metavar="NAME",
        help="as Google Cloud names it: v4-8, v5litepod-16, v5p-128, v6e-64",
    )
    compiling.add_argument("--num_slices", type=int, default=1)
    compiling.add_argument("--programs", help="only these, comma-separated")
    compiling.add_argument(
        "--out", help="result files, without suffix (default: WORKDIR/compile_SLICE)"
    )
    options, rest = parser.parse_known_args(_joined(argv))
    overrides = {}
    for word in rest:
        field, equals, text = word.removeprefix("--config.").partition("=")
        if not word.startswith("--config.") or not equals:
            raise LaunchError(_unknown_option(parser, word))
        overrides[field] = text
    return options, overrides


def _joined(argv: list[str]) -> list[str]:
    """`--config.a.b value` as `--config.a.b=value`."""
    words: list[str] = []
    for word in argv:
        if words and words[-1].startswith("--config.") and "=" not in words[-1]:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _unknown_option(parser: argparse.ArgumentParser, word: str) -> str:
    import difflib

    if word.startswith("--config."):
        return f"{word} has no value: write {word}=VALUE"
    known = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"unknown option {word.partition('=')[0]!r}" + (
        f": did you mean {near[0]}?" if near else " (--help lists the options)"
    )


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, 1 failed, 2 wrong command, 70 another process died, 75 stopped and saved: start it again."""
    options = None
    try:
        options, overrides = parse(argv)
        if options.slice:
            from launch.compile.slices import get_slice

            get_slice(options.slice)
        config = configs.load(options.config, overrides)
        workdir = (
            options.workdir
            or f"runs/{config.get('name') or Path(options.config.partition(':')[0]).stem}"
        )
        if options.on == "gke":
            return print_jobset(options, config, overrides)
        if options.on:
            return run_queued(options, config, overrides)
        if options.compile_only:
            return compile_only(options, config, workdir)
        return run_here(options, config, workdir)
    except (LaunchError, ValueError, FileNotFoundError) as error:
        if options is not None and options.traceback:
            raise
        print(f"launch: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_COMMAND


def compile_only(options, config, workdir: str) -> int:
    """Compiles for a slice that is not there; 1 if a program does not fit."""
    if not options.slice:
        raise LaunchError("--compile_only needs --slice NAME, such as --slice v5p-128")
    _use_cpu_alone()
    from launch.compile import compile_only as compiling
    from launch.compile import programs
    from launch.compile import results as result_files
    from launch.compile.slices import get_slice, quiet_environment

    quiet_environment()
    try:
        mesh = programs.make_slice_mesh(config, options.slice, options.num_slices)
    except RuntimeError as error:  # no libtpu
        raise LaunchError(str(error)) from error
    names = options.programs.split(",") if options.programs else None
    tasks = programs.tasks(config, mesh, names, get_slice(options.slice).generation.hbm_bytes)
    results = compiling.compile_tasks(tasks, options.slice, options.num_slices)
    result_files.print_table(results)
    out = Path(
        options.out
        or f"{workdir}/compile_{options.slice}"
        + (f"_x{options.num_slices}" if options.num_slices > 1 else "")
    )
    result_files.write(
        results,
        out,
        result_files.provenance(f"{options.config} on {options.num_slices} x {options.slice}"),
    )
    print(f"written: {out}.json and {out}.md")
    return 0 if all(r.fits for r in results) else FAILED


def run_queued(options, config, overrides: dict[str, str]) -> int:
    """Everything that can be wrong is looked for before the first command that costs."""
    from launch.cluster import gcloud, queued

    part = _away(options, config, ("name", "zone", "accelerator"), ("print", "image", "queue"))
    file, words = _words(options, overrides)
    resource = gcloud.Resource(
        options.name, options.zone, part.name, options.num_slices, options.spot, options.project
    )
    tree = f"{queued.HOME}.tar.gz" if options.dry_run else ""
    if not options.dry_run:
        answer = gcloud.run(gcloud.describe_bucket(options.workdir))
        if answer.code:
            raise LaunchError(f"{options.workdir} cannot be reached: {answer.reason}")
        if missing := _left_out(config):
            raise LaunchError(missing)
        tree = queued.archive(ROOT, file)
    if options.dry_run:
        print("\n".join(queued.commands(queued.Job(resource, words, tree, options.keep))))
        _warn(_left_out(config))
        return 0
    return queued.run(queued.Job(resource, words, tree, options.keep, tree=queued.digest(tree)))


def print_jobset(options, config, overrides: dict[str, str]) -> int:
    """Prints the manifest of the run; `kubectl` creates it."""
    from launch.cluster import gke

    part = _away(options, config, ("name", "accelerator"), ("zone", "project", "keep", "dry_run"))
    if not options.print:
        raise LaunchError(
            "--on gke creates nothing: add --print, and give the manifest to kubectl apply -f -"
        )
    file, words = _words(options, overrides)
    if not file.is_relative_to(ROOT):
        raise LaunchError(
            f"config {file} is not in the tree that the pods get: put it under {ROOT}/experiments"
        )
    tree = ("", "") if options.image else gke.public_tree(ROOT)
    run = gke.Run(
        name=options.name,
        tpu_slice=part,
        num_slices=options.num_slices,
        arguments=words,
        image=options.image,
        tree=tree,
        queue=options.queue,
        spot=options.spot,
    )
    print(gke.to_yaml(gke.manifest(run)), end="")
    if missing := _left_out(config):
        _warn(
            missing + (f"; or see that the image {options.image} holds it" if options.image else "")
        )
    return 0


def _away(options, config, needed: tuple[str, ...], foreign: tuple[str, ...]):
    """The slice to run on, once the options of that way are whole and the mesh makes its chips."""
    from launch.compile.slices import get_slice

    if missing := [f"--{name}" for name in needed if not getattr(options, name)]:
        every = [f"--{name}" for name in needed]
        raise LaunchError(
            f"{' and '.join(missing)} missing: --on {options.on} needs {', '.join(every[:-1])} and {every[-1]}"
        )
    if given := [f"--{name}" for name in foreign if getattr(options, name)]:
        raise LaunchError(
            f"{' and '.join(given)} has no meaning with --on {options.on}: leave it out"
        )
    if not (options.workdir or "").startswith("gs://"):
        raise LaunchError(
            f"--on {options.on} needs --workdir gs://BUCKET/FOLDER: a preempted machine's own disk is lost"
        )
    if options.num_slices < 1:
        raise LaunchError(f"--num_slices={options.num_slices}: use 1 or more")
    part = get_slice(options.accelerator)
    _check_mesh(
        config,
        part.chips * options.num_slices,
        f"{options.num_slices} x {part.name}",
        options.num_slices,
    )
    return part


def _left_out(config) -> str:
    """What is wrong with the paths that the run reads on the workers, "" if nothing: they get what is committed, and reach buckets."""
    import subprocess

    from grm_jax.training import sources

    def is_there(path: str) -> bool:
        if "://" in path or Path(path).is_absolute():
            return "://" in path
        found = subprocess.run(
            ["git", "ls-tree", "HEAD", "--", path], cwd=ROOT, capture_output=True, text=True
        )
        return bool(found.stdout)

    left = [f"{field} names {path}" for field, path in sources.paths(config) if not is_there(path)]
    more = f", and {len(left) - 3} more" if len(left) > 3 else ""
    told = f"{', '.join(left[:3])}{more}: the workers get only what is committed; copy it to a bucket and give its gs:// address"
    return told if left else ""


def _warn(text: str) -> None:
    if text:
        print(f"launch: warning: {text}", file=sys.stderr)


def _words(options, overrides: dict[str, str]) -> tuple[Path, tuple[str, ...]]:
    """(the experiment's file, the arguments of this program on the workers)."""
    text, colon, arg = options.config.partition(":")
    file = configs.find(text)
    name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    changes = [f"--config.{field}={text}" for field, text in overrides.items()]
    return file, ("--config", f"{name}{colon}{arg}", *changes, "--workdir", options.workdir)


def _check_mesh(config, chips: int, what: str, num_slices: int) -> None:
    """What `_check_model` finds out of a mesh on the machine itself, before there is one."""
    from types import SimpleNamespace

    from grm_jax.models import get_config
    from grm_jax.sharding import check_fits

    mesh = dict(config.mesh)
    known = math.prod(n for n in mesh.values() if n != -1)
    free = [axis for axis, n in mesh.items() if n == -1]
    if chips % known or len(free) > 1 or (not free and chips != known):
        given = " x ".join(f"{axis}={n}" for axis, n in mesh.items())
        raise LaunchError(
            f"mesh {given} does not make the {chips} chips of {what}: set one of config.mesh.* (one may be -1)"
        )
    sizes = mesh | dict.fromkeys(free, chips // known)
    if sizes["data"] % num_slices:
        raise LaunchError(
            f"mesh data={sizes['data']} is not a multiple of the {num_slices} slices: fsdp and tensor lie inside one slice, "
            f"set --config.mesh.data={num_slices}"
        )
    unbuilt: Any = SimpleNamespace(shape=sizes)  # a Mesh needs devices
    check_fits(get_config(config.model, **dict(config.get("model_overrides", {}))), unbuilt)
    _check_rows(config, sizes["data"] * sizes["fsdp"])


def _check_rows(config, ways: int) -> None:
    """Refuses batches that cannot be dealt out over `ways` = data x fsdp of the mesh."""
    rows = {
        "rft": ("", "batch_size"),
        "rl": ("rl.", "prompts"),
        "meta_rm": ("meta_rm.", "batch_size"),
    }
    for stage, (section, name) in rows.items():
        count = (config[stage] if section else config)[name] if stage in config.stages else 0
        if count % ways:
            raise LaunchError(
                f"config.{section}{name}={count} does not divide over mesh data x fsdp = {ways}: use a multiple of {ways}, or more config.mesh.tensor"
            )


def run_here(options, config, workdir: str) -> int:
    """Trains and evaluates on the devices of this process and of those that it meets."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells every step of every save
    if options.emulate:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.emulate}"
        os.environ["XLA_FLAGS"] = flags.strip()
        _use_cpu_alone()
    from grm_jax.devices import choose_platform
    from launch.cluster import distributed

    choose_platform()
    worker = distributed.find_worker(options.coordinator, options.process_id, options.num_processes)
    meeting = distributed.start(worker, options.timeout)
    _keep_compiled(options.compilation_cache, workdir)
    _check_model(config)
    _check_workdir(workdir)
    from grm_jax.training import checkpoint, loop, rft_samplers
    from grm_jax.training import main as training

    try:
        training.run(config, workdir)
    except loop.Stopped as stopped:
        print(f"launch: {stopped}", file=sys.stderr)
        return START_AGAIN
    except (loop.NonFiniteLoss, rft_samplers.SamplingError, MemoryError) as error:
        if options.traceback:
            raise
        print(f"launch: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except checkpoint.CheckpointError as error:
        raise LaunchError(str(error)) from error
    finally:
        if meeting is not None:
            meeting.leave()
    return 0


def _use_cpu_alone() -> None:
    """Leaves a TPU or GPU of this machine alone, also where the experiment's file has imported JAX, which reads the environment then."""
    import jax

    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")


def _check_workdir(workdir: str, patience: float = 60.0) -> None:
    """Refuses a folder or bucket that cannot be written, before anything is computed for it."""
    import threading

    from grm_jax.storage import as_path

    found: list[Exception | None] = []

    def ask():
        try:
            found.append(as_path(workdir).mkdir(parents=True, exist_ok=True))
        except Exception as error:  # each storage library has its own
            found.append(error)

    # A library that looks for a bucket on a network that is not there may try for many minutes.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    reason = found[0] if found else f"no answer within {patience:.0f} s"
    if reason:
        raise LaunchError(
            f"--workdir={workdir} cannot be reached: {(str(reason).splitlines() or [repr(reason)])[0]}; look at its name, the network and who may write there"
        )


def _check_model(config) -> None:
    """Refuses a mesh that does not fit the devices or the model, and weights of another model, before anything is allocated."""
    from grm_jax import checkpoints
    from grm_jax.models import get_config
    from grm_jax.sharding import check_fits, make_mesh

    cfg = get_config(config.model, **dict(config.get("model_overrides", {})))
    mesh = make_mesh(**dict(config.mesh))
    check_fits(cfg, mesh)
    _check_rows(config, mesh.shape["data"] * mesh.shape["fsdp"])
    if config.get("init"):
        from grm_jax.storage import fetch

        checkpoints.check(fetch(config.init), cfg)


def _keep_compiled(folder: str | None, workdir: str) -> None:
    """Programs compiled once are read back by the next start; beside the checkpoints where the machine itself may be taken away."""
    if folder == "off":
        return
    import jax

    if folder is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    default = (
        f"{workdir}/compilation_cache" if workdir.startswith("gs://") else os.path.expanduser(CACHE)
    )
    jax.config.update("jax_compilation_cache_dir", folder or default)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
