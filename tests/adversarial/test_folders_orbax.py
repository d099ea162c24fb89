"""Hostile and damaged Flax checkpoints of DeepMind: Orbax folders, read with tensorstore."""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import fuzz
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoints import test_deepmind as layouts, toys
from flax import nnx

from grm_jax.checkpoints import load, loading, open_checkpoint
from grm_jax.checkpoints.hf_config import from_hf

CONFIG = toys.GEMMA2 | {"num_hidden_layers": 2}
CFG = from_hf(CONFIG)


@functools.cache
def files(ocdbt: bool) -> dict[str, bytes]:
    """Returns {path: content} of a checkpoint: one key-value store, or a file for each array."""
    tree = layouts.nested(CONFIG, toys.tensors(CONFIG))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "toy"
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder, tree)
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(params=[True, False], ids=["ocdbt", "files"])
def folder(tmp_path, request):
    return write(tmp_path / "toy", files(request.param))


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def state(model):
    return loading.flat_params(nnx.state(model, nnx.Param))


def refused(path, *parts):
    with pytest.raises((ValueError, OSError)) as error:
        load(path, cfg=CFG)
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    for part in (path.name, *parts):
        assert part in message, message


def test_both_layouts_load(folder):
    assert load(folder, cfg=CFG).cfg.num_layers == 2


def change_metadata(folder, change):
    metadata = json.loads((folder / "_METADATA").read_text())
    change(metadata["tree_metadata"])
    (folder / "_METADATA").write_text(json.dumps(metadata))


@pytest.mark.parametrize("key", ["../outside", "/etc", "a/../../outside"])
def test_arrays_outside_the_checkpoint_are_not_opened(folder, key):
    entry = {"key_metadata": [{"key": key, "key_type": 2}]}
    change_metadata(folder, lambda tree: tree.update(new=entry))
    refused(folder, "is outside the checkpoint")


def test_an_array_that_is_listed_twice_is_refused(folder):
    change_metadata(folder, lambda tree: tree.update(new=next(iter(tree.values()))))
    refused(folder, "twice")


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"tree_metadata": [1]}', "[" * 10**5])
def test_damaged_metadata_is_named(folder, content):
    (folder / "_METADATA").write_text(content)
    refused(folder)


@pytest.mark.parametrize("target", ["/dev/zero", "../secret"])
def test_links_out_of_a_checkpoint_are_refused(folder, target):
    (folder.parent / "secret").write_bytes(b"x")
    (folder / "_sharding").unlink(missing_ok=True)
    (folder / "_sharding").symlink_to(target)
    refused(folder, "_sharding is a link to")
    (folder / "_sharding").unlink()
    os.mkfifo(folder / "_sharding")
    refused(folder, "_sharding is a FIFO")


def test_a_missing_chunk_is_not_read_as_zeros(tmp_path):
    folder = write(tmp_path / "toy", files(False))
    chunk = folder / "layer_0.mlp.linear" / "0.0"
    chunk.unlink()
    metadata = json.loads((folder / "_METADATA").read_text())
    metadata["store_array_data_equal_to_fill_value"] = True
    (folder / "_METADATA").write_text(json.dumps(metadata))
    refused(folder, "layer_0.mlp.linear has 0 of 1 chunks")


@pytest.mark.parametrize(
    "change, part",
    [
        ({"dtype": "<i2"}, "has dtype int16"),
        ({"chunks": [2**20, 2**20]}, "has chunks of"),
        ({"shape": [2**40, 32]}, "linear"),
        ({"shape": [-1, 32]}, "cannot be opened"),
        ({"compressor": {"id": "none such"}}, "cannot be opened"),
    ],
)
def test_damaged_array_metadata(tmp_path, change, part):
    folder = write(tmp_path / "toy", files(False))
    file = folder / "layer_0.mlp.linear" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(folder, part)


def test_damaged_checkpoints_are_read_right_or_refused(tmp_path, cases, record_property):
    saved = arrays(load(write(tmp_path / "saved", files(True)), cfg=CFG, dtype=None))
    right = {name: value.tobytes() for name, value in saved.items()}

    def draw():
        for i, rng in cases(25, 600):
            contents = dict(files(rng.random() < 0.5))
            name = rng.choice(sorted(contents))
            action = rng.choice(["bytes", "bytes", "remove", "json", "swap"])
            if action == "remove":
                del contents[name]
            elif action == "swap":
                other = rng.choice(sorted(contents))
                contents[name], contents[other] = contents[other], contents[name]
            elif action == "json":
                zarrays = [name for name in contents if name.endswith(".zarray")]
                name = rng.choice(["_METADATA", *zarrays])
                value = fuzz.change_json(rng, json.loads(contents[name]))
                contents[name] = json.dumps(value).encode()
            else:
                contents[name] = fuzz.change_bytes(rng, contents[name], rng.choice([1, 3]))
            path = write(tmp_path / f"{i}" / "toy", contents)
            yield f"case {i}: {action} {name}", (path, action, name)
            shutil.rmtree(path.parent)

    def check(case):
        path, action, name = case
        open_checkpoint(path)
        values = arrays(load(path, cfg=CFG, dtype=None))
        changed = [key for key, value in values.items() if value.tobytes() != right[key]]
        # The bytes of a chunk have no checksum. All else that loads is what was saved.
        data = name.split("/")[-1][0].isdigit() or "/d/" in f"/{name}"
        assert not changed or (data and action in ("bytes", "swap")), changed

    counts = fuzz.run("Flax checkpoints", draw(), check, record_property)
    assert counts["accepted"] > 2 and counts["refused"] > 5


def arrays(model):
    return {name: np.asarray(value[...]) for name, value in state(model).items()}
