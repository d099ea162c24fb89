"""Damaged GGUF files: refused in one line, or read as what their bytes say."""

import dataclasses
import functools
import os
import struct

import fuzz
import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Q, GGUFValueType as Type
from gguf_cases import CONFIGS, contents, set_field, write_toy
from test_gguf_keys import REFUSED

from grm_jax.checkpoints import open_checkpoint


def header_length(path):
    """Returns the bytes before the tensors' data."""
    return gguf.GGUFReader(path).data_offset


def replaced(data, old, new, count=1):
    assert old in data
    return data.replace(old, new, count)


def tensor_info(name, dims, kind, offset):
    text = name.encode()
    return struct.pack(
        f"<Q{len(text)}sI{len(dims)}QIQ", len(text), text, len(dims), *dims, kind, offset
    )


@pytest.fixture
def damaged(tmp_path):
    """Returns {name of the damage: bytes} of a Qwen 3 file."""
    path = write_toy(tmp_path / "toy.gguf", "qwen3")
    data, start = path.read_bytes(), header_length(path)
    last = max(gguf.GGUFReader(path).tensors, key=lambda t: t.data_offset)
    dims = [int(n) for n in last.shape]
    entry = tensor_info(last.name, dims, int(last.tensor_type), last.data_offset - start)
    assert entry in data

    def last_tensor(dims=dims, kind=int(last.tensor_type), offset=last.data_offset - start):
        return replaced(data, entry, tensor_info(last.name, dims, kind, offset))

    key = struct.pack("<Q", 17) + b"qwen3.block_count"
    count = len(gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].data)
    vocabulary = struct.pack("<Q21sIIQ", 21, b"tokenizer.ggml.tokens", 9, 8, count)
    assert vocabulary in data
    other_vocabulary = lambda kind, count: replaced(
        data, vocabulary, struct.pack("<Q21sIIQ", 21, b"tokenizer.ggml.tokens", 9, kind, count)
    )
    return {
        "empty": b"",
        "one byte": data[:1],
        "magic": b"GGML" + data[4:],
        "version 1": data[:4] + struct.pack("<I", 1) + data[8:],
        "version 99": data[:4] + struct.pack("<I", 99) + data[8:],
        "big-endian": data[:4] + struct.pack(">I", 3) + data[8:],
        "tensor count": data[:8] + struct.pack("<Q", 2**60) + data[16:],
        "one tensor more": data[:8]
        + struct.pack("<Q", len(gguf.GGUFReader(path).tensors) + 1)
        + data[16:],
        "field count": data[:16] + struct.pack("<Q", 2**60) + data[24:],
        "length of a key": data[:24] + struct.pack("<Q", 2**60) + data[32:],
        "length of a list": other_vocabulary(8, 2**60),
        "list of lists": other_vocabulary(9, count),
        "list of bytes": other_vocabulary(0, count),
        "list of an unknown type": other_vocabulary(77, count),
        "type of a field": replaced(data, key + struct.pack("<I", 4), key + struct.pack("<I", 99)),
        "key that is not UTF-8": replaced(data, key, key[:-1] + b"\xff"),
        "key twice": replaced(data, struct.pack("<Q", 20) + b"qwen3.context_length", key),
        "text that is not UTF-8": replaced(data, b"{% for", b"{% \xff\xfeor"),
        "offset beyond the file": last_tensor(offset=2**40),
        "offset that wraps": last_tensor(offset=2**64 - 4096),
        "offset of another tensor": last_tensor(offset=0),
        "offset that is not aligned": last_tensor(offset=last.data_offset - start - 1),
        "unknown quantisation": last_tensor(kind=99),
        "quantisation of whole numbers": last_tensor(kind=int(Q.I32)),
        "rows of a part of a block": last_tensor(dims=[33], kind=int(Q.Q8_0)),
        "no dimension": last_tensor(dims=[]),
        "a dimension of 0": last_tensor(dims=[0]),
        "a dimension of 2^60": last_tensor(dims=[2**60]),
        "dimensions whose product wraps": last_tensor(dims=[2**33, 2**33]),
        "five dimensions": last_tensor(dims=[1, 1, 1, 1, 1]),
        "truncated data": data[:-5],
        "truncated header": data[: start // 2],
        "no data": data[:start],
    }


REASONS = {
    "version 99": "a GGUF file of version 99 is not supported",
    "big-endian": "a GGUF file of big-endian is not supported",
    "tensor count": " tensors, more than 100,000",
    "field count": " fields, more than 10,000",
    "length of a key": "it needs ",
    "length of a list": " values of an array, more than 4,000,000",
    "list of lists": "an array of arrays",
    "key twice": "Duplicate qwen3.block_count",
    "offset of another tensor": " begins at byte 0 of the data",
    "unknown quantisation": " has the quantisation 99, an unsupported one",
    "quantisation of whole numbers": " has the quantisation 26, an unsupported one",
    "rows of a part of a block": " has rows of 33, not a multiple of 32",
    "no dimension": " has the dimensions []",
    "truncated data": " ends after the file",
    "truncated header": "it needs ",
}


def test_damage_is_refused_in_one_line_that_names_the_file(damaged, tmp_path):
    for name, data in damaged.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with fuzz.time_limit(), pytest.raises(ValueError) as error:
            contents(path, tmp_path / "own")
        message = str(error.value)
        assert str(path) in message and len(message.splitlines()) == 1, name
        assert REASONS.get(name, "") in message, (name, message)


def test_a_piece_that_sentencepiece_refuses_is_refused_in_one_line(tmp_path):
    path = write_toy(tmp_path / "toy.gguf", "gemma2")
    path.write_bytes(replaced(path.read_bytes(), b"<0xD0>", b"\x1c0xD0>"))
    with pytest.raises(ValueError, match="byte piece") as error:
        contents(path, tmp_path / "own")
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("pipe.gguf", "folder.gguf"):
        with fuzz.time_limit(), pytest.raises(ValueError, match=f"{name}.*not a"):
            open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "key, value, match",
    [
        ("general.type", "adapter", "general.type is 'adapter'"),
        ("split.count", 3, "it is one of 3 files"),
        ("tokenizer.ggml.add_eos_token", True, "add_eos_token is true"),
        ("tokenizer.ggml.eos_token_id", 2**40, "eos_token_id = .* is not the id"),
        ("tokenizer.ggml.eos_token_id", 1.5, "eos_token_id = 1.5 is not the id"),
        ("tokenizer.ggml.tokens", ["a", "a"], "tokens has 1 tokens twice"),
        ("tokenizer.ggml.tokens", ["a", "b"], "token_type has 291 values for 2 tokens"),
        ("tokenizer.ggml.token_type", ["x"], "token_type is not a list of int"),
        ("tokenizer.ggml.merges", ["ab"], "merges has 'ab', which is not a pair"),
        ("tokenizer.ggml.merges", ["\u00e9 \u6f22"], "out of vocabulary"),
        ("tokenizer.chat_template", 5, "chat_template is not a text"),
    ],
)
def test_odd_metadata_of_the_tokenizer_is_refused_by_name(tmp_path, key, value, match):
    path = write_toy(tmp_path / "toy.gguf", "qwen2", lambda f: set_field(f, key, value))
    with pytest.raises(ValueError, match=match) as error:
        contents(path, tmp_path / "own")
    assert str(path) in str(error.value)


