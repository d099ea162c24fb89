"""Sets the fields that experiments/own_data.py leaves open, from the model, data and devices.

A field is open if it is 0 or "". `complete` sets the open ones; WORKDIR/config.json has the result,
and a resumed run takes its values from there, except those that only fit the devices.
"""

import logging
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grm_jax import checkpoints, strict_json
from grm_jax.judging.loading import check_vocabulary
from grm_jax.judging.metadata import JudgeMetadata
from grm_jax.models.config import CONFIGS, TransformerConfig
from grm_jax.sampling.plan import GIB, SHARE
from grm_jax.storage import as_path, fetch, write_atomic
from grm_jax.text import rendering
from grm_jax.training import endpoint_sampler, machines, own_file, rft_data, sources
from grm_jax.training.machines import Machine
from grm_jax.training.own_fields import DEVICE_FIELDS, FIELDS, set_open, take_saved
from grm_jax.training.programs import lora_overrides
from grm_jax.types import Comparison

log = logging.getLogger(__name__)

# Parameters of a model from which on these learning rates hold: RFT, RL, meta RM. Those of 1B and
# more are the values of the shipped experiments, the others were tried on small models.
_RATES = (
    (5e9, 5e-6, 4e-7, 1e-5),
    (5e8, 1e-5, 1e-6, 1e-5),
    (1e7, 2e-5, 2e-6, 2e-5),
    (0, 5e-4, 1e-4, 5e-4),
)
_LORA_RATE = 10  # adapters take larger steps
_CRITIQUE = {"grm": 1024, "compact": 256}  # tokens of the longest critique
_SMALL = 5e8  # parameters below which the short template is the default
_SAMPLED = 20_000  # comparisons that critiques are sampled of, at most
_MEASURED = 2000  # comparisons whose prompts are measured
_TAIL = 1.25  # the longest prompt sets the length, unless it is so much longer than 95% of them
_CAP = 8192  # tokens of the longest prompt and critique


def is_open(config: Any) -> bool:
    """Whether the experiment trains on `config.data.file` and has fields that `complete` sets."""
    if config.get("data") is None or config.data.get("judging") != sources.FILE:
        return False
    fields = {*DEVICE_FIELDS, *FIELDS} - {"rft.sampling.model"}
    return not all(operator.attrgetter(field)(config) for field in fields)


def complete(config: Any, workdir: Any = None, machine: Machine | None = None) -> Any:
    """Returns the config with its open fields set, and logs them; any other experiment unchanged.

    Args:
      workdir: of the run; the comparisons are split into WORKDIR/data.
      machine: default `Machine.here`.

    Raises:
      FileNotFoundError, ValueError: a file, model or tokenizer that cannot be used, a prompt longer
        than the model's context, or a model that needs more memory.
    """
    if not is_open(config):
        return config
    if not config.data.file:
        raise ValueError(
            "config.data.file is empty: name your comparisons, --config.data.file=FILE"
        )
    if not config.init:
        raise ValueError("config.init is empty: name the model, --config.init=MODEL")
    config = config.copy_and_resolve_references()
    take_saved(config, workdir)
    if workdir is not None:
        endpoint_sampler.probe_endpoint(config, as_path(workdir) / "rft")
    machine = machine or Machine.here()
    path = fetch(config.init)
    cfg = _set_model(config, path, machine)
    tokenizer = sources.load_tokenizer(config)
    check_vocabulary(tokenizer, cfg)
    index = own_file.index(config, workdir)
    train, held_out = (len(index.sections[side]) for side in (own_file.TRAIN, own_file.HELD_OUT))
    metadata = JudgeMetadata.load(path) if (path / JudgeMetadata.FILE).is_file() else None
    _set_lengths(config, cfg, metadata, _some(index), tokenizer)
    dtype = config.model_overrides.dtype
    config.mesh, sizes = machines.mesh_for(cfg, machine, dtype, config.mesh)
    _set_sizes(config, cfg, machine, sizes, train, held_out)
    _set_micro_rows(config, cfg, machine, sizes)
    _log_choices(config)
    return config


