"""What a model folder says, read with the formats' own libraries: compared with what was loaded."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from flax import nnx

from grm_jax.checkpoints import loading as checkpoint_loading, open_checkpoint, saving
from grm_jax.checkpoints.hf_fields import DEFAULTS
from grm_jax.judging import loading
from grm_jax.judging.metadata import JudgeMetadata

TEXT = "Add 1 and 2, please: naïve 日本 \U0001f600\n\n\tdone  (10.5)"
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
DTYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
# Fields of the model's configuration, by the key of config.json that alone decides them.
FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "max_length": "max_position_embeddings",
    "head_dim": "head_dim",
}
GEMMA_FIELDS = {
    "query_pre_attn_scalar": "query_pre_attn_scalar",
    "attn_cap": "attn_logit_softcapping",
    "final_cap": "final_logit_softcapping",
}
RIGHT = {
    "quantization_config": (None,),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "use_sliding_window": (None, False),
    "is_causal": (None, True),
}


def read(file: Path):
    return json.loads(file.read_text()) if file.exists() else {}


def load(folder: Path):
    """Loads everything that `Judge.load` reads, and returns (model, tokenizer, metadata)."""
    reader = open_checkpoint(folder)
    model = checkpoint_loading.load_model(reader, reader.model_config())
    tokenizer = loading.load_tokenizer(folder)
    loading.check_vocabulary(tokenizer, model.cfg)
    return model, tokenizer, JudgeMetadata.load(folder)


def check(folder: Path) -> None:
    """Loads a folder; raises AssertionError where the result is not what the files say."""
    model, tokenizer, metadata = load(folder)
    check_config(read(folder / "config.json"), model.cfg)
    check_weights(folder, model)
    check_tokenizer(folder, tokenizer)
    judge = read(folder / "judge.json")
    for key in ("template", "max_new_tokens"):
        if key in judge:
            assert getattr(metadata, key) == judge[key], key
            assert type(getattr(metadata, key)) is type(judge[key]), key


def check_config(config: dict, cfg) -> None:
    text = config.get("text_config", config)
    model_type = (config.get("architectures") or [""])[0].lower()
    model_type = next(
        (t for t in ("gemma2", "gemma3", "llama", "qwen2", "qwen3") if t in model_type), ""
    )
    model_type = model_type or config["model_type"]
    family = DEFAULTS[{"gemma3": "gemma3_text"}.get(model_type, model_type)]
    values = family | text
    gemma = model_type.startswith("gemma")
    for field, key in (FIELDS | (GEMMA_FIELDS if gemma else {})).items():
        value, loaded = values.get(key), getattr(cfg, field)
        if key == "head_dim" and value is None:
            value = values["hidden_size"] // values["num_attention_heads"]
        if key == "num_key_value_heads" and value is None:
            value = family[key] or values["num_attention_heads"]
        assert loaded == value and not isinstance(value, bool | str), f"{key}: {value} as {loaded}"
        assert value is None or value > 0, f"{key}: {value}"
    for key, right in RIGHT.items():
        assert text.get(key) in right and config.get(key) in right, key
        assert not isinstance(text.get(key), int) or isinstance(text.get(key), bool), key
    check_rope(values, cfg, gemma)
    head = "SequenceClassification" in (config.get("architectures") or [""])[0]
    assert cfg.scalar_head == head
    if not gemma and not head:
        assert cfg.tied is values["tie_word_embeddings"]
    types = values.get("layer_types")
    if types and gemma:
        windows = [cfg.pattern[i % len(cfg.pattern)].window for i in range(cfg.num_layers)]
        assert [t == "full_attention" for t in types] == [w is None for w in windows]
    local = {spec.window for spec in cfg.pattern} - {None}
    assert not gemma or local <= {values["sliding_window"]}, "sliding_window"


def check_rope(values: dict, cfg, gemma: bool) -> None:
    rope = {"rope_theta": values["rope_theta"]}
    rope |= (values.get("rope_scaling") or {}) | (values.get("rope_parameters") or {})
    if "full_attention" in rope or "sliding_attention" in rope:
        return
    kind = rope.get("rope_type") or rope.get("type") or "default"
    for spec in cfg.pattern:
        if spec.window is None or not gemma:
            assert spec.rope_theta == rope["rope_theta"], "rope_theta"
            assert spec.rope_scale == (rope["factor"] if kind == "linear" else 1), kind
            assert (spec.llama3_rope is not None) == (kind == "llama3"), kind
            assert kind in ("default", "linear", "llama3"), kind
        elif "rope_local_base_freq" in values:
            assert spec.rope_theta == values["rope_local_base_freq"], "rope_local_base_freq"


def tensors_on_disk(folder: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of the model by their names in a text-only checkpoint."""
    index = read(folder / "model.safetensors.index.json").get("weight_map")
    names = sorted(set(index.values())) if index else []
    if not names or not (folder / names[0]).exists():
        names = [file.name for file in folder.glob("*.safetensors")]
    assert all("/" not in name for name in names), names
    out: dict[str, np.ndarray] = {}
    for name in names:
        for key, entry in safetensors.deserialize((folder / name).read_bytes()):
            if "vision_tower" in key or "multi_modal_projector" in key:
                continue
            for prefix in ("language_model.model.", "model.language_model."):
                if key.startswith(prefix):
                    key = "model." + key.removeprefix(prefix)
            key = HEADS[0] if key in HEADS else key
            assert key not in out, f"{key} is in two files"
            values = np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
            out[key] = values.reshape(entry["shape"])
    return out


def check_weights(folder: Path, model) -> None:
    expected = tensors_on_disk(folder)
    if model.cfg.tied and HEADS[0] in expected:
        head = expected.pop(HEADS[0])
        table = expected["model.embed_tokens.weight"]
        assert np.array_equal(head.astype(np.float64), table.astype(np.float64), equal_nan=True)
    params = checkpoint_loading.flat_params(nnx.state(model, nnx.Param))
    entries = {entry.name: entry.make() for entry in saving._entries(model, params, None)}
    assert entries.keys() == expected.keys(), entries.keys() ^ expected.keys()
    for name, value in entries.items():
        right = expected[name].astype(value.dtype).reshape(value.shape)
        assert value.tobytes() == right.tobytes(), name


def check_tokenizer(folder: Path, tokenizer) -> None:
    file = folder / "tokenizer.json"
    if file.exists():
        import tokenizers

        official = tokenizers.Tokenizer.from_str(file.read_text())
        ids = official.encode(TEXT, add_special_tokens=False).ids
    else:
        import sentencepiece

        official = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
        ids = official.encode(TEXT)
    if not any(token in TEXT for token in tokenizer.controls):  # which are split into characters
        assert tokenizer.encode(TEXT) == ids, "other ids than those of the official library"
    assert isinstance(tokenizer.decode(ids), str)
    b"".join(map(tokenizer.piece_bytes, ids))
    stops = read(folder / "generation_config.json").get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    assert set(stops) <= set(tokenizer.stop_ids) and tokenizer.stop_ids
    for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, *tokenizer.stop_ids):
        assert i is None or (type(i) is int and 0 <= i < tokenizer.vocab_size), i
    settings = read(folder / "special_tokens_map.json") | read(folder / "tokenizer_config.json")
    for name in ("bos", "eos", "pad"):
        token = settings.get(f"{name}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token:
            expected = tokenizer.id_of(token)
            ids = (getattr(tokenizer, f"{name}_id"), *tokenizer.stop_ids)
            assert expected is not None and expected in ids, f"{name}_token"
