"""Runs one experiment over seeds and ablations, and tests the claims of the paper on the results.

    python studies/spct.py --config experiments/spct_tiny.py --seeds 0,1,2 \\
        --workdir runs/study --out experiments/results/spct_tiny

The main runs do every stage. An ablation does RFT, RL and an evaluation without the meta RM. One
that only changes RL starts from the RFT model of the same seed, and those that the paper's table 4
has for the RFT model end there.

A finished run is not repeated, so a study can be interrupted and extended, on another machine as
well: OUT/credits keeps the config hash and the credits of each run, and only missing runs and runs
of another config are done. To split the main runs over processes, give each its own seeds
(--ablations "" --seeds 1); a last command over all seeds finds them done.

Intervals: 95% bootstrap over prompts of credits averaged over seeds, which share their comparisons.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from grm_jax import strict_json  # noqa: E402
from grm_jax.evals import figures, plots  # noqa: E402
from grm_jax.evals.bootstrap import STAGE_DRAWS, Resampler, prompt_key  # noqa: E402
from grm_jax.evals.cells import Cell  # noqa: E402
from grm_jax.storage import write_atomic  # noqa: E402

MAIN = "main"
RL_ONLY = ("beta_",)
# Ablations that the paper's table 4 has for the RFT model.
RFT_ONLY = ("no_hinted", "no_non_hinted", "no_general")
SHOWN = ("rft/Greedy@1", "rft/Voting@8", "rl/Greedy@1", "rl/Voting@8")
DEFAULT = (
    "no_principles,no_hinted,no_non_hinted,no_judging_data,no_rejection,no_general,"
    "beta_0,beta_0.01,beta_0.02,shuffled_labels"
)
CLAIMS = (
    ("RL above RFT, greedy", "rl/Greedy@1", "rft/Greedy@1"),
    ("RL above RFT, Voting@1", "rl/Voting@1", "rft/Voting@1"),
    ("RL above RFT, Voting@8", "rl/Voting@8", "rft/Voting@8"),
    ("Voting@8 above Voting@1 (RL)", "rl/Voting@8", "rl/Voting@1"),
    ("Voting@32 above Voting@8 (RL)", "rl/Voting@32", "rl/Voting@8"),
    ("MetaRM@8 at or above Voting@8 (RL)", "rl/MetaRM@8", "rl/Voting@8"),
)


# ---------------------------------------------------------------- runs


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run of the study.

    credits: {"model/method@k": credit of each comparison}.  seconds: of its stages.  meta_rm: AUCs
    and ECE of its meta RM, empty without one.
    """

    ablation: str
    seed: int
    credits: dict[str, list[float]]
    seconds: dict[str, float]
    meta_rm: dict[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.ablation}-{self.seed}"


def parse_ablations(text: str) -> list[tuple[str, list[int]]]:
    """Parses "no_hinted,no_rejection@0+2" into (ablation, its own seeds or []) pairs."""
    ablations = []
    for item in filter(None, text.split(",")):
        name, _, seeds = item.partition("@")
        ablations.append((name, [int(seed) for seed in seeds.split("+")] if seeds else []))
    return ablations


def load_experiment(path: str) -> Callable:
    """The get_config function of an experiment file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def run_config(get_config: Callable, ablation: str, seed: int, extra: str = "") -> Any:
    """The config of one run; an ablation has no meta RM and evaluates 8 samples."""
    changes = ("" if ablation == MAIN else ablation, f"seed={seed}", extra)
    config = get_config(",".join(filter(None, changes)))
    if ablation != MAIN:
        dropped = ("meta_rm", "rl") if ablation in RFT_ONLY else ("meta_rm",)
        config.stages = tuple(stage for stage in config.stages if stage not in dropped)
        config.eval.samples = 8
        config.export = False
    return config


def config_hash(config: Any) -> str:
    """A hash of the fields that decide a run's result; sections of skipped stages do not."""
    from grm_jax.training.main import STAGES

    ignored = {"name", "tensorboard", "export", *(set(STAGES) - set(config.stages))}
    fields = json.loads(config.to_json_best_effort())
    relevant = {name: value for name, value in fields.items() if name not in ignored}
    if not relevant["model_overrides"].get("cpu_products", True):  # as before the field existed
        del relevant["model_overrides"]["cpu_products"]
    if not relevant.get("lora", {}).get("rank"):  # full fine-tuning, as before the section existed
        relevant.pop("lora", None)
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def run_one(
    get_config: Callable, ablation: str, seed: int, workdir: Path, credits: Path, extra: str = ""
) -> Run:
    """Runs or resumes one run, or loads it from `credits`, the folder of finished runs' credits."""
    from grm_jax.training import loop
    from grm_jax.training.main import run

    config = run_config(get_config, ablation, seed, extra)
    folder, record_path = workdir / f"{ablation}-{seed}", credits / f"{ablation}-{seed}.json"
    if record_path.exists():
        record = strict_json.read(record_path)
        if record["config"] == config_hash(config):
            quality = record.get("meta_rm", {})
            return Run(ablation, seed, record["credits"], record["seconds"], quality)
        log.warning("%s has another config: running it again", record_path)
    if ablation.startswith(RL_ONLY):
        folder.mkdir(parents=True, exist_ok=True)
        main_rft = workdir / f"{MAIN}-{seed}" / "rft"
        if not (folder / "rft").exists() and main_rft.exists():
            (folder / "rft").symlink_to(main_rft.resolve())
    run(config, folder)
    result = loop.read_result(folder / "eval")
    quality = result.get("meta_rm", {})
    if quality:
        quality = {name: quality.get(name) for name in ("auc", "auc_within", "ece")}
    finished = Run(ablation, seed, read_credits(folder), result["seconds"], quality)
    record = {
        "config": config_hash(config),
        "seconds": finished.seconds,
        "meta_rm": finished.meta_rm,
        "credits": finished.credits,
    }
    write_atomic(record_path, strict_json.dumps(record) + "\n")
    return finished


