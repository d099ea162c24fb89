"""Chooses the files of one split among the files of a folder or of a data set of the Hub."""

import collections
import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

# In this order of preference where a data set of the Hub has the same rows in several formats.
SUFFIXES = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
# Files that Hugging Face and TFDS put beside the data.
METADATA = ("dataset_info", "dataset_infos", "dataset_dict", "state", "features", "config")
_SHARD = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})(-[0-9a-f]+)?")
_KEYWORDS = ("train", "test", "validation", "valid", "dev", "eval")


@dataclasses.dataclass(frozen=True)
class Config:
    """A configuration of a data set, as its card declares it.

    splits: name -> glob patterns of its files.
    """

    name: str
    splits: dict[str, list[str]]
    is_default: bool = False


def suffix_of(name: str) -> str:
    """Returns the suffix of a file's name, without .gz."""
    return PurePosixPath(name.removesuffix(".gz")).suffix


def data_names(names: Iterable[str]) -> list[str]:
    """Returns the names of data files, sorted, without hidden files and metadata."""
    return sorted(
        name
        for name in names
        if suffix_of(name) in SUFFIXES
        and PurePosixPath(name).name.split(".")[0] not in METADATA
        and not any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)
    )


def select(
    names: Iterable[str], choice: str, source: str, configs: Sequence[Config] = ()
) -> list[str]:
    """Returns the names of the files of one split, sorted.

    Args:
      names: all files, relative to the folder.
      choice: what the source says after the folder: "", "SPLIT", "CONFIG", "CONFIG/SPLIT", a
        folder, "FOLDER/SPLIT", or a file.
      source: names the source in errors.
      configs: what the data set's card declares. Without, splits are those of the files' names.

    Raises:
      FileNotFoundError: no data files, or none of that choice.
      ValueError: several splits and no choice, files of several formats, or a missing shard.
    """
    known = data_names(names)
    if choice in known:
        return [choice]
    if not known:
        raise FileNotFoundError(f"{source} holds no data files: give {', '.join(SUFFIXES)} files")
    splits, chosen = _declared(known, choice, configs) if configs else _by_name(known, choice)
    if not chosen:
        raise FileNotFoundError(f"{source} does not exist; the splits are {', '.join(splits)}")
    if len(chosen) > 1:
        raise ValueError(
            f"{source} has the splits {', '.join(chosen)}: add one, as in {source}/{min(chosen)}"
        )
    (files,) = chosen.values()
    files = _one_format(files, source)
    _check_complete(files, source)
    return files


Splits = dict[str, list[str]]  # what to add to the name of the data set -> its files


def _declared(
    names: Sequence[str], choice: str, configs: Sequence[Config]
) -> tuple[Splits, Splits]:
    """Returns the splits that a card declares, and those of them that the choice names."""
    splits, chosen = {}, {}
    for config in configs:
        is_default = config.is_default or config.name == "default" or len(configs) == 1
        for split, globs in config.splits.items():
            files = [name for name in names if any(_matches(name, glob) for glob in globs)]
            label = split if is_default else f"{config.name}/{split}"
            splits[label] = files
            if choice in (label, config.name, f"{config.name}/{split}", is_default and ""):
                chosen[label] = files
    return splits, (splits if not choice and not chosen else chosen)


def _matches(name: str, glob: str) -> bool:
    """Whether a name matches a pattern of a card, where "**/" may stand for no folder."""
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, glob.replace("**/", ""))


def _by_name(names: Sequence[str], choice: str) -> tuple[Splits, Splits]:
    """Returns the splits in the names of files, and those of them that the choice names."""
    folder, _, last = choice.rpartition("/")
    inside = [name for name in names if not folder or name.startswith(f"{folder}/")]
    in_choice = [name for name in names if name.startswith(f"{choice}/")] if choice else names
    if in_choice:
        return by_split(names), by_split(in_choice)
    return by_split(names), {last: files} if (files := by_split(inside).get(last)) else {}


def by_split(names: Iterable[str]) -> Splits:
    """Groups files by the split in their names, as `datasets` does.

    Files without a split in their names are "train" if no file has one, and ignored otherwise.
    """
    splits: Splits = {}
    for name in names:
        splits.setdefault(split_of(name) or "", []).append(name)
    unnamed = splits.pop("", [])
    return splits or {"train": unnamed}


def split_of(name: str) -> str | None:
    """Returns the split in the name of a file or of its folder, or None.

    "data/test_prefs-00000-of-00001.parquet" -> "test_prefs", "test/data-00000-of-00002.arrow" ->
    "test", "pairs_validation.jsonl" -> "validation", "pairs.jsonl" -> None.
    """
    path = PurePosixPath(name.removesuffix(".gz"))
    shard = _SHARD.fullmatch(path.stem)
    if shard and shard[1] not in ("", "data", "part"):
        return shard[1]
    for part in (path.stem, *reversed(path.parts[:-1])):
        words = re.split(r"[^a-zA-Z]+", part.lower())
        if keyword := next((word for word in _KEYWORDS if word in words), None):
            return keyword
    return None


def _one_format(files: Sequence[str], source: str) -> list[str]:
    suffixes = sorted({suffix_of(file) for file in files}, key=SUFFIXES.index)
    is_hub = source.startswith("hf://")  # where Parquet repeats the rows of other files
    if len(suffixes) > 1 and not (is_hub and suffixes[0] == ".parquet"):
        raise ValueError(
            f"{source} holds {' and '.join(suffixes)} files: add a folder or a file to the name"
        )
    return [file for file in files if suffix_of(file) == suffixes[0]]


def _check_complete(files: Sequence[str], source: str) -> None:
    """Raises ValueError if a file says that there are more shards than these."""
    shards: dict[tuple[str, str], int] = collections.Counter()
    for file in files:
        path = PurePosixPath(file.removesuffix(".gz"))
        if match := _SHARD.fullmatch(path.stem):
            shards[str(path.parent / match[1]), match[3]] += 1
    for (name, total), count in shards.items():
        if count != int(total):
            raise ValueError(
                f"{source} has {count} of {int(total)} shards of {name}: download it again"
            )
