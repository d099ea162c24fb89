"""Toy model folders of every family, as {file: bytes}, that the fuzzers of folders damage."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
from checkpoints import toys

from grm_jax.data.world.vocabulary import SIZE, vocabulary_path
from grm_jax.text import tokenizer as tokenizers

ROWS = SIZE + 8
CLASSIFIER = {"num_labels": 1, "id2label": {"0": "reward"}}
CONFIGS = {
    "gemma2": toys.GEMMA2 | {"num_hidden_layers": 3},
    "gemma3": toys.GEMMA3,
    "llama": toys.LLAMA,
    "qwen2": toys.QWEN2,
    "qwen3": toys.QWEN3,
    "gemma2 head": toys.GEMMA2
    | {"architectures": ["Gemma2ForSequenceClassification"], "num_hidden_layers": 2}
    | CLASSIFIER,
    "llama head": toys.LLAMA | {"architectures": ["LlamaForSequenceClassification"]} | CLASSIFIER,
    "gemma3 multimodal": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "vision_config": {"hidden_size": 4},
        "text_config": {k: v for k, v in toys.GEMMA3.items() if k != "architectures"},
    },
}
CONTENTS = {
    "generation_config.json": b'{"eos_token_id": [1, 5], "temperature": 0.5}',
    "judge.json": b'{"template": "grm", "max_new_tokens": 64}',
    "special_tokens_map.json": b'{"eos_token": {"content": "<eos>"}, "bos_token": "<bos>"}',
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@functools.cache
def weights(name: str, files: int = 1) -> dict[str, bytes]:
    """Returns config.json and the weights of a family, with a row for each id of the vocabulary."""
    config = json.loads(json.dumps(CONFIGS[name]))
    text = config.get("text_config", config)
    text["vocab_size"] = ROWS
    values = toys.tensors({"architectures": ["Gemma3ForCausalLM"]} | text)
    rng = np.random.default_rng(1)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        if key in values:
            values[key] = rng.normal(size=(ROWS, toys.D)).astype(toys.BF16)
    if text is not config:
        values = {k.replace("model.", "language_model.model.", 1): v for k, v in values.items()}
        values["vision_tower.position_ids"] = np.arange(4)
    with tempfile.TemporaryDirectory() as scratch:
        return files_of(toys.write_folder(Path(scratch), config, values, files))


@functools.cache
def tokenizer_files(kind: str) -> dict[str, bytes]:
    """Returns the files of a tokenizer. kind: "model", "json", or "both" of the same vocabulary."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizers.load(vocabulary_path()).save(folder)
        files = files_of(folder)
    if kind != "model":
        files["tokenizer.json"] = as_json().encode()
    if kind == "json":
        del files["tokenizer.model"]
    return files | CONTENTS


@functools.cache
def as_json() -> str:
    """Returns the world's vocabulary as a tokenizer.json, converted as transformers does."""
    import sentencepiece.sentencepiece_model_pb2 as pb
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    proto = pb.ModelProto()
    proto.ParseFromString(vocabulary_path().read_bytes())
    pieces = [piece.piece for piece in proto.pieces]
    ids = {piece: i for i, piece in enumerate(pieces)}
    pairs = [
        (proto.pieces[i].score, piece[:cut], piece[cut:])
        for piece, i in ids.items()
        if proto.pieces[i].type == 1
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges = [(a, b) for _, a, b in sorted(pairs, key=lambda pair: -pair[0])]
    bpe = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    built = Tokenizer(bpe)
    built.normalizer = normalizers.Replace(" ", "▁")
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    added = [(p.piece, p.type == 3 or p.type == 2) for p in proto.pieces if p.type in (2, 3, 4)]
    for text, special in added:
        built.add_tokens([AddedToken(text, special=special, normalized=not special)])
    return built.to_str()