def read_credits(folder: Path) -> dict[str, list[float]]:
    """{"model/method@k": credit of each comparison} of a finished run, to five digits."""
    credits = strict_json.read(folder / "eval" / "credits.json")
    return {name: [round(value, 5) for value in values] for name, values in credits.items()}


# ---------------------------------------------------------------- statistics


def estimate(credits: np.ndarray, seeds: Sequence[float], prompts: Sequence[str]) -> dict:
    """The mean of credits averaged over seeds with its interval, beside the means of the seeds."""
    mean = Resampler(prompts, draws=STAGE_DRAWS).mean(credits)
    seeds = [round(float(seed), 4) for seed in seeds]
    return {"mean": mean.value, "low": mean.low, "high": mean.high, "seeds": seeds}


def pooled(runs: Sequence[Run], name: str, prompts: Sequence[str]) -> dict | None:
    """One cell over the seeds; None if a run lacks it."""
    credits = [run.credits.get(name) for run in runs]
    if None in credits:
        return None
    return estimate(np.mean(credits, axis=0), np.mean(credits, axis=1), prompts)


def difference(
    runs_a: Sequence[Run], name_a: str, runs_b: Sequence[Run], name_b: str, prompts: Sequence[str]
) -> dict | None:
    """The difference a - b over seeds, paired by comparison; None if a run lacks a cell."""
    a, b = [run.credits.get(name_a) for run in runs_a], [run.credits.get(name_b) for run in runs_b]
    if None in a or None in b:
        return None
    seeds = [np.mean(x) - np.mean(y) for x, y in zip(a, b)]
    return estimate(np.mean(a, axis=0) - np.mean(b, axis=0), seeds, prompts)


def aggregate(runs: dict[str, list[Run]], prompts: Sequence[str] | None = None) -> dict:
    """Computes the claims, each ablation against the main runs of its seeds, and every cell.

    prompts: one key per comparison (`bootstrap.prompt_key`); None resamples single comparisons.
    """
    main = runs[MAIN]
    if prompts is None:
        prompts = [str(i) for i in range(len(next(iter(main[0].credits.values()))))]
    ablations: dict[str, dict] = {}
    for name, members in runs.items():
        if name == MAIN:
            continue
        seeds = {run.seed for run in members}
        same_seeds = [run for run in main if run.seed in seeds]
        # An ablation of RL alone has the main run's RFT model.
        cells = [c for c in SHOWN if not (name.startswith(RL_ONLY) and c.startswith("rft/"))]
        ablations[name] = {
            cell: {"ablation - main": difference(members, cell, same_seeds, cell, prompts)}
            | (pooled(members, cell, prompts) or {})
            for cell in cells
        }
    cells = {name: pooled(main, name, prompts) for name in main[0].credits}
    return {
        "claims": {text: difference(main, a, main, b, prompts) for text, a, b in CLAIMS},
        "ablations": ablations,
        "main": {name: cell for name, cell in cells.items() if cell},
        "meta_rm": {str(run.seed): run.meta_rm for run in main if run.meta_rm},
    }


# ---------------------------------------------------------------- text and plots


def points(estimate: dict, sign: str = "+") -> str:
    """ "+1.2 (-0.3 to +2.7)", in percentage points."""
    keys = ("mean",) if estimate["low"] is None else ("mean", "low", "high")
    mean, *interval = (f"{100 * estimate[key]:{sign}.1f}" for key in keys)
    return f"{mean} ({' to '.join(interval)})" if interval else mean


