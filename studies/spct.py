"""Seeds x ablations of one experiment, and what they say together.

    python studies/spct.py --config experiments/spct_tiny.py --seeds 0,1,2 --workdir runs/study --out experiments/results/spct_tiny

The seeds of the main runs may be given to several processes (--ablations "" --seeds 1); a last one over all of them finds them done.
The main runs do every stage; an ablation does RFT, RL and an evaluation without the meta RM. One that only changes RL starts from the RFT model of
the same seed, and those that the paper's Table 4 has of the RFT model end there.
A run that is finished is not run again, so the study can be interrupted, and grown; on another machine too, as OUT/credits
keeps of each run which config it was of and what it got right, and only what is not there, or of another config, is run.
Intervals: 95% bootstrap of credits averaged over seeds (the items are the same for all seeds), over prompts: comparisons of one query are drawn together.
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
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

MAIN = "main"
RL_ONLY = ("beta_",)
RFT_ROWS = (
    "no_hinted",
    "no_non_hinted",
    "no_general",
)  # Table 4 of the paper has these of the RFT model
SHOWN = ("rft/Greedy@1", "rft/Voting@8", "rl/Greedy@1", "rl/Voting@8")
DEFAULT = "no_principles,no_hinted,no_non_hinted,no_judging_data,no_rejection,no_general,beta_0,beta_0.01,beta_0.02,shuffled_labels"


def asked_for(text: str) -> list[tuple[str, list[int]]]:
    """[(ablation, its own seeds)] of "no_hinted,no_rejection@0+2"; no seeds where it names none."""
    found = []
    for part in filter(None, text.split(",")):
        name, _, seeds = part.partition("@")
        found.append((name, [int(seed) for seed in seeds.split("+")] if seeds else []))
    return found


def load_experiment(path: str):
    """The get_config of an experiment's file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished cell of the study: {"model/method@k": credit of each item}, what its stages took, and how good its meta RM was."""

    ablation: str
    seed: int
    credits: dict[str, list[float]]
    seconds: dict[str, float]
    meta_rm: dict[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.ablation}-{self.seed}"


def cell_config(get_config, ablation: str, seed: int, extra: str = ""):
    """The config of one cell: an ablation leaves out the meta RM, and most samples of the evaluation."""
    parts = [part for part in ("" if ablation == MAIN else ablation, f"seed={seed}", extra) if part]
    config = get_config(",".join(parts))
    if ablation != MAIN:
        left_out = ("meta_rm", "rl") if ablation in RFT_ROWS else ("meta_rm",)
        config.stages = tuple(stage for stage in config.stages if stage not in left_out)
        config.eval.samples = 8
        config.export = False
    return config


def identity(config) -> str:
    """A hash of everything that decides a run's result: the sections of stages that do not run are left out."""
    from grm_jax.training.main import STAGES

    aside = {"name", "tensorboard", "export", *(set(STAGES) - set(config.stages))}
    fields = {
        name: value
        for name, value in json.loads(config.to_json_best_effort()).items()
        if name not in aside
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def run_one(
    get_config, ablation: str, seed: int, workdir: Path, credits: Path, extra: str = ""
) -> Run:
    """Runs (or goes on with, or finds) one cell of the study.

    credits: folder that keeps what each finished run got right.
    """
    from grm_jax.training import loop
    from grm_jax.training.main import run

    config = cell_config(get_config, ablation, seed, extra)
    folder, kept = workdir / f"{ablation}-{seed}", credits / f"{ablation}-{seed}.json"
    if kept.exists():
        row = json.loads(kept.read_text())
        if row["config"] == identity(config):
            return Run(ablation, seed, row["credits"], row["seconds"], row.get("meta_rm", {}))
        log.warning("%s is of another config: it is run again", kept)
    if ablation.startswith(RL_ONLY):
        folder.mkdir(parents=True, exist_ok=True)
        main_rft = workdir / f"{MAIN}-{seed}" / "rft"
        if not (folder / "rft").exists() and main_rft.exists():
            (folder / "rft").symlink_to(main_rft.resolve())
    run(config, folder)
    result = loop.read_result(folder / "eval")
    quality = {name: result.get("meta_rm", {}).get(name) for name in ("auc", "auc_within", "ece")}
    found = Run(
        ablation,
        seed,
        credits_of(folder),
        result["seconds"],
        quality if "meta_rm" in result else {},
    )
    row = {"seconds": found.seconds, "meta_rm": found.meta_rm, "credits": found.credits}
    credits.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"config": identity(config), **row}) + "\n")
    return found


