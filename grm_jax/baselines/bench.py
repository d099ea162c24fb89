"""The registry of baselines, and the settings and models that the baselines of a seed share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from grm_jax.baselines.results import Measured, config_fields
from grm_jax.evals import run
from grm_jax.evals.benchmarks import BENCHMARKS, world
from grm_jax.evals.judged import JudgedComparison
from grm_jax.evals.measure import measure
from grm_jax.judging.expected import ExpectedScores, model_log_probs
from grm_jax.judging.judge import Judge
from grm_jax.judging.meta import MetaRM
from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig
from grm_jax.judging.sampler import EngineSampler
from grm_jax.models import abstract_model
from grm_jax.registry import Registry
from grm_jax.sharding import make_mesh
from grm_jax.training import checkpoint, loop, meta_rm, sources, state as states
from grm_jax.training.programs import model_config
from grm_jax.types import Comparison

Params = Any
RESUME = RunConfig(existing="resume", progress=False)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One baseline.

    Attributes:
      measure: (bench, folder) -> its judges, trained in the folder if they are not yet.
      unused: sections and fields of the config that its results do not depend on.
    """

    measure: "Callable[[Bench, Path], list[Measured]]"
    unused: tuple[str, ...] = ()


BASELINES: Registry[Baseline] = Registry("baseline")


class Bench:
    """Config, model, tokenizer and comparisons that all baselines of one seed share.

    Args:
      spct: folder of the SPCT run of this seed, if there is one.
      benchmark: name; "world" means the experiment's own held-out comparisons if it trains on the
        judging world.
      data: folder of the benchmark's files.
      limit: number of comparisons, picked by a hash of their ids; None for all.
    """

    def __init__(
        self,
        config: ConfigDict,
        spct: Path | None = None,
        benchmark: str = "world",
        data: str | Path = ".",
        limit: int | None = None,
    ):
        self.config, self.spct = config, spct
        self.mesh, self.tokenizer = make_mesh(**config.mesh), sources.load_tokenizer(config)
        self.run = loop.Run(config, self.mesh, self.tokenizer)
        self.cfg = model_config(config)
        self.graphdef, params = abstract_model(self.cfg, self.mesh)
        self.abstract, _ = states.split(params)
        self.benchmark = BENCHMARKS[benchmark]
        if benchmark == "world" and config.data.judging == "world":
            items = sources.judging(config, config.eval.split).take(0, config.eval.comparisons)
            comparisons = world.measurable(items)
        else:
            comparisons = self.benchmark.load(data)
        self.total, self.limit = len(comparisons), limit
        # No judge is shown a reference answer, so that all get the same input.
        self.comparisons = [
            dataclasses.replace(comparison, reference=None)
            for comparison in run.choose(comparisons, limit)
        ]
        self.options = Options(
            k=min(8, config.eval.samples),
            temperature=config.eval.temperature,
            seed=config.eval.seed,
            max_new_tokens=config.eval.max_new_tokens,
        )

    def identity(self, baseline: str) -> dict[str, Any]:
        """Returns everything that the judges of a baseline depend on."""
        return {
            "baseline": baseline,
            "benchmark": self.benchmark.name,
            "limit": self.limit,
            "comparisons": run.fingerprint(self.comparisons),
        } | config_fields(self.config, BASELINES[baseline].unused)

    def first_params(self) -> Params:
        """Returns the parameters that the experiment starts from."""
        return sources.first_params(self.config, self.cfg, self.mesh)

    def training_comparisons(self, count: int) -> list[Comparison]:
        """Returns SPCT's first `count` training comparisons that have a best response."""
        items = sources.judging(self.config).take(0, count)
        return [c for c in items if c.n > 1 and c.best is not None]

    def has_stage(self, name: str) -> bool:
        """Whether the SPCT run has finished this stage."""
        return self.spct is not None and loop.is_done(self.spct / name)

    def stage_params(self, name: str) -> Params:
        """Loads the language model of a finished stage of the SPCT run."""
        return loop.load_params(f"{self.spct}/{name}", self.abstract)

    def judge(self, params: Params, template: str, meta: MetaRM | None = None) -> Judge:
        """Builds a generative judge over trained parameters."""
        params = states.join(params, self.run.frozen)
        model = nnx.merge(self.graphdef, states.compute_params(params, self.cfg.dtype))
        return Judge(
            self.tokenizer,
            EngineSampler(model, self.mesh, self.config.eval.prompt_slots or None),
            template,
            meta,
            ExpectedScores(model_log_probs(model, self.mesh), self.tokenizer),
            self.cfg.max_length,
            # Files of verdicts by other weights are refused by this name.
            name=f"{template}@{checkpoint.fingerprint(params)}",
        )

    def meta_rm(self) -> MetaRM | None:
        """Loads the meta reward model of the SPCT run; None if it has none."""
        if self.spct is None or not self.has_stage("meta_rm"):
            return None
        _, abstract = abstract_model(model_config(self.config, scalar_head=True), self.mesh)
        params = loop.load_params(self.spct / "meta_rm", states.split(abstract)[0])
        params = states.join(params, self.run.frozen)
        name, batch = f"meta_rm@{checkpoint.fingerprint(params)}", self.config.eval.meta_batch
        return meta_rm.scorer(self.config, self.mesh, params, self.tokenizer, batch, name)

    def measured(
        self,
        judged: Sequence[JudgedComparison],
        name: str,
        k: int = 1,
        cost: Mapping[str, Any] | None = None,
    ) -> Measured:
        """Measures a judge on the benchmark. k: votes per comparison."""
        judge = {"kind": "baseline", "name": name, "k": k, "seed": self.config.seed}
        entry = measure(self.benchmark, judged, self.total, judge, cost=dict(cost or {}))
        return Measured(entry, judged)
