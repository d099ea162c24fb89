"""The table of what fits where: Gemma 2 compiled for TPU slices, without one.

    python benchmarks/compile_table.py                                  all that benchmarks/results/compile_table.json does not hold yet
    python benchmarks/compile_table.py --models gemma2_27b --slices v5p-128 --again

Each row is compiled in a process of its own, one at a time, and written as soon as it is there. Every program works on one sequence of 4,096
tokens per chip: `forward` (token log-probs under bfloat16 weights) and `sft_update` (AdamW, float32 master weights, bfloat16 compute, full
rematerialisation, donated state).
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MODELS = ("gemma2_2b", "gemma2_9b", "gemma2_27b")
SLICES = (
    "v4-8", "v4-64", "v4-128", "v5litepod-1", "v5litepod-8", "v5litepod-64", "v5litepod-256", "v5p-8", "v5p-32", "v5p-64", "v5p-128",
)  # fmt: skip
PROGRAMS = ("forward", "sft_update")
LENGTH = 4096
OUT = ROOT / "benchmarks/results/compile_table"


def mesh_for(model: str, chips: int) -> dict[str, int]:
    """fsdp over up to 32 chips, tensor over what is left: a weight's rows per chip stay a multiple of the 16 that a bfloat16 tile holds."""
    from grm_jax.models import get_config

    cfg = get_config(model)
    fsdp = max(n for n in (1, 2, 4, 8, 16, 32) if n <= chips and cfg.d_model % (16 * n) == 0)
    tensor = min(chips // fsdp, cfg.num_kv_heads)
    return {"data": chips // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}


def config_for(model: str, slice_name: str):
    """An experiment of nothing but supervised fine-tuning."""
    from ml_collections import ConfigDict

    from launch.compile.slices import get_slice

    chips = get_slice(slice_name).chips
    return ConfigDict(
        {
            "name": f"{model}_{slice_name}",
            "stages": ("rft",),
            "model": model,
            "model_overrides": {"remat": "full", "query_chunk": 1024},
            "mesh": mesh_for(model, chips),
            "seq_len": LENGTH,
            "batch_size": chips,
            "rft": {
                "lr": 1e-5, "steps": 1000, "warmup_steps": 100, "schedule": "cosine", "final_lr_share": 0.1, "b1": 0.9, "b2": 0.95,
                "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0, "micro_batches": 1,
            },
        }
    )  # fmt: skip


def compile_row(model: str, slice_name: str, program: str) -> dict:
    """One row, in this process."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from launch.compile import compile_only, programs

    config = config_for(model, slice_name)
    mesh = programs.make_slice_mesh(config, slice_name)
    (task,) = programs.tasks(config, mesh, [program])
    task = dataclasses.replace(task, name=f"{model} {program}")
    return dataclasses.asdict(compile_only.compile_task(task, slice_name))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--slices", default=",".join(SLICES))
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument(
        "--again", action="store_true", help="compile rows that are there already once more"
    )
    parser.add_argument(
        "--one", nargs=3, metavar=("MODEL", "SLICE", "PROGRAM"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(compile_row(*options.one)))
        return 0

    from launch.compile import results

    path = OUT.with_suffix(".json")
    stored = json.loads(path.read_text())["results"] if path.exists() else []
    rows = {(r["program"], r["slice"]): results.from_json(r) for r in stored}
    for model in options.models.split(","):
        for slice_name in options.slices.split(","):
            for program in options.programs.split(","):
                key = (f"{model} {program}", slice_name)
                if key in rows and not options.again:
                    continue
                command = [sys.executable, __file__, "--one", model, slice_name, program]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(
                        f"{' on '.join(key)}: {done.stderr.strip().splitlines()[-1]}",
                        file=sys.stderr,
                    )
                    continue
                rows[key] = results.from_json(json.loads(done.stdout.splitlines()[-1]))
                print(results.summary(rows[key]), flush=True)
                _write(rows, path)
    results.print_table(_ordered(rows))
    return 0


def _ordered(rows: dict) -> list:
    order = {
        (f"{m} {p}", s): n
        for n, (m, p, s) in enumerate((m, p, s) for m in MODELS for p in PROGRAMS for s in SLICES)
    }
    return [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))]


def _write(rows: dict, path: Path) -> None:
    from launch.compile import results

    about = results.provenance("Gemma 2 on TPU slices, one sequence of 4,096 tokens per chip") | {
        "command": "python benchmarks/compile_table.py"
    }
    results.write(_ordered(rows), path.with_suffix(""), about)


if __name__ == "__main__":
    sys.exit(main())
