"""Checkpoints for exact resume: Orbax, asynchronous, atomic, verified when they are restored.

A checkpoint holds one tree of arrays (parameters, optimizer state, step, RNG) and one JSON record
(data position, identity of data and reference). The tree is stored flat, by path, so it restores
into any tree with the same paths on any topology: the target's shardings place each shard.
"""

import contextlib
import errno
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from grm_jax.storage import PathLike, as_path

log = logging.getLogger(__name__)
FINGERPRINT, DIGEST = "fingerprint", "digest"  # of the arrays, and of the rest of the record
_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM),
    *(errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EWOULDBLOCK),
}
# What the storage library writes for a full disk, a lost network or a missing permission.
_STORAGE_FAULT = re.compile(
    r"(?P<text>[^:]*) \[os_error_code|OS error \d+|\[Errno \d+\]"
    "|RESOURCE_EXHAUSTED|PERMISSION_DENIED"
)


# Of a read: the storage is not available now. Missing and cut files are damage.
_UNAVAILABLE = {errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.EMFILE, errno.ENFILE}
_ERRNO = re.compile(r"(?:OS error |\[Errno )(\d+)")


class CheckpointError(RuntimeError):
    """No checkpoint of a folder is readable, or the checkpoints belong to another run."""


class SaveError(OSError):
    """A checkpoint could not be written: the disk is full, for example."""


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Names the fields whose values differ: "rl.beta was 0.08 and is 0.1"; "" if none does.

    A field that only one of the two has is not compared.
    """
    return ", ".join(
        f"{name} was {saved[name]!r} and is {value!r}"
        for name, value in now.items()
        if name in saved and saved[name] != value
    )


def check_identity(folder: Any, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises CheckpointError, naming the fields, if `folder` was written by another run."""
    if different := differences(saved, now):
        raise CheckpointError(
            f"{folder} belongs to another run: {different}. "
            "Use another workdir, or restore the old values"
        )


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} of a tree, with paths as "params.blocks.attn.q"."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in pairs}


