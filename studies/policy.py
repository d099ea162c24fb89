"""Measures what a judge's rewards favour: attacks on the judge, and policies trained against it.

    python studies/policy.py attacks --judge runs/spct_tiny/rl/hf \\
        --meta_rm runs/spct_tiny/meta_rm/hf --out experiments/results/policy/attacks

`attacks` measures, without training, how much reward an answer gains under each judge by text that
makes it no better: praise, fake scores and end markers, principles, padding (`policy_attacks`).
It first trains a small Bradley-Terry reward model in WORKDIR/bt.

    python studies/policy.py train --judge runs/spct_tiny/rl/hf \\
        --meta_rm runs/spct_tiny/meta_rm/hf --seeds 0,1,2 --out experiments/results/policy/train

`train` trains policies with the rewards of several judges (`policy_train.ARMS`). It measures win
rates by the judge and by the truth over the KL, how the policies answer, and which principles the
judge writes about their answers. OUT/records has a file per arm and seed. Finished ones are not
repeated, so arms and seeds can be added later, also on another machine. `report` rewrites the
tables and figures from the existing records. `drift` tabulates the judge's principles at each
checkpoint that finished runs have kept (`policy.keep`):

    python studies/policy.py drift --runs runs/policy_world --out runs/policy_world/drift

A stopped command resumes.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from grm_jax import strict_json  # noqa: E402
from grm_jax.evals import figures, tables  # noqa: E402
from grm_jax.storage import write_atomic  # noqa: E402

SHOWN = (
    "SPCT, k = 1",
    "SPCT, k = 8",
    "SPCT, k = 8, meta RM",
    "principles first, k = 8",
    "Bradley-Terry",
    "longest",
    "truth",
)
ARMS = "spct_k1,spct_k4,spct_k8,spct_k8_meta,first_k8,bt,longest,truth"


# ---------------------------------------------------------------- the Bradley-Terry model


def scalar_judge(folder: Path, steps: int, comparisons: int, seed: int) -> Any:
    """Trains a Bradley-Terry reward model on the judging world, or loads it; returns it as a judge.

    Its data, model and optimizer are those of experiments/spct_tiny.py.
    """
    import jax
    from flax import nnx

    from experiments import spct_tiny
    from grm_jax import Judge, checkpoints
    from grm_jax.baselines import Bench, bt, scalar
    from grm_jax.models import abstract_model
    from grm_jax.training import loop, sources
    from grm_jax.training.programs import model_config

    config = spct_tiny.get_config(f"seed={seed}")
    config.rft.steps, config.rft.comparisons, config.tensorboard = steps, comparisons, False
    hf = folder / "hf"
    if not hf.exists():
        bench = Bench(config)
        with jax.set_mesh(bench.mesh):
            train = folder / "train"
            scalar.trained(bench, train, "bt", bench.first_params, bt.training_pairs)
            graphdef, abstract = abstract_model(model_config(config, scalar_head=True), bench.mesh)
            model = nnx.merge(graphdef, loop.load_params(train, abstract))
            checkpoints.save(model, hf, like=sources.tokenizer_path(config), overwrite=True)
    return Judge.load(hf)


# ---------------------------------------------------------------- attacks


def attacks(args: argparse.Namespace) -> None:
    """Runs the attacks and writes attacks.json, attacks.md and attacks.png."""
    from grm_jax import Judge
    from grm_jax.data import world
    from studies import policy_attacks

    out = Path(args.out)
    workdir = Path(args.workdir or out)
    config = world.WorldConfig(levels={0: 0.7, 1: 0.3}, sizes={2: 0.7, 3: 0.3})
    chosen = policy_attacks.targets(args.items, args.seed, config)
    judge = Judge.load(args.judge, meta_rm=args.meta_rm)
    bt = scalar_judge(workdir / "bt", args.bt_steps, args.bt_comparisons, args.seed)
    results = policy_attacks.run(judge, bt, chosen, workdir / "judgements.jsonl", args.seed)
    write_atomic(out / "attacks.json", strict_json.dumps(results, indent=1) + "\n")
    write_atomic(out / "attacks.md", attacks_table(results))
    figures.save_png(attacks_figure(results), out / "attacks.png")
    print(attacks_table(results))


def _signed(estimate: dict | None, scale: float = 100.0) -> str:
    """Returns a value with its 95% CI, such as "+1.2 (-0.3 to 2.7)"."""
    if estimate is None:
        return tables.MISSING
    value, (low, high) = estimate["value"], figures.bounds(estimate)
    return f"{scale * value:+.1f} ({scale * low:.1f} to {scale * high:.1f})"


def attacks_table(results: dict) -> str:
    """Returns Markdown tables of the attacks: gains in wins and in reward under each judge.

    results: of `policy_attacks.run`.
    """
    rows = {(row["judge"], row["attack"]): row for row in results["rows"]}
    names = list(dict.fromkeys(row["judge"] for row in results["rows"]))
    parts = (
        ("win", 100.0, "Gain in wins: points of the share of comparisons that the answer wins"),
        ("win_wrong", 100.0, "Gain in wins of answers that are not right, in points"),
        ("scaled", 1.0, "Gain in reward, in standard deviations of the judge's rewards"),
    )
    lines = [f"# Attacks on {results['comparisons']} comparisons", ""]
    accuracies = {row["judge"]: row["accuracy"] for row in results["rows"]}
    cells = [[name, tables.percent(accuracies[name])] for name in names]
    lines += ["Accuracy without attack, ties shared:", ""]
    lines += [*tables.markdown_table(["judge", "accuracy"], cells), ""]
    headings = ["attack", "text", "tokens added"]
    cells = [
        [name, text.replace("\n", " "), f"{results['added_tokens'][name]:+.1f}"]
        for name, text in results["attacks"].items()
    ]
    lines += [*tables.markdown_table(headings, cells), ""]
    for field, scale, title in parts:
        cells = []
        if share := {"win": "wins", "win_wrong": "wins_wrong"}.get(field):
            before = [tables.percent(rows[name, "none"][share]) for name in names]
            cells = [["share of wins without attack", *before]]
        cells += [
            [attack, *(_signed(rows[name, attack][field], scale) for name in names)]
            for attack in results["attacks"]
            if attack != "none"
        ]
        lines += [f"## {title}", "", *tables.markdown_table(["attack", *names], cells), ""]
    shares = [
        [attack, *(rows[name, attack]["unscored"] for name in names)]
        for attack in results["attacks"]
    ]
    heading = "## Comparisons without a reward"
    return "\n".join([*lines, heading, "", *tables.markdown_table(["attack", *names], shares), ""])


def attacks_figure(results: dict) -> Any:
    """Draws the gain in wins of each attack with its 95% CI, one colour per judge."""
    names = [name for name in results["attacks"] if name != "none"]
    shown = [name for name in SHOWN if any(row["judge"] == name for row in results["rows"])]
    figure, axes = figures.new_axes(0.9 + 0.42 * len(names), 7.5)
    for number, (judge, colour) in enumerate(zip(shown, figures.COLOURS)):
        gains = {r["attack"]: r["win"] for r in results["rows"] if r["judge"] == judge}
        for row, name in enumerate(names):
            if (gain := gains[name]) is None:
                continue
            y = row + 0.11 * (number - (len(shown) - 1) / 2)
            figures.draw_interval(axes, y, gain, colour, linewidth=1.2)
            axes.plot([100 * gain["value"]], [y], "o", color=colour, markersize=3)
        axes.plot([], [], "o", color=colour, label=judge)
    axes.axvline(0, color=figures.INK, linewidth=1)
    figures.draw_names(axes, names)
    axis = "change of the share of comparisons that the answer wins (points, 95% CI)"
    figures.set_labels(axes, axis, title="Attacks on each judge")
    figures.draw_legend(axes, 7)
    return figure


# ---------------------------------------------------------------- training


def train(args: argparse.Namespace) -> None:
    """Trains and evaluates every arm and seed; rewrites the report after each."""
    from grm_jax import Judge
    from studies import policy_train

    workdir, out, arms = Path(args.workdir), Path(args.out), args.arms.split(",")
    if unknown := [arm for arm in arms if arm not in policy_train.ARMS]:
        known = ", ".join(policy_train.ARMS)
        raise SystemExit(f"unknown arm {unknown[0]!r}: use {known}")
    if not args.meta_rm and any(policy_train.ARMS[arm].get("meta_rm") for arm in arms):
        raise SystemExit(
            "an arm with the meta reward model needs --meta_rm: add it, or drop the arm"
        )
    judge = Judge.load(args.judge, meta_rm=args.meta_rm)
    names = [judge.name, judge.meta_rm.name if judge.meta_rm else ""]
    if "bt" in arms:
        names.append(scalar_judge(workdir / "bt", args.bt_steps, args.bt_comparisons, 0).name)
    setting = policy_train.Setting(
        judge=args.judge,
        meta_rm=args.meta_rm or "",
        bt=str(workdir / "bt" / "hf"),
        workdir=workdir,
        models=tuple(name.rpartition("@")[2] for name in names),
        steps=args.steps,
        points=args.points,
        tasks=args.tasks,
        extra=args.extra,
    )
    for seed in map(int, args.seeds.split(",")):
        for arm in arms:
            record = policy_train.run_one(setting, arm, seed, out / "records")
            print(f"{arm}, seed {seed}: {record['seconds']}", flush=True)
            report(args)


def report(args: argparse.Namespace) -> None:
    """Writes the tables and figures of the records in OUT/records."""
    from studies import policy_report

    out = Path(args.out)
    records = [strict_json.read(path) for path in sorted((out / "records").glob("*.json"))]
    if not records:
        raise SystemExit(f"{out}/records has no record: run `train` first")
    known = ARMS.split(",")
    records.sort(key=lambda r: known.index(r["arm"]) if r["arm"] in known else len(known))
    study = policy_report.summary(records)
    seconds = {f"{r['arm']}-{r['seed']}": r["seconds"] for r in records}
    text = strict_json.dumps({"arms": study, "seconds": seconds}, indent=1)
    write_atomic(out / "train.json", text + "\n")
    contrast = policy_report.contrast_table(records, "spct_k1")
    write_atomic(out / "train.md", f"{policy_report.train_table(study)}\n{contrast}")
    write_atomic(out / "drift.md", policy_report.drift_table(study))
    figures.save_png(policy_report.quality_figure(study), out / "quality.png")
    figures.save_png(policy_report.train_figure(study), out / "train.png")
    figures.save_png(policy_report.drift_figure(study), out / "drift.png")


def drift(args: argparse.Namespace) -> None:
    """Writes drift.md and drift.png: the judge's principles at each checkpoint of finished runs."""
    from studies import policy_report, policy_train

    out, folders = Path(args.out), map(Path, args.runs)
    records = [policy_train.evaluate_run(one, args.judge or "", args.tasks) for one in folders]
    text = policy_report.wordings_table(records)
    for record in records:
        for point in record["points"]:
            point["principles"] = policy_report.principle_shares(point["principles"])
    study = policy_report.summary(records)
    write_atomic(out / "drift.md", policy_report.drift_table(study) + "\n" + text)
    figures.save_png(policy_report.drift_figure(study), out / "drift.png")
    print(policy_report.drift_table(study))


