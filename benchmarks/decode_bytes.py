"""Compares the memory traffic of a decode step, compiled for TPU slices, with its lower bound.

    python benchmarks/decode_bytes.py [MODEL@SLICE[@WORKLOAD[@VARIANT]] ...]   a minute per case

VARIANT: bfloat16 by default, `int8` or `int4` for such weights, `int8+kv` also for int8 caches.
Weights and KV heads are split over all chips; rings of 1,024 new tokens. Three workloads:
`one`: one prompt of 2,048 tokens, 32 batch rows. `many`: 64 prompts of 2,048 tokens, as many rows
as fit of the 8 samples of each. `common`: the same prompts and rows, where the first 1,300 tokens
are the same in all prompts and stored once. The lower bound is every weight and every key and value
that a row attends to, with scales, read once, a common prefix once for all prompts. The figures are
the compiler's, not measurements: no TPU is used. The length of the decode loop depends on data, so
the cost of a step is that of one more iteration. Sampling uses neither top-p nor top-k.
"""

import dataclasses
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks import common  # noqa: E402
from launch.compile.slices import GIB, get_slice, quiet_environment, slice_devices  # noqa: E402

quiet_environment()

CASES = (
    "gemma2_2b@v5litepod-4",
    "gemma2_9b@v5litepod-8",
    "gemma2_27b@v5litepod-16",
    "gemma2_27b@v4-16",
    "gemma2_27b@v5p-8",
    "gemma2_2b@v5litepod-4@one@unrolled",
    "gemma2_9b@v5litepod-8@many",
    "gemma2_9b@v5litepod-8@common",
    "gemma2_27b@v5p-8@many",
    "gemma2_27b@v5p-8@common",
    "gemma2_2b@v5litepod-4@one@int8",
    "gemma2_9b@v5litepod-8@one@int8",
    "gemma2_27b@v5litepod-8@one@int8",
    "gemma2_2b@v5litepod-4@one@int8+kv",
    "gemma2_9b@v5litepod-8@one@int8+kv",
    "gemma2_27b@v5litepod-8@one@int8+kv",
    "gemma2_2b@v5litepod-4@one@int4",
    "gemma2_9b@v5litepod-8@one@int4",
)
PROMPTS, PROMPT, COMMON, T, SEGMENT = 64, 2048, 1300, 1024, 32
# Rows per prompt that fit without a common prefix, of 8 samples.
ROWS = {"gemma2_9b@v5litepod-8": 1, "gemma2_27b@v5p-8": 4}


@dataclasses.dataclass(frozen=True)
class Workload:
    """P prompts of `prompt` tokens, the first `common` of them the same; R rows each, rings of T.

    common: 0 if prompts share nothing.
    """

    P: int
    R: int
    prompt: int
    common: int
    T: int


def workload(name: str, case: str) -> Workload:
    """Returns a workload by its name; case: MODEL@SLICE. Raises SystemExit for an unknown one."""
    if name == "one":
        return Workload(1, 32, PROMPT, 0, T)
    if name not in ("many", "common"):
        raise SystemExit(f"unknown workload {name!r}: use one, many or common")
    if case not in ROWS:
        raise SystemExit(f"workload {name!r} has no number of rows for {case}: add it to ROWS")
    return Workload(PROMPTS, ROWS[case], PROMPT, COMMON if name == "common" else 0, T)


def key_value_bytes(cfg: Any, work: Workload) -> dict[str, int]:
    """Returns the bytes over all devices of the keys and values that the rows attend to.

    common: of the common prefix, once. prefix: of the rest of each prompt. suffix: of the rings.
    """
    from grm_jax.sampling import cache

    token = cache.token_bytes(cfg)
    total = {"common": 0, "prefix": 0, "suffix": 0}
    for units, window in cache.layer_windows(cfg):
        seen = cache.prefix_length(work.prompt, window)
        rest = min(seen, work.prompt - work.common)
        total["common"] += units * token * (seen - rest)
        total["prefix"] += units * token * work.P * rest
        total["suffix"] += units * token * work.P * work.R * cache.ring_length(work.T, window)
    return total


