"""The loop that the three trainings share: resume, step, log, save, and stop in good order.

A stage's folder holds
    checkpoints/        the newest states, to go on from       metrics.jsonl, tensorboard/    its numbers
    final/              the parameters it ended with           result.json                    what it was, and how it went
and a stage whose result.json is there is not run again.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from grm_jax.storage import as_path, write_atomic
from grm_jax.training import checkpoint, metrics

log = logging.getLogger(__name__)
RESULT = "result.json"
# Fields of a stage that its numbers do not depend on: they may be other ones when it is gone on with.
FREE = (
    "save_every",
    "keep",
    "log_every",
    "profile_steps",
    "micro_batches",
    "micro_rows",
    "prompt_slots",
)
_stop_asked = False  # by a signal that came while a stage ended


class NonFiniteLoss(RuntimeError):
    """The loss or a gradient became NaN or infinite; the last good state is saved."""


class Stopped(RuntimeError):
    """The run was asked to stop (SIGTERM) and has saved its state; start it again to go on."""


def raise_if_stopped(stage: str) -> None:
    """Raises Stopped where a signal came while the stage before this one ended: that one is whole, this one has not begun."""
    global _stop_asked
    if _stop_asked:
        _stop_asked = False
        raise Stopped(
            f"{stage}: stopped by a signal before its first step, what came before is saved: run it again"
        )


def is_done(folder) -> bool:
    return (as_path(folder) / RESULT).exists()


def read_result(folder) -> dict:
    return json.loads((as_path(folder) / RESULT).read_text())


def write_result(folder, result: Mapping) -> None:
    """Marks a stage as done. Process 0 writes; the others return when the result is there to be seen."""
    if jax.process_index() == 0:
        write_atomic(as_path(folder) / RESULT, json.dumps(result, indent=2, sort_keys=True) + "\n")
    checkpoint.wait_for_all(f"result of {folder}")


def step_seed(rng_words, step: int) -> int:
    """A 31-bit seed for what a step draws on the host (sampling, orders), from the state's RNG and the step."""
    return int(np.random.SeedSequence([*map(int, rng_words), step]).generate_state(1)[0]) >> 1


def rng_words(state) -> np.ndarray:
    """The state's RNG words on the host."""
    return np.asarray(state["rng"].addressable_data(0))


def compile_ahead(stage: str, programs: Sequence) -> float:
    """Compiles a stage's programs (`steps.Program`), with a line for each, and returns the seconds. Call under the stage's mesh.

    The steps then find them compiled: a jitted function keeps what was compiled for its shapes. Batches that are cut to another length
    (`rl.length_buckets`), and the sampler's programs, whose shapes come from the prompts, compile when they are first met.
    """
    began = time.perf_counter()
    for program in programs:
        start = time.perf_counter()
        stats = program.lower().compile().memory_analysis()
        need = (
            f", peak {stats.peak_memory_in_bytes / 2**20:,.1f} MiB per device"
            if stats is not None
            else ""
        )
        log.info(
            "%s: %s compiled in %.1f s%s", stage, program.name, time.perf_counter() - start, need
        )
    return time.perf_counter() - began


