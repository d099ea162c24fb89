"""Finds and reads the files of a benchmark: JSON, JSON lines, CSV, Parquet, Arrow, or a prepared TFDS folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grm_jax.data.records import strict_records as records
from grm_jax.data.records import tfds_records, tfds_splits

TABLES = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz")


class MissingData(FileNotFoundError):
    """The files of a benchmark are not there; the message says which files to put where."""


class Source:
    """The folder given as --data, as one benchmark sees it.

    root: a folder that holds one folder per benchmark (named as the benchmark or one of its aliases), or the folder of
    this benchmark itself.  what: which files to get, and from where, for the message when they are missing.
    """

    def __init__(self, root: str | Path, name: str, aliases: Sequence[str] = (), what: str = ""):
        self.root, self.name, self.what = Path(root), name, what
        self.folders = [
            self.root / alias for alias in (name, *aliases) if (self.root / alias).is_dir()
        ]
        self.own = bool(self.folders)
        if not self.own and self.root.is_dir():
            self.folders = [self.root]

    def files(self, *patterns: str) -> list[Path]:
        """Files whose path below the folder matches one of the glob patterns, sorted; empty where there is none."""
        found: set[Path] = set()
        for folder in self.folders:
            for pattern in patterns:
                found |= {path for path in folder.rglob(pattern) if path.is_file()}
        return sorted(found)

    def require(self, *patterns: str) -> list[Path]:
        """The same, but raises MissingData where nothing matches."""
        return self.files(*patterns) or self.raise_missing(*patterns)

    def raise_missing(self, *patterns: str) -> Any:
        """Raises MissingData: which pattern was looked for, where, and what to put there."""
        where = self.root / self.name
        raise MissingData(
            f"benchmark {self.name}: no {' or '.join(patterns)} under {where} or {self.root}. Put there: {self.what}"
        )

    def table(self, *stems: str) -> Iterator[dict]:
        """Records of the first stem that has files, as a Hugging Face data folder, a TFDS folder or plain files name them.

        A stem is the beginning of a file's name, or of its folder's ("test" finds test-00000-of-00001.parquet,
        test.jsonl and test/data-00000-of-00001.arrow), or the name of a TFDS split.
        """
        for stem in stems:
            # Names like "test" occur everywhere: a root that may hold other benchmarks is not searched below its data/.
            above = ("",) if self.own else ("", "data/")
            patterns = [
                f"{a}{stem}{between}*{end}"
                for a in above
                for end in TABLES
                for between in ("", "/")
            ]
            found = (
                self.files(*patterns)
                if self.own
                else [p for f in self.folders for g in patterns for p in f.glob(g)]
            )
            # Descriptions that Hugging Face and TFDS put beside the data are not data.
            paths = [
                p for p in sorted(set(found)) if p.stem not in ("dataset_info", "state", "features")
            ]
            if paths:
                # Of several formats of the same table one is enough.
                kind = paths[0].suffix
                for path in paths:
                    if path.suffix == kind:
                        yield from records(path)
                return
        for features in (
            self.files("features.json") if self.own else self.root.glob("features.json")
        ):
            splits = tfds_splits(features.parent)
            for stem in stems:
                if stem in splits:
                    yield from tfds_records(features.parent, stem)
                    return
        self.raise_missing(*(f"{stem}*.parquet" for stem in stems))
