"""k-way sampling against three peers: tokens per second and peak memory on the same weights, prompts and machine.

    .venv/bin/python benchmarks/sampling.py --peers PYTHON      table, result file and the curve over k (an environment with the `bench` extra)
    .venv/bin/python benchmarks/sampling.py --curve             only the curve, only ours: no peers needed
    .venv/bin/python benchmarks/sampling.py --device            Gemma-2-2B's shape on an accelerator (see sampling_device.py)

A Gemma 2 of 8 layers, width 512, 8 heads over 4 KV heads of 64, ffn 2,048, vocabulary 4,096, float32; 2 prompts of 768 tokens x 16 samples,
96 new tokens each, no stop. Each measurement is a process of its own that warms up first; systems take turns, and the median of the rounds
counts. CPU seconds are those of all threads of the process: where other work shares the machine they say more than the clock.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PEERS = ("tunix", "gemma", "transformers")
CONFIG = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "query_pre_attn_scalar": 64,
    "sliding_window": 4096, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "bos_token_id": 2,
    "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
PROMPT, NEW, PROMPTS, K = 768, 96, 2, 16


def write_weights(folder: Path) -> None:
    """A Hugging Face folder of random weights: normal, variance 1/fan_in; norms zero."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    d, f, h = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    n, k = CONFIG["num_attention_heads"] * h, CONFIG["num_key_value_heads"] * h

    def matrix(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(CONFIG["vocab_size"], d),
        "model.norm.weight": np.zeros(d, np.float32),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            tensors[f"{layer}{norm}_layernorm.weight"] = np.zeros(d, np.float32)
        shapes = {
            "self_attn.q": (n, d),
            "self_attn.k": (k, d),
            "self_attn.v": (k, d),
            "self_attn.o": (d, n),
        }
        shapes |= {"mlp.gate": (f, d), "mlp.up": (f, d), "mlp.down": (d, f)}
        for name, shape in shapes.items():
            tensors[f"{layer}{name}_proj.weight"] = matrix(*shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def measure(system: str, python: str, folder: Path, k: int, path: str = "") -> dict:
    """One process: a warm-up and a measured run. Raises RuntimeError with the end of its output if it fails."""
    rng = np.random.default_rng(1)
    prompts = rng.integers(200, CONFIG["vocab_size"], (PROMPTS, PROMPT)).tolist()
    work = {"folder": str(folder), "prompts": prompts, "k": k, "new": NEW, "cores": os.cpu_count()}
    (folder / "work.json").write_text(json.dumps(work))
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, [path, str(HERE.parent)])),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [python, str(HERE / "sampling_systems.py"), system, str(folder / "work.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{system} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    expected = PROMPTS * k * NEW
    if result["tokens"] != expected:
        raise RuntimeError(f"{system} made {result['tokens']} tokens, not {expected}")
    result |= {
        "k": k,
        "tokens_per_second": expected / result["seconds"],
        "tokens_per_cpu_second": expected / result["cpu_seconds"],
    }
    print(
        f"  {system:13s} k = {k:2d}: {result['tokens_per_second']:8.1f} tokens/s, {result['tokens_per_cpu_second']:8.1f} per CPU second, "
        f"{result['peak_rss'] / 2**30:5.2f} GiB (warm-up {result['warm_up_seconds']:.0f} s)",
        flush=True,
    )
    return result


def summary(results: list[dict]) -> dict:
    """Medians over the rounds, with the smallest and largest rate."""
    rates = [r["tokens_per_second"] for r in results]
    return {
        "tokens_per_second": statistics.median(rates),
        "range": [min(rates), max(rates)],
        "tokens_per_cpu_second": statistics.median(r["tokens_per_cpu_second"] for r in results),
        "peak_rss": max(r["peak_rss"] for r in results),
        "rounds": len(results),
    }


def table(systems: dict[str, dict]) -> str:
    base = systems.get("tunix")
    lines = [
        "| system | tokens/s | range | per CPU second | against Tunix | peak memory GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, s in systems.items():
        ratio = f"{s['tokens_per_second'] / base['tokens_per_second']:.1f}x" if base else "-"
        low, high = s["range"]
        rate, per_cpu, memory = (
            f"{s['tokens_per_second']:,.0f}",
            f"{s['tokens_per_cpu_second']:,.0f}",
            f"{s['peak_rss'] / 2**30:.2f}",
        )
        lines.append(
            f"| {name} | {rate} | {low:,.0f} to {high:,.0f} | {per_cpu} | {ratio} | {memory} |"
        )
    return "\n".join(lines)


def draw(curve: list[dict], path: Path, about: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    k = [c["k"] for c in curve]
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(k, [c["tokens_per_second"] for c in curve], "o-", label="measured")
    axis.plot(
        k,
        [curve[0]["tokens_per_second"] * n / k[0] for n in k],
        ":",
        color="gray",
        label="in proportion to k",
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(k, [str(n) for n in k])
    axis.set(
        xlabel="samples per prompt, k",
        ylabel="tokens per second",
        title=f"{PROMPTS} prompts of {PROMPT} tokens, {NEW} new",
    )
    axis.legend(title=about, title_fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def machine() -> dict:
    model = next(
        (
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="Python of an environment that holds the peers")
    parser.add_argument(
        "--protobuf",
        default="",
        help="folder with the protobuf that gemma wants, where another peer wants an older one",
    )
    parser.add_argument("--systems", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curve", action="store_true", help="only the curve over k")
    parser.add_argument(
        "--device", action="store_true", help="on an accelerator; further options: --device --help"
    )
    parser.add_argument("--note", default="", help="kept in the result file")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sampling")
    args, rest = parser.parse_known_args()
    if args.device:
        sys.path.insert(0, str(HERE.parent))
        from benchmarks import sampling_device

        sampling_device.main(rest)
        return
    about = {
        "machine": machine(),
        "workload": {"prompts": PROMPTS, "k": K, "prompt": PROMPT, "new": NEW},
        "model": CONFIG,
        "note": args.note,
    }
    path = args.out.with_suffix(".json")
    before = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_weights(folder)
        if not args.curve:
            pythons = {"grm_jax": sys.executable} | (
                {s: args.peers for s in args.systems} if args.peers else {}
            )
            results = {name: [] for name in pythons}
            for _ in range(args.rounds):
                for name, python in pythons.items():
                    results[name].append(
                        measure(name, python, folder, K, args.protobuf if name == "gemma" else "")
                    )
            systems = {name: summary(r) for name, r in results.items()}
            before |= {"about": about, "systems": systems, "runs": results}
            print(table(systems))
        if args.curve or args.peers:
            curve = []
            for k in (1, 2, 4, 8, 16, 32):
                curve.append(
                    {"k": k}
                    | summary(
                        [measure("grm_jax", sys.executable, folder, k) for _ in range(args.rounds)]
                    )
                )
            before |= {"curve": curve, "curve_about": about}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            draw(
                curve,
                args.out.with_suffix(".png"),
                f"{about['machine']['cpu']}, {about['machine']['cores']} cores {args.note}",
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(before, indent=1) + "\n")
    if "systems" in before:
        args.out.with_suffix(".md").write_text(table(before["systems"]) + "\n")


if __name__ == "__main__":
    main()
