"""Checkpoints that a run can be continued from exactly: Orbax, asynchronous, atomic, checked when read.

One checkpoint holds one tree of arrays (parameters, optimizer state, step, RNG) and one JSON record (data position, reference
identity, what the caller adds). The tree is stored flat, by path, so it is read back into any tree with the same paths, on
any topology: the target's shardings decide where each shard goes.
"""

import hashlib
import logging
import signal

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.storage import as_path

log = logging.getLogger(__name__)
FINGERPRINT = "fingerprint"


class CheckpointError(RuntimeError):
    """No checkpoint of a folder can be read, or it belongs to another run."""


def flatten(tree):
    """{path: leaf} of a tree, paths as "params.blocks.attn.q"."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in pairs}


@jax.jit
def _checksums(flat):
    """One uint32 per leaf: sum of bits times an odd weight by position, modulo 2^32, hence the same on every topology."""

    def checksum(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.uint8)
        bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
        weight = jnp.uint32(1)
        for axis, size in enumerate(words.shape):
            place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            weight = weight * jnp.uint32(size | 1) + place * jnp.uint32(2654435761)
        return jnp.sum(words * (weight | jnp.uint32(1)), dtype=jnp.uint32)

    return {name: checksum(x) for name, x in flat.items()}


def fingerprint(tree):
    """Short hex identity of the values of a tree of arrays: equal bits, equal string, whatever the sharding."""
    sums = _checksums(flatten(tree))
    text = "".join(f"{name}:{int(sums[name])};" for name in sorted(sums))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one stage in one folder, the newest `keep` of them.

    Use as a context manager, or call `close`: both wait for the save under way.
    """

    def __init__(self, folder, keep=2):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.folder = as_path(folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
            ),
            item_names=("state", "record"),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._manager.wait_until_finished()
        self._manager.close()

    def wait(self):
        """Returns when the save under way is committed."""
        self._manager.wait_until_finished()

    def steps(self):
        """Steps that have a committed checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step, tree, record=None):
        """Starts saving; the arrays are copied to the host before it returns, so they may be donated at once.

        A step that is there already is left alone: it holds the same state.
        """
        if step in self.steps():
            return
        flat = flatten(tree)
        record = {**(record or {}), FINGERPRINT: fingerprint(tree)}
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(state=args.StandardSave(flat), record=args.JsonSave(record)),
            force=True,
        )

    def restore(self, abstract_tree):
        """The newest checkpoint that can be read in full.

        Args:
          abstract_tree: tree of jax.ShapeDtypeStruct with shardings, the same paths as what was saved.

        Returns:
          (step, tree, record), or None when there is no checkpoint at all.

        Raises:
          CheckpointError: when there are checkpoints and none can be read.
        """
        steps = self.steps()[::-1]
        failures = []
        for step in steps:
            found, why = None, "unreadable on another host"
            try:
                found = self._read(step, abstract_tree)
            except Exception as error:  # Whatever the storage layer raises on damaged bytes.
                why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            # The fingerprint is computed by all hosts together: only once each of them has its arrays.
            if agree(found is not None, all_of=True):
                tree, record = found
                if agree(fingerprint(tree) == record[FINGERPRINT], all_of=True):
                    return step, tree, record
                why = f"its arrays do not have the fingerprint {record[FINGERPRINT]} that was saved with them"
            failures.append(f"step {step}: {why}")
            log.warning(
                "checkpoint %s/%d cannot be read (%s): falling back to the one before",
                self.folder,
                step,
                why,
            )
        if not failures:
            return None
        # Only when nothing is readable are the files left for a person to look at; see `_drop` for the other case.
        raise CheckpointError(
            f"none of the {len(steps)} checkpoints in {self.folder} can be read ({'; '.join(failures)}): "
            f"move the folder away to start the stage again, or restore it from a backup"
        )

    def restore_or_none(self, abstract_tree):
        """`restore`, then removes newer checkpoints that could not be read, so that their steps can be saved again."""
        found = self.restore(abstract_tree)
        if found is not None:
            for step in [s for s in self.steps() if s > found[0]]:
                self._manager.delete(step)
        return found

    def _read(self, step, abstract_tree):
        args = self._ocp.args
        target = flatten(abstract_tree)
        got = self._manager.restore(
            step, args=args.Composite(state=args.StandardRestore(target), record=args.JsonRestore())
        )
        flat, record = got.state, got.record
        names = list(target)
        if FINGERPRINT not in record:
            raise CheckpointError("its record holds no fingerprint")
        return jax.tree.unflatten(
            jax.tree.structure(abstract_tree), [flat[n] for n in names]
        ), record


def agree(flag, all_of=False):
    """One answer on all hosts: whether any (or every) host says yes. Every host must call it at the same step."""
    if jax.process_count() == 1:
        return bool(flag)
    from jax.experimental import multihost_utils

    votes = multihost_utils.process_allgather(np.asarray(bool(flag)))
    return bool(votes.all() if all_of else votes.any())


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


class StopSignal:
    """Turns SIGTERM (what a preempted machine gets) into a question asked between steps.

    with StopSignal() as stop:
        for ...:
            step()
            if stop.requested(): save and leave   # all hosts get the same answer at the same step
    """

    def __init__(self, signals=(signal.SIGTERM,)):
        self._signals, self._seen, self._previous = signals, False, {}

    def __enter__(self):
        for number in self._signals:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except (
                ValueError
            ):  # Not in the main thread (a notebook's worker): signals stay with their owner.
                log.warning(
                    "signal %d cannot be caught outside the main thread: no save when the machine is preempted",
                    number,
                )
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self._seen = True

    def requested(self):
        return agree(self._seen)