def credits_of(folder: Path) -> dict[str, list[float]]:
    """{"model/method@k": credit of each item}, to five digits, of a finished run."""
    credits = json.loads((folder / "eval" / "credits.json").read_text())
    return {name: [round(value, 5) for value in values] for name, values in credits.items()}


def pooled(runs: Sequence[Run], prompts: Sequence[str] | None = None) -> dict[str, dict]:
    """Each cell over the seeds: mean, interval, and the seeds' own means."""
    import numpy as np

    from grm_jax.training import evaluate

    found = {}
    for name in runs[0].credits:
        if all(name in run.credits for run in runs):
            values = np.array([run.credits[name] for run in runs])
            low, high = evaluate.interval(values.mean(axis=0), prompts=prompts)
            found[name] = {
                "mean": float(values.mean()), "low": low, "high": high, "seeds": values.mean(axis=1).round(4).tolist()
            }  # fmt: skip
    return found


def difference(
    runs_a: Sequence[Run],
    name_a: str,
    runs_b: Sequence[Run],
    name_b: str,
    prompts: Sequence[str] | None = None,
) -> dict | None:
    """Paired difference a - b over the seeds and items; None where a cell is missing."""
    import numpy as np

    from grm_jax.training import evaluate

    a, b = [run.credits.get(name_a) for run in runs_a], [run.credits.get(name_b) for run in runs_b]
    if None in a or None in b:
        return None
    mean, low, high = evaluate.difference(np.mean(a, axis=0), np.mean(b, axis=0), prompts=prompts)
    seeds = [float(np.mean(x) - np.mean(y)) for x, y in zip(a, b)]
    return {"mean": mean, "low": low, "high": high, "seeds": [round(s, 4) for s in seeds]}


CLAIMS = (
    ("RL above RFT, greedy", "rl/Greedy@1", "rft/Greedy@1"),
    ("RL above RFT, Voting@1", "rl/Voting@1", "rft/Voting@1"),
    ("RL above RFT, Voting@8", "rl/Voting@8", "rft/Voting@8"),
    ("Voting@8 above Voting@1 (RL)", "rl/Voting@8", "rl/Voting@1"),
    ("Voting@32 above Voting@8 (RL)", "rl/Voting@32", "rl/Voting@8"),
    ("MetaRM@8 at or above Voting@8 (RL)", "rl/MetaRM@8", "rl/Voting@8"),
)


def aggregate(runs: dict[str, list[Run]], prompts: Sequence[str] | None = None) -> dict:
    """What the study found: the claims, each ablation against the main runs, and every cell.

    prompts: each item's, as `evaluate.prompts_of` names them; None draws items one by one.
    """
    main = runs[MAIN]
    same = {
        name: [run for run in main if run.seed in {other.seed for other in found}]
        for name, found in runs.items()
    }
    claims = {text: difference(main, a, main, b, prompts) for text, a, b in CLAIMS}
    ablations = {
        name: {
            cell: {
                "ablation - main": difference(found, cell, same[name], cell, prompts),
                **pooled(found, prompts).get(cell, {}),
            }
            for cell in SHOWN
            if not (
                name.startswith(RL_ONLY) and cell.startswith("rft/")
            )  # its RFT model is the main run's
        }
        for name, found in runs.items()
        if name != MAIN
    }
    return {
        "claims": claims,
        "ablations": ablations,
        "main": pooled(main, prompts),
        "meta_rm": {str(run.seed): run.meta_rm for run in main if run.meta_rm},
    }


def as_text(study: dict) -> str:
    lines = []

    def points(d, sign=True):
        form = "{:+.1f} ({:+.1f} to {:+.1f})" if sign else "{:.1f} ({:.1f} to {:.1f})"
        return form.format(*(100 * d[key] for key in ("mean", "low", "high")))

    for text, d in study["claims"].items():
        lines.append(f"{text:<38} {points(d) if d else 'not run'}")
    lines.append("")
    for name, d in study["main"].items():
        lines.append(
            f"{name:<24} {points(d, False)}  seeds {', '.join(f'{100 * s:.1f}' for s in d['seeds'])}"
        )
    if study["meta_rm"]:
        lines += ["", "meta RM on the critiques that it guided, by seed"]
    for seed, quality in study["meta_rm"].items():
        told = (
            f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in quality.items()
        )
        lines.append(f"    seed {seed}   {'   '.join(told)}")
    for name, cells in study["ablations"].items():
        lines += ["", name]
        for cell, d in cells.items():
            if d.get("ablation - main"):
                lines.append(
                    f"    {cell:<18} {points(d, False)}   against main {points(d['ablation - main'])}"
                )
    return "\n".join(lines)


