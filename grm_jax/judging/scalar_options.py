"""Options that have no effect on a scalar reward model are refused; no JAX is imported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grm_jax.hub import ADAPTER_FILES
from grm_jax.judging.metadata import MetaRMMetadata
from grm_jax.judging.options import Options
from grm_jax.model_files import exists, read_json_if_any
from grm_jax.storage import fetch, fetch_adapter

# One greedy forward pass of each response.
SCALAR = {"k": 1, "temperature": 0.0}
_DEFAULTS = vars(Options()) | SCALAR


def is_scalar(folder: str | Path, lora: str | Path | None = None) -> bool:
    """Returns whether a model folder is a scalar reward model, by its config.json alone.

    A folder with a meta_rm.json is a meta reward model, which reads critiques. A damaged file is
    not: the loader reports it.

    lora: a LoRA adapter; that of a sequence classifier makes a language model one.
    """
    try:
        if lora is not None:
            adapter = fetch_adapter(lora)
            is_classifier = read_json_if_any(adapter / ADAPTER_FILES[0]).get("task_type")
            if is_classifier == "SEQ_CLS":
                return not exists(adapter / MetaRMMetadata.FILE)
        folder = fetch(folder, weights=False)
        names = read_json_if_any(folder / "config.json").get("architectures")
    except (ValueError, OSError):
        return False
    if exists(folder / MetaRMMetadata.FILE) or not isinstance(names, list) or not names:
        return False
    return str(names[0]).endswith("ForSequenceClassification")


def check_options(name: str, options: Options, is_command_line: bool = False) -> None:
    """Raises ValueError for the first option that is set and has no effect; see `check_unused`."""
    default = Options()
    changed = {n: v for n, v in vars(options).items() if v != getattr(default, n)}
    check_unused(name, changed, is_command_line)


def check_unused(name: str, given: Mapping[str, Any], is_command_line: bool = False) -> None:
    """Raises ValueError for the first option that differs from what a scalar reward model does.

    Args:
      name: of the model.
      given: values by option; None is unset.
    """
    for option, value in given.items():
        unset = value is None or value is False or option == "seed"
        if unset or (option in _DEFAULTS and value == _DEFAULTS[option]):
            continue
        shown = "" if value is True else f"{value!s:.80}"
        text = f"--{option} {shown}".strip() if is_command_line else f"{option} = {value!r:.80}"
        raise ValueError(
            f"{text} has no effect: {name} is a scalar reward model, which gives each response one "
            f"reward and writes no critiques. Omit {text.split()[0]}"
        )
