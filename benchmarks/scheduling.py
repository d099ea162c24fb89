"""Continuous batching against fixed batches: tokens per second on rows whose length is geometric, on this machine.

    .venv/bin/python benchmarks/scheduling.py        about five minutes on two cores; writes benchmarks/results/scheduling.{json,md}

The model of `sampling.py` (8 layers, width 512) with a vocabulary of 512 that draws uniformly: its final norm is zero, so 8 stop tokens end a
row with probability 1/64 per token, and rows have 64 tokens on average and at most 256. 32 prompts x 16 samples by 32 rows on the device: once
as one list on 16 prompt slots x 2 rows, once as batches of 2 prompts x 16 samples, each begun when the last row of the one before has ended.
Both prefill a prompt once, and draw the same tokens. They take turns; the median of the rounds counts.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

ROWS, PROMPTS, K, LENGTH, MOST = 32, 32, 16, 128, 256


def build():
    import jax.numpy as jnp
    from flax import nnx

    from grm_jax.models import build_model, get_config

    cfg = get_config(
        "tiny_gemma2", num_layers=8, d_model=512, d_ff=2048, num_heads=8, num_kv_heads=4, head_dim=64,
        query_pre_attn_scalar=64, vocab_size=512, max_length=8192,
    )  # fmt: skip
    model = build_model(cfg, nnx.Rngs(0))
    model.final_norm.scale[...] = -jnp.ones_like(model.final_norm.scale[...])
    return model


def measure(engine, batches) -> dict:
    """One pass over lists of requests, each run to its end before the next."""
    before = (engine.stats.tokens, engine.stats.steps, engine.stats.slot_steps, engine.stats.busy)
    start = time.perf_counter()
    rows = [row for batch in batches for row in engine.run(batch)]
    seconds = time.perf_counter() - start
    after = (engine.stats.tokens, engine.stats.steps, engine.stats.slot_steps, engine.stats.busy)
    tokens, steps, slot_steps, busy = (b - a for a, b in zip(before, after, strict=True))
    assert not any(row.error for row in rows)
    return {"tokens": tokens, "seconds": seconds, "steps": steps, "busy": busy / slot_steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scheduling")
    args = parser.parse_args()
    import numpy as np

    from benchmarks.sampling import machine
    from grm_jax.sampling import Engine, Request

    about = {"machine": machine(), "command": "python benchmarks/scheduling.py"}
    rng = np.random.default_rng(0)
    prompts = rng.integers(8, 512, (PROMPTS, LENGTH)).tolist()

    def request(i: int, k: int, seed: int) -> Request:
        return Request(prompts[i], k, MOST, stop=tuple(range(8)), seed=seed, item=i)

    model = build()
    slots = {"continuous": PROMPTS // 2, "fixed batches": ROWS // K}
    engines = {name: Engine(model, n, ROWS // n) for name, n in slots.items()}

    def batches(name: str, seed: int, k: int = K) -> list[list[Request]]:
        requests = [request(i, k, seed) for i in range(PROMPTS)]
        n = PROMPTS if name == "continuous" else slots[name]
        return [requests[i : i + n] for i in range(0, PROMPTS, n)]

    for name, engine in engines.items():
        measure(engine, batches(name, 1000, 4))  # compiles
    runs = {name: [] for name in engines}
    for round_ in range(args.rounds):
        for name, engine in engines.items():
            runs[name].append(measure(engine, batches(name, round_)))
            r = runs[name][-1]
            print(
                f"{name:14s} {r['tokens'] / r['seconds']:7.0f} tokens/s, {r['steps']} steps, rows busy {r['busy']:.1%}",
                flush=True,
            )
    lines = ["| | tokens/s | tokens per step | rows busy |", "| --- | ---: | ---: | ---: |"]
    rates = {}
    for name, rs in runs.items():
        rates[name] = statistics.median(r["tokens"] / r["seconds"] for r in rs)
        per_step = statistics.median(r["tokens"] / r["steps"] for r in rs)
        lines.append(
            f"| {name} | {rates[name]:,.0f} | {per_step:.1f} | {statistics.median(r['busy'] for r in rs):.1%} |"
        )
    lines.append(
        f"\nContinuous batching makes {rates['continuous'] / rates['fixed batches']:.2f} times the tokens per second of fixed batches."
    )
    print("\n".join(lines))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(
        json.dumps({"about": about, "runs": runs}, indent=1) + "\n"
    )
    args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
