"""Locks of folders: of the operating system on a disk, a lease in a bucket.

Code outside this file uses `storage.locked`.
"""

import contextlib
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import filelock
from etils import epath

from grm_jax import strict_json

log = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".lock_holder.json"
RENEWED_SECONDS = 20.0  # how often a bucket's lock is rewritten


class InUse(BlockingIOError):
    """Another live process has locked a folder."""


@contextlib.contextmanager
def hold(folder: epath.Path, what: str, is_remote: bool) -> Iterator[None]:
    """Locks a folder; another process that tries is refused at once.

    A local folder has a lock of the operating system, which ends with the process. On a file system
    without such locks, a file names the host and the pid; it is stale once that process has exited.
    In a bucket, an object is rewritten every `RENEWED_SECONDS`. It is stale if it stays the same
    for three times as long, and a start after a crash waits that long.

    Args:
      folder: it exists.
      what: the work, for the error of the other process: "training".
      is_remote: whether the folder is in a bucket.

    Raises:
      InUse: names the work, host, pid and start of the process that has locked the folder.
      OSError: the folder is not writable.
    """
    holder = {
        "what": what,
        "host": platform.node(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "token": secrets.token_hex(8),
    }
    with (_leased if is_remote else _file_locked)(folder, holder):
        yield


@contextlib.contextmanager
def _file_locked(folder: Any, holder: dict[str, Any]) -> Iterator[None]:
    lock = filelock.FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        remedy = f"; if that process is gone, remove {folder / LOCK}"
        is_of_system = isinstance(lock, filelock.UnixFileLock)
        other = _read_holder(folder / HOLDER)
        raise _in_use(folder, other, "" if is_of_system else remedy) from None
    try:
        (folder / HOLDER).write_text(strict_json.dumps(holder))
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _leased(
    folder: Any, holder: dict[str, Any], seconds: float = RENEWED_SECONDS
) -> Iterator[None]:
    """Locks a folder of a bucket. seconds: between two writes of the lock."""
    path, released, renewals = folder / HOLDER, threading.Event(), 0

    def write() -> None:
        nonlocal renewals
        path.write_text(strict_json.dumps({**holder, "renewals": renewals}))
        renewals += 1

    def is_ours() -> bool:
        return (_read_holder(path) or {}).get("token") == holder["token"]

    def renew() -> None:
        while not released.wait(seconds):
            try:
                if is_ours():
                    write()
                else:
                    _leave(folder)
            except Exception as error:  # the network; each storage library has its own
                log.warning("the lock %s was not renewed: %s", path, error)

    if (other := _read_holder(path)) is not None:
        log.info("%s: %s; waits %.0f s", folder, _describe(other), 3 * seconds)
        deadline = time.monotonic() + 3 * seconds
        while time.monotonic() < deadline and (now := _read_holder(path)) is not None:
            if now != other:
                raise _in_use(folder, now, "")
            time.sleep(seconds / 4)
    write()
    time.sleep(seconds / 10)  # of two processes that write at once, the later one holds the folder
    if not is_ours():
        raise _in_use(folder, _read_holder(path), "")
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()
        if is_ours():
            path.unlink()


def _leave(folder: Any) -> None:
    """Exits, because another process has taken over the lock, for example after a suspension."""
    log.error(
        "%s was taken over by another process while this one was suspended: exits without saving",
        folder,
    )
    os._exit(1)


def _in_use(folder: Any, holder: dict[str, Any] | None, remedy: str) -> InUse:
    return InUse(
        f"{folder} is in use: {_describe(holder)}. Wait for it or stop it, or use another folder"
        f"{remedy}"
    )


def _describe(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "another process has just locked it"
    since, what = holder.get("since"), holder.get("what")
    return f"{what} on host {holder.get('host')}, pid {holder.get('pid')}, since {since}"


def _read_holder(path: Any) -> dict[str, Any] | None:
    """Returns the record of the process with the lock; None without one, {} if damaged."""
    try:
        return strict_json.read(path)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
