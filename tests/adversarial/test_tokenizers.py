"""Hostile and damaged tokenizers: files that disagree, wrong ids, damaged vocabularies."""

import json
import os

import fuzz
import pytest
import sentencepiece.sentencepiece_model_pb2 as pb
import toy_folders
from folder_oracle import check_tokenizer

from grm_jax.judging.loading import check_vocabulary
from grm_jax.models import get_config
from grm_jax.text import tokenizer as tokenizers

HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture
def folder(tmp_path):
    return toy_folders.write(tmp_path / "toy", toy_folders.tokenizer_files("both"))


def change_json(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def refused(path, *parts):
    with pytest.raises((ValueError, OSError)) as error:
        tokenizers.load(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    for part in (path.name, *parts):
        assert part in message, message


def test_of_two_equal_files_the_faster_one_is_used(folder):
    tokenizer = tokenizers.load(folder)
    assert tokenizer._file.name == "tokenizer.model"
    (folder / "tokenizer.model").unlink()
    other = tokenizers.load(folder)
    assert tokenizer.encode_chat(HELLO) == other.encode_chat(HELLO)
    assert tokenizer.stop_ids == other.stop_ids == (1, 5)


def test_tokens_that_only_tokenizer_json_adds_are_tokens(folder):
    added = {"id": 800, "content": "<|tool|>", "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": True}  # fmt: skip
    change_json(folder / "tokenizer.json", lambda value: value["added_tokens"].append(added))
    tokenizer = tokenizers.load(folder)
    assert tokenizer.id_of("<|tool|>") == 800 and tokenizer.vocab_size == 801


def test_turn_tokens_that_tokenizer_json_renames_in_place_are_turns(folder):
    content = (folder / "tokenizer.json").read_text()
    for old, new in (("<start_of_turn>", "<|im_start|>"), ("<end_of_turn>", "<|im_end|>")):
        content = content.replace(old, new)
    (folder / "tokenizer.json").write_text(content)
    (folder / "chat_template.jinja").write_text("<|im_start|>{{ messages[0].content }}<|im_end|>")
    tokenizer = tokenizers.load(folder)
    assert tokenizer.encode_chat(HELLO)[1] == tokenizer.controls["<|im_start|>"] == 4
    assert tokenizer.controls["<|im_end|>"] in tokenizer.stop_ids


def test_a_newer_vocabulary_of_the_same_tokens_with_other_merges_decides(folder):
    change_json(folder / "tokenizer.json", lambda value: value["model"].update(merges=[]))
    tokenizer = tokenizers.load(folder)
    assert tokenizer._file.name == "tokenizer.json"
    assert len(tokenizer.encode("Add 1 and 2")) > 8


@pytest.mark.parametrize("kind", ["model", "json"])
def test_tokens_that_only_the_settings_add_are_refused(tmp_path, kind):
    path = toy_folders.write(tmp_path / "toy", toy_folders.tokenizer_files(kind))
    added = {"800": {"content": "<|tool|>", "special": True}}
    settings = path / "tokenizer_config.json"
    change_json(settings, lambda value: value.update(added_tokens_decoder=added))
    refused(path, "tokenizer_config.json: added_tokens_decoder has '<|tool|>' at 800")
    image = {"262144": {"content": "<image_soft_token>"}, "4": {"content": "<start_of_turn>"}}
    change_json(settings, lambda value: value.update(added_tokens_decoder=image))
    tokenizers.load(path)


@pytest.mark.parametrize("key", ["bos_token", "eos_token", "pad_token"])
@pytest.mark.parametrize("token", ["<absent>", 5, ["<eos>"], {"content": 7}, "\ud800"])
def test_special_tokens_must_be_in_the_vocabulary(folder, key, token):
    change_json(folder / "tokenizer_config.json", lambda value: value.update({key: token}))
    refused(folder, "tokenizer_config.json")


def test_half_a_character_in_the_settings_is_refused_and_in_a_text_encoded(folder):
    assert tokenizers.load(folder).encode("\ud800") == tokenizers.load(folder).encode("\ufffd")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "a\\ud800"}')
    refused(folder, "tokenizer_config.json is damaged: a text has half a surrogate pair (\\ud800)")


def test_special_tokens_map_names_what_the_settings_do_not(folder):
    change_json(folder / "tokenizer_config.json", lambda value: value.pop("eos_token"))
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<end_of_turn>"}}')
    assert 5 in tokenizers.load(folder).stop_ids


@pytest.mark.parametrize("stops", [[1, 800], -1, "1", 1.0, True, [[1]], {"a": 1}, 10**200])
def test_stop_ids_out_of_the_vocabulary_are_refused(folder, stops):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    refused(folder, "generation_config.json: eos_token_id=", "ids from 0 to 799")


def test_every_stop_id_of_generation_config_ends_a_turn(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7, 9]}')
    assert tokenizers.load(folder).stop_ids == (1, 5, 7, 9)


def test_without_generation_config_the_control_tokens_of_config_json_stop(folder):
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text('{"eos_token_id": [4, 300]}')
    assert tokenizers.load(folder).stop_ids == (1, 4, 5)  # 300 is a byte, not a control token


