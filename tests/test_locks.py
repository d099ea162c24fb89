"""Tests locks of folders, on a disk and in a bucket."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import pytest

from grm_jax import locks, storage

ROOT = Path(__file__).resolve().parents[1]


HOLD = """
import sys
from grm_jax import locks, storage
with storage.locked(sys.argv[1], "training"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / "run"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_holds_is_refused_with_host_and_pid(tmp_path, other):
    where = f"{tmp_path}/run is in use: training on host {platform.node()}, pid {other.pid}, since"
    with pytest.raises(BlockingIOError, match=where), storage.locked(tmp_path / "run"):
        raise AssertionError("two processes hold the folder")


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / "run" / locks.HOLDER).exists()  # names a process that is gone
    with storage.locked(tmp_path / "run"):
        with pytest.raises(BlockingIOError, match=f"run on host .* pid {os.getpid()}"):
            with storage.locked(tmp_path / "run"):
                raise AssertionError
    assert not list((tmp_path / "run").iterdir())
    with storage.locked(tmp_path / "run"):
        pass


def test_without_locks_of_the_file_system_a_file_names_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.filelock, "FileLock", filelock.SoftFileLock)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / locks.LOCK).write_text(f"{gone.pid}\n{platform.node()}\n")
    with storage.locked(tmp_path):
        pass
    (tmp_path / locks.LOCK).write_text("7\nanother-host\n")
    with pytest.raises(BlockingIOError, match=f"if that process is gone, remove {tmp_path}/.lock"):
        with storage.locked(tmp_path):
            raise AssertionError


def holder(name):
    return {"what": "training", "host": name, "pid": 1, "since": "now", "token": name}


class Clock:
    """Stands in for `time` in locks: a sleep passes on this clock, and takes `pause` seconds."""

    def __init__(self, pause=0.0):
        self.now, self.pause = 0.0, pause

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        time.sleep(self.pause)


def test_a_bucket_is_held_while_its_lock_is_renewed(tmp_path, monkeypatch):
    folder = storage.epath.Path(tmp_path)
    with locks._leased(folder, holder("a"), 0.05):
        monkeypatch.setattr(locks, "time", Clock(pause=0.5))  # 12 pauses until b takes it over
        with pytest.raises(locks.InUse, match="training on host a, pid 1"):
            with locks._leased(folder, holder("b"), 20.0):
                raise AssertionError
        assert json.loads((tmp_path / locks.HOLDER).read_text())["token"] == "a"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [json.dumps(holder("crashed")), '{"host": "cut off'])
def test_a_lock_of_a_bucket_that_is_not_renewed_is_stale(tmp_path, monkeypatch, content):
    (tmp_path / locks.HOLDER).write_text(content)
    clock = Clock()
    monkeypatch.setattr(locks, "time", clock)
    with locks._leased(storage.epath.Path(tmp_path), holder("b"), 0.1):
        assert json.loads((tmp_path / locks.HOLDER).read_text())["host"] == "b"
    assert 0.3 <= clock.now < 0.4


def test_a_process_whose_lock_of_a_bucket_was_taken_over_ends(tmp_path, monkeypatch):
    left = threading.Event()
    monkeypatch.setattr(locks, "_leave", lambda folder: left.set())
    with locks._leased(storage.epath.Path(tmp_path), holder("a"), 0.05):
        (tmp_path / locks.HOLDER).write_text(json.dumps(holder("b")))
        assert left.wait(60)
    assert json.loads((tmp_path / locks.HOLDER).read_text())["host"] == "b"