@dataclasses.dataclass
class Result:
    """One case. Bytes are per chip.

    Attributes:
      step, lower_bound: traffic of one decode step; `ratio` is their quotient.
      step_seconds: of the step's traffic at the chip's full bandwidth.
      prefill: traffic of one prompt.
      decode_peak, prefill_peak: the most memory in use at once.
      prompts, rows, prompt, common, ring: the workload.
      caches: bytes of all keys and values of the state; caches_without_common: if each prompt had
        all of its own.
    """

    model: str
    slice: str
    chips: int
    layers: str
    step: float
    lower_bound: float
    ratio: float
    step_seconds: float
    lower_bound_weights: float
    lower_bound_prefix: float
    lower_bound_suffix: float
    outside_loop: float
    prefill: float
    decode_peak: int
    prefill_peak: int
    hbm: int
    compile_seconds: float
    prompts: int = 1
    rows: int = 32
    prompt: int = PROMPT
    common: int = 0
    ring: int = T
    lower_bound_common: float = 0
    caches: float = 0
    caches_without_common: float = 0


def from_json(row: dict) -> Result:
    """Reads a result, also of files that called the lower bound `floor`."""
    return Result(**{key.replace("floor", "lower_bound"): value for key, value in row.items()})


COLUMNS = {
    "model": lambda r: r.model,
    "slice": lambda r: r.slice,
    "chips": lambda r: str(r.chips),
    "layers": lambda r: r.layers,
    "prompts x rows": lambda r: f"{r.prompts} x {r.rows}",
    "common prefix": lambda r: f"{r.common:,}",
    "GB per step": lambda r: f"{r.step / 1e9:.3f}",
    "lower bound GB": lambda r: f"{r.lower_bound / 1e9:.3f}",
    "ratio": lambda r: f"{r.ratio:.4f}",
    "ms at full bandwidth": lambda r: f"{r.step_seconds * 1e3:.2f}",
    "keys and values GiB": lambda r: f"{r.caches / GIB:.2f}" if r.caches else "-",
    "x of no prefix": lambda r: f"{r.caches / r.caches_without_common:.2f}" if r.common else "-",
    "prompts only": lambda r: f"{prompt_share(r):.2f}" if r.common else "-",
    "decode peak GiB": lambda r: f"{r.decode_peak / GIB:.2f}",
    "prefill peak GiB": lambda r: f"{r.prefill_peak / GIB:.2f}",
    "HBM GiB": lambda r: f"{r.hbm / GIB:.2f}",
}


def run(model: str, slice_name: str, work: Workload, variant: str = "scanned") -> Result:
    """Compiles prefill and decode of one model for one slice."""
    import jax

    from grm_jax.models import abstract_model, get_config, weight_bytes
    from grm_jax.models.quantize import KINDS
    from grm_jax.sampling import programs
    from grm_jax.sharding import make_mesh
    from launch.compile.hlo_cost import cost

    tpu_slice, devices = get_slice(slice_name), slice_devices(slice_name)
    cfg = get_config(model, dtype="bfloat16", param_dtype="bfloat16")
    if (kind := variant.partition("+")[0]) in KINDS:
        cfg = cfg.replace(quantize=kind, kv_cache_dtype="int8" if "kv" in variant else None)
    if variant == "unrolled":
        cfg = cfg.replace(unroll=cfg.num_units)
    chips = len(devices)
    mesh = make_mesh(1, 1, chips, devices=devices)
    # The cache cannot load an executable for devices that this machine lacks.
    jax.config.update("jax_enable_compilation_cache", False)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        graphdef, params = abstract_model(cfg, mesh)
        shape = state_shape(work)
        built = programs.abstract_programs(graphdef, params, cfg, shape, SEGMENT, mesh)
        compiled = {name: fn.lower(*args).compile() for name, fn, args in built}
        state = programs.abstract_state(cfg, shape)
    seconds = time.perf_counter() - start
    text = compiled["decode"].as_text()
    once, twice = (cost(text, n, cheapest_branches=True).hbm_bytes for n in (1, 2))
    attended = key_value_bytes(cfg, work)
    bounds = {"weights": weight_bytes(cfg) / chips}
    bounds |= {name: size / chips for name, size in attended.items()}
    step, total = twice - once, sum(bounds.values())
    generation = tpu_slice.generation
    peaks = {name: fn.memory_analysis().peak_memory_in_bytes for name, fn in compiled.items()}
    without = key_value_bytes(cfg, dataclasses.replace(work, common=0))
    return Result(
        model=model,
        slice=tpu_slice.name,
        chips=chips,
        layers=f"scanned, {variant}" if kind in KINDS else variant,
        step=step,
        lower_bound=total,
        ratio=step / total,
        step_seconds=step / generation.hbm_bandwidth,
        outside_loop=once - step,
        prefill=cost(compiled["prefill"].as_text()).hbm_bytes,
        decode_peak=peaks["decode"],
        prefill_peak=peaks["prefill"],
        hbm=generation.hbm_bytes,
        compile_seconds=seconds,
        prompts=work.P,
        rows=work.R,
        prompt=work.prompt,
        common=work.common,
        ring=work.T,
        caches=cache_bytes(state) / chips,
        caches_without_common=sum(without.values()) / chips,
        **{f"lower_bound_{name}": size for name, size in bounds.items()},
    )