def plots(study: dict, out: Path) -> None:
    """scaling.png: the main runs over k; ablations.png: each ablation against the main runs of the same seeds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from grm_jax.training import evaluate, report

    cells = []
    for name, d in study["main"].items():
        model, way = name.split("/")
        method, k = way.split("@")
        cells.append(evaluate.Cell(model, method, int(k), d["mean"], d["low"], d["high"], 0.0, 1.0))
    report.plot_scaling(cells, out / "scaling.png")
    found = {
        name: {cell: d["ablation - main"] for cell, d in cells.items() if d["ablation - main"]}
        for name, cells in study["ablations"].items()
    }
    names = [name for name, cells in found.items() if cells]
    if not names:
        return
    figure, axis = plt.subplots(figsize=(7.5, 1.2 + 0.6 * len(names)), layout="constrained")
    for number, (cell, colour) in enumerate(zip(SHOWN, report.COLOURS)):
        points = [
            (i + 0.17 * (number - 1.5), found[name][cell])
            for i, name in enumerate(names)
            if cell in found[name]
        ]
        means = [100 * d["mean"] for _, d in points]
        errors = [
            [100 * (d["mean"] - d["low"]) for _, d in points],
            [100 * (d["high"] - d["mean"]) for _, d in points],
        ]
        axis.errorbar(
            means, [y for y, _ in points], xerr=errors, fmt="o", color=colour, capsize=3, label=cell
        )
    axis.axvline(0, color="grey", linewidth=1)
    axis.set_yticks(range(len(names)), names)
    axis.margins(y=0.1)
    axis.invert_yaxis()
    axis.set(
        xlabel="accuracy against the main runs of the same seeds (points, 95% interval)",
        title="Ablations and controls",
    )
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize=8)
    figure.savefig(out / "ablations.png", dpi=110)
    plt.close(figure)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "experiments" / "spct_tiny.py"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--ablation_seeds",
        default="",
        help="seeds of the ablations, where fewer; compared with the main runs of these seeds",
    )
    parser.add_argument(
        "--ablations",
        default=DEFAULT,
        help="comma-separated; empty for none; NAME@0+2 for one with seeds of its own",
    )
    parser.add_argument(
        "--extra", default="", help="further field=value changes for every run, comma-separated"
    )
    parser.add_argument("--workdir", default="runs/study")
    parser.add_argument(
        "--out",
        default="",
        help="folder for study.json, study.txt and the plots; the workdir if empty",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells every step of every save
    import jax

    from grm_jax.training import evaluate
    from grm_jax.training.eval_stage import held_out

    get_config, workdir = load_experiment(options.config), Path(options.workdir)
    out = Path(options.out or workdir)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    runs: dict[str, list[Run]] = {}
    ablated = (
        [int(seed) for seed in options.ablation_seeds.split(",")]
        if options.ablation_seeds
        else seeds
    )
    if extra := {
        *ablated,
        *(seed for _, own in asked_for(options.ablations) for seed in own),
    } - set(seeds):
        parser.error(f"ablations of seeds {sorted(extra)} have no main run: add them to --seeds")
    for ablation, own in [(MAIN, seeds), *asked_for(options.ablations)]:
        wanted = own or ablated
        runs[ablation] = [
            run_one(get_config, ablation, seed, workdir, out / "credits", options.extra)
            for seed in wanted
        ]
    config = cell_config(get_config, MAIN, seeds[0], options.extra)
    study = aggregate(runs, evaluate.prompts_of(held_out(config)))
    study["about"] = {
        "config": Path(options.config).name, "extra": options.extra, "seeds": seeds,
        "ablation_seeds": {name: [run.seed for run in found] for name, found in runs.items() if name != MAIN},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": {run.name: run.seconds for found in runs.values() for run in found},
        "device": jax.devices()[0].device_kind, "machine": platform.machine(), "jax": jax.__version__,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "study.json").write_text(json.dumps(study, indent=2) + "\n")
    (out / "study.txt").write_text(as_text(study) + "\n")
    plots(study, out)
    (out / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    print(as_text(study))


if __name__ == "__main__":
    main()
