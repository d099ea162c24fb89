"""Runs an experiment on this machine, on a TPU slice, or on Google Cloud.

On this machine (CPU, GPU or one TPU VM), and on each worker of a slice:
  python launch/tpu.py --config experiments/NAME.py[:arg] --workdir DIR
From a laptop: create the slice, run there, follow the log, resume after a
preemption, delete the slice:
  ... --on queued-resource --name NAME --zone ZONE --accelerator TYPE
For Kubernetes: print a JobSet manifest, with or without Kueue:
  ... --on gke --print --name NAME --accelerator TYPE
The same for N shards of grm judge or grm eval, and their merge:
  python launch/tpu.py --on gke --print --name NAME --accelerator TYPE
    --shards N -- judge gs://BUCKET/in.csv gs://BUCKET/out.jsonl --model MODEL
Without TPUs: compile for a slice, print memory and roofline of each program:
  ... --compile_only --slice TYPE

--config.field=value overrides a field of the experiment.
"""

import argparse
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from grm_jax.devices import choose_platform, use_compilation_cache  # noqa: E402
from grm_jax.hosts import distributed  # noqa: E402
from launch import checks, config as configs  # noqa: E402
from launch.cluster import gcloud, gke, queued  # noqa: E402
from launch.compile.slices import get_slice, quiet_environment  # noqa: E402
from launch.errors import (  # noqa: E402
    FAILED,
    INTERRUPTED,
    START_AGAIN,
    WRONG_COMMAND,
    DoesNotFit,
    LaunchError,
    Unavailable,
    WorkersAbsent,
)
from launch.options import TIMEOUT, parse  # noqa: E402


def main(argv: list[str]) -> int:
    """Returns the exit status.

    0 success, 1 failure during training, 2 wrong command, 70 another process crashed, 75 stopped
    and saved: run the command again, 130 interrupted.
    """
    try:
        status = _run(argv)
    except Exception:
        distributed.fail(FAILED, traceback.format_exc())
        raise
    if status not in (0, START_AGAIN):  # these two are reached by all processes together
        distributed.fail(status)
    return status


def _run(argv: list[str]) -> int:
    options = None
    try:
        options, overrides = parse(argv, __doc__ or "")
        checks.check_options(options)
        if options.slice:
            get_slice(options.slice)
        if options.shards:
            return print_shards(options)
        config = configs.load(options.config, overrides)
        name = config.get("name") or Path(options.config.partition(":")[0]).stem
        workdir = options.workdir or f"runs/{name}"
        if options.on == "gke":
            return print_jobset(options, config, overrides)
        if options.on:
            return run_queued(options, config, overrides)
        if options.compile_only:
            return compile_for_slice(options, config, workdir)
        return run_here(options, config, workdir)
    except (LaunchError, ValueError, OSError) as error:
        if options is not None and options.traceback:
            raise
        _print_error(error)
        return START_AGAIN if isinstance(error, WorkersAbsent | Unavailable) else WRONG_COMMAND
    except KeyboardInterrupt:
        _print_error("interrupted: run the same command again to resume")
        return INTERRUPTED


def _print_error(error: object) -> None:
    """Prints an error in one line, or in the lines that it is made of."""
    from grm_jax.training.errors import MissingInputs

    has_lines = isinstance(error, (DoesNotFit, MissingInputs))
    print(f"launch: {error if has_lines else ' '.join(str(error).split())}", file=sys.stderr)


# ----------------------------------------------------------------------------- on this machine


def run_here(options: argparse.Namespace, config: Any, workdir: str) -> int:
    """Trains and evaluates on the devices of this process and of its peers."""
    for level, name in ((logging.INFO, ""), (logging.WARNING, "warning: ")):
        logging.addLevelName(level, name)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s%(message)s",
        datefmt="%H:%M:%S",
        force=True,  # Orbax may have been imported, which installs a handler
    )
    for name in ("absl", "httpx", "httpx2"):  # Orbax logs every step of a save, httpx each request
        logging.getLogger(name).setLevel(logging.WARNING)
    if options.emulate:
        flag = f"--xla_force_host_platform_device_count={options.emulate}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        _use_cpu()
    choose_platform()
    worker = distributed.find_worker(options.coordinator, options.process_id, options.num_processes)
    secret = distributed.job_secret(options.config)
    peers = distributed.start(worker, options.timeout, secret)
    in_bucket = workdir.startswith("gs://") and "JAX_COMPILATION_CACHE_DIR" not in os.environ
    beside_checkpoints = f"{workdir}/compilation_cache" if in_bucket else None
    use_compilation_cache(options.compilation_cache or beside_checkpoints)

    from grm_jax.training import checkpoint
    from grm_jax.training.workdir import lock

    checks.check_workdir(workdir)
    try:
        with lock(workdir):
            status = check_and_train(options, config, workdir)
    except checkpoint.CheckpointError as error:
        raise LaunchError(str(error)) from error
    if peers is not None and status in (0, START_AGAIN):
        peers.leave()
    return status


