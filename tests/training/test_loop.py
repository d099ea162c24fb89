"""The shared loop on a toy state: NaN, SIGTERM, damaged checkpoints, other data, logs after a resume."""

import json
import logging
import os
import signal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from grm_jax.training import checkpoint, loop, metrics


def section(**fields):
    base = dict(steps=10, save_every=2, keep=2, log_every=1, profile_steps=())
    return ml_collections.ConfigDict(base | fields)


def fresh():
    return {
        "params": {"w": jnp.zeros(4)},
        "step": jnp.int32(0),
        "rng": jax.random.key_data(jax.random.key(3)),
    }


def add_noise(state, i, seed):
    """A step that depends on everything that must survive: the weights, the step and the step's own seed."""
    noise = np.random.default_rng(seed).normal(size=4).astype(np.float32)
    w = state["params"]["w"] * 0.9 + noise
    row = {"loss": jnp.abs(w).sum(), "grad_norm": jnp.float32(1), "finite": jnp.float32(1)}
    return {**state, "params": {"w": w}, "step": state["step"] + 1}, row, f"{i}"


def train(folder, step=add_noise, identity=None, **fields):
    shapes = jax.eval_shape(fresh)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )
    return loop.train(
        "toy", section(**fields), folder, fresh=fresh, abstract=abstract, step=step, identity=identity or {"data": "a"},
        tensorboard=False,
    )  # fmt: skip


def stop_at(place, action):
    def step(state, i, seed):
        if i == place:
            action()
        return add_noise(state, i, seed)

    return step


class Crash(Exception):
    pass


def crash():
    raise Crash


def steps_logged(folder):
    return [row["step"] for row in metrics.read_jsonl(folder / "metrics.jsonl")]


def test_a_crash_and_a_resume_end_where_one_run_ends(tmp_path):
    want = train(tmp_path / "one")
    with pytest.raises(Crash):
        train(tmp_path / "two", stop_at(7, crash))
    assert steps_logged(tmp_path / "two") == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    ]  # One step past the last checkpoint.
    got = train(tmp_path / "two")
    np.testing.assert_array_equal(got["params"]["w"], want["params"]["w"])
    assert steps_logged(tmp_path / "two") == list(range(1, 11))
    one, two = (metrics.read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["loss"] for row in one] == [row["loss"] for row in two]
    assert loop.is_done(tmp_path / "two") and loop.read_result(tmp_path / "two")["steps"] == 10


def test_programs_are_compiled_before_the_first_step_and_never_again(tmp_path, caplog):
    """RFT and RL of a toy: a line for each program and one for the first step; the steps run what was compiled."""
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
    told = [line.split(" compiled in")[0] for line in lines if " compiled in " in line]
    assert told == ["rft: sft_update", "rl: reference_logps", "rl: policy_logps", "rl: grpo_update"]
    firsts = [line for line in lines if "first step after" in line]
    assert len(firsts) == 2 and all("s of them compiling ahead" in line for line in firsts)
    assert (
        0
        < loop.read_result(tmp_path / "rl")["first_step_s"]
        <= loop.read_result(tmp_path / "rl")["seconds"]
    )
    # The two updates are functions named `step`, reference and policy log-probs are named `fn`.
    for name in ("step", "fn"):
        assert (
            sum(line.startswith(f"Finished XLA compilation of jit({name})") for line in lines) == 2
        ), name


def test_sigterm_saves_first_and_the_run_goes_on_from_there(tmp_path):
    want = train(tmp_path / "one")
    with pytest.raises(loop.Stopped, match="after step 6 of 10, state saved"):
        train(
            tmp_path / "two",
            stop_at(5, lambda: os.kill(os.getpid(), signal.SIGTERM)),
            save_every=100,
        )
    with checkpoint.Checkpoints(tmp_path / "two" / "checkpoints") as store:
        assert store.steps() == [6]
    got = train(tmp_path / "two", save_every=100)
    np.testing.assert_array_equal(got["params"]["w"], want["params"]["w"])


