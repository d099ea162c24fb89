"""Main-memory traffic of one decode step, counted in the program that XLA compiles for a TPU slice, against the least that it could be.

    .venv/bin/python benchmarks/decode_bytes.py [MODEL@SLICE ...]      one compilation after the other, a minute or two each

One prompt of 2,048 tokens, 32 rows, rings of 1,024 new tokens, bfloat16, weights and heads split over all chips. The floor is every weight and
every key and value that a row can see, read once. The compiler's figures, not measurements: no TPU is used. The decode loop ends on data, so
the cost of one step is the cost of the program with one more trip of it.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["JAX_PLATFORMS"] = "cpu"

from launch.compile.slices import GIB, get_slice, quiet_environment, slice_devices  # noqa: E402

quiet_environment()

CASES = (
    "gemma2_2b@v5litepod-4", "gemma2_9b@v5litepod-8", "gemma2_27b@v5litepod-16", "gemma2_27b@v4-16", "gemma2_27b@v5p-8",
    "gemma2_2b@v5litepod-4@unrolled",
)  # fmt: skip
P, R, S, T, SEGMENT = 1, 32, 2048, 1024, 32


@dataclasses.dataclass
class Result:
    """Bytes are per chip. step, floor: of one decode step. prefill: traffic of one prompt. *_peak: the most memory in use at once."""

    model: str
    slice: str
    chips: int
    layers: str
    step: float
    floor: float
    ratio: float
    step_seconds: float  # at the chip's full bandwidth
    floor_weights: float
    floor_prefix: float
    floor_suffix: float
    outside_loop: float
    prefill: float
    decode_peak: int
    prefill_peak: int
    hbm: int
    compile_seconds: float


def run(model: str, slice_name: str, unrolled: bool = False) -> Result:
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
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # an executable for devices that are not there cannot be read back
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        graphdef, params = abstract_model(cfg, mesh)
        shape = programs.Shape(P, R, S, T)
        built = programs.abstract_programs(graphdef, params, cfg, shape, SEGMENT, mesh)
        compiled = {name: fn.lower(*args).compile() for name, fn, args in built}
    seconds = time.perf_counter() - start
    text = compiled["decode"].as_text()
    once, twice = cost(text, assumed_trip_count=1), cost(text, assumed_trip_count=2)
    step = twice.hbm_bytes - once.hbm_bytes
    parts = plan.state_bytes(cfg, P, R, S, T)
    floor = {
        "weights": cfg.num_params * 2 / chips,
        "prefix": parts["prefix"] / chips,
        "suffix": parts["suffix"] / chips,
    }
    total = sum(floor.values())
    return Result(
        model=model,
        slice=tpu_slice.name,
        chips=chips,
        layers="unrolled" if unrolled else "scanned",
        step=step,
        floor=total,
        ratio=step / total,
        step_seconds=step / tpu_slice.generation.hbm_bandwidth,
        floor_weights=floor["weights"],
        floor_prefix=floor["prefix"],
        floor_suffix=floor["suffix"],
        outside_loop=once.hbm_bytes - step,
        prefill=cost(compiled["prefill"].as_text()).hbm_bytes,
        decode_peak=compiled["decode"].memory_analysis().peak_memory_in_bytes,
        prefill_peak=compiled["prefill"].memory_analysis().peak_memory_in_bytes,
        hbm=tpu_slice.generation.hbm_bytes,
        compile_seconds=seconds,
    )


def table(results: list[Result]) -> str:
    lines = [
        "| model | slice | chips | layers | GB per step | floor GB | ratio | ms at full bandwidth | decode peak GiB | prefill peak GiB | HBM GiB |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in results:
        lines.append(
            f"| {r.model} | {r.slice} | {r.chips} | {r.layers} | {r.step / 1e9:.3f} | {r.floor / 1e9:.3f} | {r.ratio:.4f} | {r.step_seconds * 1e3:.2f} "
            f"| {r.decode_peak / GIB:.2f} | {r.prefill_peak / GIB:.2f} | {r.hbm / GIB:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "cases", nargs="*", default=CASES, help="MODEL@SLICE or MODEL@SLICE@unrolled"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "decode_bytes"
    )
    args = parser.parse_args()
    import jax
    import jaxlib

    about = {
        "prompts": P, "rows": R, "prompt": S, "ring": T, "dtype": "bfloat16", "per": "chip", "jax": jax.__version__, "jaxlib": jaxlib.__version__,
        "libtpu": _libtpu(), "what": "compiled without a TPU: the compiler's figures, not measurements",
    }  # fmt: skip
    path = args.out.with_suffix(".json")
    before = json.loads(path.read_text()) if path.exists() else {}
    # Cases of the same setting that were compiled earlier stay.
    kept = before["results"] if before.get("about") == about else []
    results = {(r["model"], r["slice"], r["layers"]): Result(**r) for r in kept}
    for case in args.cases:
        model, slice_name, *layers = case.split("@")
        result = run(model, slice_name, layers == ["unrolled"])
        results[result.model, result.slice, result.layers] = result
        print(table([result]).splitlines()[-1], flush=True)
        write(args.out, about, list(results.values()))


def write(out: Path, about: dict, results: list[Result]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(r) for r in results]
    out.with_suffix(".json").write_text(
        json.dumps({"about": about, "results": rows}, indent=1) + "\n"
    )
    notes = "".join(f"- {key}: {value}\n" for key, value in about.items())
    out.with_suffix(".md").write_text(f"# Bytes per decode step\n\n{notes}\n{table(results)}\n")


def _libtpu() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main()
