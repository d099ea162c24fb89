"""Tables and figures of policies trained against a judge, from the records of `policy_train`."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from grm_jax.data.world.teacher import AIMS
from grm_jax.evals import figures, tables
from grm_jax.evals.bootstrap import STAGE_DRAWS, Resampler

FEATURES = ("characters", "sure", "wordy", "query", "markers", "hedged", "distinct")
# Kinds of principles. An aim is the reference wording of a task family's top principle.
CATEGORIES = ("own aim", "another task's aim", "Clarity", "Brevity", "Tone", "other")
NAMES = {
    "spct_k1": "SPCT, k = 1",
    "spct_k4": "SPCT, k = 4",
    "spct_k8": "SPCT, k = 8",
    "spct_k8_meta": "SPCT, k = 8, meta RM",
    "first_k8": "principles first, k = 8",
    "bt": "Bradley-Terry",
}
_NAMED = {"one clear answer": "Clarity", "no idle talk": "Brevity", "it sounds sure": "Tone"}


# ---------------------------------------------------------------- statistics


def summary(records: Sequence[dict]) -> dict[str, list[dict]]:
    """Returns {arm: a row per evaluated checkpoint}, with means over seeds.

    A row has estimates (see `estimate`) of:
      win, true_win, truth: as in `policy_train.measure`.
      gap: win rate by the judge minus win rate by the truth.
      parting: growth of the gap since the start, paired by seed and task.
    and means over seeds of kl, features and drift (`principle_shares`).
    """
    arms: dict[str, list[dict]] = {}
    for record in records:
        arms.setdefault(record["arm"], []).append(record)
    return {arm: _rows(members) for arm, members in arms.items()}


def _rows(members: Sequence[dict]) -> list[dict]:
    rows: list[dict] = []
    start_SxT = None
    for points in zip(*(record["points"] for record in members), strict=True):
        values = {
            name: np.array([point[name] for point in points], float)  # a missing win is nan
            for name in ("win", "true_win", "truth")
        }
        gap_SxT = values["win"] - values["true_win"]
        start_SxT = gap_SxT if start_SxT is None else start_SxT
        values |= {"gap": gap_SxT, "parting": gap_SxT - start_SxT}
        row: dict[str, Any] = {name: estimate(value) for name, value in values.items()}
        row["step"] = points[0]["step"]
        row["kl"] = float(np.mean([point["kl"] for point in points]))
        row["features"] = {
            name: float(np.mean([point["features"][name] for point in points]))
            for name in points[0]["features"]
        }
        # A seed has no principles at a checkpoint where all answers to a task are equal.
        written = [p["principles"] for p in points if sum(p["principles"].values())]
        row["drift"] = {
            name: float(np.mean([shares[name] for shares in written])) if written else 0.0
            for name in CATEGORIES
        }
        rows.append(row)
    return rows


def estimate(values_SxT: np.ndarray) -> dict[str, Any]:
    """Returns the mean over S seeds and T tasks with its 95% CI over both, and each seed's mean.

    The seeds share their tasks. NaN marks a task without a value.
    """
    tasks = Resampler(list(map(str, range(values_SxT.shape[1]))), draws=STAGE_DRAWS)
    seeds = [
        round(float(row[~np.isnan(row)].mean()), 4) for row in values_SxT if not np.isnan(row).all()
    ]
    return tasks.mean_over_runs(values_SxT).as_json() | {"seeds": seeds}


def contrasts(records: Sequence[dict], baseline: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns {arm: {field: arm - baseline}}, paired by seed and task, for the seeds of both.

    Fields: parting and truth, as in `summary`, the means over all checkpoints after the start.
    """
    arms: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for record in records:
        arms.setdefault(record["arm"], {})[record["seed"]] = _after_start(record["points"])
    result = {}
    for arm, seeds in arms.items():
        shared = sorted(seeds.keys() & arms.get(baseline, {}).keys())
        if arm == baseline or not shared:
            continue
        result[arm] = {
            name: estimate(np.stack([seeds[s][name] - arms[baseline][s][name] for s in shared]))
            for name in ("parting", "truth")
        }
    return result


def _after_start(points: Sequence[dict]) -> dict[str, np.ndarray]:
    """Returns the means over the checkpoints after the start, per task."""
    values = {n: np.array([p[n] for p in points], float) for n in ("win", "true_win", "truth")}
    gap_CxT = values["win"] - values["true_win"]
    parting_CxT = gap_CxT[1:] - gap_CxT[0]
    return {"parting": parting_CxT.mean(axis=0), "truth": values["truth"][1:].mean(axis=0)}


