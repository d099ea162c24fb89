"""Times a decode step of Gemma-2-2B's shape on one accelerator against the card's copy bandwidth.

    python benchmarks/sampling.py --device [--new 512] [--result FILE.json]

Random bfloat16 weights, one prompt of 2,048 tokens, k = 32, no stop. Needs jax, flax and numpy, and
tunix for the peer, which is skipped if it does not import. The lower bound of a step's traffic is
every weight and every key and value that a batch row attends to, read once.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common


def median_seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Returns the median seconds of a blocking call, after a first call that compiles."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_bandwidth(gib: float = 2.0) -> float:
    """Measures y = x + 1 over a large bfloat16 array: bytes per second, read and written."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(int(gib * 2**30) // 2, jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / median_seconds(lambda: add(x).block_until_ready(), 20)


def step_lower_bound(cfg: Any, k: int, prompt: int, own: float) -> float:
    """Bytes: weights, the prompt's keys and values once, and `own` tokens of each of k rows."""
    from grm_jax.sampling.cache import layer_windows

    token = 2 * cfg.num_kv_heads * cfg.head_dim * 2
    attended = sum(
        U * (min(prompt, w or prompt) + k * min(own, w or own)) for U, w in layer_windows(cfg)
    )
    return 2 * cfg.num_params + token * attended


def random_model(cfg: Any) -> Any:
    """Builds a randomly initialised model on the device."""
    import jax
    from flax import nnx

    from grm_jax.models import build_model

    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build_model(cfg, nnx.Rngs(0))))
    return nnx.merge(graphdef, jax.jit(lambda: nnx.state(build_model(cfg, nnx.Rngs(0))))())


def time_steps(run: Callable[[int], Any], args: argparse.Namespace) -> dict[str, float]:
    """Times `run(new tokens)`. A step is the difference between one and `args.new` tokens."""
    first, total = median_seconds(lambda: run(1)), median_seconds(lambda: run(args.new))
    return {
        "seconds": total,
        "prefill_seconds": first,
        "step_ms": 1e3 * (total - first) / (args.new - 1),
        "tokens_per_second": args.k * args.new / total,
        "peak_memory": peak_memory(),
    }


def ours(args: argparse.Namespace, unstacked: bool) -> dict[str, float]:
    from grm_jax.models import cpu, get_config
    from grm_jax.sampling import Engine, Request

    cfg = get_config(args.model, dtype="bfloat16", param_dtype="bfloat16")
    model = random_model(cfg)
    if unstacked:
        model = cpu.unstack(model)
    engine = Engine(model, 1, args.k, segment=args.segment)
    rng = np.random.default_rng(0)
    prompt = rng.integers(cfg.vocab_size // 2, cfg.vocab_size, args.prompt).tolist()

    def run(new: int) -> None:
        samples = list(engine.run([Request(prompt, args.k, new, seed=1)]))
        errors = [s.error for s in samples if s.error or len(s.tokens) != new]
        if errors or len(samples) != args.k:
            raise RuntimeError(f"{len(errors)} of {len(samples)} samples are short: {errors[:1]}")

    result = time_steps(run, args)
    bound = step_lower_bound(cfg, args.k, args.prompt, args.new / 2)
    rate = 1e3 * bound / result["step_ms"]
    return result | {"lower_bound_bytes": bound, "bytes_per_second": rate}


def tunix(args: argparse.Namespace) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from tunix.generate import sampler, tokenizer_adapter
    from tunix.models.gemma import model as gemma

    from benchmarks.sampling_systems import tunix_tokenizer

    shape = gemma.ModelConfig.gemma2_2b()
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: gemma.Gemma(shape, rngs=nnx.Rngs(0))))

    @jax.jit
    def init() -> Any:
        state = nnx.state(gemma.Gemma(shape, rngs=nnx.Rngs(0)), nnx.Param)
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)

    model = nnx.merge(graphdef, init())
    cache = sampler.CacheConfig(
        args.prompt + args.new, shape.num_layers, shape.num_kv_heads, shape.head_dim
    )
    sample = sampler.Sampler(model, tunix_tokenizer(tokenizer_adapter), cache)
    rng = np.random.default_rng(0)
    ids = rng.integers(shape.num_embed // 2, shape.num_embed - 128, args.prompt)
    text = " ".join(map(str, ids.tolist()))

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

    return time_steps(run, args)


def peak_memory() -> int:
    """Returns the most bytes of the device in use since the process began."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def main(argv: list[str]) -> None:
    parser = common.argument_parser(__doc__)
    parser.prog = "sampling.py --device"
    parser.add_argument("--model", default="gemma2_2b")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--segment", type=int, default=64)
    parser.add_argument("--no-tunix", action="store_true")
    parser.add_argument("--result", type=Path, default=common.RESULTS / "sampling_device.json")
    args = parser.parse_args(argv)
    import jax

    device, bandwidth = jax.devices()[0], copy_bandwidth()
    systems: dict[str, dict[str, Any]] = {}
    about = {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "workload": {"model": args.model, "k": args.k, "prompt": args.prompt, "new": args.new},
        "copy_bandwidth": bandwidth,
        "systems": systems,
    }
    print(f"{device.device_kind}: copies at {bandwidth / 1e9:,.0f} GB/s", flush=True)
    runs = {
        "grm_jax, layers scanned": lambda: ours(args, False),
        "grm_jax, layers one by one": lambda: ours(args, True),
    }
    if not args.no_tunix:
        runs["tunix"] = lambda: tunix(args)
    for name, run in runs.items():
        try:
            result: dict[str, Any] = run()
        except ImportError as error:
            print(f"{name}: skipped, it does not import: {error}", file=sys.stderr)
            continue
        except jax.errors.JaxRuntimeError as error:  # most likely out of memory: a result too
            result = {"error": str(error).splitlines()[0][:300]}
        if "bytes_per_second" in result:
            result["share_of_copy"] = result["bytes_per_second"] / bandwidth
        systems[name] = result
        print(f"{name}: {_line(result)}", flush=True)
        common.write_json(args.result, about)


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return result["error"]
    share = result.get("share_of_copy")
    copy = f", {share:.0%} of the copy bandwidth" if share else ""
    return f"{result['step_ms']:.2f} ms per step{copy}, {result['tokens_per_second']:,.0f} tokens/s"
