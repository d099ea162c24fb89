"""Randomly damaged model folders: what loads is what the files say, by the formats' libraries.

pytest tests/adversarial/test_folders_fuzz.py --run slow --fuzz-seed 1
"""

import json
import os
import shutil
import struct

import folder_oracle
import fuzz
import pytest
import toy_folders

from grm_jax.checkpoints import cli

JSON_FILES = (
    "config.json", "config.json", "config.json", "model.safetensors.index.json",
    "generation_config.json", "tokenizer_config.json", "tokenizer.json", "judge.json",
    "special_tokens_map.json",
)  # fmt: skip
EXTRA_NAMES = (
    "model.safetensors", "copy.safetensors", "model.safetensors.index.json", "tokenizer.model",
    "tokenizer.json", "adapter_config.json", "adapter_model.safetensors", "added_tokens.json",
)  # fmt: skip
SPECIAL = ("fifo", "folder", "device", "outside", "loop", "nowhere")


def base(rng) -> dict[str, bytes]:
    weights = toy_folders.weights(rng.choice(list(toy_folders.CONFIGS)), rng.choice([1, 3]))
    return weights | toy_folders.tokenizer_files(rng.choice(["model", "json", "both"]))


def change_header(rng, content: bytes) -> bytes:
    """Returns a safetensors file whose header has changed members, and the right length."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    action = rng.choice(["entry", "offset", "shape", "dtype", "rename", "any"])
    if action == "entry":
        header[name] = fuzz.change_json(rng, header[name])
    elif action == "offset":
        header[name]["data_offsets"][rng.randrange(2)] += rng.choice([-4, -1, 1, 2, 64, 2**40])
    elif action == "shape":
        header[name]["shape"] = rng.choice([header[name]["shape"][::-1], [1], [], [2**63, 2]])
    elif action == "dtype":
        header[name]["dtype"] = rng.choice(["F16", "F32", "I16", "F8_E4M3", "X", "bf16"])
    elif action == "rename":
        header[rng.choice([name + "x", "a\nb", "", "lm_head.weight"])] = header.pop(name)
    else:
        header = fuzz.change_json(rng, header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def damage(rng, folder) -> str:
    """Changes one thing in a folder and describes it. What starts with "!" must be refused."""
    names = sorted(os.listdir(folder))
    name = rng.choice(names)
    file = folder / name
    action = rng.choice(
        ["json", "json", "json", "json", "bytes", "bytes", "header", "remove", "swap", "extra",
         "foreign", "special", "nothing"]
    )  # fmt: skip
    if action == "json":
        file = folder / rng.choice([name for name in JSON_FILES if name in names])
        value = fuzz.change_json(rng, json.loads(file.read_text()), rng.choice([1, 1, 2]))
        file.write_text(json.dumps(value))
    elif action == "bytes":
        file.write_bytes(fuzz.change_bytes(rng, file.read_bytes(), rng.choice([1, 1, 3])))
    elif action == "header":
        file = rng.choice(sorted(folder.glob("*.safetensors")))
        file.write_bytes(change_header(rng, file.read_bytes()))
    elif action == "remove":
        file.unlink()
    elif action == "swap":
        other = folder / rng.choice(names)
        one, two = file.read_bytes(), other.read_bytes()
        file.write_bytes(two)
        other.write_bytes(one)
    elif action == "extra":
        other = folder / rng.choice(EXTRA_NAMES)
        whole = other.name == "model.safetensors" or "model.safetensors" in names
        weights_beside = other.suffix == ".safetensors" and not other.exists() and whole
        other.write_bytes(file.read_bytes())
        must = "!" if weights_beside or other.name.startswith("adapter") else ""
        return f"{must}extra {name} as {other.name}"
    elif action == "foreign":
        files = base(rng)
        if name not in files:
            return "nothing"
        file.write_bytes(files[name])
    elif action == "special":
        kind = rng.choice(SPECIAL)
        file.rename(folder.parent / "outside")
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            places = {"device": "/dev/zero", "outside": folder.parent / "outside", "loop": file}
            file.symlink_to(places.get(kind, "/nowhere"))
        return f"!{kind} {file.name}"
    return f"{action} {file.name}"


@pytest.fixture
def folders(tmp_path, cases):
    """folders(fast, full) yields (label, damaged folder), and removes it afterwards."""

    def draw(fast, full):
        for i, rng in cases(fast, full):
            folder = toy_folders.write(tmp_path / f"{i}" / "toy", base(rng))
            yield f"case {i}: {(label := damage(rng, folder))}", (label, folder)
            shutil.rmtree(folder.parent)

    return draw


def test_damaged_folders_load_as_the_files_say_or_are_refused(folders, record_property):
    def check(case):
        label, folder = case
        folder_oracle.check(folder)
        assert not label.startswith("!"), "was accepted"

    counts = fuzz.run("model folders", folders(80, 2000), check, record_property)
    assert counts["accepted"] > 5 and counts["refused"] > 20


def test_damaged_folders_are_converted_or_refused_in_one_line(folders, record_property, capsys):
    """What is converted loads as the converted files say, with the same weights."""

    def check(case):
        label, folder = case
        target = folder.parent / "out"
        if cli.main([str(folder), str(target), "--quiet"]):
            raise ValueError(capsys.readouterr().err.strip())
        assert not label.startswith("!") or label.split()[-1] in toy_folders.CONTENTS, "accepted"
        source, written = map(folder_oracle.tensors_on_disk, (folder, target))
        if len(written) < len(source):
            source.pop("lm_head.weight")
        assert source.keys() == written.keys()
        for name, value in written.items():
            right = source[name].astype(value.dtype).reshape(value.shape)
            assert value.tobytes() == right.tobytes(), name

    counts = fuzz.run("grm convert", folders(25, 500), check, record_property)
    assert counts["accepted"] > 2 and counts["refused"] > 5
