"""Trains the baselines of an experiment and measures them like every judge:

    python -m grm_jax.baselines.run --config experiments/spct_tiny.py --workdir runs/baselines --seeds 0,1,2 --spct runs/study/main-{seed}

--spct: folder of the SPCT run of each seed, whose RFT model writes CLoud's critiques, and which is measured beside the
baselines; without it both are left out. Every stage that is done is skipped, so the command can be given again.
An experiment on the judging world is measured on its own held-out comparisons, those of its eval stage, unless --benchmark
names another.
Results: WORKDIR/NAME-SEED/JUDGE/results.json for `grm table runs`; over all seeds table.md, table.json and table.html in --out, whose folder
`judges` keeps what each judge said: with it, seeds can be added on another machine, and only what is missing, or of another config, is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from flax import nnx

from grm_jax.baselines import cloud, generative, kept, report, scalar
from grm_jax.baselines.report import Measured
from grm_jax.evals import run
from grm_jax.evals.benchmark import nan_mean
from grm_jax.evals.benchmarks import BENCHMARKS, world
from grm_jax.evals.cli import write_reports
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.measure import measure
from grm_jax.evals.scaling import revote
from grm_jax.judging import Judge
from grm_jax.judging.expected import ExpectedScores, model_log_probs
from grm_jax.judging.meta import MetaRM
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig
from grm_jax.judging.sampler import engine_sampler
from grm_jax.sharding import make_mesh
from grm_jax.text import rendering
from grm_jax.training import checkpoint, loop, meta_rm, sources
from grm_jax.training import state as states
from grm_jax.training.programs import model_config
from grm_jax.training.rft_data import best_index
from grm_jax.types import Comparison

log = logging.getLogger(__name__)
RUN = RunConfig(existing="resume", progress=False)


class Bench:
    """What all baselines of one seed share: config, mesh, tokenizer, first parameters, the comparisons to judge."""

    def __init__(
        self, config, workdir: Path, spct: Path | None, benchmark: str, data: str, limit: int | None
    ):
        """benchmark: "world" stands for the experiment's own held-out comparisons where it trains on the world."""
        self.config, self.workdir, self.spct = config, workdir, spct
        self.mesh = make_mesh(**config.mesh)
        self.cfg = model_config(config)
        self.graphdef, self.abstract = states.abstract_model(self.cfg, self.mesh)
        self.tokenizer = sources.load_tokenizer(config)
        self.shared = loop.Run(config, self.mesh, self.tokenizer)
        self.benchmark = BENCHMARKS[benchmark]
        if benchmark == "world" and config.data.judging == "world":
            source = sources.judging(config, config.eval.split)
            self.everything = world.measurable(source.take(0, config.eval.comparisons))
        else:
            self.everything = self.benchmark.load(data)
        # No baseline is shown a reference answer, so the SPCT run is not either.
        self.comparisons = [
            dataclasses.replace(c, reference=None) for c in run.choose(self.everything, limit)
        ]
        section = config.eval
        self.options = Options(
            k=min(8, section.samples),
            temperature=section.temperature,
            seed=section.seed,
            max_new_tokens=section.max_new_tokens,
        )

    def first_params(self):
        return sources.first_params(self.config, self.cfg, self.mesh)

    def judge(self, params, template: str, meta: MetaRM | None = None) -> Judge:
        """A generative judge over trained parameters."""
        model = nnx.merge(self.graphdef, states.compute_params(params, self.cfg.dtype))
        expected = ExpectedScores(model_log_probs(model, self.mesh), self.tokenizer)
        runner = engine_sampler(model, self.mesh, self.config.eval.prompt_slots or None)
        # Verdicts of other weights are noticed by the name: they are not those of this judge.
        name = f"{template}@{checkpoint.fingerprint(params)}"
        return Judge(
            self.tokenizer, runner, template, meta, expected, self.cfg.max_length, name=name
        )

    def meta_rm(self) -> MetaRM | None:
        """The meta reward model of the SPCT run; None where it has none."""
        if self.spct is None or not loop.is_done(self.spct / "meta_rm"):
            return None
        _, abstract = states.abstract_model(model_config(self.config, scalar_head=True), self.mesh)
        params = loop.load_params(self.spct / "meta_rm", abstract)
        name, batch = f"meta_rm@{checkpoint.fingerprint(params)}", self.config.eval.meta_batch
        return meta_rm.scorer(self.config, self.mesh, params, self.tokenizer, batch, name)


