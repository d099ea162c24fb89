"""Tests the train loop on a toy state: NaN, SIGTERM, damaged checkpoints, resumed logs."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from grm_jax.training import checkpoint, loop, metrics
from grm_jax.training.errors import TrainingError
from grm_jax.training.stop import StopSignal

ROOT = Path(__file__).resolve().parents[2]


def section(**fields):
    base = dict(steps=10, save_every=2, keep=2, log_every=1, profile_steps=())
    return ml_collections.ConfigDict(base | fields)


def init():
    return {
        "params": {"w": jnp.zeros(4)},
        "step": jnp.int32(0),
        "rng": jax.random.key_data(jax.random.key(3)),
    }


def add_noise(state, i, seed):
    """A step whose result depends on the weights, the step and the step's seed."""
    noise = np.random.default_rng(seed).normal(size=4).astype(np.float32)
    w = state["params"]["w"] * 0.9 + noise
    row = {"loss": jnp.abs(w).sum(), "grad_norm": jnp.float32(1), "finite": jnp.float32(1)}
    return {**state, "params": {"w": w}, "step": state["step"] + 1}, row, f"{i}"


def train(folder, step=add_noise, identity=None, stop=None, **fields):
    shapes = jax.eval_shape(init)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
    )
    stage = loop.Stage(
        "toy",
        section(**fields),
        folder,
        init=init,
        abstract_state=abstract,
        step=step,
        identity=identity or {"data": "a"},
        tensorboard=False,
    )
    return loop.train(stage, stop or StopSignal())


def call_at(index, action):
    def step(state, i, seed):
        if i == index:
            action()
        return add_noise(state, i, seed)

    return step


class Crash(Exception):
    pass


def crash():
    raise Crash


def steps_logged(folder):
    return [row["step"] for row in metrics.read_jsonl(folder / "metrics.jsonl")]


def test_a_crashed_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    expected = train(tmp_path / "one")
    with pytest.raises(Crash):
        train(tmp_path / "two", call_at(7, crash))
    assert steps_logged(tmp_path / "two") == list(range(1, 8))  # one step after the last checkpoint
    resumed = train(tmp_path / "two")
    np.testing.assert_array_equal(resumed["params"]["w"], expected["params"]["w"])
    assert steps_logged(tmp_path / "two") == list(range(1, 11))
    first, second = (
        metrics.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two")
    )
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    assert loop.is_done(tmp_path / "two") and loop.read_result(tmp_path / "two")["steps"] == 10


