"""Checks a run before anything is allocated or created. All raise LaunchError or ValueError."""

import argparse
import os
import re
import secrets
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grm_jax import storage
from launch.compile.slices import Slice, get_slice
from launch.config import ROOT
from launch.errors import DoesNotFit, LaunchError


def check_devices() -> None:
    """Raises LaunchError if JAX has no devices, as with a wrong JAX_PLATFORMS."""
    import jax

    try:
        jax.devices()
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = " ".join(str(error).split())
        raise LaunchError(f"no devices with JAX_PLATFORMS={platforms!r}: {reason:.300}") from error


def check_model(config: Any, num_devices: int, num_slices: int = 1, label: str = "devices") -> None:
    """Checks that the mesh has `num_devices` and divides the model and the stages' batches.

    Args:
      label: names the devices in errors, as `resolve_mesh`.
    """
    from grm_jax.sharding import check_fits, resolve_mesh
    from grm_jax.training import config_check
    from grm_jax.training.programs import model_config

    sizes = resolve_mesh(config.mesh, num_devices, num_slices, label)
    check_fits(model_config(config), sizes)
    config_check.check_shards(config, sizes["data"] * sizes["fsdp"])


# float32 weights, gradients and the two moments of AdamW
STATE_BYTES_PER_PARAMETER = 16


def check_machine(config: Any, emulated: bool = False) -> None:
    """Raises DoesNotFit if the devices cannot hold the training state.

    Also on a machine without an accelerator, for an experiment that names a slice, unless CPU
    devices are emulated on purpose.
    """
    import jax

    from grm_jax.models import weight_bytes
    from grm_jax.training.programs import model_config

    devices, cfg = jax.devices(), model_config(config)
    # Adapters are small beside their base.
    needed = weight_bytes(cfg) if cfg.lora else STATE_BYTES_PER_PARAMETER * cfg.num_params
    memory, is_cpu = _memory(devices), devices[0].platform == "cpu"
    tpu_slice = config.get("slice", "")
    if needed <= memory and not (is_cpu and tpu_slice and not emulated):
        return
    kind = "CPU, no accelerator" if is_cpu else devices[0].device_kind
    suited = f"; it was compiled for a {tpu_slice} (docs/tpu_memory.md)" if tpu_slice else ""
    tpu_slice = tpu_slice or "TYPE"
    raise DoesNotFit(
        f"{config.name} trains {cfg.name}: {needed / 2**30:,.0f} GiB of weights, gradients and "
        f"optimizer state{suited}\n"
        f"here: {len(devices)} x {kind}, {memory / 2**30:,.0f} GiB in total\n"
        f"ways on: run it on a slice: --on queued-resource --accelerator {tpu_slice} --name NAME "
        f"--zone ZONE --workdir gs://BUCKET/{config.name}; compile it here: --compile_only --slice "
        f"{tpu_slice}; run the method here: --config experiments/spct_tiny.py"
    )


def _memory(devices: list[Any]) -> int:
    """The bytes of all devices together; CPU devices of a process share its machine's memory."""
    if devices[0].platform == "cpu":
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return machine * len({device.process_index for device in devices})
    stats = devices[0].client.local_devices()[0].memory_stats() or {}
    return len(devices) * int(stats.get("bytes_limit", 2**60))  # unknown: do not refuse


def check_initial_weights(config: Any) -> None:
    """Checks that the names and shapes of the weights in `config.init` are the model's."""
    from grm_jax import checkpoints
    from grm_jax.training.programs import model_config

    if config.get("init"):
        checkpoints.check(config.init, model_config(config))


def check_inputs(config: Any, workdir: str) -> None:
    """Checks that the inputs of the stages that are not done exist, and pins hub names' commits.

    Nothing is downloaded but small files.
    Raises MissingInputs with all that are missing, and what `sources.paths` raises.
    """
    from grm_jax.training import inputs, loop, sources

    folder = storage.as_path(workdir)
    stages = [stage for stage in config.stages if not loop.is_done(folder / stage)]
    paths = list(sources.paths(config, stages))
    inputs.check(paths)
    inputs.pin(config, folder, {path for _, path in paths})


def check_hub_names(config: Any, send_token: bool) -> None:
    """Checks, before workers are created, that the hub names of the config are accessible.

    Raises MissingInputs, or LaunchError if a gated one needs a token that the workers do not get.
    """
    from grm_jax import hub
    from grm_jax.training import inputs, sources

    paths = list(sources.paths(config))
    names = inputs.on_the_hub(paths)
    inputs.check([pair for pair in paths if pair[1] in names], here=False)
    gated = [name.repo for name in names.values() if hub.listing(name).gated]
    if gated and not send_token:
        raise LaunchError(
            f"{gated[0]} is gated, and the workers have no token: add --send_hf_token, which "
            "copies this machine's Hugging Face token to them"
        )


def check_workdir(workdir: str, patience: float = 60.0) -> None:
    """Writes a file into the folder, or fails if that takes longer than `patience` seconds.

    Storage libraries can search for a bucket for many minutes if there is no network.
    """
    errors: list[Exception | None] = []

    def create() -> None:
        try:
            folder = storage.as_path(workdir)
            is_new = not folder.exists()
            probe = folder / f".probe-{secrets.token_hex(4)}"
            for attempt in range(10):
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    probe.write_text("")
                    break
                except (FileNotFoundError, FileExistsError):  # another worker removes it, empty
                    if attempt == 9:
                        raise
            probe.unlink()
            if is_new:
                storage.remove_if_empty(folder)
            errors.append(None)
        except Exception as error:  # each storage library has its own
            errors.append(error)

    thread = threading.Thread(target=create, daemon=True)
    thread.start()
    thread.join(patience)
    error = errors[0] if errors else f"no answer within {patience:.0f} s"
    if error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise LaunchError(
            f"--workdir={workdir} is not writable: {reason}; check its name, the network and the "
            "permissions"
        )


