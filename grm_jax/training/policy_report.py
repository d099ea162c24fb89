"""Table and figure at the end of the stage `policy`: judge reward and true reward over the KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grm_jax.evals import figures
from grm_jax.evals.plots import draw_metric, smooth
from grm_jax.evals.tables import text_table
from grm_jax.storage import PathLike, as_path, open_atomic
from grm_jax.training.metrics import read_jsonl

PICTURE = "policy.png"
KL = "KL to the start policy (nats per answer)"
# metric -> title in table and figure.
TITLES = {
    "reward": "reward",
    "true_reward": "true reward",
    "pair_accuracy": "pairs ordered as by the truth",
    "kl_sequence": KL,
    "length": "answer length (tokens)",
    "entropy": "entropy (nats per token)",
    "unparsed": "answers with unparsed judgement",
    "failed": "answers with failed judgement",
}
# The first two panels are drawn over the KL, the others over the steps.
PANELS = ("reward", "true_reward", "pair_accuracy", "kl_sequence", "length", "entropy")


def closing_text(folder: PathLike) -> str:
    """Writes policy.png to the folder of the finished stage; returns a table of its metrics.

    The table has a row per metric, with its means over the first and the last tenth of the steps,
    and the path of the figure. Empty for fewer than two steps.
    """
    folder = as_path(folder)
    rows = read_jsonl(folder / "metrics.jsonl")
    if len(rows) < 2:
        return ""
    with open_atomic(folder / PICTURE) as file:
        picture(rows).savefig(file, format="png", dpi=150)
    tenth = max(1, len(rows) // 10)
    parts = rows[:tenth], rows[-tenth:]
    cells = [
        [title, *(f"{np.mean(values(part, name)):.3f}" for part in parts)]
        for name, title in TITLES.items()
        if all(values(part, name) for part in parts)
    ]
    steps = "first" if tenth == 1 else f"first {tenth} steps", f"last {tenth}"
    return f"\n{text_table(['', *steps], cells)}\n\npicture: {folder / PICTURE}"


def values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Returns a metric's values from the rows that have it."""
    return [float(row[name]) for row in rows if name in row]


def picture(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Draws a panel per metric of `PANELS`; one with fewer than two values stays empty.

    rows: of metrics.jsonl, one per step.
    """
    from matplotlib.figure import Figure

    names = [name for name in PANELS if len(values(rows, name)) > 1]
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 3).flat, PANELS):
        figures.style_axes(axes)
        if name not in names:
            axes.set_visible(False)
        elif name in PANELS[:2]:
            draw_over_kl(axes, rows, name)
        else:
            draw_metric(axes, [row for row in rows if name in row], name, TITLES[name])
    return figure


def draw_over_kl(axes: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Draws a reward over the KL: a point per step, and a running mean over an eighth of them."""
    rows = [row for row in rows if name in row]
    kl, reward = values(rows, "kl_sequence"), values(rows, name)
    window = max(1, len(rows) // 8)
    colour = figures.COLOURS[name == "true_reward"]
    axes.plot(kl, reward, ".", color=colour, alpha=0.25, markersize=4)
    axes.plot(smooth(kl, window)[window - 1 :], smooth(reward, window)[window - 1 :], color=colour)
    figures.set_labels(axes, KL, title=TITLES[name])