def train(
    stage: str,
    section,
    folder,
    *,
    fresh: Callable,
    abstract,
    step: Callable,
    identity: Mapping[str, str | int],
    programs: Sequence = (),
    shown: tuple[str, ...] = ("loss",),
    tensorboard: bool = True,
    summary: Mapping | None = None,
    finish: Callable | None = None,
    settings: Mapping[str, str | int | float] | None = None,
):
    """Runs a stage to its last step, from its newest readable checkpoint if it has one.

    Args:
      stage: name, for logs.
      section: of a config: steps, save_every, keep, log_every, profile_steps.
      folder: the stage's folder.
      fresh: () -> the state at step 0; called at most once, before the first step.
      abstract: the state as ShapeDtypeStructs with shardings: what a restore fills, on whatever topology this is.
      step: (state, i, seed) -> (state, metrics, what): takes batch number i and says in `what` which one it was. metrics must hold
        `finite`; it and others may be device arrays. Of a step of several updates that is not finite, `updated` says how many were made
        before that: the state has them.
      identity: what a checkpoint must have been made with to be continued (data, reference, seed, what places in the data depend on).
        What an older checkpoint does not name is not asked of it.
      programs: what its steps run, to be compiled before the first of them.
      shown: metrics beside the progress bar.
      summary: further entries for result.json; finish: (last state) -> more of them.
      settings: what the numbers depend on beside the section's own fields; a change of any of them is logged when a checkpoint is gone on from.

    Returns:
      The last state.

    Raises:
      NonFiniteLoss, Stopped: both after saving. A signal in the last step lets the stage end, and stops the next one before it begins.
      CheckpointError: checkpoints that are unreadable or of another run.
    """
    raise_if_stopped(stage)
    folder = as_path(folder)
    start_time = time.time()
    now = _settings(stage, section) | dict(settings or {})
    with (
        checkpoint.Checkpoints(folder / "checkpoints", section.keep) as store,
        checkpoint.StopSignal() as stop,
    ):
        found = store.restore_or_none(abstract)
        first, state = (0, fresh()) if found is None else (found[0], found[1])
        if found is not None:
            _check_identity(folder, found[2].get("identity", {}), dict(identity))
            _tell_changes(stage, found[2].get("settings", {}), now)
            log.info("%s: going on from step %d of %d", stage, first, section.steps)
        words = rng_words(state)
        compile_s = compile_ahead(stage, programs) if first < section.steps else 0.0

        def save(i):
            store.save(
                i,
                state,
                {"stage": stage, "position": i, "identity": dict(identity), "settings": now},
            )

        profiler = metrics.Profiler(folder / "profile", section.profile_steps)
        with (
            metrics.MetricLog(folder, "metrics", first, tensorboard) as lines,
            metrics.Progress(stage, section.steps, first, shown) as bar,
        ):
            for i in range(first, section.steps):
                profiler.before(i)
                began = time.perf_counter()
                state, row, what = step(state, i, step_seed(words, i))
                row = jax.device_get(row)
                profiler.after(i, state)
                if not row.pop("finite"):
                    if updated := int(row.pop("updated", 0)):
                        # What is there now is neither the state before this step nor the one after it.
                        store.wait()
                        last = (
                            f"the newest checkpoint is {store.folder}/{store.steps()[-1]}"
                            if store.steps()
                            else "there is no checkpoint yet"
                        )
                        told = f"{updated} of its updates were made before, so this state is not saved; {last}"
                    else:
                        save(i)
                        store.wait()
                        told = f"Nothing was updated; the state before it is saved in {store.folder}/{i}"
                    raise NonFiniteLoss(
                        f"{stage}: loss {float(row['loss']):g}, gradient norm {float(row['grad_norm']):g} at step {i}, batch {what}. "
                        f"{told}. Look at that batch, lower the learning rate, or start the stage in another workdir with another seed"
                    )
                row["step_s"] = time.perf_counter() - began
                if i == first:
                    first_step_s = time.time() - start_time
                    log.info(
                        "%s: first step after %.1f s, %.1f s of them compiling ahead",
                        stage,
                        first_step_s,
                        compile_s,
                    )
                bar.update(i + 1, row)
                if (i + 1) % section.log_every == 0 or i + 1 == section.steps:
                    lines.write(i + 1, {**row, **metrics.memory_metrics()})
                stopping = stop.requested()
                if stopping or (i + 1) % section.save_every == 0 or i + 1 == section.steps:
                    save(i + 1)
                if stopping and i + 1 < section.steps:
                    store.wait()
                    raise Stopped(
                        f"{stage}: stopped by a signal after step {i + 1} of {section.steps}, state saved: run it again"
                    )
        profiler.close()
        store.wait()
        save_params(folder, state["params"], section.steps)
        write_result(
            folder,
            {
                "stage": stage,
                "steps": section.steps,
                "seconds": round(time.time() - start_time, 1),
                "first_step_s": round(first_step_s, 1) if section.steps > first else None,
                "identity": dict(identity),
                "last": {k: metrics.plain(v) for k, v in row.items()}
                if section.steps > first
                else {},
                **(summary or {}),
                **(finish(state) if finish else {}),
            },
        )
        global _stop_asked
        _stop_asked = stop.requested()
    return state


def save_params(folder, params, step: int) -> None:
    """Writes the parameters alone, for the next stages."""
    with checkpoint.Checkpoints(as_path(folder) / "final", keep=1) as store:
        store.save(step, params)


def load_params(folder, abstract_params):
    """The parameters that a stage ended with, placed as the target says.

    Raises CheckpointError where the stage has left none.
    """
    with checkpoint.Checkpoints(as_path(folder) / "final", keep=1) as store:
        found = store.restore(abstract_params)
    if found is None:
        raise checkpoint.CheckpointError(
            f"{folder}/final holds no parameters: run that stage first, or remove its result.json"
        )
    return found[1]


def _settings(stage: str, section) -> dict[str, str | int | float]:
    """The fields of a section that its numbers depend on, as "rl.beta"."""
    plain = (str, bool, int, float)
    return {
        f"{stage}.{name}": v
        for name, v in section.items()
        if name not in FREE and isinstance(v, plain)
    }


def _tell_changes(stage: str, saved: Mapping, now: Mapping) -> None:
    changed = [
        f"{name} was {saved[name]!r} and is {now[name]!r}"
        for name in now
        if name in saved and saved[name] != now[name]
    ]
    if changed:
        log.warning(
            "%s: goes on with other settings than it was saved with: %s", stage, ", ".join(changed)
        )


def _check_identity(folder, saved: Mapping, now: Mapping) -> None:
    different = [name for name in now if name in saved and saved[name] != now[name]]
    if different:
        told = ", ".join(f"{name} was {saved[name]!r} and is {now[name]!r}" for name in different)
        raise checkpoint.CheckpointError(
            f"the checkpoints in {folder} are of another run: {told}. Use another workdir, or restore what they were made with"
        )
