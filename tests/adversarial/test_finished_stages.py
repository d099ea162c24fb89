"""What a finished stage leaves: kills between any two writes, damage of any file, older exports."""

import contextlib
import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import unittest.mock
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grm_jax import checkpoints, checksums
from grm_jax.storage import as_path
from grm_jax.training import checkpoint, finished, loop, main, rft, sources

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))
import resume_child  # noqa: E402

WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


class Killed(BaseException):
    """The process ends here: no later write of it happens."""


class Disk:
    """Counts the writes below a folder, and ends the process, as it were, after some of them."""

    def __init__(self):
        self.folder, self.left, self.count = None, 0, 0
        sys.addaudithook(self._audit)

    def _audit(self, event, args):
        if self.folder is None:
            return
        is_write = event in WRITES or (event == "open" and args[2] & 3)
        if is_write and str(args[0]).startswith(self.folder):
            if self.count >= self.left:
                raise Killed
            self.count += 1

    @contextlib.contextmanager
    def killed_after(self, writes, folder):
        """Ends the block after so many writes; yields nothing."""
        self.folder, self.left, self.count = str(folder), writes, 0
        try:
            yield
        except Killed:
            pass
        finally:
            self.folder = None


DISK = Disk()


def make_config(steps=1):
    config = resume_child.make_config()
    config.stages, config.export = ("rft",), True
    config.rft.update(steps=steps, warmup_steps=0, comparisons=16, save_every=1)
    config.mesh.update(fsdp=4, tensor=2)
    return config


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    main.run(make_config(), folder)
    return folder


@pytest.fixture
def run(run_folder, tmp_path):
    """A copy of a run whose stage rft is done after one step."""
    shutil.copytree(run_folder, tmp_path / "run")
    return as_path(tmp_path / "run")


def prepared(run, steps=1):
    shared = main.prepare(make_config(steps), run)
    return dataclasses.replace(shared, config=make_config(steps))


def contents(folder):
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def assert_exported(shared, run):
    """Asserts that hf/ has the parameters of final/."""
    with jax.set_mesh(shared.mesh):
        trained = checkpoint.flatten(finished.load(shared, "rft", run / "rft"))
    model = checkpoints.load(Path(run / "rft/hf"), dtype="bfloat16")
    exported = checkpoint.flatten(nnx.state(model))
    assert exported.keys() == trained.keys() and len(trained) > 5
    for name, value in trained.items():
        expected = np.asarray(value.astype(jnp.bfloat16).astype(jnp.float32))
        actual = np.asarray(exported[name].astype(jnp.float32))
        np.testing.assert_array_equal(actual, expected[tuple(map(slice, actual.shape))], name)


def test_an_export_is_made_again_when_the_stage_has_trained_on(run, caplog):
    """The stage trains on, and the process dies after its result and before the export."""
    before = contents(run / "rft/hf")
    (run / "rft/result.json").unlink()
    shared = prepared(run, steps=2)
    with jax.set_mesh(shared.mesh):
        base = lambda: sources.first_params(
            shared.config, main.model_config(shared.config), shared.mesh
        )
        rft.train(shared, base, run / "rft")
    assert loop.read_result(run / "rft")["steps"] == 2 and contents(run / "rft/hf") == before
    main.run(make_config(2), run)
    assert contents(run / "rft/hf") != before
    assert_exported(shared, run)
    assert "is damaged, or of other weights than" in caplog.text


@pytest.mark.parametrize("folder", ["hf", "tokens"])
def test_a_kill_between_two_writes_leaves_a_whole_folder_or_one_that_is_made_again(
    run, folder, request
):
    shared, kills = prepared(run), 0
    if folder == "hf":
        target, marker = run / "rft/hf", run / "rft/export.json"
        write = lambda: finished.export(shared, "rft", run / "rft")
    else:
        target, marker = run / "rft/data/tokens", run / "rft/data/ready.json"
        write = lambda: rft.prepare(shared.config, shared.tokenizer, shared.mesh, run / "rft/data")
    whole, ready = contents(target), marker.read_bytes()
    with jax.set_mesh(shared.mesh):
        while True:
            marker.write_text("{}")  # the folder is not what it should be: it is exported again
            with DISK.killed_after(kills, run):
                write()
            if target.exists():
                assert contents(target) == whole
            if DISK.count < kills:
                break
            if marker.exists() and marker.read_bytes() == ready:
                assert target.exists()
            kills += 1 if "slow" in request.config.getoption("--run") else 4
            write()
            assert contents(target) == whole and marker.read_bytes() == ready
    assert kills > 8
    assert not [p for p in target.parent.iterdir() if p.name.startswith(".") and p.is_dir()]


def test_an_export_of_other_settings_or_with_a_file_cut_off_is_made_again(run, monkeypatch):
    whole, shared = contents(run / "rft/hf"), prepared(run)
    for file, text in (("model.safetensors", b"x"), ("config.json", None), ("judge.json", b"")):
        path = run / "rft/hf" / file
        path.unlink() if text is None else path.write_bytes(text)
        finished.export(shared, "rft", run / "rft")
        assert contents(run / "rft/hf") == whole

    def exported(tokens):
        shared.config.rl.max_new_tokens = tokens
        finished.export(shared, "rft", run / "rft")
        return json.loads((run / "rft/hf/judge.json").read_text())["max_new_tokens"]

    tokens = shared.config.rl.max_new_tokens
    assert exported(tokens + 1) == tokens + 1
    with monkeypatch.context() as patch, pytest.raises(Killed):  # before it writes the marker
        patch.setattr(finished, "write_atomic", unittest.mock.Mock(side_effect=Killed))
        exported(tokens)
    assert exported(tokens + 1) == tokens + 1