@jax.jit
def _checksums(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums each leaf's bits times an odd weight by position, modulo 2^32, as one uint32.

    Integer sums do not depend on the order, hence not on the topology.
    """

    def checksum(x: jax.Array) -> jax.Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        if x.dtype in (jnp.bool_, jnp.int4):
            x = x.astype(jnp.uint8)
        bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
        weight = jnp.uint32(1)
        for axis, size in enumerate(words.shape):
            index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
            weight = weight * jnp.uint32(size | 1) + index * jnp.uint32(2654435761)
        return jnp.sum(words * (weight | jnp.uint32(1)), dtype=jnp.uint32)

    return {name: checksum(x) for name, x in flat.items()}


def fingerprint(tree: Any) -> str:
    """Returns a short hex hash of the values of a tree of arrays, independent of sharding."""
    sums = _checksums(flatten(tree))
    text = "".join(f"{name}:{int(sums[name])};" for name in sorted(sums))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_storage_fault(error: BaseException) -> bool:
    """Whether the storage refused a write: the disk is full, read-only or lost, for example.

    The storage libraries report it in the text of errors of many types.
    """
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, SaveError) or (
        number in _ERRNOS if number else bool(_STORAGE_FAULT.search(str(error)))
    )


def _is_unavailable(error: BaseException) -> bool:
    """Whether a read failed because the storage is not available now."""
    numbers = {int(text) for text in _ERRNO.findall(str(error))}
    if isinstance(error, OSError) and error.errno:
        numbers.add(error.errno)
    return bool(numbers & _UNAVAILABLE)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record is not a traceback of a storage fault (SaveError reports those)."""
    return not (record.exc_info and record.exc_info[1] and is_storage_fault(record.exc_info[1]))


logging.getLogger("absl").addFilter(_is_news)  # Orbax logs the same fault in each of its threads


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of one stage in one folder, the newest `keep` of them.

    A context manager; leaving it waits for the save under way.
    """

    def __init__(self, folder: PathLike, keep: int = 2):
        self.folder = as_path(folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True
            ),
            item_names=("state", "record"),
        )

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt | SaveError):
            return  # exits at once; waiting would raise the same error again
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.close()

    def wait(self) -> None:
        """Returns when the save under way is committed. Raises SaveError if it failed."""
        with self._saving():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Raises SaveError for a fault of the storage, with the newest checkpoint that remains."""
        try:
            yield
        except Exception as error:  # the storage libraries raise many types
            if not is_storage_fault(error):
                raise
            steps = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
            newest = f"the newest checkpoint is {max(steps)}" if steps else "there is no checkpoint"
            raise SaveError(
                f"{self.folder}: a checkpoint could not be written ({_reason(error)}); {newest}. "
                "Free space or correct the permissions, and run the same command again to resume"
            ) from error

    def steps(self) -> list[int]:
        """Returns the steps that have a committed checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, record: Mapping[str, Any] | None = None) -> None:
        """Starts an asynchronous save. The arrays may be donated as soon as it returns.

        A step that is saved already is skipped: its state is the same. Raises SaveError if this
        save, or the one before, fails.
        """
        if step in self.steps():
            return
        fields = {**(record or {}), FINGERPRINT: fingerprint(tree)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(flatten(tree)),
            record=ocp.args.JsonSave({**fields, DIGEST: _digest(fields)}),
        )
        with self._saving():
            self._manager.save(step, args=items, force=True)

    def replace(self, step: int, tree: Any) -> str:
        """Deletes all checkpoints of the folder and saves a tree; returns its fingerprint."""
        for earlier in self.steps():
            self._manager.delete(earlier)
        self.save(step, tree)
        self.wait()
        return self.record(step)[FINGERPRINT]

    def record(self, step: int) -> dict[str, Any]:
        """Reads the record of a checkpoint. Raises CheckpointError if it is damaged."""
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = self._manager.restore(step, args=args).record
        if not isinstance(record, dict) or FINGERPRINT not in record:
            raise CheckpointError("its record has no fingerprint")
        if record.pop(DIGEST, None) not in (None, _digest(record)):  # earlier versions wrote none
            raise CheckpointError("its record is damaged")
        return record

    def restore(self, abstract_tree: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Restores the newest readable checkpoint.

        Args:
          abstract_tree: tree of jax.ShapeDtypeStruct with shardings and the paths that were saved.

        Returns:
          (step, tree, record), or None if there is no checkpoint.

        Raises:
          CheckpointError: there are checkpoints, and none is readable; or the storage is not
            available now.
        """
        failures = []
        for step in self.steps()[::-1]:
            restored, reason, is_available = None, "unreadable on another host", True
            try:
                restored = self._restore_step(step, abstract_tree)
            except Exception as error:  # the storage layer raises many types on damaged bytes
                reason = f"{type(error).__name__}: {_reason(error)}"
                is_available = not _is_unavailable(error)
            if not agree(is_available, all_of=True):  # an older one would lose the steps since
                raise CheckpointError(
                    f"{self.folder}/{step} cannot be read now ({reason}): run the same command "
                    "again when the storage is available, or move that folder away to resume from "
                    "an older one"
                )
            # All hosts compute the fingerprint together, so each of them needs its arrays first.
            if agree(restored is not None, all_of=True):
                tree, record = restored
                if agree(fingerprint(tree) == record[FINGERPRINT], all_of=True):
                    return step, tree, record
                reason = f"its arrays do not match the saved fingerprint {record[FINGERPRINT]}"
            failures.append(f"step {step}: {reason}")
            log.warning(
                "checkpoint %s/%d is unreadable (%s): falling back to the one before",
                *(self.folder, step, reason),
            )
        if not failures:
            return None
        raise CheckpointError(
            f"none of the {len(failures)} checkpoints in {self.folder} is readable "
            f"({'; '.join(failures)}): move the folder away to start the stage again, "
            "or restore it from a backup"
        )

    def restore_and_prune(self, abstract_tree: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """Restores like `restore`, then deletes newer, unreadable checkpoints.

        Their steps can then be saved again. If nothing is readable, the files stay for inspection.
        """
        if restored := self.restore(abstract_tree):
            for step in [s for s in self.steps() if s > restored[0]]:
                self._manager.delete(step)
        return restored

    def _restore_step(self, step: int, abstract_tree: Any) -> tuple[Any, dict[str, Any]]:
        record, target = self.record(step), flatten(abstract_tree)
        template = ocp.args.StandardRestore(target)
        state = self._manager.restore(step, args=ocp.args.Composite(state=template)).state
        leaves = [state[name] for name in target]
        return jax.tree.unflatten(jax.tree.structure(abstract_tree), leaves), record


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _reason(error: BaseException) -> str:
    """Returns the relevant part of an error's text, in one line."""
    text = str(error).strip() or type(error).__name__
    if (match := _STORAGE_FAULT.search(text)) and match["text"]:
        return match["text"].strip()
    line = next((line for line in text.splitlines() if _STORAGE_FAULT.search(line)), "")
    return (line or text.splitlines()[0])[:300]


def agree(flag: bool, all_of: bool = False) -> bool:
    """Whether the flag is true on any host (or on all). Every host must call it at once."""
    if jax.process_count() == 1:
        return bool(flag)
    votes = multihost_utils.process_allgather(np.asarray(bool(flag)))
    return bool(votes.all() if all_of else votes.any())


def wait_for_all(name: str) -> None:
    """Returns when every process has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
