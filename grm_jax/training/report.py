"""What a run shows at its end: the table as text, plots as PNG, and one HTML page that holds them all."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence

from grm_jax.storage import as_path
from grm_jax.training.evaluate import Cell
from grm_jax.training.metrics import read_jsonl

HEADINGS = {
    "meta_rm": "Meta reward model on the held-out critiques",
    "differences": "Differences, paired by comparison (95% interval)",
    "seconds": "Seconds of each stage",
}
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d6a9f", "#e09f3e")
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) {{ text-align: left; }}
.wide {{ overflow-x: auto; }} @media (max-width: 40rem) {{ td, th {{ padding: .2rem .3rem; font-size: 12px; }} }}
img {{ max-width: 100%; }} pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 12px; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def text_table(cells: Sequence[Cell]) -> str:
    """The cells as aligned lines, accuracy in percent."""
    lines = [
        f"{'model':<17} {'method':<11} {'accuracy':>8}  {'95% interval':>14}  {'ties':>6}  {'read':>6}"
    ]
    for c in cells:
        lines.append(
            f"{c.model:<17} {method_name(c):<11} {100 * c.accuracy:8.1f}  {100 * c.low:6.1f} - {100 * c.high:5.1f}  "
            f"{100 * c.tie_rate:5.1f}%  {100 * c.parse_rate:5.1f}%"
        )
    return "\n".join(lines)


def method_name(c: Cell) -> str:
    return c.method if c.method in ("Greedy", "Rule") else f"{c.method}@{c.k}"


def html_table(cells: Sequence[Cell]) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in ("model", "method", "accuracy", "95% interval", "ties", "read")
    )
    rows = [
        f"<tr><td>{html.escape(c.model)}</td><td>{method_name(c)}</td><td>{100 * c.accuracy:.1f}</td>"
        f"<td>{100 * c.low:.1f} to {100 * c.high:.1f}</td><td>{100 * c.tie_rate:.1f}%</td><td>{100 * c.parse_rate:.1f}%</td></tr>"
        for c in cells
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def html_fact(value) -> str:
    """A fact of the page: differences with their intervals and plain numbers as rows; what else JSON can hold as it is."""
    if not isinstance(value, Mapping):
        return f"<pre>{html.escape(json.dumps(value, indent=2))}</pre>"
    rows = []
    for name, found in value.items():
        if isinstance(found, Mapping) and {"mean", "low", "high"} <= set(found):
            points = "{:+.1f} points</td><td>{:+.1f} to {:+.1f}".format(
                *(100 * found[k] for k in ("mean", "low", "high"))
            )
            rows.append(f"<tr><td>{html.escape(name)}</td><td>{points}</td></tr>")
        elif isinstance(found, (int, float)):
            number = f"{found:,}" if isinstance(found, int) else f"{found:,.4g}"
            rows.append(f"<tr><td>{html.escape(name)}</td><td>{number}</td></tr>")
        elif not isinstance(found, (list, tuple)):  # lists are what the plots were drawn from
            rows.append(
                f"<tr><td>{html.escape(name)}</td><td>{html.escape(json.dumps(found))}</td></tr>"
            )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values up to each place."""
    return [
        sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))
    ]