# ---------------------------------------------------------------- random damage

# Class defaults of the toys' keys, and the fields of a configuration that a key sets.
DEFAULTS = {
    "gemma2": {"rope.freq_base": 1e4, "attention.layer_norm_rms_epsilon": 1e-6,
               "attention.sliding_window": 4096, "attn_logit_softcapping": 50.0,
               "final_logit_softcapping": 30.0},
    "gemma3": {"rope.freq_base": 1e6, "attention.layer_norm_rms_epsilon": 1e-6},
}  # fmt: skip
FIELDS = {
    "block_count": "num_layers", "embedding_length": "d_model", "feed_forward_length": "d_ff",
    "attention.head_count": "num_heads", "context_length": "max_length",
    "attention.layer_norm_rms_epsilon": "norm_eps", "attn_logit_softcapping": "attn_cap",
    "final_logit_softcapping": "final_cap",
}  # fmt: skip


def view(path):
    """Returns ({key: value}, {tensor: (type, shape, bytes)}) as the `gguf` package reads them."""
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    data = {
        t.name: (int(t.tensor_type), t.shape.tolist(), t.data.tobytes()) for t in reader.tensors
    }
    return {k: v for k, v in fields.items() if not k.startswith("GGUF.")}, data


def expected_config(cfg, arch, fields):
    """Returns the undamaged configuration with the values that the file has."""
    get = lambda key: fields.get(f"{arch}.{key}", DEFAULTS.get(arch, {}).get(key))
    changes = {}
    for key, field in FIELDS.items():
        value = get(key)
        if value is not None:
            changes[field] = float(f"{value:.6g}") if field == "norm_eps" else value
    if changes.get("attn_cap") == 0:
        changes["attn_cap"] = None
    if changes.get("final_cap") == 0:
        changes["final_cap"] = None
    local, full = cfg.pattern[0], cfg.pattern[-1]
    scaling = get("rope.scaling.type"), get("rope.scaling.factor")
    factor = float(scaling[1] or 1.0) if scaling[0] in (None, "linear") else 1.0
    full = dataclasses.replace(full, rope_theta=float(get("rope.freq_base")), rope_scale=factor)
    if arch == "gemma2":
        local = dataclasses.replace(local, rope_theta=full.rope_theta, rope_scale=factor)
    if arch in ("gemma2", "gemma3"):
        local = dataclasses.replace(local, window=get("attention.sliding_window"))
    pattern = (local,) * (len(cfg.pattern) - 1) + (full,)
    return cfg.replace(pattern=pattern, **changes)


