"""Measures sampling and a GRPO step on one accelerator, within a budget of seconds.

    python benchmarks/accelerator.py                       one NVIDIA H100: at most 240 s
    python benchmarks/accelerator.py --toy                 the same programs at toy size, on a CPU
    python benchmarks/accelerator.py --parts sampler,grpo --budget 120

Writes benchmarks/results/accelerator.json. Each part runs in a process of its own and is stopped
when its share of the budget and what earlier parts saved are spent; what it had measured by then is
kept. All weights are random, made on the device.

- `sampler`: Gemma-2-2B's shape in bfloat16, one prompt of 2,048 tokens, k = 32, 1,024 new tokens,
  no stop: tokens per second, and the share of the card's copy bandwidth that a decode step reaches.
  The lower bound of a step's traffic is every weight and every key and value that a row attends to,
  read once. The copy bandwidth is that of y = x + 1 over a large array in the same process.
- `grpo`: one GRPO step of that model, float32 training state, 4 prompts of 512 tokens x 8
  completions of 256: seconds of rollout, reference and update.
- `transformers`, `tunix`: `generate` and Tunix's sampler on the workload of `sampler`. A peer that
  does not import is skipped. They run in this interpreter, or in that of `--peers`.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

BUDGET = {"sampler": 100, "grpo": 70, "transformers": 40, "tunix": 30}  # seconds; 240 in all
PEERS = ("transformers", "tunix")
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Size:
    """The workload: k samples of `new` tokens of one prompt; P x G completions of a GRPO step.

    layers: vocabulary, width, ffn, layers, query heads, KV heads, head width; peers do not have our
      table of models.
    """

    model: str
    layers: tuple[int, int, int, int, int, int, int]
    k: int
    prompt: int
    new: int
    copy_gib: float
    grpo: tuple[int, int, int, int]  # prompts, samples per prompt, prompt tokens, new tokens


FULL = Size("gemma2_2b", (256000, 2304, 9216, 26, 8, 4, 256), 32, 2048, 1024, 2.0, (4, 8, 512, 256))
TOY = Size("tiny_gemma2", (128, 32, 64, 5, 8, 4, 8), 4, 32, 16, 0.01, (2, 4, 16, 8))
SEGMENT = 64


def seconds_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def copy_bandwidth(gib: float) -> float:
    """Returns the bytes per second, read and written, of y = x + 1 over a bfloat16 array."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(int(gib * 2**30) // 2, jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    times = [seconds_of(lambda: add(x).block_until_ready()) for _ in range(20)]
    return 2 * x.nbytes / float(np.median(times))


def step_lower_bound(cfg: Any, k: int, prompt: int, own: float) -> float:
    """Bytes: weights, the prompt's keys and values once, and `own` tokens of each of k rows."""
    from grm_jax.sampling.cache import layer_windows

    token = 2 * cfg.num_kv_heads * cfg.head_dim * 2
    attended = sum(
        U * (min(prompt, w or prompt) + k * min(own, w or own)) for U, w in layer_windows(cfg)
    )
    return 2 * cfg.num_params + token * attended


