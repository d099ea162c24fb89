"""Data sets of the Hugging Face Hub by name: hf://datasets/ORG/NAME[@REVISION][/SPLIT].

Only files of data are downloaded (Parquet, JSON lines, CSV and the like), and no script is run. The
splits are those that the data set's card declares, else those in the names of its files.
"""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grm_jax import hub
from grm_jax.data.shards import Config, by_split, data_names, select

CARD = "README.md"
_PART = r"[\w][\w.-]*"
# A revision has a slash only in refs/convert/parquet and refs/pr/N.
_NAME = re.compile(rf"hf://datasets/({_PART}/{_PART})(?:@(refs/\w+/\w+|[^/@]+))?(?:/(.+?))?/?")

_CONVERTED = re.compile(r"([^/]+)/[^/]+/\d{4}\.parquet")  # on refs/convert/parquet


def download(source: str) -> list[Path]:
    """Returns the local files of a data set's split, downloaded where the cache lacks them.

    Raises FileNotFoundError and ValueError as `find`.
    """
    name, files = find(source)
    folder = hub.download(name, files)
    return [folder / file for file in files]


def ids(source: str) -> list[str]:
    """Returns hashes of the content of a split's files, which are not downloaded.

    Raises FileNotFoundError and ValueError as `find`.
    """
    name, files = find(source)
    known = hub.listing(name).ids
    return [known[file] for file in files]


def parse(source: str) -> tuple[hub.HubName, str]:
    """Returns the data set that a source names, and what follows it. Raises ValueError."""
    match = _NAME.fullmatch(source)
    if not match:
        raise ValueError(
            f"{source} is no data set of the Hub: write hf://datasets/ORG/NAME, then @REVISION and "
            "/SPLIT if needed"
        )
    repo, revision, choice = match.groups()
    return hub.HubName(repo, revision or "main", kind="dataset"), choice or ""


def find(source: str) -> tuple[hub.HubName, list[str]]:
    """Returns a data set, and the files of its split.

    Raises:
      FileNotFoundError: there is no such data set, revision or split, or no access to it.
      ValueError: the name is malformed, or has no split where there are several.
    """
    name, choice = parse(source)
    names = hub.listing(name).sizes
    if not data_names(names):
        raise FileNotFoundError(
            f"{source} has no data files, and scripts are not run: try the Hub's own conversion, "
            f"hf://datasets/{name.repo}@refs/convert/parquet"
        )
    card = _card(hub.download(name, [CARD], quiet=True) / CARD) if CARD in names else {}
    return name, select(names, choice, source, configs(card, names))


def _card(path: Path) -> Mapping[str, Any]:
    """Returns the metadata at the top of a data set's card, {} without any."""
    parts = re.split(
        r"^---\s*$", path.read_text(encoding="utf-8", errors="replace"), maxsplit=2, flags=re.M
    )
    try:
        card = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except yaml.YAMLError:
        return {}
    return card if isinstance(card, dict) else {}


def configs(card: Mapping[str, Any], names: Iterable[str]) -> list[Config]:
    """Returns the configurations of a data set: those of its card, or of the Hub's conversion.

    In a card `data_files` is a pattern, a list of patterns, or a list of {"split", "path"};
    `data_dir` is a folder. A card of another form declares none.
    """
    known = data_names(names)
    try:
        declared = [_config(entry, known) for entry in card.get("configs") or ()]
    except (TypeError, KeyError, AttributeError):
        declared = []
    parts = [_CONVERTED.fullmatch(name) for name in known]
    if not declared and all(parts):  # CONFIG/SPLIT/0000.parquet
        folders = dict.fromkeys(part[1] for part in parts if part)
        declared = [_config({"config_name": name, "data_dir": name}, known) for name in folders]
    return [config for config in declared if config.splits]


def _config(entry: Mapping[str, Any], names: Sequence[str]) -> Config:
    files, folder = entry.get("data_files") or (), entry.get("data_dir")
    splits: dict[str, list[str]] = {}
    if folder and not files:
        inside = by_split(name for name in names if name.startswith(f"{folder}/"))
        splits = {split: [glob.escape(name) for name in names] for split, names in inside.items()}
    for file in [files] if isinstance(files, str) else files:
        split, paths = ("train", file) if isinstance(file, str) else (file["split"], file["path"])
        splits.setdefault(str(split), []).extend([paths] if isinstance(paths, str) else paths)
    return Config(str(entry.get("config_name", "default")), splits, bool(entry.get("default")))
