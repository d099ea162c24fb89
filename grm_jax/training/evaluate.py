"""The paper's Table 3 in miniature: models against inference-time scaling, on held-out items of the experiment's own data.

Every item is judged once greedily and `samples` times at the evaluation temperature. Voting@k is read off these samples: they are cut
into consecutive blocks of k, each block votes, and an item's credit is the mean over its blocks, so small k are not the luck of one draw.
A tie between the best and others earns an equal share, as a random choice among them would (SPCT section 5.1); so does a vote in which nothing could
be read. Intervals are 95% bootstrap over prompts: comparisons of one query are drawn together.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence

import jax
import numpy as np

from grm_jax.judging import Judge, votes
from grm_jax.judging.options import Options
from grm_jax.storage import as_path, write_atomic
from grm_jax.training import rft_data
from grm_jax.types import Comparison, Critique, Principle, Verdict

log = logging.getLogger(__name__)
RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of the table: accuracy with its interval, and the shares of votes that tied or could not be read."""

    model: str
    method: str
    k: int
    accuracy: float
    low: float
    high: float
    tie_rate: float
    parse_rate: float
    credits: tuple[float, ...] = dataclasses.field(repr=False, default=())

    def row(self) -> dict:
        """Without the credits: JSON-ready."""
        return {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "credits"
        }


def credit(comparison: Comparison, scores: Sequence[float] | None) -> tuple[float, bool]:
    """(credit, tie): 1 if the labelled best alone has the highest score, a share of 1 if it is among them, else 0."""
    if scores is None:
        return 1 / comparison.n, True
    best = comparison.best
    assert best is not None, comparison.id
    top = votes.top(scores)
    return (1 / len(top) if best in top else 0.0), len(top) > 1


def prompts_of(items: Sequence[Comparison]) -> list[str]:
    """What says which items share a prompt, for `interval`: the turns of each."""
    return [json.dumps(item.turns) for item in items]