def test_special_tokens_past_the_embedding_are_refused(folder):
    tokenizer, cfg = tokenizers.load(folder), get_config("tiny_gemma2", vocab_size=800)
    check_vocabulary(tokenizer, cfg)
    tokenizer.pad_id = 800
    with pytest.raises(ValueError, match="the pad_token of the tokenizer has the id 800"):
        check_vocabulary(tokenizer, cfg)
    with pytest.raises(ValueError, match="800 ids and tiny_gemma2 has 700 rows"):
        check_vocabulary(tokenizer, cfg.replace(vocab_size=700))


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda v: v["model"].update(dropout=0.5), "dropout=0.5"),
        (lambda v: v["model"]["vocab"].update({"new": 5}), "have the same id"),
        (lambda v: v["model"]["vocab"].update({"new": 2**31}), "ids up to"),
        (lambda v: v["added_tokens"][0].update(id=7), "states the id 7 and has 0"),
        (lambda v: v["model"].update(merges=[["a", "absent"]]), "is not a tokenizer.json"),
        (lambda v: v["model"].update(merges=[["a"]] * 3), "is not a tokenizer.json"),
        (lambda v: v["model"].update(vocab={}, merges=[]), "tokenizer.json"),
        (lambda v: v.update(model=None), "is not a tokenizer.json"),
        (lambda v: v.update(added_tokens=[{"id": 1}]), "is not a tokenizer.json"),
    ],
)
def test_damaged_tokenizer_json(folder, change, part):
    (folder / "tokenizer.model").unlink()
    change_json(folder / "tokenizer.json", change)
    refused(folder, part)


def test_a_vocabulary_that_cannot_encode_is_refused_when_it_is_loaded(folder):
    (folder / "tokenizer.model").unlink()

    def without_unknown(value):
        value["added_tokens"] = [{**token, "special": True} for token in value["added_tokens"][:3]]
        value["model"] = {"type": "WordLevel", "vocab": {"<pad>": 0, "<eos>": 1, "<bos>": 2},
                          "unk_token": "absent"}  # fmt: skip

    change_json(folder / "tokenizer.json", without_unknown)
    refused(folder, "tokenizer.json is damaged")


def test_damaged_sentencepiece_models(folder):
    file = folder / "tokenizer.model"
    (folder / "tokenizer.json").unlink()
    proto = pb.ModelProto()
    proto.ParseFromString(file.read_bytes())
    proto.pieces[400].score = float("nan")
    for content in (proto.SerializeToString(), b"", b"\x00" * 64, file.read_bytes()[:-2000]):
        file.write_bytes(content)
        refused(folder, "tokenizer.model")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "generation_config.json"])
def test_special_files_of_a_tokenizer_are_refused(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, f"{name} is a FIFO")


def test_a_chat_template_is_not_read_through_a_link(folder):
    (folder.parent / "secret").write_text("{{ messages[0].content }}")
    (folder / "chat_template.jinja").symlink_to(folder.parent / "secret")
    refused(folder, "chat_template.jinja is a link to")


def change_proto(rng, content: bytes) -> bytes:
    """Returns a SentencePiece model with changed pieces, scores, types and ids."""
    proto = pb.ModelProto()
    proto.ParseFromString(content)
    for _ in range(rng.choice([1, 1, 4])):
        piece, other = rng.choice(proto.pieces), rng.choice(proto.pieces)
        action = rng.choice(["score", "type", "piece", "copy", "remove", "special", "kind"])
        if action == "score":
            piece.score = rng.choice([float("nan"), float("inf"), -1e38, 1e38, 0.0, -1.0])
        elif action == "type":
            piece.type = rng.choice([1, 2, 3, 4, 5, 6])
        elif action == "piece":
            piece.piece = rng.choice(["", "a" * 10_000, "\x00", "▁", "<0x41>", "<|im_end|>", "é"])
        elif action == "copy":
            piece.piece = other.piece
        elif action == "remove":
            del proto.pieces[rng.randrange(len(proto.pieces)) :]
        elif action == "special":
            name = rng.choice(["bos_id", "eos_id", "pad_id", "unk_id"])
            setattr(proto.trainer_spec, name, rng.choice([-1, 0, 5, 10**6, -(2**31)]))
        else:
            proto.trainer_spec.model_type = rng.choice([1, 2, 3, 4])
            proto.trainer_spec.byte_fallback = rng.random() < 0.5
    return proto.SerializeToString()


def test_damaged_tokenizers_encode_as_the_official_libraries_or_are_refused(
    tmp_path, cases, record_property
):
    settings = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")

    def draw():
        for i, rng in cases(60, 1500):
            kind = rng.choice(["model", "json", "both"])
            files = dict(toy_folders.tokenizer_files(kind))
            target = rng.choice(["proto", "json", "json", "bytes", "settings"])
            name = rng.choice(settings) if target == "settings" else f"tokenizer.{target}"
            if target == "proto":
                name = "tokenizer.model"
            name = name if name in files else rng.choice(sorted(files))
            if target == "proto" and name == "tokenizer.model":
                files[name] = change_proto(rng, files[name])
            elif target == "bytes" or not name.endswith(".json"):
                files[name] = fuzz.change_bytes(rng, files[name], rng.choice([1, 5]))
            else:
                value = fuzz.change_json(rng, json.loads(files[name]), rng.choice([1, 2, 4]))
                files[name] = json.dumps(value).encode()
            yield f"case {i}: {target} {name}", toy_folders.write(tmp_path / f"{i}", files)

    def check(path):
        tokenizer = tokenizers.load(path)
        check_tokenizer(path, tokenizer)
        ids = tokenizer.encode("<end_of_turn> <eos>")
        assert not set(ids) & {tokenizer.controls.get("<end_of_turn>"), tokenizer.eos_id}

    counts = fuzz.run("tokenizers", draw(), check, record_property)
    assert counts["accepted"] > 10 and counts["refused"] > 10
