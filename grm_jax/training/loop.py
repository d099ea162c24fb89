"""The train loop of all stages: resume, step, log, save, stop.

A stage's folder holds

    checkpoints/     the newest training states, to resume from
    final/           the trained parameters alone
    metrics.jsonl    one line per logged step; tensorboard/ has the same numbers
    result.json      written last: a stage that has it is done and is not run again; it has the
                     fingerprint of the parameters in final/
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax import strict_json
from grm_jax.storage import PathLike, as_path, write_atomic
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.training import checkpoint, metrics, sources, workdir
from grm_jax.training.errors import TrainingError
from grm_jax.training.programs import Metrics, Program
from grm_jax.training.state import State
from grm_jax.training.stop import Stopped as Stopped, StopSignal

log = logging.getLogger(__name__)
RESULT, FINAL, WEIGHTS = "result.json", "final", "weights"
# Fields of a section that may change on resume because results do not depend on them.
FREE_FIELDS = (
    "save_every",
    "keep",
    "log_every",
    "profile_steps",
    "micro_batches",
    "micro_rows",
    "prompt_slots",
    "rollout_tensor",
)


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient became NaN or infinite; the last good state is saved."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings that the stages of one run share. Programs run under `jax.set_mesh(mesh)`.

    Attributes:
      workdir: where data are indexed once for all stages and hosts; None is a temporary folder.
      again: finished stages that run again, because their parameters are damaged.
    """

    config: ConfigDict
    mesh: Mesh
    tokenizer: Tokenizer
    workdir: PathLike | None = None
    stop: StopSignal = dataclasses.field(default_factory=StopSignal)
    again: frozenset[str] = frozenset()

    @functools.cached_property
    def frozen(self) -> Any:
        """The parameters that no stage trains, loaded once: the base of LoRA; else none."""
        return sources.frozen_params(self.config, self.mesh)

    @functools.cached_property
    def base(self) -> dict[str, str]:
        """Entries of a stage's identity: the fingerprint of the base of LoRA."""
        has_base = bool(jax.tree.leaves(self.frozen))
        return {"base": checkpoint.fingerprint(self.frozen)} if has_base else {}

    def with_config(self, config: ConfigDict) -> "Run":
        """Returns the run with another config of the same model; both have one `frozen`."""
        if config is self.config:
            return self
        other = dataclasses.replace(self, config=config)
        vars(other)["frozen"] = self.frozen
        return other


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training, as `train` runs it.

    Attributes:
      name: "rft", "rl", "meta_rm", "sft", "policy", or a baseline's; for logs and errors.
      section: its section of the config: steps, save_every, keep, log_every, profile_steps.
      folder: of its checkpoints, metrics and result.
      init: () -> the state at step 0. No other reference to its arrays exists, so that updates can
        donate them. Called at most once, and only without a checkpoint.
      abstract_state: the state as ShapeDtypeStructs with shardings; a checkpoint is restored to
        them from any topology.
      step: (state, i, seed) -> (state, metrics, batch name). Trains on batch i. The metrics hold
        `loss`, `grad_norm` and `finite`, and may be device arrays. If a step of several updates is
        not finite, `updated` is the number of updates made before.
      identity: values that must be equal on resume: data, seed, first weights, batch sizes. Fields
        that an older checkpoint lacks are not compared.
      settings: values on which results depend, besides the section; a change on resume is logged.
      programs: the programs of `step`, compiled before the first step.
      shown: metrics beside the progress bar.
      tensorboard: also write TensorBoard files.
      summary: (last state) -> further entries for result.json.
    """

    name: str
    section: ConfigDict
    folder: PathLike
    init: Callable[[], State]
    abstract_state: State
    step: Callable[[State, int, int], tuple[State, Metrics, str]]
    identity: Mapping[str, Any]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    programs: Sequence[Program] = ()
    shown: tuple[str, ...] = ("loss",)
    tensorboard: bool = True
    summary: Callable[[State], Mapping[str, Any]] = lambda state: {}

    def record(self, step: int) -> dict[str, Any]:
        """Returns the JSON record of the checkpoint at `step`."""
        fields = {
            f"{self.name}.{field}": value
            for field, value in self.section.items()
            if field not in FREE_FIELDS and isinstance(value, str | bool | int | float)
        }
        return {
            "stage": self.name,
            "position": step,
            "identity": dict(self.identity),
            "settings": fields | dict(self.settings),
        }


def train(stage: Stage, stop: StopSignal) -> State:
    """Runs a stage to its last step, resuming from its newest readable checkpoint.

    Returns:
      The last state.

    Raises:
      NonFiniteLoss, Stopped, TrainingError of a step: after saving. A signal during the last step
        lets the stage end.
      CheckpointError: no checkpoint is readable, or they belong to another run.
      SaveError, InUse: the folder cannot be written, or another process trains in it.
    """
    stop.check(stage.name)
    start, section, folder = time.time(), stage.section, as_path(stage.folder)
    step_metrics: Metrics = {}
    first_step_s = None
    with (
        workdir.lock(folder, f"the training of {stage.name}"),
        checkpoint.Checkpoints(folder / "checkpoints", section.keep) as store,
        stop,
    ):
        first_step, state = _restore(stage, store) or (0, stage.init())
        rng_key = np.asarray(state["rng"].addressable_data(0))
        compile_s = compile_ahead(stage) if first_step < section.steps else 0.0
        with (
            metrics.Profiler(folder / "profile", section.profile_steps) as profiler,
            metrics.MetricLog(folder, "metrics", first_step, stage.tensorboard) as metric_log,
            metrics.Progress(stage.name, section.steps, first_step, stage.shown) as progress,
        ):
            for i in range(first_step, section.steps):
                is_last = i + 1 == section.steps
                profiler.before(i)
                step_start = time.perf_counter()
                try:
                    seed = step_seed(rng_key, i)
                    state, step_metrics, batch_name = stage.step(state, i, seed)
                except TrainingError:  # before the update, and on all processes
                    store.save(i, state, stage.record(i))
                    store.wait()
                    raise
                step_metrics = jax.device_get(step_metrics)
                profiler.after(i, state)
                if not step_metrics.pop("finite"):
                    _raise_non_finite(stage, store, state, i, step_metrics, batch_name)
                step_metrics["step_s"] = time.perf_counter() - step_start
                if i == first_step:
                    first_step_s = round(time.time() - start, 1)
                    log.info(
                        "%s: first step after %.1f s, of which %.1f s compiled programs",
                        *(stage.name, first_step_s, compile_s),
                    )
                progress.update(i + 1, step_metrics)
                if (i + 1) % section.log_every == 0 or is_last:
                    metric_log.write(i + 1, {**step_metrics, **metrics.memory_metrics()})
                stopping = stop.requested()
                if stopping or (i + 1) % section.save_every == 0 or is_last:
                    store.save(i + 1, state, stage.record(i + 1))
                if stopping and not is_last:
                    store.wait()
                    where = f"after step {i + 1} of {section.steps}; the state is saved"
                    raise stop.stopped(stage.name, where)
        store.wait()
        if first_step >= section.steps:  # ended before, and killed before its result
            step_metrics = {k: v for k, v in (metric_log.last or {}).items() if k != "step"}
        result = {
            "stage": stage.name,
            "steps": section.steps,
            "seconds": round(time.time() - start, 1),
            "first_step_s": first_step_s,
            "identity": dict(stage.identity),
            "last": {name: metrics.plain(value) for name, value in step_metrics.items()},
            WEIGHTS: save_params(folder, state["params"], section.steps),
        }
        write_result(folder, {**result, **stage.summary(state)})
    return state


def _restore(stage: Stage, store: checkpoint.Checkpoints) -> tuple[int, State] | None:
    """Returns (step, state) of the newest checkpoint, or None; checks that it is of this run."""
    if (restored := store.restore_and_prune(stage.abstract_state)) is None:
        return None
    step, state, saved = restored
    record = stage.record(step)
    checkpoint.check_identity(store.folder, saved.get("identity", {}), record["identity"])
    if changed := checkpoint.differences(saved.get("settings", {}), record["settings"]):
        log.warning("%s: resumes with settings that have changed: %s", stage.name, changed)
    if step > stage.section.steps:
        raise checkpoint.CheckpointError(
            f"{store.folder} is of step {step}, and config.{stage.name}.steps is "
            f"{stage.section.steps}: raise it, or train in another workdir"
        )
    log.info("%s: resumes at step %d of %d", stage.name, step, stage.section.steps)
    return step, state


def _raise_non_finite(
    stage: Stage,
    store: checkpoint.Checkpoints,
    state: State,
    i: int,
    step_metrics: Mapping[str, Any],
    batch_name: str,
) -> NoReturn:
    """Saves the state if it is that before step i, and raises NonFiniteLoss."""
    if updates := int(step_metrics.get("updated", 0)):
        # The state is neither the one before this step nor the one after it.
        store.wait()
        steps = store.steps()
        newest = f"the newest checkpoint is {store.folder}/{steps[-1]}" if steps else "none exists"
        outcome = f"{updates} updates of the step were made, so this state is not saved; {newest}"
    else:
        store.save(i, state, stage.record(i))
        store.wait()
        outcome = f"Nothing was updated; the state before it is saved in {store.folder}/{i}"
    loss, norm = float(step_metrics["loss"]), float(step_metrics["grad_norm"])
    raise NonFiniteLoss(
        f"{stage.name}: loss {loss:g}, gradient norm {norm:g} at step {i}, batch {batch_name}. "
        f"{outcome}. Inspect that batch, lower the learning rate, or run the stage in another "
        "workdir with another seed"
    )


def compile_ahead(stage: Stage) -> float:
    """Compiles a stage's programs, logs each, and returns the seconds. Call it under the mesh.

    The steps reuse them: a jitted function keeps what was compiled for its shapes. Batches trimmed
    to another length (`rl.length_buckets`) and the sampler's programs, whose shapes come from the
    prompts, compile on first use.
    """
    began = time.perf_counter()
    for program in stage.programs:
        start = time.perf_counter()
        stats = program.lower().compile().memory_analysis()
        seconds = time.perf_counter() - start
        peak = f", peak {stats.peak_memory_in_bytes / 2**20:,.1f} MiB per device" if stats else ""
        log.info("%s: %s compiled in %.1f s%s", stage.name, program.name, seconds, peak)
    return time.perf_counter() - began


def step_seed(rng_key: np.ndarray, step: int) -> int:
    """Returns a 31-bit seed for a step's draws on the host: sampling and response orders."""
    return int(np.random.SeedSequence([*map(int, rng_key), step]).generate_state(1)[0]) >> 1