def spct_judge(bench: Bench, folder: Path) -> list[Measured]:
    """The SPCT run itself after each of its stages: one critique, k votes, expected scores, k votes guided by its meta RM."""
    entries = []
    for stage in ("rft", "rl"):
        if bench.spct is None or not loop.is_done(bench.spct / stage):
            log.warning("spct %s is left out: %s holds no such finished stage", stage, bench.spct)
            continue
        meta = bench.meta_rm() if stage == "rl" else None
        judge = bench.judge(
            loop.load_params(bench.spct / stage, bench.abstract), bench.config.template, meta
        )
        path, k = folder / f"{bench.benchmark.name}.{stage}.jsonl", bench.options.k
        options = dataclasses.replace(bench.options, expected=True)
        cost = run.judge_with_model(judge, bench.comparisons, path, options, RUN)
        guided = run.load_judged(bench.comparisons, path)
        ways = {(f"spct {stage}", 1): ("sum", 1), (f"spct {stage}", k): ("sum", k)}
        ways[(f"spct {stage}, expected scores", k)] = ("expected", k)
        for (name, votes), (rule, first) in ways.items():
            judged = [revote(j, rule, first, 0) for j in guided]
            entries.append(_entry(bench, judged, name, votes, cost if votes == k else {}))
        if meta is not None:
            entries.append(_entry(bench, guided, f"spct {stage}, meta RM", k, cost))
    return entries


def llm_judge(bench: Bench, folder: Path, name: str = "llm_judge") -> list[Measured]:
    """Trains and measures "llm_judge" or "pairwise"; the latter with and without the probability of its number."""
    if loop.is_done(folder / "train"):
        params = loop.load_params(folder / "train", bench.abstract)
    else:
        params = generative.train(bench.shared, name, bench.first_params, folder / "train")
    judge = bench.judge(params, generative.template_of(bench.config, name))
    if name == "pairwise":
        return [_by_pairs(bench, judge, folder, vote) for vote in ("majority", "expected")]
    return [_measured(bench, name, judge, folder, vote) for vote in ("majority", "expected")]


def _measured(bench: Bench, name: str, judge: Judge, folder: Path, vote: str) -> Measured:
    options = Options(**{**vars(bench.options), "vote": vote, "expected": True})
    path = folder / f"{bench.benchmark.name}.{vote}.jsonl"
    cost = run.judge_with_model(judge, bench.comparisons, path, options, RUN)
    judged = run.load_judged(bench.comparisons, path, vote)
    return _entry(
        bench,
        judged,
        f"{name}{', token probabilities' if vote == 'expected' else ''}",
        options.k,
        cost,
    )


