"""The last lines of a run on own data: accuracy before and after, the judge, the next command."""

from typing import Any

from grm_jax.display import counted
from grm_jax.evals import findings
from grm_jax.evals.tables import FEW, percent, span
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
    """Returns the accuracy of the first and the last model, at the most votes of both."""
    votes = {
        (cell["model"], cell["k"]): cell
        for cell in result["cells"]
        if cell["method"] in ("Voting", "Greedy")
    }
    n = result["items"]
    models = [model for model in ("base", *_STAGES) if any(name == model for name, _ in votes)]
    first, last = models[0], models[-1]
    k = max(k for name, k in votes if name == first and (last, k) in votes)
    before, after = votes[first, k], votes[last, k]
    return (
        f"accuracy on {counted(n, 'held-out comparison')}, {counted(k, 'vote')}: "
        f"{percent(before['accuracy'])}% before ({first}{_interval(before)}), "
        f"{percent(after['accuracy'])}% after ({last}{_interval(after)})"
        f"{f'; {findings.few_text(n)}' if n < FEW else ''}"
    )


def _interval(cell: dict[str, Any]) -> str:
    return "" if cell["low"] is None else f"; 95% CI {span(cell)}"
