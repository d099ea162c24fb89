"""The figures of the evaluation pages: scaling over k, biases, calibration, training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.evals import figures
from grm_jax.evals.cells import Cell
from grm_jax.evals.content_blind import CONTENT_BLIND
from grm_jax.evals.figures import INK, Line, draw_bars, draw_level, draw_lines, new_axes, to_svg
from grm_jax.evals.scaling import voting_method


def curve(entry: Mapping) -> str:
    """The headline over k, a line per voting method, as SVG; empty without critiques."""
    lines = []
    for kind, points in entry["curves"].items():
        known = [(int(k), point) for k, point in points.items() if point["value"] is not None]
        if known:
            lines.append(Line(voting_method(kind).label, known, voting_method(kind).colour))
    if not lines:
        return ""
    figure, axes = new_axes()
    draw_lines(axes, lines)
    draw_level(axes, entry.get("greedy", {}).get("value"), "--", "greedy")
    draw_level(
        axes, entry["content_blind"]["longest"]["value"], ":", CONTENT_BLIND["longest"].label
    )
    figures.set_labels(axes, "critiques that vote (k)", f"{entry['headline']}, %")
    figures.draw_legend(axes)
    return to_svg(figure, f"{entry['title']}: {entry['headline']} over k")


def place(entry: Mapping) -> str:
    """Position bias as SVG; empty for judges without orders."""
    position = entry["position"]
    bars = [
        ("orders disagree", position["flips"], None),
        ("winner shown first", position["first_place"], position["first_chance"]),
    ]
    bars = [bar for bar in bars if bar[1] is not None and bar[1]["value"] is not None]
    if not bars:
        return ""
    figure, axes = new_axes(1.5)
    draw_bars(axes, [(name, share) for name, share, _ in bars], figures.COLOURS[1])
    for y, (_, _, chance) in enumerate(bars):
        if chance is not None:
            axes.plot([100 * chance] * 2, [y - 0.38, y + 0.38], color=INK, linewidth=1.4)
    figures.set_labels(axes, "% of comparisons (line: without position bias)")
    return to_svg(figure, f"{entry['title']}: position of the winner")


def length(entry: Mapping) -> str:
    """Accuracy by relative length of the best response, as SVG; empty for single responses."""
    bins = {name: b for name, b in entry["length"]["by_ratio"].items() if b["value"] is not None}
    if not bins:
        return ""
    figure, axes = new_axes(2.1)
    draw_bars(axes, [(f"{n} (n = {b['n']})", b) for n, b in bins.items()], figures.COLOURS[2])
    axes.plot([50, 50], [-0.5, len(bins) - 0.5], color=INK, linewidth=0.8, linestyle=":")
    figures.set_labels(axes, "accuracy in %, by length of the best response")
    return to_svg(figure, f"{entry['title']}: accuracy by length")


def scaling(cells: Sequence[Cell], height: float = 5, width: float = 7.5) -> Any:
    """Accuracy over k, a line per model and voting method; greedy as a dotted level.

    height, width: in inches.
    """
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.method not in ("Rule", "Greedy"):
            groups.setdefault((cell.model, cell.method), []).append(cell)
    figure, axes = new_axes(height, width)
    lines: list[Line] = []
    for (model, method), members in groups.items():
        points = [(c.k, {"value": c.accuracy, "low": c.low, "high": c.high}) for c in members]
        lines.append(figures.numbered_line(len(lines), f"{model}, {method}@k", points))
        for greedy in cells:
            if (greedy.model, greedy.method, method) == (model, "Greedy", "Voting"):
                draw_level(axes, greedy.accuracy, ":", colour=lines[-1].colour)
    draw_lines(axes, lines)
    figures.set_labels(axes, "samples k", "accuracy (%)", "Inference-time scaling (dotted: greedy)")
    figures.draw_legend(axes)
    return figure


def calibration(quality: Mapping, size: float = 4.5) -> Any:
    """How often critiques were correct, by the probability that the meta RM gave them."""
    figure, axes = new_axes(size, size)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    bins = quality["calibration"]
    axes.plot(
        *([b[key] for b in bins] for key in ("probability", "right")),
        marker="o",
        color=figures.COLOURS[1],
    )
    auc, within = (
        "-" if quality[name] is None else f"{quality[name]:.3f}" for name in ("auc", "auc_within")
    )
    title = f"AUC {auc}, ECE {quality['ece']:.3f}\nAUC within a comparison {within}"
    figures.set_labels(axes, "predicted probability", "share correct", title)
    return figure


def panels(rows: Sequence[Mapping], titles: Mapping[str, str]) -> Any:
    """Metrics of a training log over its steps, raw and smoothed, one panel each, in two rows.

    rows: one dict per step, with "step".  titles: panel titles by metric.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, -(-len(titles) // 2)).flat, titles.items()):
        figures.style_axes(axes)
        draw_metric(axes, rows, name, title)
    return figure


def panel(rows: Sequence[Mapping], name: str, title: str) -> str:
    """One of the `panels` as SVG."""
    figure, axes = new_axes(2.2)
    draw_metric(axes, rows, name, title)
    return to_svg(figure, title)


def draw_metric(axes: Any, rows: Sequence[Mapping], name: str, title: str) -> None:
    """Draws one metric of a training log over its steps, raw and smoothed."""
    steps, values = [row["step"] for row in rows], [float(row[name]) for row in rows]
    axes.plot(steps, values, color=figures.COLOURS[0], alpha=0.25)
    axes.plot(steps, smooth(values, max(1, len(values) // 12)), color=figures.COLOURS[0])
    figures.set_labels(axes, "step", title=title)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean over the last `window` values up to each index."""
    return [
        sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))
    ]
