"""Compiles Gemma 2 for TPU slices without a TPU, and tabulates what fits where.

    python benchmarks/compile_table.py          rows missing in results/compile_table.json
    python benchmarks/compile_table.py --models gemma2_27b --slices v5p-128 --again

Each row is compiled in a process of its own, one at a time, and written at once, so a stopped run
resumes. All rows are of one version of JAX and libtpu. Every program works on one sequence of 4,096
tokens per chip: `forward` (token log-probs under bfloat16 weights) and `sft_update` (AdamW, float32
master weights, bfloat16 compute, full rematerialisation, donated state).
"""

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

MODELS = ("gemma2_2b", "gemma2_9b", "gemma2_27b")
SLICES = (
    "v4-8",
    "v4-64",
    "v4-128",
    "v5litepod-1",
    "v5litepod-8",
    "v5litepod-64",
    "v5litepod-256",
    "v5p-8",
    "v5p-32",
    "v5p-64",
    "v5p-128",
)
PROGRAMS = ("forward", "sft_update")
LENGTH = 4096
OUT = common.RESULTS / "compile_table"


def mesh_for(model: str, chips: int) -> dict[str, int]:
    """fsdp over up to 32 chips, tensor over the rest.

    So a weight's rows per chip stay a multiple of the 16 of a bfloat16 tile.
    """
    from grm_jax.models import get_config

    cfg = get_config(model)
    fsdp = max(n for n in (1, 2, 4, 8, 16, 32) if n <= chips and cfg.d_model % (16 * n) == 0)
    tensor = min(chips // fsdp, cfg.num_kv_heads)
    return {"data": chips // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}


def config_for(model: str, slice_name: str) -> Any:
    """An experiment that consists of supervised fine-tuning."""
    from ml_collections import ConfigDict

    from launch.compile.slices import get_slice

    chips = get_slice(slice_name).chips
    rft = {
        "lr": 1e-5,
        "steps": 1000,
        "warmup_steps": 100,
        "schedule": "cosine",
        "final_lr_share": 0.1,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "micro_batches": 1,
    }
    return ConfigDict(
        {
            "name": f"{model}_{slice_name}",
            "stages": ("rft",),
            "model": model,
            "model_overrides": {"remat": "full", "query_chunk": 1024},
            "mesh": mesh_for(model, chips),
            "seq_len": LENGTH,
            "batch_size": chips,
            "rft": rft,
        }
    )


def compile_row(model: str, slice_name: str, program: str) -> dict[str, Any]:
    """Compiles one row in this process."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from launch.compile import compile_only, programs

    config = config_for(model, slice_name)
    mesh = programs.make_slice_mesh(config, slice_name)
    (task,) = programs.tasks(config, mesh, [program])
    task = dataclasses.replace(task, name=f"{model} {program}")
    return dataclasses.asdict(compile_only.compile_task(task, slice_name))


def main() -> int:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--slices", default=",".join(SLICES))
    parser.add_argument("--programs", default=",".join(PROGRAMS))
    parser.add_argument("--again", action="store_true", help="also compile rows of the result file")
    parser.add_argument("--one", nargs=3, help="internal: compile one row and print it")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(compile_row(*args.one)))
        return 0

    from launch.compile import results

    about = results.provenance("Gemma 2 on TPU slices, one sequence of 4,096 tokens per chip")
    about["command"] = "python benchmarks/compile_table.py"
    earlier = common.read_json(OUT.with_suffix(".json"), {"about": about, "results": []})
    rows = {(r["program"], r["slice"]): results.from_json(r) for r in earlier["results"]}
    if (old := earlier["about"]["versions"]) != about["versions"]:
        if not args.again:
            print(f"{OUT}.json is of {old}, this is {about['versions']}: add --again to replace it")
            return 2
        rows = {}
    choices = [getattr(args, name).split(",") for name in ("models", "slices", "programs")]
    cases = list(itertools.product(*choices))
    names = {case: (f"{case[0]} {case[2]}", case[1]) for case in cases}
    missing = [case for case in cases if args.again or names[case] not in rows]
    failures = 0
    print(f"{len(cases) - len(missing)} of {len(cases)} programs from an earlier run", flush=True)
    for number, case in enumerate(missing, start=1 + len(cases) - len(missing)):
        try:
            row = results.from_json(common.run_apart(__file__, "--one", *case))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failures += 1
            continue
        except KeyboardInterrupt:
            print("interrupted: the same command compiles the rest")
            return 130
        rows[names[case]] = row
        print(f"{number} of {len(cases)}: {results.summary(row)}", flush=True)
        results.write(_ordered(rows), OUT, about)
    results.print_table(_ordered(rows))
    return int(failures > 0)


def _ordered(rows: dict[tuple[str, str], Any]) -> list:
    cases = itertools.product(MODELS, PROGRAMS, SLICES)
    order = {(f"{model} {program}", s): n for n, (model, program, s) in enumerate(cases)}
    return [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))]


if __name__ == "__main__":
    sys.exit(main())
