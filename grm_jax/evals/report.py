"""The files of an experiment's evaluation: report.html, its plots, the table, the credits.

report.html is one self-contained page. It opens with what the experiment shows, the scaling plot
and five critiques in the report viewer, which critiques.html has as a page of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax import strict_json
from grm_jax.evals import cells as tables_of_cells, examples, plots
from grm_jax.evals.cells import Cell
from grm_jax.evals.figures import save_png, to_svg
from grm_jax.evals.page import render
from grm_jax.evals.tables import MISSING, signed
from grm_jax.judging import report as viewer
from grm_jax.judging.codec import OutputRow
from grm_jax.storage import as_path, write_atomic

HEADINGS = {
    "differences": "Differences, paired by comparison (points, 95% CI)",
    "meta_rm": "Meta reward model on the held-out critiques",
    "seconds": "Seconds of each stage",
}
LABELS = {
    "auc": "AUC",
    "auc_within": "AUC within a comparison",
    "accuracy": "accuracy at probability 0.5",
    "loss": "cross-entropy (nats)",
    "right_share": "share of critiques that are correct",
    "ece": "expected calibration error",
    "count": "critiques",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that the page of an evaluation shows.

    Attributes:
      findings: sentences that say what the experiment shows.
      cells: of the table and the scaling plot.
      facts: tables of facts by key of HEADINGS; "meta_rm" is also drawn as calibration.
      config: the config as text.
      rows: of `grm judge`, of the last model, from which examples are chosen.
      training: the log of RL, a dict per step.
      panels: titles of the metrics of `training` to draw, by name.
    """

    title: str
    findings: Sequence[str]
    cells: Sequence[Cell]
    facts: Mapping[str, Mapping]
    config: str
    rows: Sequence[OutputRow] = ()
    training: Sequence[Mapping] = ()
    panels: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(folder: Any, report: Report) -> Any:
    """Writes the page, its plots as PNG, table.txt, table.json and credits.json into `folder`.

    Returns:
      The path of the page.
    """
    folder, cells = as_path(folder), report.cells
    folder.mkdir(parents=True, exist_ok=True)
    has_curves = any(c.method not in ("Rule", "Greedy") for c in cells)
    meta = report.facts.get("meta_rm")
    pngs = {
        "scaling.png": plots.scaling(cells) if has_curves else None,
        "calibration.png": plots.calibration(meta) if meta else None,
        "training.png": plots.panels(report.training, report.panels) if report.training else None,
    }
    for name, figure in pngs.items():
        if figure is not None:
            save_png(figure, folder / name)
    write_atomic(folder / "table.txt", tables_of_cells.as_text(cells) + "\n")
    write_atomic(
        folder / "table.json", strict_json.dumps([c.as_json() for c in cells], indent=2) + "\n"
    )
    write_atomic(
        folder / "credits.json", strict_json.dumps({c.name: c.credits for c in cells}) + "\n"
    )
    chosen = examples.choose(report.rows)
    rows = [example.row for example in chosen]
    critiques = viewer.page(rows, "Examples", are_examples=True) if chosen else ""
    if chosen:
        write_atomic(folder / "critiques.html", critiques)
    page = folder / "report.html"
    write_atomic(
        page,
        render(
            "experiment.html",
            title=report.title,
            findings=report.findings,
            scaling=to_svg(plots.scaling(cells, 3.2, 4.6), "Accuracy over k") if has_curves else "",
            examples=chosen,
            critiques=critiques,
            grid=tables_of_cells.grid(cells),
            table_of_cells=(tables_of_cells.HEADINGS, tables_of_cells.rows(cells)),
            facts=[
                (key, heading, fact_rows(report.facts[key]))
                for key, heading in HEADINGS.items()
                if key in report.facts
            ],
            calibration=to_svg(plots.calibration(meta, 3), "Calibration") if meta else "",
            training=[
                plots.panel(report.training, name, title)
                for name, title in report.panels.items()
                if report.training
            ],
            config=report.config,
        ),
    )
    return page


def fact_rows(facts: Mapping) -> list[list[str]]:
    """Differences with their intervals, numbers and texts as rows; lists are left to the plots."""
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            text = signed({"value": value["mean"], **value})
        elif isinstance(value, (int, float)):
            text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
        elif isinstance(value, (list, tuple)):
            continue
        else:
            text = MISSING if value is None else str(value)
        rows.append([LABELS.get(name, name), text])
    return rows
