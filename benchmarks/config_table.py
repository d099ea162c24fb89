"""Compiles the shipped experiments for TPU slices: does each fit, and how long is a step at best?

    python benchmarks/config_table.py           rows missing in results/config_table.json
    python benchmarks/config_table.py --configs spct_27b --slices v5p-64 --again
    python benchmarks/config_table.py --again --programs rollout_prefill,rollout_decode

Compiles every program of an experiment for the slice, without a TPU: about five minutes per
experiment and slice on two cores. A stopped run resumes at the program that it was compiling.
Writes benchmarks/results/config_table.{json,md} and the table in docs/tpu_memory.md. A step's time
is the sum of its programs' rooflines with every completion at its full length: a lower bound, not a
measurement.
"""

import dataclasses
import functools
import importlib
import json
import math
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

# experiment -> slice -> tensor parallelism; fsdp takes the rest. For decoding, each chip has
# 1/tensor of the weights.
CASES = {
    "spct_2b": {"v5litepod-8": 1, "v4-8": 1},
    "spct_9b": {"v5litepod-64": 8, "v5p-16": 2},
    "spct_27b": {"v5p-64": 4, "v5p-128": 4, "v4-128": 4, "v5litepod-256": 16},
    "spct_2b_lora": {"v5litepod-1": 1},
    "spct_9b_lora": {"v5litepod-8": 8, "v4-8": 4},
    "spct_27b_lora": {"v5litepod-16": 16, "v4-32": 16},
}
OUT = common.RESULTS / "config_table"
STEP = ("rollout_prefill", "rollout_decode", "reference_logps", "grpo_update")  # of GRPO
PAGE = common.ROOT / "docs" / "tpu_memory.md"
BEGIN, END = "<!-- config table -->", "<!-- end of config table -->"
COLUMNS = {
    "experiment": "left",
    "slice": "left",
    "mesh (data x fsdp x tensor)": "left",
    "tightest program": "left",
    "peak GiB per chip": "right",
    "": "left",
    "SFT step": "right",
    "GRPO step": "left",
    "meta RM step": "right",
}
LEGEND = (
    "Compiled, not measured: `python benchmarks/config_table.py`. Times are rooflines, lower "
    "bounds of a step, with every completion at its full length. For another mesh than the "
    "default, pass `--config.mesh.tensor=N`."
)


def compile_case(
    name: str, slice_name: str, tensor: int, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Compiles the programs of one experiment for one slice, in this process; names: only these."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from launch.compile import compile_only, programs, results
    from launch.compile.slices import get_slice

    config = importlib.import_module(f"experiments.{name}").get_config()
    config.mesh.tensor = tensor
    mesh = programs.make_slice_mesh(config, slice_name)
    hbm = get_slice(slice_name).generation.hbm_bytes
    report = functools.partial(print, file=sys.stderr)
    # The store of `launch/tpu.py --compile_only`, so that a program is compiled once.
    with results.open_store(common.ROOT / "runs" / name / f"compile_{slice_name}") as store:
        settle = programs.settle_by_compiling(mesh, slice_name, report=report, store=store)
        tasks = programs.tasks(config, mesh, names, hbm, settle)
        compiled = compile_only.compile_tasks(tasks, slice_name, report=report, store=store)
    rl = config.rl
    return {
        "config": name,
        "slice": slice_name,
        "mesh": dict(mesh.shape),
        "rl": {
            "completions": rl.prompts * rl.group_size,
            "prompts": rl.prompts,
            "prompt_len": rl.prompt_len,
            "new": rl.max_new_tokens,
        },
        "programs": [dataclasses.asdict(result) for result in compiled],
    }


def step_seconds(case: dict[str, Any]) -> dict[str, float]:
    """Returns the phases of a GRPO step: each program's roofline times the number of its calls.

    Empty if one of the programs does not fit or is missing.
    """
    programs = {p["program"]: p for p in case["programs"]}
    if any(p["error"] for p in programs.values()) or not programs.keys() >= set(STEP):
        return {}
    rl, seconds = case["rl"], {name: p["roofline_seconds"] for name, p in programs.items()}
    prefills = math.ceil(rl["prompts"] * rl["prompt_len"] / programs["rollout_prefill"]["tokens"])
    batches = math.ceil(rl["completions"] / programs["rollout_decode"]["tokens"])
    return {
        "prefill": prefills * seconds["rollout_prefill"],
        "decode": batches * (rl["new"] - 1) * seconds["rollout_decode"],
        "reference": seconds["reference_logps"],
        "update": seconds["grpo_update"],
    }


def table_row(case: dict[str, Any]) -> list[str]:
    tightest = min(case["programs"], key=lambda p: p["headroom"])
    peak, available = (tightest[key] / 2**30 for key in ("peak", "hbm_available"))
    seconds = {p["program"]: p["roofline_seconds"] for p in case["programs"]}
    phases = step_seconds(case)
    shares = ", ".join(f"{name} {share:.1f}" for name, share in phases.items())
    fits = not any(p["error"] for p in case["programs"])

    def update(name: str) -> str:
        return f"{seconds[name]:.1f} s" if name in seconds else "-"

    return [
        case["config"],
        case["slice"],
        " x ".join(map(str, case["mesh"].values())),
        tightest["program"],
        f"{peak:.1f} of {available:.2f}",
        f"{tightest['headroom']:.0%} free" if fits else "does not fit",
        update("sft_update"),
        f"{sum(phases.values()):.0f} s ({shares})" if phases else "-",
        update("meta_rm_update"),
    ]


def write(cases: dict[tuple[str, str], dict]) -> None:
    ordered = [cases[c, s] for c, slices in CASES.items() for s in slices if (c, s) in cases]
    common.write_json(OUT.with_suffix(".json"), ordered)
    table = common.markdown_table(COLUMNS, [table_row(case) for case in ordered])
    text = f"{table}\n\n{textwrap.fill(LEGEND, 100)}\n"
    OUT.with_suffix(".md").write_text(f"# Experiments on slices\n\n{text}")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")


def main() -> int:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--configs", default=",".join(CASES))
    parser.add_argument("--slices", default="", help="only these")
    parser.add_argument("--again", action="store_true", help="also rows of the result file")
    parser.add_argument(
        "--programs", default="", help="only these, comma-separated; others of a row stay"
    )
    parser.add_argument("--one", nargs=3, help="internal: compile one row and print it")
    args = parser.parse_args()
    names = args.programs.split(",") if args.programs else None
    if args.one:
        name, slice_name, tensor = args.one
        print(json.dumps(compile_case(name, slice_name, int(tensor), names)))
        return 0
    earlier = common.read_json(OUT.with_suffix(".json"), [])
    cases = {(case["config"], case["slice"]): case for case in earlier}
    failures = 0
    for name in args.configs.split(","):
        for slice_name, tensor in CASES[name].items():
            selected = not args.slices or slice_name in args.slices.split(",")
            if not selected or ((name, slice_name) in cases and not args.again):
                continue
            try:
                row = ("--one", name, slice_name, tensor, "--programs", args.programs)
                case = common.run_apart(__file__, *row)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                failures += 1
                continue
            if names and (before := cases.get((name, slice_name))):
                kept = [p for p in before["programs"] if p["program"] not in names]
                case["programs"] = kept + case["programs"]
            cases[name, slice_name] = case
            write(cases)
            print(" | ".join(table_row(case)), flush=True)
    write(cases)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