def state_shape(work: Workload) -> Any:
    """Returns the shape of the sampler's state for a workload."""
    from grm_jax.sampling import buckets, programs

    rest = buckets.prompt_bucket(work.prompt - work.common)
    common = buckets.prompt_bucket(work.common) if work.common else 0
    return programs.Shape(work.P, work.R, rest, work.T, common)


def cache_bytes(state: Any) -> int:
    """Returns the bytes of a state's keys and values."""
    import jax

    arrays = jax.tree.leaves((state.common, state.prefix, state.suffix))
    return sum(array.size * array.dtype.itemsize for array in arrays)


def prompt_share(result: Result) -> float:
    """Returns the keys and values of prompts, x of those without a common prefix."""
    rings = result.lower_bound_suffix
    return (result.caches - rings) / (result.caches_without_common - rings)


def table(results: list[Result]) -> str:
    rows = [[cell(result) for cell in COLUMNS.values()] for result in results]
    texts = ("model", "slice", "layers")
    sides = {title: "left" if title in texts else "right" for title in COLUMNS}
    return common.markdown_table(sides, rows)


def write(out: Path, about: dict, results: list[Result]) -> None:
    rows = [dataclasses.asdict(result) for result in results]
    common.write_json(common.result_file(out, ".json"), {"about": about, "results": rows})
    remarks = "".join(f"- {key}: {value}\n" for key, value in about.items())
    common.result_file(out, ".md").write_text(
        f"# Bytes per decode step\n\n{remarks}\n{table(results)}\n"
    )


def libtpu_version() -> str:
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "unknown"


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument(
        "cases", nargs="*", default=CASES, metavar="MODEL@SLICE[@WORKLOAD[@VARIANT]]"
    )
    parser.add_argument("--out", type=Path, default=common.RESULTS / "decode_bytes")
    args = parser.parse_args()
    about = {
        "prompt": PROMPT,
        "ring": T,
        "dtype": "bfloat16",
        "per": "chip",
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "libtpu": libtpu_version(),
        "what": "compiled without a TPU: the compiler's figures, not measurements",
    }
    earlier = common.read_json(common.result_file(args.out, ".json"), {})
    # Cases that were compiled earlier in the same setting stay.
    rows = earlier["results"] if earlier.get("about") == about else []
    results = {key(result): result for result in map(from_json, rows)}
    for case in args.cases:
        parts = case.split("@")
        model, slice_name, name, layers = [*parts, *("one", "scanned")[len(parts) - 2 :]]
        work = workload(name, f"{model}@{slice_name}")
        result = run(model, slice_name, work, layers)
        results[key(result)] = result
        print(table([result]).splitlines()[-1], flush=True)
        write(args.out, about, list(results.values()))


def key(result: Result) -> tuple[str, str, str, int, int]:
    return result.model, result.slice, result.layers, result.prompts, result.common


if __name__ == "__main__":
    main()