# Options of one way to run, so that none is ignored elsewhere.
_HERE = ("emulate", "coordinator", "process_id", "num_processes", "compilation_cache")
_REMOTE = (
    "name", "zone", "project", "accelerator", "spot", "keep", "send_hf_token", "dry_run", "print",
    "image", "queue", "shards",
)  # fmt: skip
_COMPILE = ("slice", "programs", "out", "overwrite")
_MOST_SLICES = 1024
_WORD = r"\w[\w.:/@-]*"
_NAMES = {
    "name": (r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", "start with a letter, then use at most 62 "
             "lower-case letters, digits and dashes"),
    **dict.fromkeys(("zone", "project", "image", "queue"), (_WORD, "remove spaces and signs")),
}  # fmt: skip


def check_options(options: argparse.Namespace) -> None:
    """Checks that each option belongs to this way to run, and the names that gcloud gets.

    Raises LaunchError, ValueError for a --workdir that names no bucket.
    """

    def chosen(names: Sequence[str]) -> list[str]:
        values = {name: getattr(options, name) for name in names}
        return [f"--{n}" for n, value in values.items() if value is not None and value is not False]

    if bool(options.shards) != bool(options.command):
        raise LaunchError("--shards N needs a command after --, such as -- judge IN OUT --model M")
    if options.shards and (names := chosen(("config", "workdir", "project", "zone"))):
        raise LaunchError(f"--shards N runs the command after --: remove {names[0]}")
    if options.on and options.compile_only:
        raise LaunchError("--compile_only and --on cannot be used together: remove one")
    if (options.on or options.compile_only) and (names := chosen(_HERE)):
        raise LaunchError(f"{names[0]} is for a run on this machine: remove it")
    for owner, names in (("on", chosen(_REMOTE)), ("compile_only", chosen(_COMPILE))):
        if names and not getattr(options, owner):
            raise LaunchError(
                f"{names[0]} is an option of --{owner}: add that, or remove {names[0]}"
            )
    if not 1 <= options.num_slices <= _MOST_SLICES:
        hint = "1 or more" if options.num_slices < 1 else f"{_MOST_SLICES} at most"
        raise LaunchError(f"--num_slices={options.num_slices}: use {hint}")
    if options.num_slices > 1 and not (options.on or options.compile_only):
        raise LaunchError("--num_slices is an option of --on and --compile_only: remove it")
    for name, (pattern, hint) in _NAMES.items():
        value = getattr(options, name)
        of_gke = name == "name" and options.on == "gke"  # its names are shorter: gke.manifest
        if value is not None and not of_gke and not re.fullmatch(pattern, value):
            raise LaunchError(f"--{name}={value!r:.100} is not valid: {hint}")
    storage.check_scheme(options.workdir or "")


def check_remote(
    options: argparse.Namespace,
    config: Any,
    required: tuple[str, ...],
    not_allowed: tuple[str, ...],
) -> Slice:
    """Checks the options of --on, and the mesh against the slice's chips. Returns the slice."""
    if missing := [f"--{name}" for name in required if not getattr(options, name)]:
        *first, last = (f"--{name}" for name in required)
        raise LaunchError(
            f"{' and '.join(missing)} missing: "
            f"--on {options.on} needs {', '.join(first)} and {last}"
        )
    if extra := [f"--{name}" for name in not_allowed if getattr(options, name)]:
        raise LaunchError(f"{' and '.join(extra)} cannot be used with --on {options.on}: remove it")
    if not (options.workdir or "").startswith("gs://"):
        raise LaunchError(
            f"--on {options.on} needs --workdir gs://BUCKET/FOLDER: "
            "the disk of a preempted machine is lost"
        )
    from grm_jax import endpoint
    from grm_jax.training import own_config

    for section in (config.get("rft", {}).get("sampling"), config.get("policy", {}).get("judge")):
        if url := (section or {}).get("url"):  # it is part of the workers' command
            endpoint.check_url(url)
    tpu_slice = get_slice(options.accelerator)
    label = f"chips of {options.num_slices} x {tpu_slice.name}"
    if not own_config.is_open(config):  # else the workers choose a mesh that fits
        check_model(config, tpu_slice.chips * options.num_slices, options.num_slices, label)
    return tpu_slice


def is_committed(path: str) -> bool:
    """Returns whether the committed tree, which workers and pods get, has a path."""
    command = ["git", "ls-tree", "HEAD", "--", path]
    return bool(subprocess.run(command, cwd=ROOT, capture_output=True).stdout)


def missing_on_workers(config: Any) -> str:
    """An error message about paths that workers cannot read, or "".

    Workers get the committed tree and can read buckets.
    """
    from grm_jax.training import sources

    def is_missing(path: str) -> bool:
        if "://" in path or Path(path).is_absolute():
            return "://" not in path
        if not (ROOT / path).exists() and storage.hub_name(path):
            return False
        return not is_committed(path)

    missing = [f"{field} names {path}" for field, path in sources.paths(config) if is_missing(path)]
    if not missing:
        return ""
    more = f", and {len(missing) - 3} more" if len(missing) > 3 else ""
    return (
        f"{', '.join(missing[:3])}{more}: workers get committed files only; "
        "copy it to a bucket and use its gs:// address"
    )