QUANTIZATIONS = (None, Q.BF16, Q.Q8_0, Q.Q4_0)


def check_damaged(path, arch, whole, whole_view, folder):
    """Reads a file; what is accepted is the original, except where the file has other values."""
    own = contents(path, folder)
    (fields, data), (whole_fields, whole_data) = view(path), whole_view
    if fields.get("general.architecture") == arch:
        assert own.cfg == expected_config(whole.cfg, arch, fields), "config"
    if data == whole_data:
        same = (np.array_equal(a, b) for a, b in zip(own.weights, whole.weights, strict=True))
        assert all(same), "weights"
    of_tokenizer = lambda f: {k: v for k, v in f.items() if k.startswith("tokenizer.")}
    if of_tokenizer(fields) == of_tokenizer(whole_fields):
        assert own.ids == whole.ids, "tokenizer"
    assert len(data) == len(whole_data), "number of tensors"


@pytest.fixture
def fuzz_files(tmp_path, record_property, cases):
    """Returns fuzz_files(what, damage, fast, full), which reads the files that `damage` writes.

    damage(rng, path, arch, quantization, data, start): data is the whole file, start the length of
    its header.
    """

    @functools.cache
    def original(arch, quantization):
        path = write_toy(tmp_path / f"{arch}-{quantization}.gguf", arch, None, quantization)
        return path.read_bytes(), header_length(path), contents(path, tmp_path / "own"), view(path)

    def draw(damage, fast, full):
        for i, rng in cases(fast, full):
            arch, quantization = rng.choice(list(CONFIGS)), rng.choice(QUANTIZATIONS)
            data, start, *whole = original(arch, quantization)
            path = tmp_path / f"{i}.gguf"
            damage(rng, path, arch, quantization, data, start)
            yield f"{arch} {quantization} {i}", (path, arch, *whole, tmp_path / "read")
            path.unlink()

    def run(what, damage, fast, full):
        check = lambda case: check_damaged(*case)
        return fuzz.run(f"GGUF, {what}", draw(damage, fast, full), check, record_property)

    return run


def test_changed_bytes(fuzz_files):
    def damage(rng, path, arch, quantization, data, start):
        end = start if rng.random() < 0.9 else len(data)
        begin = 0 if rng.random() < 0.7 else rng.randrange(end)
        if rng.random() < 0.5:  # in place, so that what follows is still parsed
            length = rng.choice([1, 1, 2, 4, 8])
            place = rng.randrange(end - length)
            bit = bytes([data[place] ^ 1 << rng.randrange(8)])
            patch = rng.choice([bit, rng.randbytes(length), bytes(length)])
            path.write_bytes(data[:place] + patch + data[place + len(patch) :])
        else:
            part = fuzz.change_bytes(rng, data[begin:end], rng.choice([1, 1, 1, 2, 5]))
            path.write_bytes(data[:begin] + part + data[end:])

    fuzz_files("changed bytes", damage, fast=12, full=700)


def odd_field(rng):
    """Returns a value of a random type of GGUF."""
    kind = rng.choice([Type.STRING, Type.UINT32, Type.INT64, Type.FLOAT32, Type.BOOL, Type.ARRAY])
    text = lambda: rng.choice([t for t in fuzz.ODD_TEXTS if "\ud800" not in t])
    number = lambda: rng.choice([0, 1, 2, 7, 32, 64, 2**31])
    values = {
        Type.STRING: text,
        Type.UINT32: number,
        Type.INT64: lambda: rng.choice([-1, -(2**40), 2**60, number()]),
        Type.FLOAT32: lambda: rng.choice([0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 1.0]),
        Type.BOOL: lambda: rng.random() < 0.5,
    }
    if kind != Type.ARRAY:
        return gguf.GGUFValue(values[kind](), kind)
    item = rng.choice([Type.STRING, Type.UINT32, Type.FLOAT32])
    return gguf.GGUFValue([values[item]() for _ in range(rng.choice([1, 3, 64]))], kind, item)


def test_changed_fields(fuzz_files):
    def damage(rng, path, arch, quantization, *_):
        extra = [f"{arch}.{key}" for key in REFUSED]

        def change(fields):
            for _ in range(rng.choice([1, 1, 2, 3])):
                key = rng.choice([*fields, *extra])
                action = rng.choice(["drop", "odd", "odd", "rename"])
                if action == "drop":
                    fields.pop(key, None)
                elif action == "rename" and key in fields:
                    fields[f"{key}_"] = fields.pop(key)
                else:
                    fields[key] = odd_field(rng)

        write_toy(path, arch, change, quantization)

    fuzz_files("changed fields", damage, fast=12, full=300)
