"""The results page of `grm eval`: one self-contained HTML file for desktop and phone."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grm_jax.display import counted
from grm_jax.evals import plots, tables
from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.content_blind import CONTENT_BLIND
from grm_jax.evals.figures import bounds

TEMPLATES = Path(__file__).parent / "templates"
MAX_BARS = 30
MAX_REASONS = 5


def render(template: str, **values: Any) -> str:
    """Renders a template of this package; all of them extend base.html."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(entries: Sequence[Mapping]) -> str:
    """The page of the entries of a results file."""
    return render(
        "page.html",
        title="Evaluation",
        judge=tables.judge_line(entries[0]),
        overviews=[tables.overview(entries), tables.overview(entries, tables.CONTEXT)],
        cards=[card(entry) for entry in entries],
    )


def card(entry: Mapping) -> dict:
    """The values that the template shows of one benchmark."""
    value, parsing = tables.headline(entry), entry["parsing"]
    reasons = Counter(parsing["errors"]).most_common()
    picked, right = (entry["length"][key] for key in ("longest_picked", "longest_right"))
    return {
        "entry": entry,
        "judge": tables.judge_line(entry),
        "value": tables.percent(value["value"]),
        "span": tables.span(tables.shown(entry, value)),
        "few": tables.few_line(entry),
        "bars": bars(entry),
        "rules": [
            (name, tables.percent(tables.headline(entry, name)["value"]), text)
            for name, text in entry["rules"].items()
        ],
        "content_blind": [
            (CONTENT_BLIND[name].label, tables.percent(estimate["value"]))
            for name, estimate in entry["content_blind"].items()
        ],
        "gains": [(name, tables.signed(gain)) for name, gain in entry["gains"].items()],
        "against": tables.against_line(entry) if "against" in entry else None,
        "statuses": ", ".join(f"{n} {status}" for status, n in parsing["statuses"].items()),
        "parsed": tables.percent(parsing["parsed"]),
        "unscored": counted(parsing["unparsed"], "comparison"),
        "reasons": reasons[:MAX_REASONS],
        "others": sum(count for _, count in reasons[MAX_REASONS:]),
        "ties": None if parsing["ties"] is None else tables.percent(parsing["ties"]),
        "longest": right
        and f"picked {tables.percent(picked and picked['value'])}, "
        f"best {tables.percent(right['value'])}",
        "published": [
            (p["model"], p["values"][entry["headline"]], p["source"])
            for p in entry["published"]
            if entry["headline"] in p["values"]
        ],
        "cost": cost(entry["cost"]),
        "figures": [
            figure
            for figure in (plots.curve(entry), plots.place(entry), plots.length(entry))
            if figure
        ],
    }


def bars(entry: Mapping) -> list[dict]:
    """The headline and the benchmark's breakdown as bars; positions in percent of the width."""
    metrics = entry["metrics"][entry["rule"]]
    prefixes = BENCHMARKS[entry["benchmark"]].bars
    names = [entry["headline"]]
    names += [name for name in metrics if name != names[0] and name.startswith(prefixes)]

    def clip(share: float) -> str:
        return f"{min(100.0, max(0.0, 100 * share)):.2f}"

    shown = []
    for name in names[:MAX_BARS]:
        metric = tables.shown(entry, metrics[name])
        if metric["value"] is not None:
            low, high = bounds(metric)
            bar = {
                "name": name.split("/", 1)[-1].replace("_", " "),
                "value": tables.percent(metric["value"]),
                "span": tables.span(metric),
                "width": clip(metric["value"]),
                "low": clip(low),
                "spread": clip(high - low),
                "headline": name == entry["headline"],
            }
            shown.append(bar)
    return shown


def cost(spent: Mapping) -> str:
    """What judging took, in words; empty if unknown."""
    if not spent.get("seconds"):
        return ""
    text = f"{spent['seconds']:,.0f} s"
    if not spent.get("tokens"):
        return text
    speed = spent["tokens"] / spent["seconds"]
    counts = f"{spent['critiques']:,} critiques, {spent['tokens']:,} tokens"
    price = f", price {spent['price']:,.4f}" if "price" in spent else ""
    return f"{text}, {counts}, {speed:,.0f} tokens/s{price}"