def interval(
    credits: Sequence[float], seed: int = 0, prompts: Sequence[str] | None = None
) -> tuple[float, float]:
    """95% bootstrap interval of the mean, over items; over prompts where `prompts` names each item's."""
    values = np.asarray(credits, np.float64)
    names = {name: code for code, name in enumerate(dict.fromkeys(prompts or range(len(values))))}
    codes = [names[name] for name in prompts or range(len(values))]
    sums, counts = np.bincount(codes, values), np.bincount(codes)
    draws = np.random.default_rng(seed).integers(0, len(names), (RESAMPLES, len(names)))
    low, high = np.percentile(sums[draws].sum(axis=1) / counts[draws].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def difference(
    a: Sequence[float], b: Sequence[float], seed: int = 0, prompts: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """(mean, low, high) of a - b, paired by item: the interval that says whether one is above the other."""
    paired = np.asarray(a) - np.asarray(b)
    return (float(paired.mean()), *interval(paired, seed, prompts))


def block_scores(
    critiques: Sequence[Critique], n: int, rule: str, guided: bool
) -> tuple[float, ...] | None:
    """The vote of one block; None where nothing could be read."""
    kept = [critiques[i] for i in votes.kept_by_meta(critiques)] if guided else critiques
    return votes.all_votes(kept, n).get(rule)


def cell(
    model: str,
    method: str,
    items: Sequence[Comparison],
    verdicts: Sequence[Verdict],
    k: int,
    rule: str,
    guided: bool,
) -> Cell:
    """Accuracy of one way of voting with k samples, from verdicts with at least k critiques each."""
    credits, ties, read = [], [], []
    for comparison, verdict in zip(items, verdicts):
        blocks = [verdict.critiques[s : s + k] for s in range(0, len(verdict.critiques) - k + 1, k)]
        scored = [
            credit(comparison, block_scores(block, comparison.n, rule, guided)) for block in blocks
        ]
        credits.append(float(np.mean([c for c, _ in scored])))
        ties.append(float(np.mean([tie for _, tie in scored])))
        read.append(1 - verdict.unparsed / len(verdict.critiques))
    low, high = interval(credits, prompts=prompts_of(items))
    return Cell(
        model,
        method,
        k,
        float(np.mean(credits)),
        low,
        high,
        float(np.mean(ties)),
        float(np.mean(read)),
        tuple(credits),
    )


def judged(
    judge: Judge, items: Sequence[Comparison], options: Options, folder=None, chunk: int = 64
) -> list[Verdict]:
    """Verdicts in the order of the items. One that cannot be judged counts as unread; ValueError, with a reason, where none can be.

    folder: keeps the verdicts of each chunk in which all could be judged, so that an evaluation that was interrupted goes on; None keeps
    nothing. What was judged under other options or items, or without a meta RM, is in a folder of its own.
    """
    if folder is not None:
        asked = [
            vars(options),
            judge.family,
            judge.meta_rm is not None,
            [(c.id, c.turns, c.responses) for c in items],
            chunk,
        ]
        folder = as_path(folder) / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    found: list[Verdict] = []
    unread, reason = 0, ""
    for start in range(0, len(items), chunk):
        part, path = (
            items[start : start + chunk],
            None if folder is None else folder / f"{start:06d}.json",
        )
        if path is not None and path.exists():
            found += [_verdict(row) for row in json.loads(path.read_text())]
            continue
        verdicts: dict[int, Verdict] = {}
        unread_before = unread
        for i, verdict in judge.stream(part, options, chunk):
            if not isinstance(verdict, Verdict):
                log.warning(
                    "%s could not be judged, and counts as unread: %s", part[i].id, verdict.reason
                )
                unread, reason = unread + 1, verdict.reason
                verdict = votes.verdict(
                    [Critique("", sample=s) for s in range(options.k)], part[i].n, part[i].id
                )
            verdicts[i] = verdict
        found += [verdicts[i] for i in range(len(part))]
        if path is not None and unread == unread_before and jax.process_index() == 0:
            write_atomic(
                path, json.dumps([dataclasses.asdict(verdict) for verdict in found[start:]])
            )
    if unread == len(items) > 0:
        raise ValueError(
            f"none of {unread} comparisons could be judged, the last because: {reason}"
        )
    return found


def _verdict(row: dict) -> Verdict:
    """The verdict that `dataclasses.asdict` and JSON made a dict of."""

    def critique(fields):
        principles = tuple(Principle(**p) for p in fields["principles"])
        texts = ("scores", "order", "expected_scores")
        return Critique(
            **{**fields, "principles": principles, **{name: _tuple(fields[name]) for name in texts}}
        )

    critiques = tuple(critique(c) for c in row["critiques"])
    votes_by_rule = {rule: tuple(scores) for rule, scores in row["votes"].items()}
    changed = {
        "critiques": critiques,
        "votes": votes_by_rule,
        "scores": _tuple(row["scores"]),
        "kept": _tuple(row["kept"]),
    }
    return Verdict(**{**row, **changed})


def _tuple(values):
    return None if values is None else tuple(values)


def table(
    name: str, judge: Judge, items: Sequence[Comparison], section, samples: int, folder=None
) -> tuple[list[Cell], list[Verdict]]:
    """All cells of one model, and the verdicts of its sampled critiques.

    Args:
      judge: with a meta RM, "MetaRM@k" cells are made too; with `section.expected`, "Expected@k".
      section: `eval` of a config: ks, temperature, max_new_tokens, seed, expected.
      samples: critiques per item; ks above it are left out.
      folder: of this judge's weights; keeps verdicts (`judged`).
    """
    common = {"seed": section.seed, "max_new_tokens": section.max_new_tokens}
    meta, judge.meta_rm = judge.meta_rm, None
    greedy = judged(judge, items, Options(k=1, temperature=0.0, orders="random", **common), folder)
    judge.meta_rm = meta
    cells = [cell(name, "Greedy", items, greedy, 1, "sum", False)]
    if samples:
        expected = bool(section.expected and judge.expected)
        options = Options(k=samples, temperature=section.temperature, expected=expected, **common)
        verdicts = judged(judge, items, options, folder)
        ways: list[tuple[str, str, bool]] = [("Voting", "sum", False)]
        ways += [("Expected", "expected", False)] if expected else []
        ways += [("MetaRM", "sum", True)] if meta is not None else []
        for method, rule, guided in ways:
            ks = [k for k in section.ks if k <= samples and (k > 1 or not guided)]
            cells += [cell(name, method, items, verdicts, k, rule, guided) for k in ks]
        return cells, verdicts
    return cells, greedy


def floors(items: Sequence[Comparison]) -> list[Cell]:
    """Controls that read nothing: always the first response, always the longest, and a draw."""

    def choose(name: str, scores_of: Callable[[Comparison], Sequence[float]]) -> Cell:
        found = [credit(comparison, scores_of(comparison)) for comparison in items]
        credits = tuple(c for c, _ in found)
        return Cell(
            name,
            "Rule",
            1,
            float(np.mean(credits)),
            *interval(credits, prompts=prompts_of(items)),
            float(np.mean([t for _, t in found])),
            1.0,
            credits,
        )

    return [
        choose("chance", lambda c: [0.0] * c.n),
        choose("first response", lambda c: [float(i == 0) for i in range(c.n)]),
        choose("longest response", lambda c: [float(len(text)) for text in c.responses]),
    ]


def meta_quality(items: Sequence[Comparison], verdicts: Sequence[Verdict]) -> dict | None:
    """AUC and calibration of the meta scores on the evaluation's own critiques; None where none could be read."""
    from grm_jax.training import meta_rm

    rows = [
        (critique.meta_score, rft_data.is_correct(comparison, critique.scores), str(comparison.id))
        for comparison, verdict in zip(items, verdicts)
        for critique in verdict.critiques
        if critique.meta_score is not None
    ]
    if not rows:  # No critique could be read, so none was scored.
        return None
    scores, labels, comparisons = zip(*rows)
    return meta_rm.quality(np.array(scores, np.float64), np.array(labels, np.float64), comparisons)
