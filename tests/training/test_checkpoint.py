"""Tests checkpoints: other topologies, damaged files, fingerprints."""

import errno
import logging

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
    replicated = NamedSharding(mesh_of(devices), PartitionSpec())
    rng = np.random.default_rng(0)
    return {
        "params": {
            "w": jax.device_put(scale * rng.normal(size=(64, 64)).astype(np.float32), sharding),
            "b": jax.device_put(jnp.arange(64, dtype=jnp.bfloat16), replicated),
        },
        "opt_state": (jax.device_put(rng.normal(size=(64, 64)).astype(np.float32), sharding), {}),
        "rng": jax.device_put(jnp.uint32([1, 2]), replicated),
        "step": jax.device_put(jnp.int32(3), replicated),
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_identical(tree, expected):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("devices", [8, 4, 1])
def test_a_checkpoint_of_eight_devices_restores_on_fewer(tmp_path, devices):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(3, make_tree(8), {"position": 17})
    target = abstract(make_tree(devices))
    with checkpoint.Checkpoints(tmp_path) as store:
        step, tree, record = store.restore(target)
    assert step == 3 and record["position"] == 17
    assert_identical(tree, make_tree(8))
    assert tree["params"]["w"].sharding == target["params"]["w"].sharding
    assert len(tree["params"]["w"].sharding.device_set) == devices


def test_the_fingerprint_depends_on_values_and_their_order_but_not_on_topology():
    tree = make_tree(8)
    assert checkpoint.fingerprint(tree) == checkpoint.fingerprint(make_tree(1))
    reversed_rng = {**tree, "rng": tree["rng"][::-1]}
    assert checkpoint.fingerprint(reversed_rng) != checkpoint.fingerprint(tree)
    next_step = {**tree, "step": tree["step"] + 1}
    assert checkpoint.fingerprint(next_step) != checkpoint.fingerprint(tree)


def test_the_newest_keep_checkpoints_are_kept_and_a_step_is_saved_once(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=2) as store:
        for step in (1, 2, 3, 3):
            store.save(step, make_tree(1, step))
        store.wait()
        assert store.steps() == [2, 3]


def damage(folder, kind):
    """Damages the largest file of a checkpoint, which contains array data."""
    largest = max(
        (p for p in folder.rglob("*") if p.is_file() and "state" in str(p)),
        key=lambda p: p.stat().st_size,
    )
    data = largest.read_bytes()
    if kind == "truncated":
        largest.write_bytes(data[: len(data) // 2])
    elif kind == "missing":
        largest.unlink()
    else:
        largest.write_bytes(data[:40] + bytes(b ^ 0x55 for b in data[40:80]) + data[80:])


@pytest.mark.parametrize("kind", ["truncated", "missing", "flipped bits"])
def test_restore_falls_back_from_a_damaged_checkpoint_to_the_previous_one(tmp_path, caplog, kind):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(1, make_tree(1, 1.0), {"position": 1})
        store.save(2, make_tree(1, 2.0), {"position": 2})
    damage(tmp_path / "2", kind)
    with (
        checkpoint.Checkpoints(tmp_path) as store,
        caplog.at_level(logging.WARNING, checkpoint.__name__),
    ):
        step, tree, record = store.restore_and_prune(abstract(make_tree(1)))
        assert (step, record["position"]) == (1, 1)
        assert_identical(tree, make_tree(1, 1.0))
        assert "falling back" in caplog.text and f"{tmp_path}/2" in caplog.text
        store.save(2, make_tree(1, 5.0))  # the resumed run reaches step 2 again
    with checkpoint.Checkpoints(tmp_path) as store:
        step, tree, _ = store.restore(abstract(make_tree(1)))
    assert step == 2
    assert_identical(tree, make_tree(1, 5.0))


def test_an_error_without_readable_checkpoints_leaves_the_files(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(1, make_tree(1))
    damage(tmp_path / "1", "truncated")
    with checkpoint.Checkpoints(tmp_path) as store:
        with pytest.raises(
            checkpoint.CheckpointError,
            match="none of the 1 checkpoints.*is readable.*move the folder away",
        ):
            store.restore_and_prune(abstract(make_tree(1)))
    assert (tmp_path / "1").exists()


def test_a_storage_that_is_not_available_costs_no_checkpoint(tmp_path, monkeypatch):
    tree, read = make_tree(8), checkpoint.Checkpoints._restore_step
    failures = [OSError(errno.ESTALE, "Stale file handle"), ValueError("open: OS error 24: many")]

    def restore(*args):
        if failures:
            raise failures.pop()
        return read(*args)

    with checkpoint.Checkpoints(tmp_path) as store:
        for step in (1, 2):
            store.save(step, tree)
            store.wait()
    monkeypatch.setattr(checkpoint.Checkpoints, "_restore_step", restore)
    for _ in range(2):
        with checkpoint.Checkpoints(tmp_path) as store:
            with pytest.raises(checkpoint.CheckpointError, match="/2 cannot be read now"):
                store.restore_and_prune(abstract(tree))
    with checkpoint.Checkpoints(tmp_path) as store:
        step, restored, _ = store.restore_and_prune(abstract(tree))
    assert step == 2
    assert_identical(restored, tree)


def test_all_hosts_skip_a_checkpoint_that_is_unreadable_on_one(tmp_path, monkeypatch, caplog):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(1, make_tree(1, 1.0))
        store.save(2, make_tree(1, 2.0))
    flags, computed = [], []

    def agree(flag, all_of=False):
        flags.append(flag)
        return flag and len(flags) != 2  # the other host fails to read the newest

    def fingerprint(tree, real=checkpoint.fingerprint):
        computed.append(len(flags))
        return real(tree)

    monkeypatch.setattr(checkpoint, "agree", agree)
    monkeypatch.setattr(checkpoint, "fingerprint", fingerprint)
    with checkpoint.Checkpoints(tmp_path) as store:
        step, tree, _ = store.restore(abstract(make_tree(1)))
    assert step == 1 and "unreadable on another host" in caplog.text
    assert_identical(tree, make_tree(1, 1.0))
    # Step 2: available, arrays restored; step 1: the same, then the fingerprint.
    assert flags == [True] * 5 and computed == [4]


def test_without_a_checkpoint_restore_returns_none(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as store:
        assert store.restore_and_prune(abstract(make_tree(1))) is None


def test_an_interrupted_save_is_ignored(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as store:
        store.save(1, make_tree(1))
        store.wait()
    (tmp_path / "2.orbax-checkpoint-tmp-7").mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp-7" / "state").mkdir()
    with checkpoint.Checkpoints(tmp_path) as store:
        assert store.steps() == [1]
