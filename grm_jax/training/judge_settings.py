"""The section `policy.judge` of a config; reward_sources.py has the judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from grm_jax.judging.loading import model_name
from grm_jax.judging.rewards import RewardOptions


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
    """The section `policy.judge`. An empty text, and 0 where it is the default, mean unset.

    Attributes:
      source: a name in `reward_sources.SOURCES`, or "rule".
      path: folder or hub name of the judge of "colocated", which may be a scalar reward model.
      meta_rm: folder or hub name of its meta reward model.
      quantize: "int8" or "int4" for quantised weights.
      dtype: of the judge's parameters and computation.
      prompt_slots, rows: most prompts in the judge's batch, and most critiques of each at once. 0:
        as many as fit in memory.
      model: name of the judge's architecture; only `--compile_only` uses it.
      url: address of `grm serve` for "served", without /v1.
      key_variable: environment variable with the server's API key.
      parallel, retries, timeout, deadline: of the requests, see `serving.client.Client`.
      The others are those of `judging.rewards.RewardOptions`.
    """

    source: str = "colocated"
    path: str = ""
    meta_rm: str = ""
    quantize: str = ""
    dtype: str = "bfloat16"
    prompt_slots: int = 0
    rows: int = 0
    model: str = ""
    url: str = ""
    key_variable: str = "GRM_API_KEY"
    parallel: int = 32
    retries: int = 8
    timeout: float = 600.0
    deadline: float = 1800.0
    k: int = 1
    temperature: float = 0.5
    max_new_tokens: int = 0
    top_p: float = 1.0
    top_k: int = 0
    k_meta: int = 0
    principles: str = "own"
    reward: str = "mean"
    block_size: int = 32
    length_penalty: float = 0.0
    length_free: int = 0

    @classmethod
    def of(cls, section: ConfigDict | Mapping[str, Any]) -> JudgeSettings:
        """Returns the settings of a config section; missing fields have their defaults."""
        return cls(**dict(section))

    def options(self, seed: int = 0) -> RewardOptions:
        """Returns the options of one call of `score`.

        Raises ValueError, naming the field, for a value outside its range.
        """
        names = {field.name for field in dataclasses.fields(RewardOptions)}
        fields = {name: getattr(self, name) for name in names & set(vars(self))}
        unset = {name: None for name in ("max_new_tokens", "k_meta") if not fields[name]}
        return RewardOptions(**{**fields, **unset, "seed": seed})

    def models(self) -> dict[str, str]:
        """Returns {field: folder or hub name} of a colocated judge and its meta reward model."""
        fields = ("path", "meta_rm") if self.source == "colocated" else ()
        return {name: path for name in fields if (path := getattr(self, name))}

    def shown(self) -> dict[str, Any]:
        """Returns the settings that rewards depend on, for the record of a checkpoint.

        A colocated judge and its meta reward model are recorded by name and fingerprint; their
        files are read for it.
        """
        free = {"prompt_slots", "rows", "model", "url", "key_variable"}
        free |= {"parallel", "retries", "timeout", "deadline"}
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in free}
        fields |= {name: model_name(path) for name, path in self.models().items()}
        return {f"policy.judge.{name}": value for name, value in fields.items()}
