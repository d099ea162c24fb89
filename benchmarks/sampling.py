"""Compares k-way sampling with three peers: tokens per second and peak memory on one machine.

    python benchmarks/sampling.py --peers PYTHON     table, result file, and the curve over k
    python benchmarks/sampling.py --curve            only the curve, without peers

PYTHON is an interpreter with the `bench` extra. Writes benchmarks/results/sampling.{json,md,png}.

Every system gets the same weights and prompts: a Gemma 2 of 8 layers, width 512, 8 heads over 4 KV
heads of 64, ffn 2,048, vocabulary 4,096, float32; 2 prompts of 768 tokens x 16 samples, 96 new
tokens each, no stop. Each measurement is a process of its own that warms up first. Systems take
turns; the table shows the median over the rounds. CPU seconds are those of all threads of the
process: on a shared machine they are more reliable than wall time.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

PEERS = ("tunix", "gemma", "transformers")
CONFIG = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
PROMPT, NEW, PROMPTS, K = 768, 96, 2, 16
CURVE = (1, 2, 4, 8, 16, 32)


def write_weights(folder: Path) -> None:
    """Writes a Hugging Face folder of random weights: normal, variance 1/fan_in; norms zero."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    d, f, h = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    n, k = CONFIG["num_attention_heads"] * h, CONFIG["num_key_value_heads"] * h

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(CONFIG["vocab_size"], d),
        "model.norm.weight": np.zeros(d, np.float32),
    }
    shapes = {
        "self_attn.q": (n, d),
        "self_attn.k": (k, d),
        "self_attn.v": (k, d),
        "self_attn.o": (d, n),
        "mlp.gate": (f, d),
        "mlp.up": (f, d),
        "mlp.down": (d, f),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            tensors[f"{layer}{norm}_layernorm.weight"] = np.zeros(d, np.float32)
        tensors |= {f"{layer}{name}_proj.weight": matrix(*s) for name, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def measure(system: str, python: str, folder: Path, k: int, protobuf: str = "") -> dict[str, Any]:
    """Measures one system in a process of its own. Raises RuntimeError if it fails."""
    rng = np.random.default_rng(1)
    prompts = rng.integers(200, CONFIG["vocab_size"], (PROMPTS, PROMPT)).tolist()
    work = {"folder": str(folder), "prompts": prompts, "k": k, "new": NEW, "cores": os.cpu_count()}
    (folder / "work.json").write_text(json.dumps(work))
    script = Path(__file__).with_name("sampling_systems.py")
    path = [protobuf] if protobuf and system == "gemma" else []
    result = common.run_apart(script, system, folder / "work.json", python=python, path=path)
    tokens = PROMPTS * k * NEW
    if result["tokens"] != tokens:
        raise RuntimeError(f"{system} sampled {result['tokens']} tokens, not {tokens}")
    rate, per_cpu = tokens / result["seconds"], tokens / result["cpu_seconds"]
    print(
        f"  {system:13s} k = {k:2d}: {rate:8.1f} tokens/s, {per_cpu:8.1f} per CPU second, "
        f"{result['peak_rss'] / 2**30:5.2f} GiB (warm-up {result['warm_up_seconds']:.0f} s)",
        flush=True,
    )
    return result | {"k": k, "tokens_per_second": rate, "tokens_per_cpu_second": per_cpu}


def summary(results: list[dict]) -> dict[str, Any]:
    """Returns medians over the rounds, with the smallest and largest rate."""
    rates = [r["tokens_per_second"] for r in results]
    return {
        "tokens_per_second": statistics.median(rates),
        "range": [min(rates), max(rates)],
        "tokens_per_cpu_second": statistics.median(r["tokens_per_cpu_second"] for r in results),
        "peak_rss": max(r["peak_rss"] for r in results),
        "rounds": len(results),
    }


def table(systems: dict[str, dict]) -> str:
    """Returns one row per system as Markdown."""
    titles = ("tokens/s", "range", "per CPU second", "against Tunix", "peak memory GiB")
    base = systems.get("tunix")
    rows = []
    for name, s in systems.items():
        ratio = f"{s['tokens_per_second'] / base['tokens_per_second']:.1f}x" if base else "-"
        low, high = s["range"]
        rates = (f"{s['tokens_per_second']:,.0f}", f"{low:,.0f} to {high:,.0f}")
        per_cpu, memory = f"{s['tokens_per_cpu_second']:,.0f}", f"{s['peak_rss'] / 2**30:.2f}"
        rows.append((name, *rates, per_cpu, ratio, memory))
    return common.markdown_table({"system": "left"} | dict.fromkeys(titles, "right"), rows)


def draw(curve: list[dict], path: Path, caption: str) -> None:
    """Plots tokens per second over k."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    k, rates = [c["k"] for c in curve], [c["tokens_per_second"] for c in curve]
    proportional = [rates[0] * n / k[0] for n in k]
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(k, rates, "o-", label="measured")
    axis.plot(k, proportional, ":", color="gray", label="in proportion to k")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(k, [str(n) for n in k])
    title = f"{PROMPTS} prompts of {PROMPT} tokens, {NEW} new"
    axis.set(xlabel="samples per prompt, k", ylabel="tokens per second", title=title)
    axis.legend(title=caption, title_fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--peers", default="", help="interpreter of an environment with the peers")
    parser.add_argument(
        "--protobuf", default="", help="folder with gemma's protobuf, if other peers need an older"
    )
    parser.add_argument("--systems", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curve", action="store_true", help="only the curve over k")
    parser.add_argument("--note", default="", help="a remark for the result file")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "sampling")
    args = parser.parse_args()
    about = {
        "machine": common.machine(),
        "workload": {"prompts": PROMPTS, "k": K, "prompt": PROMPT, "new": NEW},
        "model": CONFIG,
        "note": args.note,
    }
    path = common.result_file(args.out, ".json")
    results = common.read_json(path, {})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_weights(folder)
        if not args.curve:
            pythons = {"grm_jax": ""}
            if args.peers:
                pythons |= dict.fromkeys(args.systems, args.peers)
            runs: dict[str, list] = {name: [] for name in pythons}
            for _ in range(args.rounds):
                for name, python in pythons.items():
                    runs[name].append(measure(name, python, folder, K, args.protobuf))
            systems = {name: summary(measured) for name, measured in runs.items()}
            results |= {"about": about, "systems": systems, "runs": runs}
            print(table(systems))
        if args.curve or args.peers:
            curve = [
                {"k": k} | summary([measure("grm_jax", "", folder, k) for _ in range(args.rounds)])
                for k in CURVE
            ]
            results |= {"curve": curve, "curve_about": about}
    common.write_json(path, results)
    if args.curve or args.peers:
        caption = f"{about['machine']['cpu']}, {about['machine']['cores']} cores {args.note}"
        draw(results["curve"], common.result_file(args.out, ".png"), caption)
    if "systems" in results:
        common.result_file(args.out, ".md").write_text(table(results["systems"]) + "\n")


if __name__ == "__main__":
    main()