def _by_pairs(bench: Bench, judge: Judge, folder: Path, vote: str) -> Measured:
    """A pairwise judge on comparisons of several responses: every pair is judged, a response's score is its wins."""
    options = Options(**{**vars(bench.options), "vote": vote, "expected": True})
    pairs, owners = [], []
    for c, comparison in enumerate(bench.comparisons):
        for i in range(comparison.n):
            for j in range(i + 1, comparison.n):
                pair = (comparison.responses[i], comparison.responses[j])
                pairs.append(
                    Comparison(comparison.query, pair, None, None, f"{comparison.id}/{i}-{j}")
                )
                owners.append((c, i, j))
    path = folder / f"{bench.benchmark.name}.pairs.{vote}.jsonl"
    cost = run.judge_with_model(judge, pairs, path, options, RUN)
    wins = [[0.0] * comparison.n for comparison in bench.comparisons]
    for (c, i, j), pair_judged in zip(owners, run.load_judged(pairs, path, vote)):
        first, second = pair_judged.scores or (0.0, 0.0)
        total = first + second
        share = 0.5 if total <= 0 else first / total
        wins[c][i] += share
        wins[c][j] += 1 - share
    judged = [
        JudgedComparison(comparison, tuple(won)) for comparison, won in zip(bench.comparisons, wins)
    ]
    return _entry(
        bench,
        judged,
        f"pairwise{', token probabilities' if vote == 'expected' else ''}",
        options.k,
        cost,
    )


def bt(bench: Bench, folder: Path) -> list[Measured]:
    """The Bradley-Terry scalar."""
    config, section = bench.config, section_of(bench.config)
    taken = sources.judging(config).take(0, section.comparisons)
    texts = []
    for c in (c for c in taken if c.n > 1 and c.best is not None):
        encoded = [scalar.encode_response(bench.tokenizer, c, response) for response in c.responses]
        texts += [
            (encoded[best_index(c)], other) for i, other in enumerate(encoded) if i != best_index(c)
        ]
    pairs = scalar.pair_up(texts, section.seq_len)
    params = _scalar_params(bench, section, pairs, folder, "bt", bench.first_params)
    reward = scalar.Scalar(config, bench.mesh, params, bench.tokenizer)
    flat = [
        scalar.encode_response(bench.tokenizer, c, r)
        for c in bench.comparisons
        for r in c.responses
    ]
    values = iter(reward(flat))
    judged = [
        JudgedComparison(c, tuple(next(values) for _ in c.responses)) for c in bench.comparisons
    ]
    return [_entry(bench, judged, "bt", 1, {})]


def cloud_judge(bench: Bench, folder: Path) -> list[Measured]:
    """The semi-scalar judge at k = 1 and at k; needs the RFT model of an SPCT run."""
    if bench.spct is None or not loop.is_done(bench.spct / "rft"):
        log.warning("cloud is left out: %s holds no finished RFT stage", bench.spct)
        return []
    config, section = bench.config, section_of(bench.config)
    writer = loop.load_params(bench.spct / "rft", bench.abstract)
    judge = bench.judge(writer, rendering.single_binary(config.template))
    if loop.is_done(folder / "train"):
        pairs = None
    else:
        pairs = cloud.pairs(config, section, judge, bench.tokenizer, config.eval.max_new_tokens)
    params = _scalar_params(bench, section, pairs, folder, "cloud", lambda: writer)
    reward = scalar.Scalar(config, bench.mesh, params, bench.tokenizer)
    found = cloud.scores(judge, reward, bench.comparisons, bench.options)
    entries = []
    for k in dict.fromkeys((1, bench.options.k)):
        judged = [
            JudgedComparison(c, tuple(nan_mean(samples[:k]) for samples in by_response))
            for c, by_response in zip(bench.comparisons, found)
        ]
        entries.append(_entry(bench, judged, "cloud", k, {}))
    return entries


def section_of(config):
    """Training settings of the scalars: rows as the meta reward model's, comparisons, steps and learning rate as RFT's.

    Like RFT they start where the experiment starts, at random weights if it does, and must learn the task itself.
    """
    section = config.meta_rm.copy_and_resolve_references()
    section.update(
        {
            name: config.rft[name]
            for name in ("comparisons", "steps", "lr", "warmup_steps", "save_every")
        }
    )
    return section


def _scalar_params(bench: Bench, section, pairs, folder: Path, stage: str, start):
    if loop.is_done(folder / "train"):
        cfg = model_config(bench.config, scalar_head=True)
        return loop.load_params(folder / "train", states.abstract_model(cfg, bench.mesh)[1])
    return scalar.train(bench.shared, section, start, pairs, folder / "train", stage)