def set_rft_steps(config: Any, sequences: int, workdir: Any) -> None:
    """Sets `rft.steps` to `rft.epochs` over the packed sequences, also in WORKDIR/config.json."""
    rft = config.rft
    rft.steps = max(1, round(rft.epochs * sequences / config.batch_size))
    set_open(config, "rft.warmup_steps", rft.steps // 10)
    log.info("chosen: rft.steps=%d, %g epochs of %d sequences", rft.steps, rft.epochs, sequences)
    path = None if workdir is None else as_path(workdir) / "config.json"
    if path is not None and path.exists() and jax.process_index() == 0:
        saved = strict_json.read(path)
        saved["rft"] |= {"steps": rft.steps, "warmup_steps": rft.warmup_steps}
        write_atomic(path, strict_json.dumps(saved, indent=2, sort_keys=True) + "\n")


# ---------------------------------------------------------------- model and tokenizer


def _set_model(config: Any, path: Path, machine: Machine) -> TransformerConfig:
    """Sets the model that the checkpoint describes, and its tokenizer; returns the former.

    Sizes that no registered model has are registered for this process, as "checkpoint:FOLDER" or,
    for the folder RUN/STAGE/hf, as "STAGE of RUN". A resumed run keeps the name of its config.json.
    """
    cfg = checkpoints.open_checkpoint(path).model_config().replace(scalar_head=False)
    saved = config.model if config.model.startswith("checkpoint:") else ""
    if saved or CONFIGS.get(cfg.name) != cfg:
        stage, run = path.absolute().parent, path.absolute().parent.parent
        exported = path.name == "hf" and stage.name and run.name
        name = f"{stage.name} of {run.name}" if exported else f"checkpoint:{path.name}"
        cfg = cfg.replace(name=saved or name)
        CONFIGS[cfg.name] = cfg
    log.info("model: %s, %.1fM parameters", cfg.name, cfg.num_params / 1e6)
    set_open(config, "model", cfg.name)
    set_open(config, "tokenizer", config.init)
    dtype = "float32" if machine.platform == "cpu" else "bfloat16"
    set_open(config, "model_overrides.dtype", dtype)
    set_open(config, "model_overrides.remat", "full" if cfg.num_params > 5e7 else "none")
    set_open(config, "rl.reference_dtype", config.model_overrides.dtype)
    return cfg.replace(**lora_overrides(config))


# ---------------------------------------------------------------- lengths


def _some(index: Any) -> list[Comparison]:
    """Some comparisons of the index, evenly spread."""
    from grm_jax.data.comparisons import from_json

    places = np.unique(np.linspace(0, len(index) - 1, min(len(index), _MEASURED)).astype(int))
    return [from_json(index[int(place)]) for place in places]


def prompt_lengths(comparisons: Sequence[Comparison], template: str, tokenizer: Any) -> np.ndarray:
    """Returns the tokens of each comparison's prompt, sorted."""
    lengths = []
    for comparison in comparisons:
        role = rft_data.training_template(template, comparison)
        messages = rendering.render(role, comparison, tuple(range(comparison.n)))
        lengths.append(len(tokenizer.encode_chat(messages)))
    return np.sort(lengths)


def _set_lengths(
    config: Any,
    cfg: TransformerConfig,
    metadata: JudgeMetadata | None,
    comparisons: Sequence[Comparison],
    tokenizer: Any,
) -> None:
    """Sets the template and the lengths of prompts, critiques and packed sequences.

    A judge's own template and critique length are used; of another model, the short template if it
    is small, or if the prompts of the long one do not fit its context.
    """
    context = min(cfg.max_length, _CAP)
    names = ["compact"] if cfg.num_params < _SMALL else ["grm", "compact"]
    if own := config.template or (metadata and metadata.template):
        names = [own]
    for name in names:
        critique = metadata.max_new_tokens if metadata else _CRITIQUE.get(name, 512)
        critique = config.rl.max_new_tokens or min(critique, context // 2)
        lengths = prompt_lengths(comparisons, name, tokenizer)
        median, most = int(np.median(lengths)), int(np.quantile(lengths, 0.95, method="higher"))
        if median + critique <= context:
            break
    else:
        raise ValueError(
            f"config.init={config.init} has a context of {context:,} tokens, and the prompts of "
            f"{config.data.file} have {median:,} at the median, beside {critique:,} of a critique: "
            "shorten the responses, or use a model with a longer context"
        )
    if lengths[-1] <= _TAIL * most:
        most = int(lengths[-1])
    set_open(config, "template", name)
    set_open(config, "rl.max_new_tokens", critique)
    step = 64 if context >= 512 else 8
    set_open(config, "rl.prompt_len", min(_round_up(most + 2, step), context - critique))
    set_open(config, "seq_len", _round_up(config.rl.prompt_len + critique + 1, step))
    set_open(config, "meta_rm.seq_len", config.seq_len)
    set_open(config, "rft.sampling.max_new_tokens", critique)
    set_open(config, "eval.max_new_tokens", critique)
    longer = int((lengths > config.rl.prompt_len).sum())
    log.info(
        "prompts of template %s: %d tokens at the median, %d at most; %d of %d are longer than "
        "rl.prompt_len=%d, and RL replaces them by others of their batch",
        *(name, median, lengths[-1], longer, len(lengths), config.rl.prompt_len),
    )


def _round_up(number: float, step: int) -> int:
    return math.ceil(number / step) * step


# ---------------------------------------------------------------- batches and steps


def _set_sizes(
    config: Any,
    cfg: TransformerConfig,
    machine: Machine,
    sizes: dict[str, int],
    train: int,
    held_out: int,
) -> None:
    """Sets learning rates, batch sizes and steps."""
    shards = sizes["data"] * sizes["fsdp"]
    largest = 16 if machine.platform == "cpu" else 64

    def batch(number: float) -> int:
        size = 2 ** round(math.log2(max(number, 1)))
        return _round_up(min(max(size, 4), largest), shards)

    rates = next(rates for least, *rates in _RATES if cfg.num_params >= least)
    for stage, rate in zip(("rft", "rl", "meta_rm"), rates):
        set_open(config, f"{stage}.lr", rate * (_LORA_RATE if cfg.lora else 1))
    set_open(config, "batch_size", batch(train / 8))
    set_open(config, "rft.comparisons", min(train, _SAMPLED))
    set_open(config, "rl.prompts", batch(train / 8))
    set_open(config, "rl.steps", _steps(config.rl.epochs * train / config.rl.prompts))
    set_open(config, "meta_rm.batch_size", batch(train / 4))
    set_open(config, "meta_rm.comparisons", min(train, _SAMPLED))
    trials = (
        config.rft.samples + config.rft.hinted
    )  # of a comparison; the hinted are left out later
    set_open(config, "meta_rm.rft_trials", config.rft.comparisons * max(1, trials))
    critiques = config.rft.comparisons * max(1, config.rft.samples)
    critiques += config.meta_rm.comparisons * config.meta_rm.samples
    epochs = config.meta_rm.epochs * critiques / config.meta_rm.batch_size
    set_open(config, "meta_rm.steps", _steps(epochs))
    for stage in (config.rl, config.meta_rm):
        set_open(stage, "warmup_steps", stage.steps // 10)
    set_open(config, "eval.comparisons", held_out)


def _steps(number: float) -> int:
    return min(max(math.ceil(number), 1), 1000)


def _set_micro_rows(
    config: Any, cfg: TransformerConfig, machine: Machine, sizes: dict[str, int]
) -> None:
    """Sets the sequences that a device processes at once, from an estimate of its memory.

    Raises ValueError if the training state alone does not fit.
    """
    shards, dtype = sizes["data"] * sizes["fsdp"], config.model_overrides.dtype
    state = machines.state_bytes(cfg, dtype) / (sizes["fsdp"] * sizes["tensor"])
    free = SHARE * machine.memory - state
    if free < 0:
        raise ValueError(
            f"config.init={config.init}: training {cfg.num_params / 1e6:,.1f}M parameters takes "
            f"{state / GIB:.1f} GiB per device, and {machine.devices} x {machine.platform} with "
            f"{machine.memory / GIB:.1f} GiB allow {SHARE * machine.memory / GIB:.1f}: use more "
            "devices or a smaller model"
        )
    group = config.rl.prompt_len + config.rl.group_size * config.rl.max_new_tokens
    for stage, batch, tokens in (
        ("rft", config.batch_size, config.seq_len),
        ("rl", config.rl.prompts, group),
        ("meta_rm", config.meta_rm.batch_size, config.meta_rm.seq_len),
    ):
        row = machines.sequence_bytes(cfg, tokens, dtype, config.model_overrides.remat)
        row /= sizes["tensor"]
        fitting = [n for n in machines.divisors(batch // shards) if n * row <= free]
        set_open(config, f"{stage}.micro_rows", max(fitting, default=1))
        if not fitting and stage in config.stages:
            log.warning(
                "%s: a sequence of %d tokens takes about %.1f GiB, and %.1f are free beside the "
                "weights: lower config.rl.prompt_len if memory runs out",
                *(stage, tokens, row / GIB, free / GIB),
            )


def _log_choices(config: Any) -> None:
    """Logs the chosen numbers; WORKDIR/config.json has all of them."""
    fields = (*FIELDS[2:], *DEVICE_FIELDS)
    unused = [f"{stage}." for stage in ("rft", "rl", "meta_rm") if stage not in config.stages]
    values = {
        field: operator.attrgetter(field)(config)
        for field in fields
        if not field.startswith(tuple(unused))
    }
    log.info("chosen: %s", ", ".join(f"{name}={v}" for name, v in values.items() if v != ""))