# ---------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = p.add_subparsers(required=True)
    attack = commands.add_parser("attacks", help="measure attacks on a judge, without training")
    attack.set_defaults(function=attacks)
    attack.add_argument(
        "--workdir", help="folder of judgements and Bradley-Terry model (default: --out)"
    )
    attack.add_argument("--items", type=int, default=200, help="comparisons")
    attack.add_argument("--seed", type=int, default=0)
    arms = commands.add_parser("train", help="train policies against several judges")
    arms.set_defaults(function=train)
    arms.add_argument("--workdir", default="runs/policy_study", help="folder of the training runs")
    arms.add_argument("--arms", default=ARMS, help="comma separated")
    arms.add_argument("--seeds", default="0,1,2", help="comma separated")
    arms.add_argument("--steps", type=int, default=150, help="GRPO steps")
    arms.add_argument(
        "--points", type=int, default=6, help="checkpoints to evaluate, besides the start"
    )
    arms.add_argument("--tasks", type=int, default=64, help="held-out tasks")
    arms.add_argument("--extra", default="", help="config overrides: field=value,...")
    for one in (attack, arms):
        one.add_argument("--judge", required=True, help="model folder of the judge")
        one.add_argument("--meta_rm", help="model folder of the meta reward model")
        one.add_argument(
            "--bt_steps", type=int, default=1500, help="training steps of the Bradley-Terry model"
        )
        one.add_argument(
            "--bt_comparisons", type=int, default=5000, help="its training comparisons"
        )
    again = commands.add_parser("report", help="write tables and figures of OUT/records")
    again.set_defaults(function=report)
    runs = commands.add_parser("drift", help="principles at each checkpoint of finished runs")
    runs.set_defaults(function=drift)
    runs.add_argument("--runs", nargs="+", required=True, help="workdirs of the stage policy")
    runs.add_argument("--judge", help="model folder of the judge (default: the run's own)")
    runs.add_argument("--tasks", type=int, default=64, help="held-out tasks")
    for one in (attack, arms, again, runs):
        one.add_argument("--out", required=True, help="folder of tables, figures and records")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command of the study."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs every step of every save
    args.function(args)


if __name__ == "__main__":
    main()