def plot_training(rows: Sequence[Mapping], path) -> None:
    """Reward, accuracy of the rollouts, KL, entropy and length over the steps of RL."""
    import matplotlib.pyplot as plt

    panels = (
        ("reward", "reward"), ("kl", "KL to the RFT model (nats per token)"), ("entropy", "entropy (nats per token)"),
        ("length", "critique length (tokens)"), ("group_zero", "groups without advantage"), ("gap_max", "sampler - trainer gap, largest"),
    )  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(12, 6), constrained_layout=True)
    steps = [row["step"] for row in rows]
    for axis, (name, title) in zip(axes.flat, panels):
        values = [float(row[name]) for row in rows]
        axis.plot(steps, values, color=COLOURS[0], alpha=0.25)
        axis.plot(steps, smooth(values, max(1, len(values) // 12)), color=COLOURS[0])
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    with path.open("wb") as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_scaling(cells: Sequence[Cell], path) -> None:
    """Accuracy over the number of samples, a line for each model and way of voting, greedy as a dotted level."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 5), constrained_layout=True)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for c in cells:
        if c.method not in ("Rule", "Greedy"):
            groups.setdefault((c.model, c.method), []).append(c)
    for number, (colour, ((model, method), line)) in enumerate(zip(COLOURS * 4, groups.items())):
        # A little apart, so that intervals do not lie on each other.
        ks = [c.k * 1.04 ** (number - (len(groups) - 1) / 2) for c in line]
        ys = [100 * c.accuracy for c in line]
        errors = [
            [100 * (c.accuracy - c.low) for c in line],
            [100 * (c.high - c.accuracy) for c in line],
        ]
        axis.errorbar(
            ks, ys, errors, color=colour, marker="o", capsize=3, label=f"{model}, {method}@k"
        )
        greedy = [c for c in cells if c.model == model and c.method == "Greedy"]
        if greedy and method == "Voting":
            axis.axhline(100 * greedy[0].accuracy, color=colour, linestyle=":", alpha=0.7)
    axis.set_xscale("log", base=2)
    ks = sorted({c.k for line in groups.values() for c in line})
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set(
        xlabel="samples k", ylabel="accuracy (%)", title="Inference-time scaling (dotted: greedy)"
    )
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with path.open("wb") as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def plot_calibration(quality: Mapping, path) -> None:
    """How often critiques were right, against the probability that the meta RM gave them."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(4.5, 4.5), constrained_layout=True)
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
    table = quality["calibration"]
    axis.plot(
        [b["probability"] for b in table], [b["right"] for b in table], marker="o", color=COLOURS[1]
    )
    auc, within = (
        "-" if quality[name] is None else f"{quality[name]:.3f}" for name in ("auc", "auc_within")
    )
    title = f"Meta RM: AUC {auc}, within a comparison {within}, ECE {quality['ece']:.3f}"
    axis.set(xlabel="probability said", ylabel="share right")
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    with path.open("wb") as file:
        figure.savefig(file, dpi=110)
    plt.close(figure)


def write(folder, title: str, cells: Sequence[Cell], rl_folder, facts: Mapping, config_text: str):
    """Writes report.html, its plots, table.txt, table.json and credits.json (each item's credit, by cell) into `folder`.

    Args:
      rl_folder: of the RL stage, for its curves (left out where there are none).
      facts: what else to say, by heading; values that JSON can hold.

    Returns:
      The path of the page.
    """
    import matplotlib

    matplotlib.use("agg")
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plots = []
    rows = read_jsonl(as_path(rl_folder) / "metrics.jsonl") if rl_folder else []
    if rows:
        plot_training(rows, folder / "training.png")
        plots.append(("Reinforcement learning", "training.png"))
    if any(c.method not in ("Rule", "Greedy") for c in cells):
        plot_scaling(cells, folder / "scaling.png")
        plots.append(("Accuracy over k", "scaling.png"))
    if "meta_rm" in facts:
        plot_calibration(facts["meta_rm"], folder / "calibration.png")
        plots.append(("Meta reward model", "calibration.png"))
    (folder / "table.txt").write_text(text_table(cells) + "\n")
    (folder / "table.json").write_text(json.dumps([c.row() for c in cells], indent=2) + "\n")
    credits = {f"{c.model}/{c.method}@{c.k}": c.credits for c in cells}
    (folder / "credits.json").write_text(json.dumps(credits) + "\n")
    body = io.StringIO()
    body.write("<h2>Held-out accuracy</h2>" + html_table(cells))
    for heading, name in plots:
        data = base64.b64encode((folder / name).read_bytes()).decode()
        body.write(f'<h2>{heading}</h2><img alt="{heading}" src="data:image/png;base64,{data}">')
    for heading, value in facts.items():
        body.write(f"<h2>{html.escape(HEADINGS.get(heading, heading))}</h2>{html_fact(value)}")
    body.write(f"<h2>Config</h2><pre>{html.escape(config_text)}</pre>")
    page = folder / "report.html"
    page.write_text(PAGE.format(title=html.escape(title), body=body.getvalue()))
    return page
