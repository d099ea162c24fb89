"""Gemma-2-2B's shape on one accelerator: time of a decode step, and its bytes per second against the card's own copy bandwidth.

    python benchmarks/sampling.py --device [--new 512] [--out FILE.json]

Random bfloat16 weights, one prompt of 2,048 tokens, k = 32, no stop. Needs jax, flax and numpy (and tunix, for the peer; left out if it does
not import). The floor of a step is every weight and every key and value that a row can see, read once.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np


def clock(run, repeats: int = 3) -> float:
    """Median seconds of a call that waits for its result, after a first call that compiles."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_bandwidth(gib: float = 2.0) -> float:
    """Bytes per second, read and written, of y = x + 1 over a large bfloat16 array."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(int(gib * 2**30) // 2, jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / clock(lambda: add(x).block_until_ready(), 20)


def step_floor(cfg, k: int, prompt: int, own: float) -> float:
    """Bytes: weights, the prompt's keys and values once, and `own` tokens of each row."""
    from grm_jax.sampling.cache import layer_windows

    token = 2 * cfg.num_kv_heads * cfg.head_dim * 2
    seen = sum(
        U * (min(prompt, w or prompt) + k * min(own, w or own)) for U, w in layer_windows(cfg)
    )
    return 2 * cfg.num_params + token * seen


def random_model(cfg):
    import jax
    from flax import nnx

    from grm_jax.models import build_model

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build_model(cfg, nnx.Rngs(0))))
    return nnx.merge(graphdef, jax.jit(lambda: nnx.state(build_model(cfg, nnx.Rngs(0))))())


def ours(args, unstacked: bool) -> dict:
    from grm_jax.models import get_config
    from grm_jax.sampling import Engine, Request, weights

    cfg = get_config(args.model, dtype="bfloat16", param_dtype="bfloat16")
    model = random_model(cfg)
    if unstacked:
        model = weights.unstack(model)
    engine = Engine(model, 1, args.k, segment=args.segment)
    prompt = (
        np.random.default_rng(0).integers(cfg.vocab_size // 2, cfg.vocab_size, args.prompt).tolist()
    )

    def run(new: int) -> None:
        rows = list(engine.run([Request(prompt, args.k, new, seed=1)]))
        bad = [row.error for row in rows if row.error or len(row.tokens) != new]
        if bad or len(rows) != args.k:
            raise RuntimeError(f"{len(bad)} of {len(rows)} rows fell short: {bad[:1]}")

    first, whole = clock(lambda: run(1)), clock(lambda: run(args.new))
    step = (whole - first) / (args.new - 1)
    floor = step_floor(cfg, args.k, args.prompt, args.new / 2)
    return {
        "seconds": whole,
        "prefill_seconds": first,
        "step_ms": 1e3 * step,
        "tokens_per_second": args.k * args.new / whole,
        "floor_bytes": floor,
        "bytes_per_second": floor / step,
        "peak_memory": peak_memory(),
    }


def tunix(args) -> dict:
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from tunix.generate import sampler, tokenizer_adapter
    from tunix.models.gemma import model as gemma

    from benchmarks.sampling_systems import tunix_tokenizer

    shape = gemma.ModelConfig.gemma2_2b()
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: gemma.Gemma(shape, rngs=nnx.Rngs(0))))
    init = jax.jit(
        lambda: jax.tree.map(
            lambda x: x.astype(jnp.bfloat16),
            nnx.state(gemma.Gemma(shape, rngs=nnx.Rngs(0)), nnx.Param),
        )
    )
    model = nnx.merge(graphdef, init())
    cache = sampler.CacheConfig(
        args.prompt + args.new, shape.num_layers, shape.num_kv_heads, shape.head_dim
    )
    sample = sampler.Sampler(model, tunix_tokenizer(tokenizer_adapter), cache)
    text = " ".join(
        map(
            str,
            np.random.default_rng(0)
            .integers(shape.num_embed // 2, shape.num_embed - 128, args.prompt)
            .tolist(),
        )
    )

    def run(new: int) -> None:
        out = sample(
            [text] * args.k,
            new,
            max_prompt_length=args.prompt,
            temperature=1.0,
            top_p=1.0,
            seed=1,
            eos_tokens=[-1],
        )
        jax.block_until_ready(out.tokens)

    first, whole = clock(lambda: run(1)), clock(lambda: run(args.new))
    step = (whole - first) / (args.new - 1)
    return {
        "seconds": whole,
        "prefill_seconds": first,
        "step_ms": 1e3 * step,
        "tokens_per_second": args.k * args.new / whole,
        "peak_memory": peak_memory(),
    }


def peak_memory() -> int:
    """Bytes of the device, the most since the process began."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="sampling.py --device", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="gemma2_2b")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--segment", type=int, default=64)
    parser.add_argument("--no-tunix", action="store_true")
    parser.add_argument(
        "--result", type=Path, default=Path(__file__).parent / "results" / "sampling_device.json"
    )
    args = parser.parse_args(argv)
    import jax

    device = jax.devices()[0]
    out = {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "workload": {"model": args.model, "k": args.k, "prompt": args.prompt, "new": args.new},
        "copy_bandwidth": copy_bandwidth(),
        "systems": {},
    }
    print(f"{out['device']}: copies at {out['copy_bandwidth'] / 1e9:,.0f} GB/s", flush=True)
    runs = {
        "grm_jax, layers scanned": lambda: ours(args, False),
        "grm_jax, layers one by one": lambda: ours(args, True),
    }
    if not args.no_tunix:
        runs["tunix"] = lambda: tunix(args)
    for name, run in runs.items():
        try:
            result = run()
        except ImportError as error:
            print(f"{name}: left out, it does not import here: {error}")
            continue
        except (
            jax.errors.JaxRuntimeError
        ) as error:  # out of memory, most likely: that is a result too
            print(f"{name}: {str(error).splitlines()[0][:300]}")
            out["systems"][name] = {"error": str(error).splitlines()[0][:300]}
            continue
        if "bytes_per_second" in result:
            result["share_of_copy"] = result["bytes_per_second"] / out["copy_bandwidth"]
        out["systems"][name] = result
        share = (
            f", {result['share_of_copy']:.0%} of the copy bandwidth"
            if "share_of_copy" in result
            else ""
        )
        print(
            f"{name}: {result['step_ms']:.2f} ms per step{share}, {result['tokens_per_second']:,.0f} tokens/s",
            flush=True,
        )
        args.result.parent.mkdir(parents=True, exist_ok=True)
        args.result.write_text(json.dumps(out, indent=1) + "\n")
