"""Compares continuous batching with fixed batches: tokens per second for geometric lengths.

    python benchmarks/scheduling.py        about five minutes on two cores

Writes benchmarks/results/scheduling.{json,md}. The model of sampling.py (8 layers, width 512) gets
a vocabulary of 512 and samples uniformly, because its final norm is zero: 8 stop tokens end a
sample with probability 1/64 per token, so samples have 64 tokens on average and at most 256.

32 prompts x 16 samples run in 32 batch rows on the device: once as one list on 16 prompt slots x 2
rows, once as batches of 2 prompts x 16 samples, each started when the last sample of the previous
batch has ended. Both prefill a prompt once and sample the same tokens. They take turns; the table
shows the median over the rounds.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

ROWS, PROMPTS, K, PROMPT_LENGTH, MAX_NEW = 32, 32, 16, 128, 256


def build() -> Any:
    import jax.numpy as jnp
    from flax import nnx

    from grm_jax.models import build_model, get_config

    cfg = get_config(
        "tiny_gemma2",
        num_layers=8,
        d_model=512,
        d_ff=2048,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        query_pre_attn_scalar=64,
        vocab_size=512,
        max_length=8192,
    )
    model = build_model(cfg, nnx.Rngs(0))
    model.final_norm.scale[...] = -jnp.ones_like(model.final_norm.scale[...])
    return model


def measure(engine: Any, batches: list[list]) -> dict[str, float]:
    """Times one pass over lists of requests, each run to its end before the next."""

    def counts() -> tuple[int, ...]:
        stats = engine.stats
        return stats.tokens, stats.steps, stats.slot_steps, stats.busy

    before, start = counts(), time.perf_counter()
    samples = [sample for batch in batches for sample in engine.run(batch)]
    seconds = time.perf_counter() - start
    tokens, steps, slot_steps, busy = (b - a for a, b in zip(before, counts(), strict=True))
    assert not any(sample.error for sample in samples)
    return {"tokens": tokens, "seconds": seconds, "steps": steps, "busy": busy / slot_steps}


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=common.RESULTS / "scheduling")
    args = parser.parse_args()
    import numpy as np

    from grm_jax.sampling import Engine, Request

    about = {"machine": common.machine(), "command": "python benchmarks/scheduling.py"}
    prompts = np.random.default_rng(0).integers(8, 512, (PROMPTS, PROMPT_LENGTH)).tolist()
    model = build()
    slots = {"continuous": PROMPTS // 2, "fixed batches": ROWS // K}
    engines = {name: Engine(model, n, ROWS // n) for name, n in slots.items()}

    def batches(name: str, seed: int, k: int = K) -> list[list[Request]]:
        requests = [
            Request(prompt, k, MAX_NEW, stop=tuple(range(8)), seed=seed, item=i)
            for i, prompt in enumerate(prompts)
        ]
        n = PROMPTS if name == "continuous" else slots[name]
        return [requests[i : i + n] for i in range(0, PROMPTS, n)]

    for name, engine in engines.items():
        measure(engine, batches(name, 1000, 4))  # compiles
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for round_ in range(args.rounds):
        for name, engine in engines.items():
            r = measure(engine, batches(name, round_))
            runs[name].append(r)
            rate = r["tokens"] / r["seconds"]
            print(f"{name:14s} {rate:7.0f} tokens/s, {r['steps']} steps, rows busy {r['busy']:.1%}")
    rates, rows = {}, []
    for name, measured in runs.items():
        rates[name] = statistics.median(r["tokens"] / r["seconds"] for r in measured)
        per_step = statistics.median(r["tokens"] / r["steps"] for r in measured)
        busy = statistics.median(r["busy"] for r in measured)
        rows.append((name, f"{rates[name]:,.0f}", f"{per_step:.1f}", f"{busy:.1%}"))
    titles = ("tokens/s", "tokens per step", "rows busy")
    ratio = rates["continuous"] / rates["fixed batches"]
    text = (
        common.markdown_table({"": "left"} | dict.fromkeys(titles, "right"), rows)
        + f"\n\nContinuous batching samples {ratio:.2f} times the tokens per second of fixed "
        "batches.\n"
    )
    print(text)
    common.write_json(args.out.with_suffix(".json"), {"about": about, "runs": runs})
    args.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
