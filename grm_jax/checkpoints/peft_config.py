"""Parses and writes adapter_config.json, the settings of a LoRA adapter of `peft`.

A field that is not supported and would change the results is refused, and so is an unknown field
that is set. Fields that concern training alone are ignored.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from grm_jax import strict_json
from grm_jax.model_files import exists, one_line, read_json
from grm_jax.models.lora import TARGETS
from grm_jax.storage import write_atomic

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
ALL_LINEAR = "all-linear"  # all TARGETS
TASKS = {"CAUSAL_LM": False, "SEQ_CLS": True}  # task_type -> is_classifier
SCORE = "score"  # module of a classifier's reward head

# Fields that do not change what an adapter computes.
_NO_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout",
    "peft_version", "megatron_core", "megatron_config", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "ensure_weight_tying",
)  # fmt: skip
_UNSET: tuple[Any, ...] = (None, False, "none", [], {})
# The other initialisations of `peft` also change the base weights.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
MAX_RANK, MAX_PATTERN, MAX_REPEATS = 1 << 16, 2000, 8


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Settings of an adapter, named as in `peft.LoraConfig`.

    Attributes:
      target_modules: names of modules, or a regular expression over whole names.
      layers_to_transform: the adapted layers; None for all.
      rank_pattern, alpha_pattern: (regular expression, value) of modules with another r or alpha.
      modules_to_save: modules that the adapter replaces as a whole: a classifier's score.
      is_classifier: the adapter is of a sequence classifier (task_type "SEQ_CLS").
      base: `base_model_name_or_path`, for errors.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: tuple[str, ...] | str = ()
    exclude_modules: tuple[str, ...] | str = ()
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    use_rslora: bool = False
    modules_to_save: tuple[str, ...] = ()
    is_classifier: bool = False
    base: str = ""

    def rank(self, module: str) -> int:
        """Returns the rank of a module's adapter."""
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """Returns the factor by which a module's B A is multiplied."""
        rank = self.rank(module)
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def adapts(self, module: str) -> bool:
        """Returns whether a module has an adapter, by the rules of `peft`.

        module: a name of the base model, such as model.layers.0.self_attn.q_proj.
        """
        if self.exclude_modules and _names(self.exclude_modules, module):
            return False
        if isinstance(self.target_modules, str):
            if self.target_modules.lower() == ALL_LINEAR:
                return module.rpartition(".")[2] in TARGETS
            return _names(self.target_modules, module)
        if module in self.target_modules or not _names(self.target_modules, module):
            return module in self.target_modules
        if not self.layers_to_transform:
            return True
        lists = "|".join(map(re.escape, self.layers_pattern)) or r"[^.]*"
        match = re.match(rf"(?:^|.*?\.)(?:{lists})\.(\d+)\.", module)
        return match is not None and int(match[1]) in self.layers_to_transform


def _names(targets: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in targets)


def _by_pattern(patterns: tuple[tuple[str, Any], ...], module: str, default: Any) -> Any:
    matches = (value for p, value in patterns if re.match(rf"(.*\.)?({p})$", module))
    return next(matches, default)


def read_config(folder: Path) -> AdapterConfig:
    """Reads the adapter_config.json of a folder.

    Raises:
      FileNotFoundError: the folder has none.
      ValueError: names the field and the value that is wrong or not supported.
    """
    file = folder / CONFIG
    if not exists(file):
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}: give the folder of a LoRA adapter, as peft saves it"
        )
    fields, check = read_json(file), _Checks(file)
    for name, value in fields.items():
        check.supported(name, value)
    task = fields.get("task_type")
    config = AdapterConfig(
        r=check.number("r", fields.get("r", 8), whole=True),
        lora_alpha=check.number("lora_alpha", fields.get("lora_alpha", 8)),
        target_modules=check.names("target_modules", fields.get("target_modules"), pattern=True),
        exclude_modules=check.names("exclude_modules", fields.get("exclude_modules"), pattern=True),
        layers_to_transform=check.layers(fields.get("layers_to_transform")),
        layers_pattern=check.listed("layers_pattern", fields.get("layers_pattern")),
        rank_pattern=check.patterns("rank_pattern", fields.get("rank_pattern"), whole=True),
        alpha_pattern=check.patterns("alpha_pattern", fields.get("alpha_pattern")),
        use_rslora=bool(fields.get("use_rslora")),
        modules_to_save=check.listed("modules_to_save", fields.get("modules_to_save")),
        is_classifier=TASKS.get(str(task), False),
        base=one_line(fields.get("base_model_name_or_path") or "")[:120],
    )
    if not config.target_modules:
        raise check.wrong(
            "target_modules", fields.get("target_modules"), "name the adapted modules"
        )
    for name in config.modules_to_save:
        if name not in (SCORE, "classifier"):  # peft lists both for every sequence classifier
            raise check.not_supported("modules_to_save", list(config.modules_to_save))
    return config