def test_sigterm_in_the_last_step_lets_the_stage_end_and_stops_the_next_one(tmp_path):
    terminate = stop_at(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(tmp_path / "one", terminate)
    assert loop.is_done(tmp_path / "one")
    with pytest.raises(loop.Stopped, match="toy: stopped by a signal before its first step"):
        train(tmp_path / "two")
    assert not (tmp_path / "two").exists()
    train(tmp_path / "two")  # once


def test_a_step_that_was_half_made_is_not_saved_as_the_state_before_it(tmp_path):
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
        match=r"1 of its updates were made before.*newest checkpoint is .*/4\. Look",
    ):
        train(tmp_path, step)
    got, want = train(tmp_path), train(tmp_path / "one")
    np.testing.assert_array_equal(got["params"]["w"], want["params"]["w"])


def test_nan_stops_the_run_keeps_the_last_good_state_and_names_the_batch(tmp_path):
    def step(state, i, seed):
        if i != 5:
            return add_noise(state, i, seed)
        row = {"loss": jnp.float32(np.nan), "grad_norm": jnp.float32(2), "finite": jnp.float32(0)}
        return state, row, "5 (items a, b)"

    with pytest.raises(loop.NonFiniteLoss, match=r"loss nan.*step 5, batch 5 \(items a, b\)"):
        train(tmp_path, step, save_every=100)
    seen = []
    train(tmp_path, stop_at(5, lambda: seen.append("again")), steps=6)
    assert seen == ["again"]  # It goes on with that very batch, from the state before it.
    want = train(tmp_path / "clean", steps=6)
    with checkpoint.Checkpoints(tmp_path / "final") as store:
        _, params, _ = store.restore(jax.tree.map(_abstract, want["params"]))
    np.testing.assert_array_equal(params["w"], want["params"]["w"])


def _abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def test_a_truncated_latest_checkpoint_costs_its_steps_and_nothing_else(tmp_path, caplog):
    want = train(tmp_path / "one")
    with pytest.raises(Crash):
        train(tmp_path / "two", stop_at(7, crash))
    newest = tmp_path / "two" / "checkpoints" / "6"
    for file in (newest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with caplog.at_level(logging.WARNING):
        got = train(tmp_path / "two")
    assert "6 cannot be read" in caplog.text and "falling back" in caplog.text
    np.testing.assert_array_equal(got["params"]["w"], want["params"]["w"])
    assert steps_logged(tmp_path / "two") == list(range(1, 11))


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    with pytest.raises(Crash):
        train(tmp_path, stop_at(5, crash))
    with pytest.raises(
        checkpoint.CheckpointError, match="data was 'a' and is 'b'.*another workdir"
    ):
        train(tmp_path, identity={"data": "b"})


def test_other_settings_are_told_and_other_places_in_the_data_refused(tmp_path, caplog):
    with pytest.raises(Crash):
        train(tmp_path, stop_at(5, crash), lr=0.1)
    # A checkpoint that does not say its batch size, as older ones, is not asked for it.
    with pytest.raises(Crash), caplog.at_level(logging.WARNING):
        train(
            tmp_path,
            stop_at(7, crash),
            identity={"data": "a", "batch_size": 8},
            lr=0.2,
            log_every=2,
        )
    assert (
        "toy: goes on with other settings than it was saved with: toy.lr was 0.1 and is 0.2"
        in caplog.text
    )
    assert "log_every" not in caplog.text
    with pytest.raises(
        checkpoint.CheckpointError, match="batch_size was 8 and is 4.*another workdir"
    ):
        train(tmp_path, identity={"data": "a", "batch_size": 4}, lr=0.2)


def test_a_log_cut_in_the_middle_of_a_line_is_read_to_its_last_whole_one(tmp_path):
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


def test_tensorboard_gets_the_numbers(tmp_path):
    with metrics.MetricLog(tmp_path, "m") as lines:
        lines.write(1, {"loss": 0.5, "note": "text"})
    assert list((tmp_path / "tensorboard").rglob("events.*"))


def test_the_config_beside_the_results_is_never_half_written(tmp_path):
    """Hosts start together: one may read what another is writing."""
    import threading

    from experiments.spct_tiny import get_config
    from grm_jax.training import main, steps

    config, folder = get_config(), main.as_path(tmp_path)
    cfg = steps.model_config(config)
    main._note_config(config, cfg, folder)
    done, read = threading.Event(), []

    def watch():
        while not done.is_set():
            read.append((tmp_path / "config.json").read_text())

    watching = threading.Thread(target=watch)
    watching.start()
    for _ in range(100):
        main._note_config(config, cfg, folder)
    done.set()
    watching.join()
    assert len(read) > 100 and set(read) == {(tmp_path / "config.json").read_text()}