def as_text(study: dict) -> str:
    """The study as text: claims, cells, meta RM, ablations."""
    lines = [f"{text:<38} {points(d) if d else 'not run'}" for text, d in study["claims"].items()]
    lines.append("")
    for name, cell in study["main"].items():
        seeds = ", ".join(f"{100 * seed:.1f}" for seed in cell["seeds"])
        lines.append(f"{name:<24} {points(cell, '')}  seeds {seeds}")
    if study["meta_rm"]:
        lines += ["", "meta RM on the critiques that it guided, by seed"]
    for seed, quality in study["meta_rm"].items():
        values = (f"{n} {'-' if v is None else f'{v:.3f}'}" for n, v in quality.items())
        lines.append(f"    seed {seed}   {'   '.join(values)}")
    for name, cells in study["ablations"].items():
        lines += ["", name]
        for label, cell in cells.items():
            if against := cell.get("ablation - main"):
                lines.append(f"    {label:<18} {points(cell, '')}   against main {points(against)}")
    return "\n".join(lines)


def write_plots(study: dict, out: Path) -> None:
    """Writes scaling.png (the main runs over k) and ablations.png (against the main runs)."""
    cells = []
    for name, cell in study["main"].items():
        model, _, method_at_k = name.partition("/")
        method, _, k = method_at_k.partition("@")
        cells.append(Cell(model, method, int(k), cell["mean"], cell["low"], cell["high"], 0.0, 1.0))
    figures.save_png(plots.scaling(cells), out / "scaling.png")
    differences = {
        name: {c: cell["ablation - main"] for c, cell in cells.items() if cell["ablation - main"]}
        for name, cells in study["ablations"].items()
    }
    differences = {name: cells for name, cells in differences.items() if cells}
    if not differences:
        return
    figure, axes = figures.new_axes(1.2 + 0.6 * len(differences), 7.5)
    for row, cells in enumerate(differences.values()):
        for number, (label, colour) in enumerate(zip(SHOWN, figures.COLOURS)):
            if label in cells:
                y = row + 0.17 * (number - 1.5)
                figures.draw_interval(axes, y, cells[label], colour)
                axes.plot([100 * cells[label]["mean"]], [y], "o", color=colour)
    for label, colour in zip(SHOWN, figures.COLOURS):
        axes.plot([], [], "o", color=colour, label=label)
    axes.axvline(0, color=figures.INK, linewidth=1)
    figures.draw_names(axes, list(differences))
    axis = "accuracy minus that of the main runs of the same seeds (points, 95% CI)"
    figures.set_labels(axes, axis, title="Ablations and controls")
    figures.draw_legend(axes)
    figures.save_png(figure, out / "ablations.png")


# ---------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config", default=str(ROOT / "experiments" / "spct_tiny.py"))
    p.add_argument("--seeds", default="0,1,2", help="seeds of the main runs")
    p.add_argument(
        "--ablation_seeds", default="", help="seeds of the ablations (default: as the main runs)"
    )
    p.add_argument(
        "--ablations",
        default=DEFAULT,
        help="comma-separated; empty for none; NAME@0+2 gives one its own seeds",
    )
    p.add_argument("--extra", default="", help="field=value changes for every run, comma-separated")
    p.add_argument("--workdir", default="runs/study")
    p.add_argument(
        "--out", default="", help="folder of study.json, study.txt and plots (default: the workdir)"
    )
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the study and writes its results."""
    p = parser()
    options = p.parse_args(argv)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    ablation_seeds = [int(seed) for seed in options.ablation_seeds.split(",") if seed] or seeds
    ablations = parse_ablations(options.ablations)
    if unmatched := {*ablation_seeds, *(s for _, own in ablations for s in own)} - set(seeds):
        p.error(
            f"ablations of seeds {sorted(unmatched)} have no main run: add the seeds to --seeds"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs every step of every save
    import jax

    from grm_jax.training.eval_stage import held_out

    get_config, workdir = load_experiment(options.config), Path(options.workdir)
    out = Path(options.out or workdir)
    runs = {
        ablation: [
            run_one(get_config, ablation, seed, workdir, out / "credits", options.extra)
            for seed in own_seeds or ablation_seeds
        ]
        for ablation, own_seeds in [(MAIN, seeds), *ablations]
    }
    config = run_config(get_config, MAIN, seeds[0], options.extra)
    study = aggregate(runs, [prompt_key(comparison) for comparison in held_out(config)])
    study["about"] = {
        "config": Path(options.config).name,
        "extra": options.extra,
        "seeds": seeds,
        "ablation_seeds": {
            name: [run.seed for run in members] for name, members in runs.items() if name != MAIN
        },
        "date": time.strftime("%Y-%m-%d"),
        "seconds": {run.name: run.seconds for members in runs.values() for run in members},
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "jax": jax.__version__,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "study.json", strict_json.dumps(study, indent=2) + "\n")
    write_atomic(out / "study.txt", as_text(study) + "\n")
    write_plots(study, out)
    write_atomic(out / "config.json", config.to_json_best_effort(indent=2) + "\n")
    print(as_text(study))


if __name__ == "__main__":
    main()
