"""Checks that the inputs of an experiment are there, before anything is downloaded or loaded."""

import dataclasses
import json
import logging
from collections.abc import Collection, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from grm_jax import hub, strict_json
from grm_jax.data import hub_sets
from grm_jax.data.sources import HUB
from grm_jax.storage import as_path, check_scheme, hub_name
from grm_jax.training.errors import MissingInputs

log = logging.getLogger(__name__)
MODELS = ("init", "tokenizer", "rft.sampling.path")  # fields that may hold a hub name


def check(paths: Iterable[tuple[str, str]], here: bool = True) -> None:
    """Checks that each path exists and is readable, a hub name with this machine's token.

    Args:
      paths: (field of the config, local path, bucket path or hub name).
      here: whether the run is on this machine, whose disk must hold the download.

    Raises:
      MissingInputs: every problem, one a line, with the first field of each path and the way out.
    """
    fields: dict[str, str] = {}
    for field, path in paths:
        fields.setdefault(str(path), field)
    problems, size = [], 0
    for path, field in fields.items():
        try:
            if path.startswith(HUB):
                size += hub.check_access(*hub_sets.find(path))
                continue
            if field.startswith("config.data."):
                check_scheme(path, "data")
            if name := hub_name(path):
                files = hub.model_files(name, weights=field != "config.tokenizer")
                size += hub.check_access(name, files)
            elif not as_path(path).exists():
                problems.append(
                    f"{field} names {path}, which does not exist or is not readable from here: "
                    "correct the path"
                )
        except (OSError, ValueError) as error:
            problems.append(f"{field}: {error}")
    try:
        hub.check_space(size if here else 0, "the download")
    except OSError as error:
        problems.append(str(error))
    if problems:
        title = [f"{len(problems)} inputs are missing:"] if len(problems) > 1 else []
        raise MissingInputs("\n  ".join([*title, *problems]))


def on_the_hub(paths: Iterable[tuple[str, str]]) -> dict[str, hub.HubName]:
    """Returns {path: its repository} of the paths that are names on the Hub."""
    names = {}
    for _, path in paths:
        name = hub_sets.parse(path)[0] if path.startswith(HUB) else hub_name(path)
        if name:
            names[path] = name
    return names


def pin(config: Any, workdir: Any, used: Collection[str]) -> None:
    """Adds the commit to the hub names of models in the config: "ORG/MODEL@COMMIT".

    A resumed run keeps the commits of its config.json, unless the config names another revision.
    All processes use the commits of process 0, because a branch may move between their lookups.
    used: names that the run reads; others stay as they are.
    """
    saved_file = as_path(workdir) / "config.json"
    saved = strict_json.read(saved_file) if saved_file.exists() else {}
    names = {}
    for field in MODELS:
        *sections, key = field.split(".")
        section, earlier = config, saved
        for part in sections:
            section, earlier = section.get(part, {}), earlier.get(part, {})
        if not (path := section.get(key)) or not (name := hub_name(path)):
            continue
        before = hub.parse(str(earlier.get(key, "")))
        if before and name == dataclasses.replace(before, revision="main"):
            names[field] = earlier[key]
        elif path in used:
            names[field] = hub.pinned(name)
            log.info("config.%s is %s", field, names[field])
    config.update_from_flattened_dict(from_process_0(names))


def from_process_0(names: dict[str, str]) -> dict[str, str]:
    """Returns the argument of process 0. All processes must call it together."""
    if jax.process_count() == 1:
        return names
    text = json.dumps(names).encode().ljust(4096)  # all processes must pass the same shape
    return json.loads(broadcast_one_to_all(np.frombuffer(text, np.uint8)).tobytes())
