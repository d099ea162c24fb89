"""The fields of an experiment: one rule per field with its type, range or values.

A rule is a function of the text before the value, such as "config.rft.lr=", and the value; it
raises ValueError. `config_check.check` applies them.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from grm_jax import endpoint
from grm_jax.commands import Number, short_int
from grm_jax.data.world.families import FAMILIES
from grm_jax.models.config import REMAT, LayerSpec, TransformerConfig
from grm_jax.models.lora import TARGETS
from grm_jax.models.quantize import KINDS
from grm_jax.registry import nearest
from grm_jax.training import grpo, losses, metrics, optim
from grm_jax.training.meta_rm import STARTS
from grm_jax.training.programs import AUTO
from grm_jax.training.reward_sources import RULE, SOURCES
from grm_jax.training.rft_samplers import SAMPLERS

Rule = Callable[[str, Any], object]

STAGES = ("rft", "rl", "meta_rm", "eval", "sft", "policy")
_MOST = 2**31 - 1
_DTYPES = ("float32", "bfloat16")


def number(kind: type, low: float = -math.inf, high: float = math.inf, **options: Any) -> Rule:
    """Returns the rule of a number in a range."""
    return within(Number(kind, low, high, **options))


def within(rule: Number) -> Rule:
    """Returns the rule of a number, whose errors show the value as it is in the config."""

    def check_number(name: str, value: Any) -> None:
        try:
            rule.check(name, value)
        except ValueError as error:
            shown = short_int(value) if type(value) is int else f"{value!r:.80}"
            hint = str(error).removeprefix(name).partition(": ")[2]
            raise ValueError(f"{name}{shown}: {hint}") from error

    return check_number


COUNT, POSITIVE = number(int, 0, _MOST), number(int, 1, _MOST)
SHARE = number(float, 0, 1)
BELOW_1 = number(float, 0, math.nextafter(1, 0), use="use 0 or more, and less than 1")
AMOUNT = number(float, 0, 1e6)
FACTOR = number(float, above=0, high=1e6)
TEMPERATURE = number(float, 0, 100)
# The limit of the sampler's seeds; the meta RM's critiques are sampled with config.seed + 1.
SEED = number(int, 0, _MOST - 1)


def _not_quantized(name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(f"{name}{value!r:.80}: quantised weights are not trained")


def _no_lora(name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(f"{name}{value!r:.80}: set config.lora")


def _layer(name: str, value: Any) -> None:
    if not isinstance(value, LayerSpec):
        raise ValueError(
            f"{name}{value!r:.80}: use LayerSpec objects, or config.model_overrides.windows"
        )


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}{value!r:.80}: use True or False")


def text(name: str, value: Any) -> None:
    """Refuses other types, and control characters, which no name, path or address has."""
    if not isinstance(value, str):
        raise ValueError(f"{name}{value!r:.80}: use a text")
    if not value.isprintable():
        raise ValueError(f"{name}{value!r:.80} has a control character: remove it")


def task(name: str, value: Any) -> None:
    """Refuses anything but the name of a mixture or task; `sources.check` looks it up."""
    if isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        field = name.removesuffix("=")
        raise ValueError(f"{field} is {value!r:.80}: give the name of a seqio mixture or task")
    text(name, value)


def weights(name: str, values: Any) -> None:
    """Refuses anything but a map from whole numbers, which may be strings, to weights."""
    if not hasattr(values, "items") or not len(values):
        raise ValueError(f"{name}{values!r:.80}: map whole numbers to weights")
    for key, weight in values.items():
        if not str(key).isdecimal() or int(key) > 100:
            raise ValueError(f"{name}{key!r:.80}: use whole numbers up to 100 as keys")
        AMOUNT(f"{name.removesuffix('=')}.{key}=", weight)
    if not any(values.values()):
        raise ValueError(f"{name}{dict(values)!r:.80}: set at least one weight above 0")


def all_of(*rules: Rule) -> Rule:
    """Returns the rule of a field that must pass all of these, applied in this order."""

    def check_all(name: str, value: Any) -> None:
        for rule in rules:
            rule(name, value)

    return check_all


def optional(rule: Rule) -> Rule:
    """Returns the rule of a field that may also be None."""
    return lambda name, value: None if value is None else rule(name, value)


def one_of(words: Collection[str]) -> Rule:
    """Returns the rule of a field that has one of these values."""

    def check_word(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in words:
            hint = nearest(value, words) if isinstance(value, str) else ""
            if not hint.startswith("did you mean"):
                two = len(words) == 2
                hint = f"use {' or '.join(words)}" if two else f"use one of {', '.join(words)}"
            raise ValueError(f"{name}{value!r:.80}: {hint}")

    return check_word


def each(rule: Rule, least: int = 0, unique: bool = True) -> Rule:
    """Returns the rule of a list or tuple with at least `least` values."""

    def check_values(name: str, values: Any) -> None:
        if not isinstance(values, tuple | list):
            raise ValueError(f"{name}{values!r:.80}: use a list")
        if len(values) < least:
            raise ValueError(f"{name}{values!r}: name at least {least}")
        for value in values:
            rule(f"{name}{tuple(values)!r:.80}: ", value)
        if unique and len(set(values)) < len(values):
            raise ValueError(f"{name}{tuple(values)!r:.80}: a value appears twice, remove one")

    return check_values


# ---------------------------------------------------------------- the fields

_STAGE: dict[str, Rule] = {
    "steps": POSITIVE,
    "lr": number(float, above=0, high=1),
    "warmup_steps": COUNT,
    "schedule": lambda name, value: optim.check_schedule(name.removesuffix("="), value),
    "final_lr_share": SHARE,
    "b1": BELOW_1,
    "b2": BELOW_1,
    "eps": number(float, above=0, high=1),
    "weight_decay": number(float, 0, 100),
    "clip_norm": AMOUNT,
    "micro_batches": POSITIVE,
    "micro_rows": number(int, -1, _MOST),
    "save_every": POSITIVE,
    "keep": POSITIVE,
    "log_every": POSITIVE,
    "profile_steps": all_of(each(COUNT), metrics.check_steps),
    "epochs": FACTOR,
}
_RFT: dict[str, Rule] = {
    "comparisons": POSITIVE,
    "samples": COUNT,
    "hinted": COUNT,
    "reject": flag,
    "min_parsed": SHARE,
    "sampler": all_of(text, lambda _, value: SAMPLERS[value]),
}
_RL: dict[str, Rule] = {
    "first_item": COUNT,
    "easy_trials": text,
    "prompts": POSITIVE,
    "group_size": number(
        int, 2, 4096, use="advantages compare the samples of a group, set at least 2"
    ),
    "group_packed": all_of(flag, grpo.check_packed),
    "prompt_len": POSITIVE,
    "max_new_tokens": POSITIVE,
    "length_buckets": POSITIVE,
    "prompt_slots": COUNT,
    "rollout_tensor": COUNT,
    "temperature": number(
        float, above=0, high=100, use="RL needs samples that differ, set it above 0, at most 100"
    ),
    "beta": AMOUNT,
    "clip": number(float, above=0, high=10),
    "kl_estimator": all_of(text, lambda _, value: losses.check_kl_estimator(value)),
    "normalise_std": flag,
    "updates_per_rollout": POSITIVE,
    "rollout_quantize": one_of(("", "int8")),
    "reference_dtype": one_of(_DTYPES),
}
_SFT: dict[str, Rule] = {"first_item": COUNT, "tasks": POSITIVE, "demonstrations": POSITIVE}
_POLICY: dict[str, Rule] = {"max_unscored": SHARE}
_JUDGE: dict[str, Rule] = {
    "source": all_of(text, lambda name, value: one_of((RULE, *SOURCES))(name, value)),
    "path": text,
    "meta_rm": text,
    "quantize": one_of(("", *KINDS)),
    "dtype": one_of(_DTYPES),
    "prompt_slots": COUNT,
    "rows": COUNT,
    "model": text,
    "url": text,
    "key_variable": text,
    "deadline": FACTOR,
    "k": POSITIVE,
    "temperature": TEMPERATURE,
    "max_new_tokens": COUNT,
    "top_p": number(float, above=0, high=1),
    "top_k": COUNT,
    "k_meta": COUNT,
    "principles": text,
    "reward": text,
    "block_size": POSITIVE,
    "length_penalty": AMOUNT,
    "length_free": COUNT,
} | {name: within(endpoint.RANGES[name]) for name in ("parallel", "retries", "timeout")}
_META_RM: dict[str, Rule] = {
    "start": one_of(STARTS),
    "batch_size": POSITIVE,
    "seq_len": POSITIVE,
    "token_loss": AMOUNT,
    "likelihood": number(
        float,
        0,
        1e6,
        use="the weight of a log-probability; set it to 0 (the scalar head alone) or above",
    ),
    "samples": COUNT,
    "first_item": COUNT,
    "comparisons": COUNT,
    "rft_trials": COUNT,
    "temperature": TEMPERATURE,
    "held_out": BELOW_1,
}
_EVAL: dict[str, Rule] = {
    "split": text,
    "comparisons": POSITIVE,
    "samples": POSITIVE,
    "base_samples": COUNT,
    "ks": each(POSITIVE, least=1),
    "temperature": TEMPERATURE,
    "max_new_tokens": POSITIVE,
    "prompt_slots": COUNT,
    "expected": flag,
    "meta_batch": POSITIVE,
    "seed": SEED,
}
_DATA: dict[str, Rule] = {
    "judging": task,
    "held_out": task,
    "general": task,
    "families": each(one_of(tuple(FAMILIES))),
    "file": text,
    "held_out_file": text,
    "held_out_share": number(
        float, above=0, high=math.nextafter(1, 0), use="use more than 0 and less than 1"
    ),
    "held_out_most": POSITIVE,
    "module": text,
    "folder": text,
    "general_items": COUNT,
    "seed": number(int, 0, 2**32 - 1),
    "shuffle_labels": flag,
    "max_skipped": SHARE,
}
_TOP: dict[str, Rule] = {
    "name": text,
    "seed": SEED,
    "stages": each(one_of(STAGES), least=1),
    "tensorboard": flag,
    "export": flag,
    "slice": text,
    "init": text,
    "tokenizer": text,
    "template": text,
    "principles": flag,
    "seq_len": number(int, 2, _MOST),
    "batch_size": POSITIVE,
}
_AXIS = number(int, -1, 2**20)
_SAMPLING: dict[str, Rule] = {
    "accuracy": SHARE,
    "shortcut": SHARE,
    "path": text,
    "url": text,
    "model": text,
    "key_variable": text,
    "max_new_tokens": POSITIVE,
    "temperature": TEMPERATURE,
    "top_p": number(float, above=0, high=1),
    "top_k": COUNT,
    "max_failed": SHARE,
} | {name: within(limits) for name, limits in endpoint.RANGES.items()}
_SIZE = number(int, 1, 2**24)
_MODEL: dict[str, Rule] = {
    "name": text,
    "num_layers": number(int, 1, 1000),
    "query_pre_attn_scalar": FACTOR,
    "attn_cap": optional(FACTOR),
    "final_cap": optional(FACTOR),
    "norm_eps": SHARE,
    "norm_offset": number(int, 0, 1),
    "vocab_pad": COUNT,
    "activation": one_of(("gelu", "silu")),
    "dtype": one_of(_DTYPES),
    "param_dtype": one_of(_DTYPES),
    "remat": one_of((*REMAT, AUTO)),
    "attention": one_of(("xla", "splash")),
    "windows": each(optional(_SIZE), unique=False),
    "pattern": each(_layer, least=1, unique=False),
    "quantize": _not_quantized,
    "lora": _no_lora,
    "kv_cache_dtype": optional(one_of(("int8",))),
}
_MODEL |= {
    field.name: {"int": _SIZE, int: _SIZE, "bool": flag, bool: flag}[field.type]
    for field in dataclasses.fields(TransformerConfig)
    if field.name not in _MODEL
}
SECTIONS: dict[str, Mapping[str, Rule]] = {
    "": _TOP | {"model": text},
    "model_overrides": _MODEL,
    "lora": {
        "rank": number(int, 0, 2**16, use="use 1 or more, or 0 to train all weights"),
        "alpha": number(float, above=0, high=1e6, use="use a number above 0"),
        "targets": each(one_of(TARGETS), least=1),
        "base": one_of(("bfloat16", *KINDS)),
    },
    "mesh": {"data": _AXIS, "fsdp": _AXIS, "tensor": _AXIS},
    "data": _DATA,
    "data.world": {
        "levels": weights,
        "sizes": weights,
        "distractors": weights,
        "best_hedged": SHARE,
        "reference": flag,
    },
    "rft": _STAGE | _RFT,
    "rft.sampling": _SAMPLING,
    "rl": _STAGE | _RL,
    "meta_rm": _STAGE | _META_RM,
    "eval": _EVAL,
    "sft": _STAGE | _SFT,
    "policy": _STAGE | _RL | _POLICY,
    "policy.judge": _JUDGE,
}

# Fields that an experiment need not list -> a value of their type, mostly the default.
OPTIONAL: dict[str, Any] = {
    "slice": "",
    "template": "",
    "principles": True,
    "tensorboard": True,
    "data.families": (),
    "data.file": "",
    "data.held_out_file": "",
    "data.held_out_share": 0.1,
    "data.held_out_most": 1,
    "data.world.best_hedged": 0.0,
    "data.world.reference": False,
    "model_overrides.windows": (),
    "lora.targets": (),
    "lora.base": "bfloat16",
    "rft.min_parsed": 0.0,
    "sft.first_item": 0,
} | {
    f"{stage}.{name}": value
    for stages, fields in (
        (("rft", "rl", "meta_rm", "sft", "policy"), {"epochs": 1.0, "micro_rows": 0}),
        (
            ("rl", "policy"),
            {"easy_trials": "", "group_packed": True, "rollout_tensor": 0, "rollout_quantize": ""},
        ),
    )
    for stage in stages
    for name, value in fields.items()
}
