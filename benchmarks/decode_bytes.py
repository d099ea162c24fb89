"""Compares the memory traffic of a decode step, compiled for TPU slices, with its lower bound.

    python benchmarks/decode_bytes.py [MODEL@SLICE ...]      a minute or two per case

One prompt of 2,048 tokens, 32 batch rows, rings of 1,024 new tokens, bfloat16, weights and heads
split over all chips. The lower bound is every weight and every key and value that a row attends to,
read once. The figures are the compiler's, not measurements: no TPU is used. The length of the
decode loop depends on data, so the cost of a step is that of one more iteration.
"""

import dataclasses
import os
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    "gemma2_2b@v5litepod-4@unrolled",
)
P, R, S, T, SEGMENT = 1, 32, 2048, 1024, 32


@dataclasses.dataclass
class Result:
    """One case. Bytes are per chip.

    Attributes:
      step, lower_bound: traffic of one decode step; `ratio` is their quotient.
      step_seconds: of the step's traffic at the chip's full bandwidth.
      prefill: traffic of one prompt.
      decode_peak, prefill_peak: the most memory in use at once.
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


def from_json(row: dict) -> Result:
    """Reads a result, also of files that called the lower bound `floor`."""
    return Result(**{key.replace("floor", "lower_bound"): value for key, value in row.items()})


COLUMNS = {
    "model": lambda r: r.model,
    "slice": lambda r: r.slice,
    "chips": lambda r: str(r.chips),
    "layers": lambda r: r.layers,
    "GB per step": lambda r: f"{r.step / 1e9:.3f}",
    "lower bound GB": lambda r: f"{r.lower_bound / 1e9:.3f}",
    "ratio": lambda r: f"{r.ratio:.4f}",
    "ms at full bandwidth": lambda r: f"{r.step_seconds * 1e3:.2f}",
    "decode peak GiB": lambda r: f"{r.decode_peak / GIB:.2f}",
    "prefill peak GiB": lambda r: f"{r.prefill_peak / GIB:.2f}",
    "HBM GiB": lambda r: f"{r.hbm / GIB:.2f}",
}


def run(model: str, slice_name: str, unrolled: bool = False) -> Result:
    """Compiles prefill and decode of one model for one slice."""
    import jax

    from grm_jax.models import abstract_model, get_config
    from grm_jax.sampling import plan, programs
    from grm_jax.sharding import make_mesh
    from launch.compile.hlo_cost import cost

    tpu_slice, devices = get_slice(slice_name), slice_devices(slice_name)
    cfg = get_config(model, dtype="bfloat16", param_dtype="bfloat16")
    if unrolled:
        cfg = cfg.replace(unroll=cfg.num_units)
    chips = len(devices)
    mesh = make_mesh(1, 1, chips, devices=devices)
    # The cache cannot load an executable for devices that this machine lacks.
    jax.config.update("jax_enable_compilation_cache", False)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        graphdef, params = abstract_model(cfg, mesh)
        shape = programs.Shape(P, R, S, T)
        built = programs.abstract_programs(graphdef, params, cfg, shape, SEGMENT, mesh)
        compiled = {name: fn.lower(*args).compile() for name, fn, args in built}
    seconds = time.perf_counter() - start
    text = compiled["decode"].as_text()
    once, twice = (cost(text, assumed_trip_count=n).hbm_bytes for n in (1, 2))
    state = plan.state_bytes(cfg, P, R, S, T)
    bounds = {"weights": cfg.num_params * 2 / chips}
    bounds |= {name: state[name] / chips for name in ("prefix", "suffix")}
    step, total = twice - once, sum(bounds.values())
    generation = tpu_slice.generation
    peaks = {name: fn.memory_analysis().peak_memory_in_bytes for name, fn in compiled.items()}
    return Result(
        model=model,
        slice=tpu_slice.name,
        chips=chips,
        layers="unrolled" if unrolled else "scanned",
        step=step,
        lower_bound=total,
        ratio=step / total,
        step_seconds=step / generation.hbm_bandwidth,
        lower_bound_weights=bounds["weights"],
        lower_bound_prefix=bounds["prefix"],
        lower_bound_suffix=bounds["suffix"],
        outside_loop=once - step,
        prefill=cost(compiled["prefill"].as_text()).hbm_bytes,
        decode_peak=peaks["decode"],
        prefill_peak=peaks["prefill"],
        hbm=generation.hbm_bytes,
        compile_seconds=seconds,
    )


def table(results: list[Result]) -> str:
    rows = [[cell(result) for cell in COLUMNS.values()] for result in results]
    texts = ("model", "slice", "layers")
    sides = {title: "left" if title in texts else "right" for title in COLUMNS}
    return common.markdown_table(sides, rows)


def write(out: Path, about: dict, results: list[Result]) -> None:
    rows = [dataclasses.asdict(result) for result in results]
    common.write_json(out.with_suffix(".json"), {"about": about, "results": rows})
    remarks = "".join(f"- {key}: {value}\n" for key, value in about.items())
    out.with_suffix(".md").write_text(f"# Bytes per decode step\n\n{remarks}\n{table(results)}\n")


def libtpu_version() -> str:
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "unknown"


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("cases", nargs="*", default=CASES, metavar="MODEL@SLICE[@unrolled]")
    parser.add_argument("--out", type=Path, default=common.RESULTS / "decode_bytes")
    args = parser.parse_args()
    about = {
        "prompts": P,
        "rows": R,
        "prompt": S,
        "ring": T,
        "dtype": "bfloat16",
        "per": "chip",
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "libtpu": libtpu_version(),
        "what": "compiled without a TPU: the compiler's figures, not measurements",
    }
    earlier = common.read_json(args.out.with_suffix(".json"), {})
    # Cases that were compiled earlier in the same setting stay.
    rows = earlier["results"] if earlier.get("about") == about else []
    results = {(r["model"], r["slice"], r["layers"]): from_json(r) for r in rows}
    for case in args.cases:
        model, slice_name, *layers = case.split("@")
        result = run(model, slice_name, layers == ["unrolled"])
        results[result.model, result.slice, result.layers] = result
        print(table([result]).splitlines()[-1], flush=True)
        write(args.out, about, list(results.values()))


if __name__ == "__main__":
    main()