def write_config(folder: Path, config: AdapterConfig) -> None:
    """Writes adapter_config.json. Fields that are not written have peft's defaults."""
    tasks, alpha = {is_classifier: task for task, is_classifier in TASKS.items()}, config.lora_alpha
    fields = {
        "peft_type": "LORA",
        "task_type": tasks[config.is_classifier],
        "base_model_name_or_path": config.base or None,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,  # as other libraries expect it
        "lora_dropout": 0.0,
        "target_modules": list(config.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": config.use_rslora,
        "use_dora": False,
        "modules_to_save": list(config.modules_to_save) or None,
    }
    write_atomic(folder / CONFIG, strict_json.dumps(fields, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class _Checks:
    """Checks of the fields of one file; every error names the file, the field and the value."""

    file: Path

    def wrong(self, name: str, value: Any, remedy: str) -> ValueError:
        return ValueError(f"{self.file}: {name}={value!r:.80} is wrong: {remedy}")

    def not_supported(self, name: str, value: Any) -> ValueError:
        return ValueError(
            f"{self.file}: {name}={value!r:.80} is not supported: merge it into its base with peft "
            "(merge_and_unload), and load the merged folder"
        )

    def supported(self, name: str, value: Any) -> None:
        """Raises ValueError for a value that changes the results and is not supported."""
        choices = {
            "peft_type": ("LORA",),
            "task_type": (None, *TASKS),
            "init_lora_weights": _INITS,
            "use_rslora": (True, False, None),
        }
        if name in choices:
            if not any(value is c or (isinstance(c, str) and value == c) for c in choices[name]):
                raise self.not_supported(name, value)
        elif name not in {*_NO_EFFECT, *(f.name for f in dataclasses.fields(AdapterConfig))}:
            if not any(value is unset or value == unset != 0 for unset in _UNSET):
                raise self.not_supported(name, value)

    def number(self, name: str, value: Any, whole: bool = False) -> Any:
        fits = type(value) is int or (not whole and type(value) is float and math.isfinite(value))
        if not fits or not (1 if whole else -1e6) <= value <= (MAX_RANK if whole else 1e6):
            kind = f"a whole number from 1 to {MAX_RANK:,}" if whole else "a number up to 1e6"
            raise self.wrong(name, value, f"give {kind}")
        return value

    def listed(self, name: str, value: Any) -> tuple[str, ...]:
        """Returns the strings of a list; a string alone counts as a list of one."""
        value = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(v and isinstance(v, str) for v in value):
            raise self.wrong(name, value, "give a list of strings")
        return tuple(value)

    def names(self, name: str, value: Any, pattern: bool) -> tuple[str, ...] | str:
        return self.pattern(name, value) if isinstance(value, str) else self.listed(name, value)

    def layers(self, value: Any) -> tuple[int, ...] | None:
        value = [value] if type(value) is int else value
        if value is not None and (
            not isinstance(value, list) or not all(type(i) is int and i >= 0 for i in value)
        ):
            raise self.wrong("layers_to_transform", value, "give a list of layers, from 0")
        return tuple(value) if value else None

    def patterns(self, name: str, value: Any, whole: bool = False) -> tuple[tuple[str, Any], ...]:
        if not isinstance(value, dict | None):
            raise self.wrong(name, value, "give an object of module patterns and numbers")
        return tuple(
            (self.pattern(name, pattern), self.number(f"{name}[{pattern!r:.40}]", number, whole))
            for pattern, number in (value or {}).items()
        )

    def pattern(self, name: str, pattern: str) -> str:
        """Returns a regular expression; refuses one whose search could take exponential time."""
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise self.wrong(name, pattern, f"give a valid regular expression ({error})") from None
        repeats = re.findall(r"[*+]|\{\d*,\d*\}", pattern)
        if re.search(r"\)[*+{]", pattern) or max(len(repeats) - MAX_REPEATS, 0):
            raise self.not_supported(name, pattern)
        if len(pattern) > MAX_PATTERN:
            raise self.wrong(name, pattern, f"use at most {MAX_PATTERN:,} characters")
        return pattern
