"""The shipped experiments on the slices they are meant for: does each program fit, and how long is a step at best.

    python benchmarks/config_table.py                                 what benchmarks/results/config_table.json does not hold yet
    python benchmarks/config_table.py --configs spct_27b --slices v5p-64 --again

Every program of an experiment is compiled for the slice, without one: about five minutes for each experiment and slice on two cores. The table is
written to benchmarks/results/config_table.md and into docs/tpu_memory.md. A step's time is the sum of its programs' rooflines, every completion at its
full length: the least that it can take, not a measurement.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# experiment -> slice -> tensor parallelism (fsdp takes the rest); decoding holds 1/tensor of the weights on each chip.
CASES = {
    "spct_2b": {"v5litepod-8": 1, "v4-8": 1},
    "spct_9b": {"v5litepod-64": 8, "v5p-16": 2},
    "spct_27b": {"v5p-64": 4, "v5p-128": 4, "v4-128": 4, "v5litepod-256": 16},
}
OUT = ROOT / "benchmarks/results/config_table"
BEGIN, END = "<!-- config table -->", "<!-- end of config table -->"


def compile_case(name: str, slice_name: str, tensor: int) -> dict:
    """All programs of one experiment on one slice, in this process."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import importlib

    from launch.compile import compile_only, programs
    from launch.compile.slices import get_slice

    config = importlib.import_module(f"experiments.{name}").get_config()
    config.mesh.tensor = tensor
    mesh = programs.make_slice_mesh(config, slice_name)
    tasks = programs.tasks(config, mesh, hbm=get_slice(slice_name).generation.hbm_bytes)
    results = compile_only.compile_tasks(
        tasks, slice_name, report=lambda line: print(line, file=sys.stderr, flush=True)
    )
    rl = config.rl
    return {
        "config": name,
        "slice": slice_name,
        "mesh": dict(mesh.shape),
        "rl": {"completions": rl.prompts * rl.group_size, "prompts": rl.prompts, "prompt_len": rl.prompt_len, "new": rl.max_new_tokens},
        "programs": [dataclasses.asdict(r) for r in results],
    }  # fmt: skip


def step_seconds(case: dict) -> dict[str, float]:
    """Parts of a GRPO step in seconds: each program's roofline times how often it runs. Empty where one does not fit."""
    found = {p["program"]: p for p in case["programs"]}
    if any(p["error"] for p in found.values()):
        return {}
    rl, seconds = case["rl"], {name: p["roofline_seconds"] for name, p in found.items()}
    prefills = math.ceil(rl["prompts"] * rl["prompt_len"] / found["rollout_prefill"]["tokens"])
    batches = math.ceil(rl["completions"] / found["rollout_decode"]["tokens"])
    return {
        "prefill": prefills * seconds["rollout_prefill"],
        "decode": batches * (rl["new"] - 1) * seconds["rollout_decode"],
        "reference": seconds["reference_logps"],
        "update": seconds["grpo_update"],
    }


def row(case: dict) -> str:
    mesh = " x ".join(str(n) for n in case["mesh"].values())
    tightest = min(case["programs"], key=lambda p: p["headroom"])
    peak = f"{tightest['peak'] / 2**30:.1f} of {tightest['hbm_available'] / 2**30:.2f}"
    fits = (
        f"{tightest['headroom']:.0%} free"
        if not any(p["error"] for p in case["programs"])
        else "does not fit"
    )
    sft = next(p["roofline_seconds"] for p in case["programs"] if p["program"] == "sft_update")
    parts = step_seconds(case)
    rl = (
        f"{sum(parts.values()):.0f} s ({', '.join(f'{k} {v:.1f}' for k, v in parts.items())})"
        if parts
        else "-"
    )
    return f"| {case['config']} | {case['slice']} | {mesh} | {tightest['program']} | {peak} | {fits} | {sft:.1f} s | {rl} |"


HEAD = """| experiment | slice | mesh (data x fsdp x tensor) | tightest program | peak GiB per chip | | SFT step | GRPO step |
| --- | --- | --- | --- | ---: | --- | ---: | --- |
"""
LEGEND = (
    "Compiled, not measured: `python benchmarks/config_table.py`. Times are rooflines, the least that a step can take, with every completion at its "
    "full length; other than the default mesh, pass `--config.mesh.tensor=N`."
)


def write(cases: dict[tuple[str, str], dict]) -> None:
    ordered = [cases[c, s] for c, slices in CASES.items() for s in slices if (c, s) in cases]
    OUT.with_suffix(".json").write_text(json.dumps(ordered, indent=1) + "\n")
    table = HEAD + "\n".join(row(case) for case in ordered) + f"\n\n{LEGEND}\n"
    OUT.with_suffix(".md").write_text("# Experiments on slices\n\n" + table)
    page = ROOT / "docs/tpu_memory.md"
    text = page.read_text()
    if BEGIN in text:
        before, rest = text.split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", default=",".join(CASES))
    parser.add_argument("--slices", default="", help="only these")
    parser.add_argument(
        "--again", action="store_true", help="compile what is there already once more"
    )
    parser.add_argument(
        "--one", nargs=3, metavar=("CONFIG", "SLICE", "TENSOR"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.one:
        name, slice_name, tensor = options.one
        print(json.dumps(compile_case(name, slice_name, int(tensor))))
        return 0
    path = OUT.with_suffix(".json")
    cases = {
        (c["config"], c["slice"]): c
        for c in (json.loads(path.read_text()) if path.exists() else [])
    }
    failed = 0
    for name in options.configs.split(","):
        for slice_name, tensor in CASES[name].items():
            if options.slices and slice_name not in options.slices.split(","):
                continue
            if (name, slice_name) in cases and not options.again:
                continue
            command = [sys.executable, __file__, "--one", name, slice_name, str(tensor)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                failed += 1
                continue
            cases[name, slice_name] = json.loads(done.stdout.splitlines()[-1])
            write(cases)
            print(row(cases[name, slice_name]), flush=True)
    write(cases)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