def principle_shares(principles: Sequence) -> dict[str, float]:
    """Returns the mean share of a critique's total weight for each of CATEGORIES.

    principles: (family of the task, [[name, weight, description], ...]) of each critique.
    """
    totals = dict.fromkeys(CATEGORIES, 0.0)
    counted = 0
    for family, listed in principles:
        weights = [weight or 0.0 for _, weight, _ in listed]
        if not listed or not sum(weights):
            continue
        counted += 1
        for (_, _, text), weight in zip(listed, weights):
            totals[_category(family, text)] += weight / sum(weights)
    return {name: total / max(1, counted) for name, total in totals.items()}


def _category(family: str, text: str) -> str:
    if text == AIMS[family]:
        return "own aim"
    return "another task's aim" if text in AIMS.values() else _NAMED.get(text, "other")


def parts_at(rows: Sequence[dict]) -> int | None:
    """Returns the first step from which the gap has grown, outside the 95% CI; None if it has not.

    The gap must stay grown until the last checkpoint.
    """
    step = None
    for row in reversed(rows[1:]):
        if (row["parting"]["low"] or 0) <= 0:
            break
        step = row["step"]
    return step


# ---------------------------------------------------------------- tables


def _cell(value: dict) -> str:
    if value["value"] is None:
        return tables.MISSING
    low, high = figures.bounds(value)
    return f"{100 * value['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def train_table(study: dict[str, list[dict]]) -> str:
    """Returns Markdown tables: each arm at the end, how its policy answers, and all checkpoints.

    study: of `summary`.
    """
    headings = [
        "arm",
        "KL",
        "judge's win rate",
        "true win rate",
        "gap",
        "true quality",
        "gap grows from",
    ]
    ends = {arm: rows[-1] for arm, rows in study.items()}
    cells = [
        [arm, f"{end['kl']:.1f}", *(_cell(end[n]) for n in ("win", "true_win", "gap", "truth"))]
        + [f"step {parts_at(study[arm])}" if parts_at(study[arm]) else "not seen"]
        for arm, end in ends.items()
    ]
    lines = ["# Policies at the end of training", "", *tables.markdown_table(headings, cells), ""]
    start = next(iter(study.values()))[0]
    shown = [["start", *_feature_cells(start)]]
    shown += [[arm, *_feature_cells(end)] for arm, end in ends.items()]
    lines += ["## How the policies answer", ""]
    lines += [*tables.markdown_table(["arm", *FEATURES], shown), "", "## All checkpoints", ""]
    points = [
        [
            arm,
            row["step"],
            f"{row['kl']:.2f}",
            *(_cell(row[n]) for n in ("win", "true_win", "truth")),
        ]
        for arm, rows in study.items()
        for row in rows
    ]
    columns = ["arm", "step", "KL", "judge's win rate", "true win rate", "true quality"]
    return "\n".join([*lines, *tables.markdown_table(columns, points), ""])


def contrast_table(records: Sequence[dict], baseline: str) -> str:
    """`contrasts` as Markdown, in points."""
    cells = [
        [arm, len(fields["truth"]["seeds"]), *(_cell(fields[n]) for n in ("parting", "truth"))]
        for arm, fields in contrasts(records, baseline).items()
    ]
    headings = ["arm", "seeds", "growth of the gap", "true quality"]
    lines = [f"## Differences to {baseline}, over all checkpoints after the start", ""]
    return "\n".join([*lines, *tables.markdown_table(headings, cells), ""])


def _feature_cells(row: dict) -> list[str]:
    shares = row["features"]
    return [f"{shares['characters']:.1f}", *(tables.percent(shares[n]) for n in FEATURES[1:])]


def drift_table(study: dict[str, list[dict]]) -> str:
    """Returns a Markdown table: shares of the kinds of principles in the critiques."""
    cells = [
        [arm, row["step"], *(tables.percent(row["drift"][name]) for name in CATEGORIES)]
        for arm, rows in study.items()
        for row in rows
    ]
    return "\n".join(
        ["# Principles that the judge writes, percent of their weight", ""]
        + [*tables.markdown_table(["arm", "step", *CATEGORIES], cells), ""]
    )


