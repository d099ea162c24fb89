"""SPCT end to end: `run(config, workdir)` runs the stages of an experiment in order.

    WORKDIR/rft    rejective fine-tuning     WORKDIR/meta_rm    the meta reward model
    WORKDIR/rl     GRPO                      WORKDIR/eval       table, plots, report

    WORKDIR/sft    supervised start of a policy
    WORKDIR/policy GRPO of the policy with a judge's rewards

A stage that is done is skipped, one that was interrupted is resumed.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from grm_jax import strict_json
from grm_jax.judging.loading import check_vocabulary
from grm_jax.models import TransformerConfig, abstract_model, get_config
from grm_jax.sharding import make_mesh
from grm_jax.storage import PathLike, as_path, write_atomic
from grm_jax.training import (
    checkpoint,
    config_check,
    endpoint_sampler,
    eval_stage,
    finished,
    grpo,
    loop,
    memory,
    meta_rm,
    own_config,
    own_report,
    policy,
    policy_report,
    rft,
    sources,
)
from grm_jax.training.config_rules import STAGES
from grm_jax.training.programs import lora_config, model_config
from grm_jax.training.workdir import lock

log = logging.getLogger(__name__)
TITLES = {
    "rft": "rejective fine-tuning (RFT)",
    "rl": "GRPO",
    "meta_rm": "meta reward model",
    "eval": "evaluation",
    "sft": "supervised start of a policy (SFT)",
    "policy": "GRPO of a policy with a judge",
}
assert tuple(TITLES) == STAGES
# Fields of a model that decide the shapes of its parameters.
SIZES = ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim")


def run(config: ConfigDict, workdir: PathLike) -> dict[str, Any]:
    """Runs `config.stages`, a subset of STAGES in their order: `train(prepare(config, workdir))`.

    Args:
      config: an experiment (`experiments/*.py`).
      workdir: local or in a bucket; an existing run is resumed.

    Returns:
      {stage: its result.json}.

    Raises:
      ValueError, FileNotFoundError, CheckpointError: by `prepare` and `train`.
      Stopped, NonFiniteLoss: after saving.
      InUse: another process runs in the workdir.
    """
    with lock(workdir):
        return train(prepare(config, workdir))


def prepare(config: ConfigDict, workdir: PathLike) -> loop.Run:
    """Checks the config and the workdir, and writes config.json; nothing is trained.

    Raises:
      ValueError, FileNotFoundError: a setting or a file that would fail later.
      CheckpointError: the workdir belongs to another run.
    """
    config_check.check(config, complete=True)
    config, workdir = own_config.complete(config, workdir), as_path(workdir)
    config_check.check(config, complete=True)  # the fields that were filled in
    mesh, cfg = make_mesh(**config.mesh), model_config(config)
    abstract_model(cfg, mesh)  # raises for a mesh that does not divide the model
    config_check.check_batches(config, mesh)
    tokenizer = sources.load_tokenizer(config)
    check_vocabulary(tokenizer, cfg)
    check_workdir(config, cfg, workdir)
    run = loop.Run(config, mesh, tokenizer, workdir)
    folders = {stage: workdir / stage for stage in STAGES}
    with jax.set_mesh(mesh):
        again = finished.damaged(run, folders)
    pending = [s for s in config.stages if s in again or not loop.is_done(folders[s])]
    if pending and "eval" in config.stages and "eval" not in pending:
        pending.append("eval")  # it may run again
    sources.check(config, pending)
    endpoint_sampler.probe_endpoint(config, workdir / "rft")
    save_config(config, cfg, workdir)
    log.info(
        "%s: %.2fM parameters, mesh %s; results in %s",
        config.name,
        cfg.num_params / 1e6,
        " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        workdir,
    )
    return dataclasses.replace(run, again=frozenset(again))


def train(run: loop.Run) -> dict[str, Any]:
    """Runs the stages that are not done. Returns {stage: its result.json}.

    Raises:
      TrainingError: the data or a setting turn out to be unusable.
      SamplingError, CheckpointError: critiques or checkpoints are not available.
      Stopped, NonFiniteLoss: after saving.
    """
    config, mesh = run.config, run.mesh
    cfg = model_config(config)
    assert run.workdir is not None  # `prepare` sets it
    folders = {stage: as_path(run.workdir) / stage for stage in STAGES}

    stages = [stage for stage in STAGES if stage in config.stages]

    # Stages receive parameters as factories, so that no other reference keeps them alive.
    def base() -> Any:
        return sources.first_params(config, cfg, mesh)

    def load_trained(stage: str) -> Any:
        return lambda: finished.load(run, stage, folders[stage])

    def with_memory_settings(stage: str) -> loop.Run:
        return run.with_config(memory.choose(config, stage, mesh, report=_print))

    def train_rft() -> Any:
        return rft.train(with_memory_settings("rft"), base, folders["rft"])

    def train_rl() -> Any:
        # Without RFT (the ablation "no_cold_start") policy and reference are the base model.
        start = load_trained("rft") if loop.is_done(folders["rft"]) else base
        return grpo.train(with_memory_settings("rl"), start, folders["rl"])

    def train_meta_rm() -> Any:
        judge = load_trained("rl" if loop.is_done(folders["rl"]) else "rft")
        start = {"base": base, "rft": load_trained("rft"), "rl": judge}[config.meta_rm.start]
        return meta_rm.train(
            with_memory_settings("meta_rm"), start, judge, folders["rft"], folders["meta_rm"]
        )

    def train_policy() -> Any:
        start = load_trained("sft") if loop.is_done(folders["sft"]) else base
        return policy.train(run, start, folders["policy"], _print)

    runs = {
        "rft": train_rft,
        "rl": train_rl,
        "meta_rm": train_meta_rm,
        "eval": lambda: eval_stage.run(run, folders),
        "sft": lambda: policy.train_sft(run, base, folders["sft"], _print),
        "policy": train_policy,
    }
    with jax.set_mesh(mesh):
        for number, stage in enumerate(stages, start=1):
            _print(f"\n== {number} of {len(stages)}: {TITLES[stage]} ==")
            _run_stage(run, stage, runs[stage], folders)
    done = [stage for stage in stages if loop.is_done(folders[stage])]
    if "eval" in done and jax.process_index() == 0:
        _print(eval_stage.closing_text(config, folders))
    if "policy" in done and jax.process_index() == 0:
        _print(policy_report.closing_text(folders["policy"]))
    if config.data.judging == sources.FILE and jax.process_index() == 0:
        _print("\n".join(own_report.lines(config, run.workdir)))
    return {stage: loop.read_result(folders[stage]) for stage in done}


def _print(text: str) -> None:
    """Prints on process 0."""
    if jax.process_index() == 0:
        print(text, flush=True)


def _run_stage(
    run: loop.Run, stage: str, train: Callable[[], Any], folders: Mapping[str, epath.Path]
) -> None:
    """Runs a stage, unless it is done, and exports what it trained, unless that is up to date."""
    folder, start, params = folders[stage], time.time(), None
    is_done = finished.is_evaluated(folders) if stage == "eval" else loop.is_done(folder)
    if is_done and stage not in run.again:
        _print(f"{stage} was done before: {folder}")
        finished.warn_if_outdated(stage, folders)
    else:
        run.stop.check(stage)
        params = train()
    if stage != "eval":
        finished.export(run, stage, folder, params)
    if params is not None or not is_done:
        _print(f"{stage} done in {time.time() - start:,.0f} s: {folder}")


def check_workdir(
    config: ConfigDict, cfg: TransformerConfig, workdir: epath.Path
) -> dict[str, Any]:
    """Returns the config of an earlier start, {} without one.

    Raises:
      CheckpointError: it is damaged, or the workdir belongs to another experiment or model.
    """
    if saved := _saved_config(workdir):
        new = {"name": config.name, **{name: getattr(cfg, name) for name in SIZES}}
        new["lora"] = _lora_identity(config)
        checkpoint.check_identity(workdir, _identity(saved), new)
    return saved


def _identity(saved: Mapping[str, Any]) -> dict[str, Any]:
    overrides = saved.get("model_overrides", {})
    sizes = {name: n for name, n in overrides.items() if name in SIZES}
    cfg = get_config(saved["model"], **sizes)
    sizes = {name: getattr(cfg, name) for name in SIZES}
    return {"name": str(saved["name"]), **sizes, "lora": _lora_identity(saved)}


def _lora_identity(config: Any) -> str:
    """Returns what decides the trained parameters of a config with LoRA; "off" without."""
    if (adapters := lora_config(config)) is None:
        return "off"
    fields = dataclasses.asdict(adapters) | {"base": config["lora"].get("base", "bfloat16")}
    return ", ".join(
        f"{name} {' '.join(value) if isinstance(value, tuple) else value}"
        for name, value in fields.items()
    )


def save_config(config: ConfigDict, cfg: TransformerConfig, workdir: epath.Path) -> None:
    """Writes config.json; the section of a stage that is done keeps the values it ran with.

    Raises:
      CheckpointError: the workdir belongs to another experiment or model.
    """
    fields, saved = json.loads(config.to_json_best_effort()), check_workdir(config, cfg, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for stage in [s for s in STAGES if s in saved and loop.is_done(workdir / s)]:
        if changed := checkpoint.differences(saved[stage], fields.get(stage, {})):
            log.warning(
                "%s is done; its config has changed since (%s). "
                "Remove %s and the folders of later stages to run it again",
                *(stage, changed, workdir / stage),
            )
            fields[stage] = saved[stage]
    if jax.process_index() == 0:
        # Atomic, because another host or a resumed run may be reading it.
        text = strict_json.dumps(fields, indent=2, sort_keys=True)
        write_atomic(workdir / "config.json", text + "\n")


def _saved_config(workdir: epath.Path) -> dict[str, Any]:
    """Returns the config of an earlier start, {} without one. Raises CheckpointError if damaged."""
    path = workdir / "config.json"
    if not path.exists():
        return {}
    try:
        saved = strict_json.read(path)
        _identity(saved)
    except Exception as error:  # a damaged file may raise any error
        raise checkpoint.CheckpointError(
            f"{path} is damaged ({error!r:.100}): restore it from a backup, or remove it, and the "
            "same command writes it again"
        ) from error
    return saved