def check_and_train(options: argparse.Namespace, config: Any, workdir: str) -> int:
    """Checks the experiment on these devices and trains it; the workdir is held."""
    import jax

    from grm_jax.training import main as training, own_config

    checks.check_devices()
    num_slices = len({getattr(device, "slice_index", 0) for device in jax.devices()})
    if own_config.is_open(config):
        checks.check_inputs(config, workdir)
        config = own_config.complete(config, workdir)
    checks.check_machine(config, emulated=bool(options.emulate))
    checks.check_model(config, jax.device_count(), num_slices)
    checks.check_inputs(config, workdir)
    checks.check_initial_weights(config)
    shared = training.prepare(config, workdir)  # its errors are the command's
    return _train(shared, options.traceback)


def _train(shared: Any, raise_errors: bool) -> int:
    """Trains; prints one line for an error that the user can remove, the traceback for a bug."""
    from grm_jax.data.records import TooManyMalformed
    from grm_jax.run_store import IdentityMismatch
    from grm_jax.training import checkpoint, errors, loop, main as training, rft_samplers

    try:
        training.train(shared)
    except loop.Stopped as stopped:
        _print_error(stopped)
        return INTERRUPTED if stopped.interrupted else START_AGAIN
    except checkpoint.CheckpointError:
        raise
    except Exception as error:
        if raise_errors:
            raise
        known = errors.TrainingError, TooManyMalformed, IdentityMismatch, MemoryError
        all_known = *known, loop.NonFiniteLoss, rft_samplers.SamplingError
        if isinstance(error, all_known) or checkpoint.is_storage_fault(error):
            _print_error(error)
        else:
            traceback.print_exc()
        return FAILED
    return 0


def _use_cpu() -> None:
    """Selects the CPU, also if the experiment's file has imported JAX, which reads it only once."""
    import jax

    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")


# ----------------------------------------------------------------------------- for an absent slice


def compile_for_slice(options: argparse.Namespace, config: Any, workdir: str) -> int:
    """Compiles the experiment's programs for a slice; returns 1 if a program does not fit."""
    if not options.slice:
        raise LaunchError("--compile_only needs --slice TYPE, such as --slice v5p-128")
    _use_cpu()
    from grm_jax.training import machines, own_config
    from launch.compile import compile_only, programs, results

    quiet_environment()
    tpu_slice = get_slice(options.slice)
    chips, hbm = tpu_slice.chips * options.num_slices, tpu_slice.generation.hbm_bytes
    config = own_config.complete(
        config, None, machines.Machine(chips, hbm, "tpu", options.num_slices)
    )
    try:
        mesh = programs.make_slice_mesh(config, options.slice, options.num_slices)
    except RuntimeError as error:  # no libtpu
        raise LaunchError(str(error)) from error
    suffix = f"_x{options.num_slices}" if options.num_slices > 1 else ""
    out = options.out or f"{workdir}/compile_{options.slice}{suffix}"
    names = options.programs and [n.strip() for n in options.programs.split(",") if n.strip()]
    if names == []:
        raise LaunchError(f"--programs={options.programs!r} names no program: remove it for all")
    try:
        store = results.open_store(out, options.overwrite)
    except OSError as error:  # another run has it, or it is not writable
        raise LaunchError(str(error)) from error
    with store, compile_only.immediate_interrupt():
        settle = programs.settle_by_compiling(mesh, options.slice, options.num_slices, store=store)
        tasks = programs.tasks(config, mesh, names, hbm, settle)
        compiled = compile_only.compile_tasks(tasks, options.slice, options.num_slices, store=store)
    results.print_table(compiled)
    title = f"{options.config} on {options.num_slices} x {options.slice}"
    files = results.write(compiled, out, results.provenance(title))
    print(f"written: {files[0]} and {files[1]}")
    return 0 if all(result.fits for result in compiled) else FAILED


