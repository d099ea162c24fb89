"""Compiles models for TPU slices without a TPU, and tabulates what fits where.

    python benchmarks/compile_table.py          rows missing in results/compile_table.json
    python benchmarks/compile_table.py --models gemma2_27b --slices v5p-128 --again

Each row is compiled in a process of its own, one at a time, and written at once, so a stopped run
resumes. All rows are of one version of JAX and libtpu.

Programs with one sequence of 4,096 tokens per chip: `forward` (token log-probs under bfloat16
weights) and `sft_update` (AdamW, float32 master weights, bfloat16 compute, full rematerialisation,
donated state). `grpo_update` of the 8B judges is that of experiments/spct_9b.py: 128 prompts of
3,072 tokens x 4 completions of 1,024, one prompt at a time per shard, with the reference's bfloat16
weights resident. Programs of a judge with bfloat16 weights (int8 of MODEL@int8, int4 of MODEL@int4,
also int8 keys and values of MODEL@int8+kv) split over up to 8 chips: `judge_prefill` and
`judge_decode`, one step of the sampler's batch for 64 prompts, the largest that `plan.fit` allows
(256 critiques where not even one fits). By default prompts have 2,048 tokens and 8 critiques of up
to 1,024 tokens each; `WORKLOADS` has the others.
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
# Judges of other families: the slices that their users would take, and one that is too small.
JUDGES = {
    "qwen3_8b": ("v5litepod-4", "v5litepod-8", "v4-8"),
    "qwen3_32b": ("v5litepod-8", "v4-8", "v5p-8"),
    "llama3_8b": ("v5litepod-4", "v5litepod-8", "v4-8"),
    "llama3_70b": ("v4-8", "v4-16", "v5p-8"),
}
# Judges with quantised weights, on the small slices that these allow.
QUANTISED = {
    "gemma2_9b@int4": ("v5litepod-1",),
    "gemma2_27b@int4": ("v5litepod-4",),
    "gemma2_9b@int8": ("v5litepod-1",),
    "gemma2_9b@int8+kv": ("v5litepod-1",),
    "gemma2_27b@int8": ("v5litepod-8", "v4-8"),
    "gemma2_27b@int8+kv": ("v5litepod-8", "v4-8"),
}
JUDGE_PROGRAMS = ("forward", "judge_prefill", "judge_decode")
TRAINED = ("qwen3_8b", "llama3_8b")  # with GRPO, on the slices of MODELS
JUDGE_PROMPTS = 64
# (k, prompt, new tokens) of judges
WORKLOADS = {"gemma2_9b": (8, 1024, 512), "gemma2_27b": (32, 2048, 1024)}
OTHER_WORKLOADS = 8, 2048, 1024
LENGTH = 4096
OUT = common.RESULTS / "compile_table"


def mesh_for(model: str, chips: int) -> dict[str, int]:
    """fsdp over up to 32 chips, tensor over the rest.

    So a weight's rows per chip stay a multiple of the 16 of a bfloat16 tile.
    """
    from grm_jax.models import get_config

    cfg = get_config(model.partition("@")[0])
    fsdp = max(n for n in (1, 2, 4, 8, 16, 32) if n <= chips and cfg.d_model % (16 * n) == 0)
    tensor = min(chips // fsdp, cfg.num_kv_heads)
    return {"data": chips // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}


def cases() -> list[tuple[str, str, str]]:
    """Returns (model, slice, program) of every row, in the order in which they are compiled."""
    rows = list(itertools.product(MODELS, SLICES, PROGRAMS))
    for model, slices in JUDGES.items():
        rows += itertools.product([model], slices, JUDGE_PROGRAMS)
    for model, slices in QUANTISED.items():
        rows += itertools.product([model], slices, JUDGE_PROGRAMS[1:])
    return rows + [(model, name, "grpo_update") for name in SLICES for model in TRAINED]


def config_for(model: str, slice_name: str) -> Any:
    """An experiment that consists of supervised fine-tuning and reinforcement learning."""
    from ml_collections import ConfigDict

    from experiments import spct_9b
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
            "stages": ("rft", "rl"),
            "model": model,
            "model_overrides": {"remat": "full", "query_chunk": 1024},
            "mesh": mesh_for(model, chips),
            "seq_len": LENGTH,
            "batch_size": chips,
            "rft": rft,
            "rl": spct_9b.get_config().rl,
        }
    )


def compile_row(model: str, slice_name: str, program: str) -> dict[str, Any]:
    """Compiles one row in this process."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from launch.compile import compile_only, programs

    config = config_for(model, slice_name)
    if program.startswith("judge_"):
        task = judge_task(config, slice_name, program)
    else:
        mesh = programs.make_slice_mesh(config, slice_name)
        (task,) = programs.tasks(config, mesh, [program])
    task = dataclasses.replace(task, name=f"{model} {program}")
    return dataclasses.asdict(compile_only.compile_task(task, slice_name))


