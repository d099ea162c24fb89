"""Saving and restoring: other topologies, damaged files, identity, preemption."""

import logging
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grm_jax.training import checkpoint


def mesh_of(devices):
    return Mesh(np.array(jax.devices()[:devices]), ("fsdp",))


def make_tree(devices, scale=1.0):
    sharding = NamedSharding(mesh_of(devices), PartitionSpec("fsdp"))
    whole = NamedSharding(mesh_of(devices), PartitionSpec())
    rng = np.random.default_rng(0)
    return {
        "params": {
            "w": jax.device_put(scale * rng.normal(size=(64, 64)).astype(np.float32), sharding),
            "b": jax.device_put(jnp.arange(64, dtype=jnp.bfloat16), whole),
        },
        "opt_state": (jax.device_put(rng.normal(size=(64, 64)).astype(np.float32), sharding), {}),
        "rng": jax.device_put(jnp.uint32([1, 2]), whole),
        "step": jax.device_put(jnp.int32(3), whole),
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("devices", [8, 4, 1])
def test_written_on_eight_devices_restores_on_fewer(tmp_path, devices):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(3, make_tree(8), {"position": 17})
    target = abstract(make_tree(devices))
    with checkpoint.Checkpoints(tmp_path) as store:
        step, tree, record = store.restore(target)
    assert step == 3 and record["position"] == 17
    assert_same(tree, make_tree(8))
    assert tree["params"]["w"].sharding == target["params"]["w"].sharding
    assert len(tree["params"]["w"].sharding.device_set) == devices


def test_fingerprint_sees_values_and_places_but_not_the_topology():
    tree = make_tree(8)
    assert checkpoint.fingerprint(tree) == checkpoint.fingerprint(make_tree(1))
    moved = {**tree, "rng": tree["rng"][::-1]}
    assert checkpoint.fingerprint(moved) != checkpoint.fingerprint(tree)
    nudged = {**tree, "step": tree["step"] + 1}
    assert checkpoint.fingerprint(nudged) != checkpoint.fingerprint(tree)


def test_keeps_the_newest_and_saves_a_step_once(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=2) as store:
        for step in (1, 2, 3, 3):
            store.save(step, make_tree(1, step))
        store.wait()
        assert store.steps() == [2, 3]


def damage(folder, how):
    """Hurts the largest file of a checkpoint, which holds array data."""
    victim = max(
        (p for p in folder.rglob("*") if p.is_file() and "state" in str(p)),
        key=lambda p: p.stat().st_size,
    )
    data = victim.read_bytes()
    if how == "truncated":
        victim.write_bytes(data[: len(data) // 2])
    elif how == "missing":
        victim.unlink()
    else:
        victim.write_bytes(data[:40] + bytes(b ^ 0x55 for b in data[40:80]) + data[80:])


@pytest.mark.parametrize("how", ["truncated", "missing", "flipped bits"])
def test_damaged_latest_falls_back_to_the_one_before_and_says_so(tmp_path, caplog, how):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(1, make_tree(1, 1.0), {"position": 1})
        store.save(2, make_tree(1, 2.0), {"position": 2})
    damage(tmp_path / "2", how)
    with (
        checkpoint.Checkpoints(tmp_path) as store,
        caplog.at_level(logging.WARNING, checkpoint.__name__),
    ):
        step, tree, record = store.restore_or_none(abstract(make_tree(1)))
        assert (step, record["position"]) == (1, 1)
        assert_same(tree, make_tree(1, 1.0))
        assert "falling back" in caplog.text and f"{tmp_path}/2" in caplog.text
        store.save(2, make_tree(1, 5.0))  # The run comes by step 2 again and can save it.
    with checkpoint.Checkpoints(tmp_path) as store:
        step, tree, _ = store.restore(abstract(make_tree(1)))
    assert step == 2
    assert_same(tree, make_tree(1, 5.0))


def test_nothing_readable_is_an_error_that_keeps_the_files(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(1, make_tree(1))
    damage(tmp_path / "1", "truncated")
    with checkpoint.Checkpoints(tmp_path) as store:
        with pytest.raises(
            checkpoint.CheckpointError, match="none of the 1 checkpoints.*move the folder away"
        ):
            store.restore_or_none(abstract(make_tree(1)))
    assert (tmp_path / "1").exists()


def test_a_checkpoint_that_another_host_cannot_read_is_left_by_all_before_they_compute_on_it(
    tmp_path, monkeypatch, caplog
):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(1, make_tree(1, 1.0))
        store.save(2, make_tree(1, 2.0))
    asked, computed = [], []

    def agree(flag, all_of=False):
        asked.append(flag)
        return flag and len(asked) > 1  # the other host fails at the newest

    def fingerprint(tree, real=checkpoint.fingerprint):
        computed.append(len(asked))
        return real(tree)

    monkeypatch.setattr(checkpoint, "agree", agree)
    monkeypatch.setattr(checkpoint, "fingerprint", fingerprint)
    with checkpoint.Checkpoints(tmp_path) as store:
        step, tree, _ = store.restore(abstract(make_tree(1)))
    assert step == 1 and "unreadable on another host" in caplog.text
    assert_same(tree, make_tree(1, 1.0))
    assert asked == [True, True, True] and computed == [2]  # read, read and, only then, the same


def test_no_checkpoint_is_none(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as store:
        assert store.restore_or_none(abstract(make_tree(1))) is None


def test_a_save_cut_short_is_not_a_checkpoint(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(1, make_tree(1))
        store.wait()
    (tmp_path / "2.orbax-checkpoint-tmp-7").mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp-7" / "state").mkdir()
    with checkpoint.Checkpoints(tmp_path) as store:
        assert store.steps() == [1]


def test_sigterm_becomes_a_question_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with checkpoint.StopSignal() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()
    assert signal.getsignal(signal.SIGTERM) is before