EXPORT_OFTEN = """
import shutil, sys, time
from grm_jax import storage
hf, *folders = sys.argv[1:]
for i in range(10_000):
    with storage.replace_folder(hf) as local:
        shutil.copytree(folders[i % 2], local, dirs_exist_ok=True)
    print(i, flush=True)
    time.sleep(0.3)
"""


def test_a_judge_that_loads_during_an_export_has_one_of_the_two_models_whole(run, tmp_path):
    """Another process exports two models in turn; each load is of one of them, or one line."""
    from grm_jax.judging.loading import judge_arguments

    folders, names, hf = [tmp_path / "a", tmp_path / "b"], set(), tmp_path / "rl" / "hf"
    for tokens, folder in enumerate(folders, start=30):
        shutil.copytree(run / "rft/hf", folder)
        metadata = json.dumps({"template": "compact", "max_new_tokens": tokens})
        (folder / "judge.json").write_text(metadata)
        names.add((judge_arguments(folder)["name"].split("@")[1], tokens))
    command = [sys.executable, "-c", EXPORT_OFTEN, str(hf), *map(str, folders)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    process.stdout.readline()
    try:
        for _ in range(8):
            try:
                judge = judge_arguments(hf)
            except (OSError, ValueError) as error:
                assert "was replaced while it was read" in str(error) or "not exist" in str(error)
            else:
                assert (judge["name"].split("@")[1], judge["max_new_tokens"]) in names
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------- damage


def files_of(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif data:
        data[len(data) // 2] ^= 4
        path.write_bytes(data)


@pytest.mark.parametrize("kind", ["flip", "cut", "missing"])
def test_damaged_final_weights_are_noticed_at_the_start(run, kind):
    """Damage that does not change the weights may pass; all other damage is noticed."""
    shared = prepared(run)
    folders = {stage: run / stage for stage in main.STAGES}
    noticed = []
    backup = run / "rft/backup"
    (run / "rft/final").rename(backup)
    files = files_of(backup)
    files = [max(files, key=lambda p: p.stat().st_size), *files[:: max(1, len(files) // 6)]]
    with jax.set_mesh(shared.mesh):
        expected = checkpoint.fingerprint(main_params(shared, run, backup))
        for file in files:
            shutil.rmtree(run / "rft/final", ignore_errors=True)
            shutil.copytree(backup, run / "rft/final")
            damage(Path(run / "rft/final") / file.relative_to(backup), kind)
            if "rft" in finished.damaged(shared, folders):
                noticed.append(file.name)
            else:
                assert checkpoint.fingerprint(finished.load(shared, "rft", run / "rft")) == expected
    assert noticed and noticed[0] == files[0].name


def main_params(shared, run, folder):
    shutil.copytree(folder, run / "rft/final")
    return finished.load(shared, "rft", run / "rft")


def test_damaged_final_weights_are_written_again_from_the_last_checkpoint(run, caplog):
    result, whole = loop.read_result(run / "rft"), contents(run / "rft/hf")
    largest = max(files_of(run / "rft/final"), key=lambda path: path.stat().st_size)
    damage(largest, "flip")
    with caplog.at_level(logging.WARNING):
        main.run(make_config(), run)
    assert "rft resumes from checkpoint 1" in caplog.text
    after = loop.read_result(run / "rft")
    assert [after[name] for name in ("weights", "last")] == [
        result[name] for name in ("weights", "last")
    ]
    assert contents(run / "rft/hf") == whole
    assert_exported(prepared(run), run)


def test_damaged_final_weights_without_a_checkpoint_are_refused_by_name(run):
    shutil.rmtree(run / "rft/checkpoints")
    largest = max(files_of(run / "rft/final"), key=lambda path: path.stat().st_size)
    damage(largest, "flip")
    with pytest.raises(checkpoint.CheckpointError, match="rft/final.*restore it from a backup, or"):
        main.run(make_config(), run)
    assert loop.is_done(run / "rft")  # nothing was removed


@pytest.mark.parametrize("kind", ["flip", "cut", "missing"])
def test_any_damaged_file_of_the_rft_set_is_noticed_and_the_set_built_again(run, kind, caplog):
    shared, data = prepared(run), run / "rft/data"
    files = [file for file in files_of(data) if "samples" not in file.parts]
    whole = {file: file.read_bytes() for file in files}
    assert {"tokens.npy", "trials.jsonl", "ready.json", "checksums.json"} <= {f.name for f in files}
    for file in files:
        if (kind, file.name) == ("missing", checksums.FILE):
            continue  # as in folders of earlier versions
        damage(file, kind)
        caplog.clear()
        with jax.set_mesh(shared.mesh):
            rft.repair(shared, data)
            rft.prepare(shared.config, shared.tokenizer, shared.mesh, data)
        assert {file: file.read_bytes() for file in files} == whole, file
        if (kind, file.name) != ("missing", "ready.json"):
            assert "the RFT set is built again" in caplog.text


def test_a_damaged_config_is_refused_in_one_line(run):
    for text in ("{", "[]", '{"name": 1}', '{"name": "x"}', '{"name": "x", "model": "y"}'):
        (run / "config.json").write_text(text)
        with pytest.raises((checkpoint.CheckpointError, ValueError), match="config.json") as error:
            main.prepare(make_config(), run)
        assert len(str(error.value).splitlines()) == 1