def test_programs_are_compiled_once_before_the_first_step(tmp_path, caplog):
    """Logs one line per program and one for the first step; the steps reuse the executables."""
    import resume_child

    from grm_jax.training import main

    config = resume_child.make_config()
    config.stages, config.export = ("rft", "rl"), False
    config.mesh.update(fsdp=4, tensor=2)
    config.rft.update(steps=2, warmup_steps=0)
    config.rl.update(steps=1, length_buckets=1)
    with caplog.at_level(logging.INFO), jax.log_compiles():
        main.run(config, tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    compiled = [line.split(" compiled in")[0] for line in lines if " compiled in " in line]
    assert compiled == [
        "rft: sft_update",
        "rl: reference_logps",
        "rl: policy_logps",
        "rl: grpo_update",
    ]
    first_steps = [line for line in lines if "first step after" in line]
    assert len(first_steps) == 2 and all("s compiled programs" in line for line in first_steps)
    assert (
        0
        < loop.read_result(tmp_path / "rl")["first_step_s"]
        <= loop.read_result(tmp_path / "rl")["seconds"]
    )
    for name in (
        "update",
        "logps",
    ):  # updates of RFT and RL; log-probs of the reference and the policy
        prefix = f"Finished XLA compilation of jit({name})"
        assert sum(line.startswith(prefix) for line in lines) == 2, name


def test_sigterm_saves_the_state_and_the_run_resumes_from_it(tmp_path):
    expected = train(tmp_path / "one")
    with pytest.raises(loop.Stopped, match="after step 6 of 10; the state is saved"):
        train(
            tmp_path / "two",
            call_at(5, lambda: os.kill(os.getpid(), signal.SIGTERM)),
            save_every=100,
        )
    with checkpoint.Checkpoints(tmp_path / "two" / "checkpoints") as store:
        assert store.steps() == [6]
    resumed = train(tmp_path / "two", save_every=100)
    np.testing.assert_array_equal(resumed["params"]["w"], expected["params"]["w"])


def test_sigterm_in_the_last_step_completes_the_stage_and_stops_the_next(tmp_path):
    terminate = call_at(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    stop = StopSignal()
    train(tmp_path / "one", terminate, stop=stop)
    assert loop.is_done(tmp_path / "one")
    with pytest.raises(loop.Stopped, match="toy: stopped by a signal before its first step"):
        train(tmp_path / "two", stop=stop)
    assert not (tmp_path / "two").exists()
    train(tmp_path / "two")  # the signal affected only the first run


def test_stop_signal_records_sigterm_and_restores_the_handler():
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    with stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()
    assert signal.getsignal(signal.SIGTERM) is before
    assert stop.requested()


def test_a_partly_updated_state_is_not_saved_after_a_non_finite_loss(tmp_path):
    def step(state, i, seed):
        if i != 5:
            return add_noise(state, i, seed)
        row = {
            "loss": jnp.float32(np.nan),
            "grad_norm": jnp.float32(2),
            "finite": jnp.float32(0),
            "updated": 1,
        }
        return add_noise(state, i, seed)[0], row, "5"

    with pytest.raises(
        loop.NonFiniteLoss,
        match=r"1 updates of the step were made.*newest checkpoint is .*/4\. Inspect",
    ):
        train(tmp_path, step)
    resumed, expected = train(tmp_path), train(tmp_path / "one")
    np.testing.assert_array_equal(resumed["params"]["w"], expected["params"]["w"])


def test_nan_stops_the_run_saves_the_last_finite_state_and_names_the_batch(tmp_path):
    def step(state, i, seed):
        if i != 5:
            return add_noise(state, i, seed)
        row = {"loss": jnp.float32(np.nan), "grad_norm": jnp.float32(2), "finite": jnp.float32(0)}
        return state, row, "5 (items a, b)"

    with pytest.raises(loop.NonFiniteLoss, match=r"loss nan.*step 5, batch 5 \(items a, b\)"):
        train(tmp_path, step, save_every=100)
    calls = []
    train(tmp_path, call_at(5, lambda: calls.append("again")), steps=6)
    assert calls == ["again"]  # resumes with the same batch, from the state before it
    expected = train(tmp_path / "clean", steps=6)
    with checkpoint.Checkpoints(tmp_path / "final") as store:
        _, params, _ = store.restore(jax.tree.map(_abstract, expected["params"]))
    np.testing.assert_array_equal(params["w"], expected["params"]["w"])


def test_an_error_that_the_user_can_mend_loses_no_step(tmp_path):
    """Such as a judge that no longer answers; it is raised before the step's update."""

    def fail():
        raise TrainingError("fix the judge")

    with pytest.raises(TrainingError, match="fix the judge"):
        train(tmp_path, call_at(5, fail), save_every=100)
    with pytest.raises(TrainingError, match="fix the judge"):
        train(tmp_path, call_at(5, fail), save_every=100)  # again, with that state as the newest
    calls = []
    resumed = train(tmp_path, lambda *args: calls.append(args[1]) or add_noise(*args))
    assert calls == [5, 6, 7, 8, 9]
    np.testing.assert_array_equal(resumed["params"]["w"], train(tmp_path / "one")["params"]["w"])


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path):
    with pytest.raises(Crash):
        train(tmp_path, call_at(7, crash))
    with pytest.raises(checkpoint.CheckpointError, match="is of step 6.*toy.steps is 4: raise it"):
        train(tmp_path, steps=4)
    assert not loop.is_done(tmp_path)
    assert train(tmp_path, steps=6)["step"] == 6  # killed before its result


def _abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def test_a_run_resumes_from_the_checkpoint_before_a_truncated_one(tmp_path, caplog):
    expected = train(tmp_path / "one")
    with pytest.raises(Crash):
        train(tmp_path / "two", call_at(7, crash))
    newest = tmp_path / "two" / "checkpoints" / "6"
    for file in (newest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with caplog.at_level(logging.WARNING):
        resumed = train(tmp_path / "two")
    assert "6 is unreadable" in caplog.text and "falling back" in caplog.text
    np.testing.assert_array_equal(resumed["params"]["w"], expected["params"]["w"])
    assert steps_logged(tmp_path / "two") == list(range(1, 11))


def test_a_checkpoint_of_other_data_is_an_error(tmp_path):
    with pytest.raises(Crash):
        train(tmp_path, call_at(5, crash))
    with pytest.raises(
        checkpoint.CheckpointError, match="data was 'a' and is 'b'.*another workdir"
    ):
        train(tmp_path, identity={"data": "b"})


def test_changed_settings_are_logged_and_a_changed_identity_is_an_error(tmp_path, caplog):
    with pytest.raises(Crash):
        train(tmp_path, call_at(5, crash), lr=0.1)
    # An older checkpoint, whose identity has no batch size, is still resumed.
    with pytest.raises(Crash), caplog.at_level(logging.WARNING):
        train(
            tmp_path,
            call_at(7, crash),
            identity={"data": "a", "batch_size": 8},
            lr=0.2,
            log_every=2,
        )
    assert "toy: resumes with settings that have changed: toy.lr was 0.1 and is 0.2" in caplog.text
    assert "log_every" not in caplog.text
    with pytest.raises(
        checkpoint.CheckpointError, match="batch_size was 8 and is 4.*another workdir"
    ):
        train(tmp_path, identity={"data": "a", "batch_size": 4}, lr=0.2)


def test_a_truncated_log_is_read_up_to_its_last_complete_line(tmp_path):
    with metrics.MetricLog(tmp_path, "m", tensorboard=False) as lines:
        for step in (1, 2, 3):
            lines.write(step, {"loss": float("nan") if step == 2 else 0.5, "note": "x"})
    path = tmp_path / "m.jsonl"
    path.write_text(path.read_text()[:-9])
    assert [row["step"] for row in metrics.read_jsonl(path)] == [1, 2]
    with metrics.MetricLog(tmp_path, "m", resume_step=1, tensorboard=False) as lines:
        lines.write(2, {"loss": 0.25})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and rows[1]["loss"] == 0.25


WRITE_METRICS = """
import sys
from grm_jax.training import metrics
with metrics.MetricLog(sys.argv[1], "m") as lines:
    lines.write(3, {"loss": 0.5, "note": "text"})
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "clu")])
"""


def test_metrics_are_written_to_tensorboard_without_tensorflow(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event

    command = [sys.executable, "-c", WRITE_METRICS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
    (path,) = (tmp_path / "tensorboard" / "m").glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert events[0].file_version == "brain.Event:2" and events[1].session_log.status == 1
    assert events[2].step == 3
    assert [(v.tag, v.simple_value) for v in events[2].summary.value] == [("m/loss", 0.5)]


READ_METRICS = """
import sys
sys.modules["tensorflow"] = None
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1])
events.Reload()
print([(event.step, event.value) for event in events.Scalars("m/loss")])
"""


def test_tensorboard_drops_what_was_written_after_the_checkpoint_of_a_resumed_run(tmp_path):
    for resumed, steps in ((0, (1, 2, 3)), (1, (2, 3))):
        with metrics.MetricLog(tmp_path, "m", resumed) as lines:
            for step in steps:
                lines.write(step, {"loss": 10.0 * resumed + step})
    command = [sys.executable, "-c", READ_METRICS, tmp_path / "tensorboard" / "m"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[(1, 1.0), (2, 12.0), (3, 13.0)]", done.stderr


def test_without_tensorboard_the_metrics_go_to_the_jsonl_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with caplog.at_level(logging.INFO), metrics.MetricLog(tmp_path, "m") as lines:
        lines.write(1, {"loss": 0.5})
    assert caplog.messages == [
        f"no TensorBoard files: run pip install tensorboard; {tmp_path}/m.jsonl has the metrics"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_progress_in_a_file_is_a_line_every_half_minute_with_the_time_left(monkeypatch, capfd):
    clock = iter([0.0, *(float(second) for second in range(100, 2100, 10))])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    with metrics.Progress("rl", 100, shown=("reward", "kl")) as progress:
        for step in range(1, 11):  # the first step compiled for 100 s, the others take 10 s
            progress.update(step, {"reward": 0.51234, "kl": 0.02, "loss": 1.0})
        progress.update(100, {"reward": 1.0})
        progress.update(100, {"reward": 1.0})  # no second line
    output = capfd.readouterr()
    assert output.err == "" and output.out.splitlines() == [
        "rl  1/100  reward 0.5123  kl 0.02",
        "rl  5/100  15:50 left  reward 0.5123  kl 0.02",
        "rl  9/100  15:10 left  reward 0.5123  kl 0.02",
        "rl  100/100  reward 1",
    ]


def test_config_json_is_written_atomically(tmp_path):
    """Hosts start at the same time, so one may read the file while another writes it."""
    import threading

    from experiments.spct_tiny import get_config
    from grm_jax.training import main
    from grm_jax.training.programs import model_config

    config, folder = get_config(), main.as_path(tmp_path)
    cfg = model_config(config)
    main.save_config(config, cfg, folder)
    stop, texts = threading.Event(), []

    def read():
        while not stop.is_set():
            texts.append((tmp_path / "config.json").read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        main.save_config(config, cfg, folder)
    stop.set()
    reader.join()
    assert len(texts) > 100 and set(texts) == {(tmp_path / "config.json").read_text()}