def is_done(folder: PathLike) -> bool:
    """Whether a stage has written its result. A damaged result.json counts as none."""
    path = as_path(folder) / RESULT
    try:
        strict_json.read(path)
    except FileNotFoundError:
        return False
    except ValueError as error:
        log.warning("%s: the stage counts as not done", error)
        return False
    return True


def read_result(folder: PathLike) -> dict[str, Any]:
    """Reads a stage's result.json. Raises ValueError if it is damaged."""
    return strict_json.read(as_path(folder) / RESULT)


def write_result(folder: PathLike, result: Mapping[str, Any]) -> None:
    """Marks a stage as done. Process 0 writes; the others wait until the file is visible."""
    if jax.process_index() == 0:
        text = strict_json.dumps(result, indent=2, sort_keys=True)
        write_atomic(as_path(folder) / RESULT, text + "\n")
    checkpoint.wait_for_all(f"result of {folder}")


def save_params(folder: PathLike, params: Any, step: int) -> str:
    """Writes the parameters alone, for the stages that follow; returns their fingerprint.

    They replace those of an earlier end of the stage.
    """
    with checkpoint.Checkpoints(as_path(folder) / FINAL, keep=1) as store:
        return store.replace(step, params)


def load_params(folder: PathLike, abstract_params: Any) -> Any:
    """Loads the trained parameters of a stage with the shardings of `abstract_params`.

    Raises:
      CheckpointError: the stage has not saved any, they are damaged, or they are not those of the
        stage's result.
    """
    with checkpoint.Checkpoints(as_path(folder) / FINAL, keep=1) as store:
        restored = store.restore(abstract_params)
    if restored is None:
        raise checkpoint.CheckpointError(
            f"{folder}/final holds no parameters: run that stage first, or remove its result.json"
        )
    _, params, record = restored
    expected = read_result(folder).get(WEIGHTS) if is_done(folder) else None
    if expected not in (None, record[checkpoint.FINGERPRINT]):
        raise checkpoint.CheckpointError(
            f"{folder}/final holds other parameters than those of {folder}/{RESULT}: remove "
            f"{RESULT}, and the stage ends again from its last checkpoint"
        )
    return params


def saved_weights(folder: PathLike) -> str:
    """Returns the fingerprint of the parameters in a stage's final/, "" without readable ones."""
    final = as_path(folder) / FINAL
    if not final.exists():
        return ""
    with checkpoint.Checkpoints(final, keep=1) as store:
        try:
            return store.record(store.steps()[-1])[checkpoint.FINGERPRINT]
        except Exception as error:  # the storage layer raises many types on damaged bytes
            log.warning("%s: %s", final, error)
            return ""
