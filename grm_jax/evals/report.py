"""The files of an experiment's evaluation: report.html with its plots, the table, the credits."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax.evals import cells as tables_of_cells, plots
from grm_jax.evals.cells import Cell
from grm_jax.evals.figures import save_png
from grm_jax.evals.page import render
from grm_jax.evals.tables import signed
from grm_jax.storage import as_path

HEADINGS = {
    "meta_rm": "Meta reward model on the held-out critiques",
    "differences": "Differences, paired by comparison (points, 95% CI)",
    "seconds": "Seconds of each stage",
}


def write(
    folder: Any,
    title: str,
    cells: Sequence[Cell],
    facts: Mapping[str, Mapping],
    config: str,
    figures: Mapping[str, tuple[str, Any]],
) -> Any:
    """Writes report.html, its plots, table.txt, table.json and credits.json into `folder`.

    Args:
      facts: tables of facts by key of HEADINGS; "meta_rm" is also drawn as calibration.png.
      config: the config as text.
      figures: further plots: file name -> (heading, figure).

    Returns:
      The path of the page.
    """
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = dict(figures)
    if any(c.method not in ("Rule", "Greedy") for c in cells):
        figures["scaling.png"] = ("Accuracy over k", plots.scaling(cells))
    if "meta_rm" in facts:
        figures["calibration.png"] = ("Meta reward model", plots.calibration(facts["meta_rm"]))
    images = []
    for name, (heading, figure) in figures.items():
        save_png(figure, folder / name)
        images.append((heading, base64.b64encode((folder / name).read_bytes()).decode()))
    (folder / "table.txt").write_text(tables_of_cells.as_text(cells) + "\n")
    (folder / "table.json").write_text(json.dumps([c.as_json() for c in cells], indent=2) + "\n")
    (folder / "credits.json").write_text(json.dumps({c.name: c.credits for c in cells}) + "\n")
    page = folder / "report.html"
    page.write_text(
        render(
            "experiment.html",
            title=title,
            headings=tables_of_cells.HEADINGS,
            rows=tables_of_cells.rows(cells),
            images=images,
            facts=[(HEADINGS.get(key, key), fact_rows(value)) for key, value in facts.items()],
            config=config,
        )
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
            text = str(value)
        rows.append([name, text])
    return rows
