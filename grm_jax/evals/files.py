"""Finds the files of a benchmark; `grm_jax.data.records` reads their formats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from grm_jax.data.records import strict_records, tfds_splits

TABLES = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz")
# Files that Hugging Face and TFDS put beside the data.
METADATA = ("dataset_info", "state", "features")


# The place of the latest record, for the error of a reader that fails on it.
latest_record = ""


def records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields the contents of a file's records. Raises ValueError naming the first bad one."""
    global latest_record
    for number, record in enumerate(strict_records(path), start=1):
        latest_record = f"{path}, record {number}"
        yield record


class MissingData(FileNotFoundError):
    """The files of a benchmark are missing; the message says which files to put where."""


class Source:
    """The files of one benchmark under --data.

    Attributes:
      read: the files that were returned so far.

    Args:
      root: a folder with one folder per benchmark, or the folder of this benchmark itself.
      name: the benchmark's folder.
      aliases: further names of its folder.
      instructions: which files to get, and from where, for the error if they are missing.
    """

    def __init__(
        self, root: str | Path, name: str, aliases: Sequence[str] = (), instructions: str = ""
    ):
        self.root, self.name, self.instructions = Path(root), name, instructions
        self.read: set[Path] = set()
        self.folders = [
            self.root / alias for alias in (name, *aliases) if (self.root / alias).is_dir()
        ]
        # Without a folder of its own, the root may be the benchmark's or hold other benchmarks.
        self.has_own_folder = bool(self.folders)
        if not self.has_own_folder and self.root.is_dir():
            self.folders = [self.root]

    def files(self, *patterns: str) -> list[Path]:
        """Returns the files below the folders that match one of the glob patterns, sorted."""
        matches = {
            path
            for folder in self.folders
            for pattern in patterns
            for path in folder.rglob(pattern)
            if path.is_file()
        }
        self.read |= matches
        return sorted(matches)

    def require(self, *patterns: str) -> list[Path]:
        """Returns the matching files. Raises MissingData if there are none."""
        return self.files(*patterns) or self.raise_missing(*patterns)

    def raise_missing(self, *patterns: str) -> NoReturn:
        """Raises MissingData: which files are missing, where, and what to put there."""
        raise MissingData(
            f"benchmark {self.name}: no {' or '.join(patterns)} under '{self.root / self.name}' "
            f"or '{self.root}'. Put there: {self.instructions}"
        )

    def table(self, *stems: str) -> Iterator[dict]:
        """Yields the records of the first stem that has files.

        A stem is the beginning of a file's or folder's name ("test" finds
        test-00000-of-00001.parquet, test.jsonl and test/data-00000-of-00001.arrow), or a split of
        a prepared TFDS folder. Raises MissingData if no stem has files.
        """
        for stem in stems:
            if paths := self._table_files(stem):
                for path in paths:
                    yield from records(path)
                return
        infos = self.files if self.has_own_folder else self.root.glob
        for features in infos("features.json"):
            splits = tfds_splits(features.parent)
            for stem in stems:
                if stem in splits:
                    from grm_jax.data.mixtures import tfds_records  # imports TensorFlow

                    yield from tfds_records(features.parent, stem)
                    return
        self.raise_missing(*(f"{stem}*.parquet" for stem in stems))

    def _table_files(self, stem: str) -> list[Path]:
        """The files of a stem, sorted, in one of the formats if there are several."""
        names = [f"{stem}{separator}*{suffix}" for suffix in TABLES for separator in ("", "/")]
        if self.has_own_folder:
            matches = self.files(*names)
        else:  # "test" is a common name: only the root itself and its data/ are searched
            patterns = [f"{folder}{name}" for name in names for folder in ("", "data/")]
            matches = [p for f in self.folders for pattern in patterns for p in f.glob(pattern)]
        self.read.update(matches)
        paths = sorted({path for path in matches if path.stem not in METADATA})
        return [path for path in paths if path.suffix == paths[0].suffix]