# ----------------------------------------------------------------------------- on Google Cloud


def run_queued(options: argparse.Namespace, config: Any, overrides: dict[str, str]) -> int:
    """Runs on a queued resource. Everything is checked before the first command that costs."""
    required, not_allowed = ("name", "zone", "accelerator"), ("print", "image", "queue")
    tpu_slice = checks.check_remote(options, config, required, not_allowed)
    file, arguments = worker_arguments(options, overrides)
    resource = gcloud.Resource(
        name=options.name,
        zone=options.zone,
        accelerator=tpu_slice.name,
        num_slices=options.num_slices,
        spot=options.spot,
        project=options.project,
    )
    missing = checks.missing_on_workers(config)
    if options.dry_run:
        token = "TOKEN" if options.send_hf_token else ""
        job = queued.Job(resource, arguments, f"{queued.HOME}.tar.gz", options.keep, token=token)
        print("\n".join(queued.commands(job)))
        if missing:
            _print_error(f"warning: {missing}")
        return 0
    bucket = gcloud.run(gcloud.describe_bucket(options.workdir))
    if bucket.code:
        raise LaunchError(f"--workdir={options.workdir} is not readable: {bucket.reason}")
    if missing:
        raise LaunchError(missing)
    checks.check_hub_names(config, options.send_hf_token)
    archive = queued.archive(ROOT, file)
    token = queued.token_file() if options.send_hf_token else ""
    job = queued.Job(
        resource, arguments, archive, options.keep, tree=queued.digest(archive), token=token
    )
    try:
        return queued.run(job)
    finally:
        if token:
            Path(token).unlink(missing_ok=True)


def print_jobset(options: argparse.Namespace, config: Any, overrides: dict[str, str]) -> int:
    """Prints the JobSet manifest of the run, for `kubectl apply`."""
    required, not_allowed = (
        ("name", "accelerator"),
        ("zone", "project", "keep", "dry_run", "send_hf_token"),
    )
    tpu_slice = checks.check_remote(options, config, required, not_allowed)
    _check_print(options)
    file, arguments = worker_arguments(options, overrides)
    run = gke.Run(
        name=options.name,
        tpu_slice=tpu_slice,
        num_slices=options.num_slices,
        arguments=arguments,
        image=options.image,
        tree=("", "") if options.image else gke.public_tree(ROOT),
        queue=options.queue,
        spot=options.spot,
    )
    print(gke.to_yaml(gke.manifest(run)), end="")
    if missing := checks.missing_on_workers(config):
        image = f", or include it in the image {options.image}" if options.image else ""
        _print_error(f"warning: {missing}{image}")
    return 0


def _check_print(options: argparse.Namespace) -> None:
    if not options.print:
        raise LaunchError(
            "--on gke creates nothing: add --print, and pass the manifest to kubectl apply -f -"
        )


def print_shards(options: argparse.Namespace) -> int:
    """Prints the JobSet manifest of a sharded `grm judge` or `grm eval`, for `kubectl apply`."""
    from launch.cluster import gke_shards

    if options.on != "gke" or not options.name or not options.accelerator:
        raise LaunchError("--shards needs --on gke, --name and --accelerator")
    _check_print(options)
    run = gke_shards.ShardedRun(
        name=options.name,
        tpu_slice=get_slice(options.accelerator),
        count=options.shards,
        command=options.command,
        image=options.image,
        tree=("", "") if options.image else gke.public_tree(ROOT),
        queue=options.queue,
        spot=options.spot,
    )
    print(gke.to_yaml(gke_shards.manifest(run)), end="")
    return 0


def worker_arguments(
    options: argparse.Namespace, overrides: dict[str, str]
) -> tuple[Path, tuple[str, ...]]:
    """Returns (the experiment's file, the arguments of this program on a worker).

    Raises LaunchError for a file outside this tree, which workers do not get.
    """
    name, colon, arg = options.config.partition(":")
    file = configs.find(name)
    if not file.is_relative_to(ROOT):
        raise LaunchError(f"workers do not get config {file}: put it into {ROOT}/experiments")
    fields = [f"--config.{field}={text}" for field, text in overrides.items()]
    fields += [f"--timeout={options.timeout:g}"] if options.timeout != TIMEOUT else []
    path = f"{file.relative_to(ROOT)}{colon}{arg}"
    return file, ("--config", path, *fields, "--workdir", options.workdir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