def peak_memory() -> int:
    """Returns the most bytes of the device in use since the process began."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def timed(run: Callable[[int], Any], size: Size, peak: Callable[[], int]) -> Iterator[Result]:
    """Times run(new tokens): compiles, then one and `size.new` tokens; a step is the difference."""
    yield {"warm_up_seconds": seconds_of(lambda: (run(size.new), run(1)))}
    prefill = min(seconds_of(lambda: run(1)) for _ in range(3))
    yield {"prefill_seconds": prefill}
    totals = []
    for _ in range(3):
        totals.append(seconds_of(lambda: run(size.new)))
        total = float(np.median(totals))
        yield {
            "seconds": total,
            "step_ms": 1e3 * (total - prefill) / (size.new - 1),
            "tokens_per_second": size.k * size.new / total,
            "peak_memory": peak(),
        }


def sampler(size: Size) -> Iterator[Result]:
    import jax
    from flax import nnx

    from grm_jax.models import build_model, get_config
    from grm_jax.sampling import Engine, Request

    device = jax.devices()[0]
    yield {"device": device.device_kind, "platform": device.platform, "jax": jax.__version__}
    bandwidth = copy_bandwidth(size.copy_gib)
    yield {"copy_bandwidth": bandwidth}
    cfg = get_config(size.model, dtype="bfloat16", param_dtype="bfloat16")
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build_model(cfg, nnx.Rngs(0))))
    model = nnx.merge(graphdef, jax.jit(lambda: nnx.state(build_model(cfg, nnx.Rngs(0))))())
    engine = Engine(model, 1, size.k, segment=SEGMENT)
    rng = np.random.default_rng(0)
    prompt = rng.integers(cfg.vocab_size // 2, cfg.vocab_size, size.prompt).tolist()

    def run(new: int) -> None:
        samples = list(engine.run([Request(prompt, size.k, new, seed=1)]))
        errors = [s.error for s in samples if s.error or len(s.tokens) != new]
        if errors or len(samples) != size.k:
            raise RuntimeError(f"{len(errors)} of {len(samples)} samples are short: {errors[:1]}")

    bound = step_lower_bound(cfg, size.k, size.prompt, size.new / 2)
    for result in timed(run, size, peak_memory):
        if "step_ms" in result:
            rate = 1e3 * bound / result["step_ms"]
            result |= {"lower_bound_bytes": bound, "bytes_per_second": rate}
            result["share_of_copy"] = rate / bandwidth
        yield result


def grpo(size: Size) -> Iterator[Result]:
    """Times the third step, after two that compile and warm up."""
    from benchmarks import grpo_step

    config = grpo_step.our_config(*size.grpo)
    config.model = size.model
    config.model_overrides = {"dtype": "bfloat16", "remat": "full"}
    config.rl.micro_rows = 1
    result = grpo_step.ours(*size.grpo, steps=1, config=config)
    ((seconds, _),) = result["steps"]
    yield {"seconds": seconds, **result["parts"], "peak_memory": peak_memory()}


def transformers(size: Size) -> Iterator[Result]:
    import torch
    from transformers import AutoModelForCausalLM, Gemma2Config, GenerationConfig

    vocabulary, width, ffn, layers, heads, kv_heads, head_width = size.layers
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_width,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).eval()
    rng = np.random.default_rng(0)
    ids = rng.integers(vocabulary // 2, vocabulary, size.prompt).tolist()
    tokens = torch.tensor([ids] * size.k, device=device)

    def run(new: int) -> None:
        model.generation_config = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=new, min_new_tokens=new, pad_token_id=0
        )
        with torch.inference_mode():
            out = model.generate(tokens, attention_mask=torch.ones_like(tokens))
        if out.shape[1] != size.prompt + new:
            raise RuntimeError(f"{out.shape[1] - size.prompt} new tokens, {new} were requested")
        out.cpu()

    yield {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    yield from timed(run, size, torch.cuda.max_memory_allocated if device == "cuda" else int)


def tunix(size: Size) -> Iterator[Result]:
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from tunix.generate import sampler as tunix_sampler, tokenizer_adapter
    from tunix.models.gemma import model as gemma

    from benchmarks.sampling_systems import tunix_tokenizer

    vocabulary, width, ffn, layers, heads, kv_heads, head_width = size.layers
    shape = dataclasses.replace(
        gemma.ModelConfig.gemma2_2b(),
        num_layers=layers,
        num_embed=vocabulary,
        embed_dim=width,
        hidden_dim=ffn,
        num_heads=heads,
        head_dim=head_width,
        num_kv_heads=kv_heads,
    )
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: gemma.Gemma(shape, rngs=nnx.Rngs(0))))

    @jax.jit
    def init() -> Any:
        state = nnx.state(gemma.Gemma(shape, rngs=nnx.Rngs(0)), nnx.Param)
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)

    cache = tunix_sampler.CacheConfig(
        size.prompt + size.new, shape.num_layers, shape.num_kv_heads, shape.head_dim
    )
    model = nnx.merge(graphdef, init())
    sample = tunix_sampler.Sampler(model, tunix_tokenizer(tokenizer_adapter), cache)
    rng = np.random.default_rng(0)
    ids = rng.integers(shape.num_embed // 2, shape.num_embed, size.prompt)
    text = " ".join(map(str, ids.tolist()))

    def run(new: int) -> None:
        out = sample(
            [text] * size.k,
            new,
            max_prompt_length=size.prompt,
            temperature=1.0,
            top_p=1.0,
            seed=1,
            eos_tokens=[-1],
        )
        jax.block_until_ready(out.tokens)

    yield from timed(run, size, peak_memory)


PARTS: dict[str, Callable[[Size], Iterator[Result]]] = {
    "sampler": sampler,
    "grpo": grpo,
    "transformers": transformers,
    "tunix": tunix,
}


def run_part(name: str, size: Size) -> None:
    """Runs one part in this process; prints what it has measured after each measurement."""
    measured: Result = {}
    try:
        for result in PARTS[name](size):
            measured |= result
            print(json.dumps(measured), flush=True)
    except ImportError as error:
        print(json.dumps(measured | {"skipped": f"does not import: {error}"}), flush=True)


def measure(
    parts: Sequence[str], budget: float, options: Sequence[str], peers: str, out: Path
) -> dict[str, Result]:
    """Runs the parts within `budget` seconds together; writes `out` after each measurement."""
    results: dict[str, Result] = {}
    about = {"machine": common.machine(), "budget": budget, "options": list(options)}
    shares = {name: BUDGET[name] / sum(BUDGET[part] for part in parts) for name in parts}
    start, allowed = time.perf_counter(), 0.0
    for name in parts:
        allowed += shares[name] * budget
        results[name] = {}
        left = max(1.0, allowed - (time.perf_counter() - start))
        python = peers if name in PEERS else ""
        lines = common.stream_apart(__file__, "--one", name, *options, python=python, timeout=left)
        try:
            for line in lines:
                results[name] = line
                common.write_json(out, {"about": about, "parts": results})
        except TimeoutError:
            results[name] |= {"stopped": f"after its {left:.0f} s"}
        except RuntimeError as error:  # most likely out of memory: a result too
            results[name] |= {"error": str(error).strip().splitlines()[-1][:300]}
        common.write_json(out, {"about": about, "parts": results})
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="only these, comma-separated")
    parser.add_argument("--budget", type=float, default=sum(BUDGET.values()), help="seconds in all")
    parser.add_argument("--peers", default="", help="interpreter with the peers")
    parser.add_argument("--toy", action="store_true", help="a toy workload on the CPU")
    parser.add_argument("--one", choices=PARTS, help="internal: run one part and print it")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "accelerator.json")
    args = parser.parse_args(argv)
    if args.one:
        run_part(args.one, TOY if args.toy else FULL)
        return 0
    parts = args.parts.split(",")
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}: use one of {', '.join(PARTS)}")
    if args.toy and args.out.is_relative_to(common.RESULTS):
        parser.error("--toy measures nothing: give another file with --out")
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if args.toy else "")  # empty: JAX chooses
    options = ["--toy"] if args.toy else []
    results = measure(parts, args.budget, options, args.peers, args.out)
    return int(any("error" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