def wordings_table(records: Sequence[dict], count: int = 12) -> str:
    """Returns a Markdown table per run: the most frequent principles at its start and its end.

    records: of `policy_train.evaluate_run`, with the principles themselves.
    """
    lines = ["# Wordings, percent of the critiques that have them", ""]
    for record in records:
        points = record["points"]
        first, last = (_wordings(points[i]["principles"]) for i in (0, -1))
        names = sorted({*first, *last}, key=lambda n: -max(first.get(n, 0), last.get(n, 0)))
        cells = [
            [name, *(tables.percent(shares.get(name, 0.0)) for shares in (first, last))]
            for name in names[:count]
        ]
        steps = [f"step {points[i]['step']}" for i in (0, -1)]
        lines += [
            f"## {record['arm']}",
            "",
            *tables.markdown_table(["principle", *steps], cells),
            "",
        ]
    return "\n".join(lines)


def _wordings(principles: Sequence) -> dict[str, float]:
    """Returns the share of critiques that have each "name: description"."""
    counts = collections.Counter(
        name for _, listed in principles for name in {f"{n}: {text}" for n, _, text in listed}
    )
    return {name: count / len(principles) for name, count in counts.items()}


# ---------------------------------------------------------------- figures


def _panels(count: int) -> tuple[Any, list[Any]]:
    """Returns a figure and its `count` panels, four in a row, which share the y axis."""
    from matplotlib.figure import Figure

    columns = min(4, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.3 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten().tolist()
    for one in axes[count:]:
        one.set_visible(False)
    for one in axes:
        figures.style_axes(one)
    return figure, axes[:count]


def quality_figure(study: dict[str, list[dict]]) -> Any:
    """True quality of every arm's policy, with 95% intervals, over steps."""
    figure, axes = figures.new_axes(3.6, 7.5)
    for (arm, rows), colour in zip(study.items(), (*figures.COLOURS, figures.INK)):
        known = [(r["step"], r["truth"]) for r in rows if r["truth"]["value"] is not None]
        steps = [step for step, _ in known]
        values = [100 * value["value"] for _, value in known]
        low, high = zip(*([100 * b for b in figures.bounds(value)] for _, value in known))
        label = NAMES.get(arm, arm)
        axes.plot(steps, values, "o-", color=colour, label=label, markersize=3, linewidth=1.4)
        axes.fill_between(steps, low, high, color=colour, alpha=0.07, linewidth=0)
    figures.set_labels(axes, "GRPO step", "true quality (%)", "Quality of the answers by arm")
    axes.legend(
        fontsize=8,
        frameon=False,
        labelcolor=figures.INK,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return figure


def train_figure(study: dict[str, list[dict]]) -> Any:
    """Draws win rates by the arm's judge and by the truth over the KL, a panel per arm."""
    figure, panels = _panels(len(study))
    for axes, (arm, rows) in zip(panels, study.items()):
        xs = [row["kl"] for row in rows]
        for name, label, colour in (
            ("win", "by the arm's judge", figures.COLOURS[1]),
            ("true_win", "by the truth", figures.COLOURS[0]),
        ):
            known = [(x, row[name]) for x, row in zip(xs, rows) if row[name]["value"] is not None]
            values = [100 * value["value"] for _, value in known]
            low, high = zip(*([100 * b for b in figures.bounds(value)] for _, value in known))
            style = {"marker": "o", "markersize": 3, "linewidth": 1.4}
            axes.plot([x for x, _ in known], values, color=colour, label=label, **style)
            axes.fill_between([x for x, _ in known], low, high, color=colour, alpha=0.15)
        title = NAMES.get(arm, arm)
        figures.set_labels(axes, "KL to the start (nats)", "win rate (%)", title)
    figures.draw_legend(panels[0], 7)
    return figure


def drift_figure(study: dict[str, list[dict]]) -> Any:
    """Draws shares of the kinds of principles over the steps, stacked, a panel per arm."""
    figure, panels = _panels(len(study))
    for axes, (arm, rows) in zip(panels, study.items()):
        shares = [[100 * row["drift"][name] for row in rows] for name in CATEGORIES]
        steps = [row["step"] for row in rows]
        axes.stackplot(steps, shares, labels=CATEGORIES, colors=figures.COLOURS, alpha=0.8)
        figures.set_labels(axes, "step", "share of weight (%)", NAMES.get(arm, arm))
    figures.draw_legend(panels[0], 6)
    return figure
