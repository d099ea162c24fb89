"""Compares int8 and int4 weights, and int8 keys and values, with float32 ones on real text.

    python benchmarks/quantisation.py MODEL... [--text FILE] [--tokens 1024]
        [--out benchmarks/results/quantisation.json]

MODEL is a model folder or a GGUF file, such as those of real_weights.py. Each variant runs a
forward pass in float32 over the text in windows of 256 tokens: float32, int8 weights, int4 weights,
int8 keys and values (every token attends to quantised ones, as in decode steps), and int8 for both.
Metrics: perplexity; KL(float || quantised) per token in nats, mean and 99th percentile; share of
tokens with the same most likely next token. Two minutes for 0.5B parameters on two idle cores.
"""

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

WINDOW = 256
VARIANTS = {
    "float32": (None, False),
    "int8 weights": ("int8", False),
    "int4 weights": ("int4", False),
    "int8 keys and values": (None, True),
    "both": ("int8", True),
}


def windows(model: str, text: str, count: int) -> np.ndarray:
    """Returns the first `count` tokens as int32 (N, WINDOW), each window after BOS if any."""
    from grm_jax.checkpoints import copy_tokenizer
    from grm_jax.text import tokenizer as tokenizers

    path = Path(model)
    with tempfile.TemporaryDirectory() as name:
        if path.is_dir():
            tokenizer = tokenizers.load(path)
        else:
            copy_tokenizer(path, name)
            tokenizer = tokenizers.load(name)
    bos = "<start_of_turn>" in tokenizer.controls
    tokens = tokenizer.encode(text, False)
    body = WINDOW - bos
    rows = [tokens[i : i + body] for i in range(0, count // WINDOW * body, body)]
    first = tokenizer.encode("", True) if bos else []
    return np.array([[*first, *row] for row in rows if len(row) == body], np.int32)


def int8_attention(cfg: Any, positions: Any, segments: Any) -> Any:
    """Returns causal attention to keys and values rounded as in an int8 cache."""
    from grm_jax.models.attend import full_attention
    from grm_jax.models.quantize import dequantize_tokens, hadamard, quantize_tokens

    attention = full_attention(cfg, positions, segments)

    def attend(layer: Any, q: Any, k: Any, v: Any, state: Any) -> Any:
        k, v = (dequantize_tokens(quantize_tokens(a), a.dtype) for a in (hadamard(k), v))
        return attention(layer, hadamard(q), k, v, state)

    return attend


def log_probs(path: str, tokens_NxW: np.ndarray, quantize: str | None, int8_cache: bool) -> Any:
    """Returns float32 log-probs (N, W, V) of one variant: position i predicts token i + 1."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from grm_jax.checkpoints import load
    from grm_jax.models.attend import full_attention

    model = load(path, dtype="float32", quantize=quantize)
    graphdef, state = nnx.split(model)
    cfg = model.cfg

    def run(state: Any, tokens_1xW: Any) -> Any:
        model = nnx.merge(graphdef, state)
        positions, segments = jnp.arange(WINDOW)[None], jnp.ones_like(tokens_1xW)
        make = int8_attention if int8_cache else full_attention
        attend = make(cfg, positions, segments)
        x, _, _ = model.trunk(model.embedder.encode(tokens_1xW), positions, attend)
        logits = model.embedder.decode(model.final_norm(x))[0]
        return jax.nn.log_softmax(logits[:, : cfg.vocab_size])

    program = jax.jit(run)
    return np.stack([np.asarray(program(state, row[None])) for row in tokens_NxW])


def compare(reference: np.ndarray, other: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Returns the metrics of a variant. reference, other: log-probs (N, W, V). tokens: (N, W)."""
    kl = [(np.exp(p) * (p - q)).sum(axis=-1) for p, q in zip(reference[:, :-1], other[:, :-1])]
    next_logps = np.take_along_axis(other[:, :-1], tokens[:, 1:, None], axis=-1)
    same = (reference[:, :-1].argmax(-1) == other[:, :-1].argmax(-1)).mean()
    return {
        "perplexity": float(np.exp(-next_logps.mean(dtype=np.float64))),
        "kl_mean": float(np.mean(kl)),
        "kl_99th_percentile": float(np.quantile(kl, 0.99)),
        "same_most_likely_token": float(same),
    }


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    default = ROOT / "docs" / "training.md"
    parser.add_argument("--text", type=Path, default=default, help="default docs/training.md")
    parser.add_argument("--tokens", type=int, default=1024, help="of the text (default 1024)")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "quantisation.json")
    args = parser.parse_args()
    text = args.text.read_text()
    models = common.read_json(args.out, {"models": {}})["models"]
    for path in args.models:
        tokens, rows = windows(path, text, args.tokens), {}
        reference = None
        for name, variant in VARIANTS.items():
            result = log_probs(path, tokens, *variant)
            reference = result if reference is None else reference
            rows[name] = compare(reference, result, tokens)
            print(f"{Path(path).stem} {name}: {rows[name]}", flush=True)
        about = {"tokens": int(tokens.size), "text": args.text.name, **common.machine()}
        about["text_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        models[Path(path).stem] = about | {"variants": rows}
        command = "python benchmarks/quantisation.py MODEL..."
        common.write_json(args.out, {"command": command, "models": models})


if __name__ == "__main__":
    main()