def _entry(
    bench: Bench, judged: Sequence[JudgedComparison], name: str, k: int, cost: dict
) -> Measured:
    judge = {"kind": "baseline", "name": name, "k": k, "seed": bench.config.seed}
    return Measured(
        measure(bench.benchmark, judged, len(bench.everything), judge, cost=cost), judged
    )


RUNNERS = {
    "llm_judge": llm_judge,
    "pairwise": lambda bench, folder: llm_judge(bench, folder, "pairwise"),
    "bt": bt,
    "cloud": cloud_judge,
    "spct": spct_judge,
}


def load_config(path: str, arg: str):
    """The config of an experiment's file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def main(argv: Sequence[str] | None = None) -> int:
    """See the file's docstring."""
    p = argparse.ArgumentParser(
        prog="grm_jax.baselines.run",
        description="Trains and measures the baselines of an experiment.",
    )
    p.add_argument("--config", required=True)
    p.add_argument("--set", default="", help="as after get_config: name=value,...")
    p.add_argument("--workdir", required=True)
    p.add_argument("--seeds", default="0")
    p.add_argument("--spct", help="folder of the SPCT run; {seed} is filled in")
    p.add_argument("--baselines", default=",".join(RUNNERS))
    p.add_argument("--benchmark", default="world")
    p.add_argument("--data", default=".")
    p.add_argument("--limit", type=int)
    p.add_argument(
        "--as_it_stands", action="store_true", help="run nothing: the table of what --out keeps"
    )
    p.add_argument(
        "--out", help="folder for the table, and for what each judge said (default: the workdir)"
    )
    args = p.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells every step of every save
    out = Path(args.out or args.workdir)
    found: dict[str, dict[int, Measured]] = {}
    for seed in (int(text) for text in args.seeds.split(",")):
        config = load_config(args.config, ",".join(filter(None, (f"seed={seed}", args.set))))
        spct = Path(args.spct.format(seed=seed)) if args.spct else None
        bench = Bench(config, Path(args.workdir), spct, args.benchmark, args.data, args.limit)
        for name in args.baselines.split(","):
            if name not in RUNNERS:
                print(f"unknown baseline {name!r}: use {', '.join(RUNNERS)}", file=sys.stderr)
                return 2
            which = kept.identity(config, name, args.benchmark, args.limit)
            path = out / "judges" / f"{name}-{seed}.json"
            judges = kept.load(path, which, bench.comparisons)
            if judges is None and args.as_it_stands:
                log.warning(
                    "%s of seed %d is left out: %s is not there, or of another config",
                    name,
                    seed,
                    path,
                )
                judges = {}
            if judges is None:
                with jax.set_mesh(bench.mesh):
                    judges = _run(name, bench, Path(args.workdir) / f"{name}-{seed}")
                if judges:
                    kept.save(path, which, judges, bench.benchmark.both_orders)
            for label, measured in judges.items():
                found.setdefault(label, {})[seed] = measured
    if not found:
        print(
            "nothing was measured: judges of an SPCT run need --spct, and --as_it_stands what --out keeps",
            file=sys.stderr,
        )
        return 1
    print(report.write(report.summary(bench.benchmark, found), out))
    return 0


def _run(name: str, bench: Bench, folder: Path) -> dict[str, Measured]:
    """Trains and measures what one runner makes: judges by label, each with a results file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    judges = {}
    for measured in RUNNERS[name](bench, folder):
        judge = measured.entry["judge"]
        label = judge["name"] + (f", k = {judge['k']}" if judge["k"] > 1 else "")
        judges[label] = measured
        reports = folder / label.replace(", ", "_").replace(" ", "_").replace("=", "")
        reports.mkdir(exist_ok=True)
        write_reports([measured.entry], reports)
    return judges


if __name__ == "__main__":
    sys.exit(main())
