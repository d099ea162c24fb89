"""Tests the lock of a run's folder: what stands instead of its files is refused by name."""

import os

import pytest

from grm_jax.training.workdir import FILES, FOLDERS, lock


@pytest.mark.parametrize("name", ["config.json", *(f"rft/{name}" for name in FILES)])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(name, make, tmp_path):
    (tmp_path / "rft").mkdir()
    make(tmp_path / name)
    with pytest.raises(OSError, match=f"{name} is no regular file: move it away"):
        with lock(tmp_path):
            pass


@pytest.mark.parametrize("name", [f"rl/{name}" for name in FOLDERS])
def test_a_file_in_the_place_of_a_folder_is_refused(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x")
    with pytest.raises(OSError, match=f"{name} is no folder: move it away"):
        with lock(tmp_path):
            pass


def test_a_folder_of_a_run_is_held(tmp_path):
    for name in ("rft/checkpoints", "rft/hf"):
        (tmp_path / name).mkdir(parents=True)
    with lock(tmp_path):
        (tmp_path / "rft/result.json").write_text("{}")
    with lock(tmp_path):
        pass