def judge_task(config: Any, slice_name: str, program: str) -> Any:
    """Returns prefill or decode of `JUDGE_PROMPTS` prompts, with weights split over `tensor`."""
    from grm_jax.models import get_config
    from grm_jax.sampling import Request
    from launch.compile import programs
    from launch.compile.slices import get_slice

    config.model, _, kind = config.model.partition("@")
    weights, _, caches = kind.partition("+")
    tpu_slice = get_slice(slice_name)
    kinds = {"quantize": weights or None, "kv_cache_dtype": "int8" if caches else None}
    cfg = get_config(config.model, **kinds)
    tensor = min(tpu_slice.chips, cfg.num_kv_heads)
    config.mesh = {"data": tpu_slice.chips // tensor, "fsdp": 1, "tensor": tensor}
    mesh = programs.make_slice_mesh(config, slice_name)
    k, prompt, new_tokens = WORKLOADS.get(config.model, OTHER_WORKLOADS)
    requests = [Request([0] * prompt, k, new_tokens)] * JUDGE_PROMPTS
    hbm = tpu_slice.generation.hbm_bytes
    try:
        tasks = programs.sampler_tasks(cfg, mesh, requests, hbm)
    except MemoryError:  # not even one critique fits: shows what the batch would need
        tasks = programs.sampler_tasks(cfg, mesh, requests, 1 << 50)
    return tasks[program == "judge_decode"]


def main() -> int:
    parser = common.argument_parser(__doc__)
    for name in ("models", "slices", "programs"):
        parser.add_argument(f"--{name}", help="only these, comma-separated")
    parser.add_argument("--again", action="store_true", help="also compile rows of the result file")
    parser.add_argument("--one", nargs=3, help="internal: compile one row and print it")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(compile_row(*args.one)))
        return 0

    from launch.compile import results

    about = results.provenance("models on TPU slices; see the docstring of the command")
    about["command"] = "python benchmarks/compile_table.py"
    earlier = common.read_json(OUT.with_suffix(".json"), {"about": about, "results": []})
    rows = {(r["program"], r["slice"]): results.from_json(r) for r in earlier["results"]}
    if (old := earlier["about"]["versions"]) != about["versions"]:
        if not args.again:
            print(f"{OUT}.json is of {old}, this is {about['versions']}: add --again to replace it")
            return 2
        rows = {}
    chosen = [
        case
        for case in cases()
        if all(
            value in (getattr(args, name) or value).split(",")
            for name, value in zip(("models", "slices", "programs"), case)
        )
    ]
    names = {case: (f"{case[0]} {case[2]}", case[1]) for case in chosen}
    missing = [case for case in chosen if args.again or names[case] not in rows]
    failures = 0
    print(f"{len(chosen) - len(missing)} of {len(chosen)} programs from an earlier run", flush=True)
    for number, case in enumerate(missing, start=1 + len(chosen) - len(missing)):
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
        print(f"{number} of {len(chosen)}: {results.summary(row)}", flush=True)
        results.write(_ordered(rows), OUT, about)
    results.print_table(_ordered(rows))
    return int(failures > 0)


def _ordered(rows: dict[tuple[str, str], Any]) -> list:
    """Returns the rows by model, then program, then slice."""
    models, programs = [*MODELS, *JUDGES, *QUANTISED], [*PROGRAMS, *JUDGE_PROGRAMS, "grpo_update"]
    table = sorted(cases(), key=lambda case: (models.index(case[0]), programs.index(case[2])))
    order = {(f"{model} {program}", s): n for n, (model, s, program) in enumerate(table)}
    return [rows[key] for key in sorted(rows, key=lambda key: order.get(key, len(order)))]


if __name__ == "__main__":
    sys.exit(main())
