"""The last lines of a run on own data: accuracy before and after, the judge, the next command."""

from typing import Any

from grm_jax.display import counted
from grm_jax.evals import findings
from grm_jax.evals.tables import percent, span
from grm_jax.judging.pairs import FEW
from grm_jax.storage import as_path
from grm_jax.training import loop, next_steps, own_file

_STAGES = ("rft", "rl")


def lines(config: Any, workdir: Any) -> list[str]:
    """Returns the lines for the stages that are done."""
    workdir = as_path(workdir)
    trained = [stage for stage in _STAGES if loop.is_done(workdir / stage)]
    text = []
    if loop.is_done(workdir / "eval"):
        text.append(_accuracies(loop.read_result(workdir / "eval")))
    if not trained or not config.export:
        return text
    judge = workdir / trained[-1] / "hf"
    meta = workdir / "meta_rm" / "hf"
    guided = f" --meta_rm {meta}" if loop.is_done(workdir / "meta_rm") else ""
    held_out = workdir / "data" / own_file.HELD_OUT_ROWS
    command = f"grm judge {held_out} {workdir / 'judged.jsonl'} --model {judge}{guided}"
    return [
        *text,
        f"judge: {judge}",
        "",
        "Try next:",
        *(f"  {command}" for command in [command, *next_steps.write_commands(workdir, False)]),
    ]


def _accuracies(result: dict[str, Any]) -> str:
    """Returns the accuracy of the first and the last model, at the most votes of both or greedy."""
    cells: dict[str, dict[tuple[int, bool], dict[str, Any]]] = {}
    for cell in result["cells"]:
        if cell["method"] in ("Voting", "Greedy"):
            key = cell["k"], cell["method"] == "Voting"
            cells.setdefault(cell["model"], {})[key] = cell
    n = result["items"]
    models = [model for model in ("base", *_STAGES) if model in cells]
    first, last = models[0], models[-1]
    k, is_vote = max(cells[first].keys() & cells[last].keys())
    before, after = cells[first][k, is_vote], cells[last][k, is_vote]
    return (
        f"accuracy on {counted(n, 'held-out comparison')}, "
        f"{counted(k, 'vote') if is_vote else 'greedy'}: "
        f"{percent(before['accuracy'])}% before ({first}{_interval(before)}), "
        f"{percent(after['accuracy'])}% after ({last}{_interval(after)})"
        f"{f'; {findings.few_text(n)}' if n < FEW else ''}"
    )


def _interval(cell: dict[str, Any]) -> str:
    return "" if cell["low"] is None else f"; 95% CI {span(cell)}"
