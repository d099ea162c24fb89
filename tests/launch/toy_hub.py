"""What spct_27b reads from the Hugging Face Hub, in toy sizes: two Gemmas and the published sets.

The toys write critiques: the token that ends a prompt is followed by one of two score lists, at
random, and that by the end of the turn. So critiques are right half of the time, as RFT needs.
"""

import gzip
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from grm_jax import Comparison
from grm_jax.text import rendering

VOCAB, D, F, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2048, 64, 128, 2, 8, 4, 8
SIZES = {
    "vocab_size": VOCAB, "d_model": D, "d_ff": F, "num_layers": LAYERS, "num_heads": HEADS,
    "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM,
}  # fmt: skip
PROMPT_END, CRITIQUES = "model\n", ("\\boxed{9,▁2}", "\\boxed{2,▁9}")
TURNS = ("<start_of_turn>", "<end_of_turn>")


def tokenizer_model() -> bytes:
    """A SentencePiece model with Gemma's ids, whose pieces are long parts of the grm prompts."""
    import sentencepiece as spm

    pair = Comparison("Which is the better one?", ("This is the first.", "And the second."))
    prompts = [
        rendering.render(rendering.load(f"grm/{role}"), c, hint=hint)[0]["content"]
        for role in ("judge",)
        for c in (pair, Comparison(pair.query, pair.responses * 2))
        for hint in (None, "The best response is: Response 1.")
    ]
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([line for prompt in prompts for line in prompt.split("\n")] * 3),
        model_writer=out, model_type="bpe", vocab_size=VOCAB, pad_id=0, eos_id=1, bos_id=2,
        unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        user_defined_symbols=[*TURNS, PROMPT_END, *CRITIQUES, "\n"],
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, byte_fallback=True, split_by_whitespace=False,
        max_sentencepiece_length=64, hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return out.getvalue()


def gemma(folder: Path, tokenizer: bytes, seed: int) -> Path:
    """Writes a Gemma 2 in Hugging Face's layout, in two files of weights."""
    import sentencepiece as spm

    rng = np.random.default_rng(seed)
    pieces = spm.SentencePieceProcessor(model_proto=tokenizer)
    chain = [pieces.piece_to_id(piece) for piece in (PROMPT_END, *CRITIQUES, TURNS[1])]
    assert pieces.unk_id() not in chain
    table = rng.normal(0, 0.02, (VOCAB, D)).astype(np.float32)
    for axis, token in enumerate(chain):
        table[:, axis] = 0
        table[token] = 0
    for axis, token in enumerate(chain):
        table[token, axis] = 4.0
    tensors = {"model.embed_tokens.weight": table, "model.norm.weight": np.zeros(D, np.float32)}
    for i in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (HEADS * HEAD_DIM, D), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, D),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, D), "self_attn.o_proj": (D, HEADS * HEAD_DIM),
            "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
            "input_layernorm": (D,), "post_attention_layernorm": (D,),
            "pre_feedforward_layernorm": (D,), "post_feedforward_layernorm": (D,),
        }  # fmt: skip
        for name, shape in shapes.items():
            scale = 0.02 if len(shape) == 2 else 0.0
            tensors[f"model.layers.{i}.{name}.weight"] = rng.normal(0, scale, shape).astype("f4")
    for name in ("self_attn.o_proj", "mlp.down_proj"):  # only the look-up below writes
        for i in range(LAYERS):
            tensors[f"model.layers.{i}.{name}.weight"][:] = 0
    mlp = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
    gate, up, down = (tensors[name] for name in mlp)
    gate[:4], up[:4] = np.eye(4, D), np.eye(4, D)
    down[[1, 2], 0] = 1  # the prompt's end -> either critique
    down[3, [1, 2]] = 1  # a critique -> the end of the turn
    tensors["model.layers.0.post_feedforward_layernorm.weight"][:] = 15
    folder.mkdir()
    config = {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "vocab_size": VOCAB,
        "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM, "sliding_window": 4096, "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(tokenizer)
    names, weight_map = sorted(tensors), {}
    for number in (1, 2):
        file = f"model-{number:05}-of-00002.safetensors"
        part = names[number - 1 :: 2]
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _lines(rows: Iterable[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: Sequence[dict]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def _chat(query: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]


def data_sets(count: int) -> dict[str, dict[str, bytes]]:
    """The sets of the mixtures spct_hub, rm_bench_hub and general_hub, with `count` rows each."""
    pairs = [(f"Which is {i}?", f"This is {i}.", f"And {i + 1}.") for i in range(count)]
    scores = [
        [{"response": x, "overall_score": s} for x, s in ((a, 9.0), (b, 2.0))] for _, a, b in pairs
    ]
    ultrafeedback = [
        {"instruction": q, "completions": c, "source": "s"} for (q, *_), c in zip(pairs, scores)
    ]
    parts = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
    shard = "data/train-00000-of-00001.parquet"
    return {
        "Skywork/Skywork-Reward-Preference-80K-v0.2": {
            shard: _parquet([{"chosen": _chat(q, a), "rejected": _chat(q, b)} for q, a, b in pairs])
        },
        "openbmb/UltraFeedback": {f"{part}.jsonl": _lines(ultrafeedback) for part in parts},
        "nvidia/HelpSteer2": {
            "preference/preference.jsonl.gz": gzip.compress(
                _lines(
                    {
                        "prompt": q,
                        "response_1": b,
                        "response_2": a,
                        "preference_strength": 2,
                        "split": "train" if i % 4 else "val",
                    }
                    for i, (q, a, b) in enumerate(pairs)
                )
            )
        },  # fmt: skip
        "NCSOFT/offsetbias": {
            "train.jsonl": _lines(
                {"instruction": q, "output_1": a, "output_2": b, "label": 1} for q, a, b in pairs
            )
        },
        "xinlai/Math-Step-DPO-10K": {
            shard: _parquet(
                [{"prompt": q, "full_chosen": a, "full_rejected": b} for q, a, b in pairs]
            )
        },
        "THU-KEG/RM-Bench": {
            "total_dataset.json": json.dumps(
                [
                    {
                        "id": str(i),
                        "prompt": f"{q}?",
                        "chosen": [a] * 3,
                        "rejected": [b] * 3,
                        "domain": "chat",
                    }
                    for i, (q, a, b) in enumerate(pairs)
                ]
            ).encode()
        },  # fmt: skip
        "allenai/tulu-3-sft-mixture": {
            shard: _parquet([{"id": q, "messages": _chat(q, a)} for q, a, _ in pairs])
        },
    }
