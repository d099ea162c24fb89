"""Compares continuous batching with fixed batches: tokens per second for geometric lengths.

    python benchmarks/scheduling.py        about five minutes on two cores
    python benchmarks/scheduling.py --toy  a model of the size of the demo's: about a minute

Writes benchmarks/results/scheduling.{json,md}, with --toy scheduling_toy.{json,md}. The model of
sampling.py (8 layers, width 512) gets a vocabulary of 512 and samples uniformly, because its final
norm is zero: 8 stop tokens end a sample with probability 1/64 per token, so samples have 64 tokens
on average and at most 256.

32 prompts x 16 samples run in 32 batch rows on the device: once as one list on 16 prompt slots x 2
rows, once as batches of 2 prompts x 16 samples, each started when the last sample of the previous
batch has ended. Both prefill a prompt once and sample the same tokens. They take turns; the table
shows the median over the rounds. With --toy (4 layers, width 128, lengths of 22 tokens on average
and at most 40), 256 prompts x 4 samples run in 64 rows, also with the share of idle rows at which
`grm judge` refills small models on a CPU.
"""

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

SIZES = ("num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim", "vocab_size")


@dataclasses.dataclass(frozen=True)
class Work:
    """A model and its requests: `slots` prompts run at once under continuous batching."""

    model: tuple[int, ...]  # in the order of SIZES
    rows: int
    prompts: int
    k: int
    prompt_length: int
    max_new: int
    slots: int


WORK = Work((8, 512, 2048, 8, 4, 64, 512), 32, 32, 16, 128, 256, 16)
TOY = Work((4, 128, 256, 4, 2, 32, 256), 64, 256, 4, 48, 40, 32)


def build(work: Work) -> Any:
    import jax.numpy as jnp
    from flax import nnx

    from grm_jax.models import build_model, get_config

    sizes = dict(zip(SIZES, work.model, strict=True))
    width = sizes["head_dim"]
    cfg = get_config("tiny_gemma2", **sizes, query_pre_attn_scalar=width, max_length=8192)
    model = build_model(cfg, nnx.Rngs(0))
    model.final_norm.scale[...] = -jnp.ones_like(model.final_norm.scale[...])
    return model


def measure(engine: Any, batches: list[list]) -> dict[str, float]:
    """Times one pass over lists of requests, each run to its end before the next."""

    def counts() -> tuple[int, ...]:
        stats = engine.stats
        return stats.tokens, stats.steps, stats.row_steps, stats.busy

    before, start = counts(), time.perf_counter()
    samples = [sample for batch in batches for sample in engine.run(batch)]
    seconds = time.perf_counter() - start
    tokens, steps, row_steps, busy = (b - a for a, b in zip(before, counts(), strict=True))
    assert not any(sample.error for sample in samples)
    return {"tokens": tokens, "seconds": seconds, "steps": steps, "busy": busy / row_steps}


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--toy", action="store_true", help="a model of the size of the demo's")
    parser.add_argument("--out", type=Path, help="default: see above")
    args = parser.parse_args()
    work, suffix = (TOY, "_toy") if args.toy else (WORK, "")
    out = args.out or common.RESULTS / f"scheduling{suffix}"
    import numpy as np

    from grm_jax.sampling import Engine, Request, plan

    command = "python benchmarks/scheduling.py" + (" --toy" if args.toy else "")
    about = {"machine": common.machine(), "command": command}
    shape = work.prompts, work.prompt_length
    prompts = np.random.default_rng(0).integers(8, work.model[-1], shape).tolist()
    model = build(work)
    slots = {"continuous": work.slots, "fixed batches": work.rows // work.k}
    engines = {
        name: Engine(model, n, work.rows // n, few_shapes=args.toy) for name, n in slots.items()
    }
    if args.toy:
        share, n = plan.SMALL_MODEL_IDLE, slots["continuous"]
        name = f"continuous, refilled at {share:.0%} idle"
        engines[name] = Engine(model, n, work.rows // n, idle=share, few_shapes=True)

    def batches(name: str, seed: int, k: int = work.k) -> list[list[Request]]:
        requests = [
            Request(prompt, k, work.max_new, stop=tuple(range(8)), seed=seed, item=i)
            for i, prompt in enumerate(prompts)
        ]
        n = slots[name] if name == "fixed batches" else work.prompts
        return [requests[i : i + n] for i in range(0, work.prompts, n)]

    for name, engine in engines.items():
        measure(engine, batches(name, 1000, min(4, work.k)))  # compiles
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for round_ in range(args.rounds):
        for name, engine in engines.items():
            r = measure(engine, batches(name, round_))
            runs[name].append(r)
            rate = r["tokens"] / r["seconds"]
            print(f"{name:32s} {rate:7.0f} tokens/s, {r['steps']} steps, rows busy {r['busy']:.1%}")
    rates, rows = {}, []
    for name, measured in runs.items():
        rates[name] = statistics.median(r["tokens"] / r["seconds"] for r in measured)
        per_step = statistics.median(r["tokens"] / r["steps"] for r in measured)
        busy = statistics.median(r["busy"] for r in measured)
        rows.append((name, f"{rates[name]:,.0f}", f"{per_step:.1f}", f"{busy:.1%}"))
    titles = ("tokens/s", "tokens per step", "rows busy")
    ratios = [
        f"{name[:1].upper()}{name[1:]}: {rate / rates['fixed batches']:.2f} times the tokens per "
        "second of fixed batches."
        for name, rate in rates.items()
        if name != "fixed batches"
    ]
    table = common.markdown_table({"": "left"} | dict.fromkeys(titles, "right"), rows)
    text = f"{table}\n\n" + "\n".join(ratios) + "\n"
    print(text)
    common.write_json(common.result_file(out, ".json"), {"about": about, "runs": runs})
    common.result_file(out, ".md").write_text(text)


if __name__ == "__main__":
    main()
