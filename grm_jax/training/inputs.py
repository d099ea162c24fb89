"""Checks that the inputs of an experiment are there, before anything is downloaded or loaded."""

from collections.abc import Iterable

from grm_jax import hub
from grm_jax.data import hub_sets
from grm_jax.data.sources import HUB
from grm_jax.storage import as_path, hub_name
from grm_jax.training.errors import MissingInputs


def check(paths: Iterable[tuple[str, str]]) -> None:
    """Checks that each path exists and is readable, a hub name with this machine's token.

    Args:
      paths: (field of the config, local path, bucket path or hub name).

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
            elif name := hub_name(path):
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
        hub.check_space(size, "the download")
    except OSError as error:
        problems.append(str(error))
    if problems:
        title = [f"{len(problems)} inputs are missing:"] if len(problems) > 1 else []
        raise MissingInputs("\n  ".join([*title, *problems]))
