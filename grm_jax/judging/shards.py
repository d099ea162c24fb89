"""Shards of a run: independent machines judge one part each, and `grm merge` joins the parts.

Row r of the input (from 1) belongs to shard (r - 1) % N + 1. Rows keep their numbers, and samples
depend on seed and prompt alone, so a merged run has the rows of a single run. A shard's file is a
`RunStore` that stays: a header with the settings of the run, then rows with checksums.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from grm_jax import strict_json
from grm_jax.judging import codec
from grm_jax.judging.row_schema import row_problem
from grm_jax.run_store import RunStore, content_of, verified
from grm_jax.storage import as_path, open_atomic

EVALUATION = "evaluation"  # the name of the settings of a shard of `grm eval`
_LABEL = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.[^/.]+)?")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count` parts."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Returns the shard of "I/N". Raises ValueError for another text."""
        match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", str(text), re.ASCII)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(
                f"--shard {text!s:.40}: write I/N with I from 1 to N, such as 1/8 for the first of "
                "8 shards"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def select(self, rows: Sequence[Any]) -> list[Any]:
        """Returns the items of this shard, in their order."""
        return list(rows[self.index - 1 :: self.count])

    def path(self, output: Any) -> epath.Path:
        """Returns the file of this shard: of out.jsonl it is out-00001-of-00008.jsonl."""
        output = as_path(output)
        name = f"{output.stem}-{self.index:05d}-of-{self.count:05d}{output.suffix}"
        return output.with_name(name)


def shard_of(path: Any) -> tuple[str, Shard] | None:
    """Returns the name before the label and the shard of a file's name; None for another file."""
    match = _LABEL.fullmatch(Path(str(path)).name)
    if not match or not 1 <= int(match[2]) <= int(match[3]):
        return None
    return match[1], Shard(int(match[2]), int(match[3]))


@dataclasses.dataclass(frozen=True)
class Merged:
    """Counts of merged rows; see `run.RunResult`."""

    rows: int
    errors: int
    counts: Mapping[str, int]


def merge(paths: Sequence[Any], output: Any) -> Merged:
    """Writes the rows of all shards of one run to `output`, as the single run would have.

    Raises:
      ValueError: a shard is missing, incomplete, damaged, of another run, or given twice.
      BlockingIOError: a shard is being written.
    """
    headers = [(path, _header(path)) for path in paths]
    count = check_same_run(headers)
    total = headers[0][1]["of_rows"]
    stores: dict[int, RunStore] = {}
    errors, counts = 0, dict.fromkeys(("tokens", "critiques", "prompt_tokens"), 0)
    try:
        for path, header in headers:
            shard = Shard.parse(header["shard"])
            store = stores[shard.index] = RunStore(path, header, key="line")
            _check_keys(store, shard, total)
        with open_atomic(output) as file:
            for number in range(1, total + 1):
                store = stores[(number - 1) % count + 1]
                record = store[number]
                if problem := row_problem(record):
                    raise ValueError(
                        f"{store.path} is damaged: row {number} has {problem}: judge the shard "
                        "again with --overwrite"
                    )
                errors += record.get("error") is not None
                for name, value in codec.counts(record).items():
                    counts[name] += value
                file.write(store.line(number))
    finally:
        for store in stores.values():
            store.close()
    return Merged(total, errors, counts)


def _header(path: Any) -> dict[str, Any]:
    """Returns the settings with which a shard was judged."""
    if not as_path(path).exists():
        raise FileNotFoundError(f"no shard {path}: name the shards, or the folder that holds them")
    header = read_identity(path)
    if header is None or not {"shard", "of_rows"} <= header.keys():
        raise ValueError(
            f"{path} does not begin with the settings of a shard: it is damaged, or no output of "
            "--shard I/N"
        )
    return header


def read_identity(path: Any) -> dict[str, Any] | None:
    """Returns the settings that a store begins with; None for a file or folder without them."""
    store = as_path(path)
    if store.is_dir():
        parts = sorted((part for part in store.glob("*.jsonl") if part.stem.isdecimal()), key=str)
        if not parts:
            return None
        store = parts[0]
    with store.open("rb") as file:
        line = file.readline()
    text = verified(line) if line.endswith(b"\n") and b"\t" in line else None
    identity = None if text is None else strict_json.loads(text)
    return identity if isinstance(identity, dict) else None


def check_same_run(headers: Sequence[tuple[Any, Mapping[str, Any]]]) -> int:
    """Returns the number of shards, all of which are there.

    headers: pairs of a shard's path and its settings, with "shard": "I/N".
    Raises ValueError for shards of several runs, one that is there twice, and missing ones.
    """
    (first, expected), *_ = headers
    seen: dict[int, Any] = {}
    for path, header in headers:
        shard = Shard.parse(header["shard"])
        if shard.count != Shard.parse(expected["shard"]).count:
            raise ValueError(
                f"{path} is shard {shard}, but {first} is {expected['shard']}: merge the shards of "
                "one run"
            )
        for name in sorted({*header, *expected} - {"shard"}):
            old, new = expected.get(name), header.get(name)
            if content_of(old) != content_of(new):
                raise ValueError(
                    f"{path} was judged with {name} = {new!r:.80}, but {first} with {old!r:.80}: "
                    "merge the shards of one run"
                )
        if shard.index in seen:
            raise ValueError(f"{seen[shard.index]} and {path} are both shard {shard}: give one")
        seen[shard.index] = path
    count = Shard.parse(expected["shard"]).count
    if missing := [i for i in range(1, count + 1) if i not in seen]:
        are = "is" if len(missing) == 1 else f"and {len(missing) - 1} more are"
        raise ValueError(
            f"shard {missing[0]}/{count} {are} missing beside {first}: judge it with --shard "
            f"{missing[0]}/{count}, or name its file"
        )
    return count


def _check_keys(store: RunStore, shard: Shard, total: int) -> None:
    expected = shard.select(range(1, total + 1))
    missing = [number for number in expected if number not in store]
    if missing:
        raise ValueError(
            f"{store.path} lacks {len(missing)} of {len(expected)} rows, the first is {missing[0]}:"
            f" run the command of shard {shard} again with --resume"
        )
    if foreign := sorted(set(map(str, store)) - set(map(str, expected))):
        raise ValueError(
            f"{store.path} is damaged: row {foreign[0]} is not one of shard {shard}: judge the "
            "shard again with --overwrite"
        )


def find(paths: Sequence[Any]) -> list[epath.Path]:
    """Returns the shards that the paths name: files, patterns such as out-*.jsonl, and folders.

    Raises:
      ValueError: a folder has no shards, or those of several outputs.
      FileNotFoundError: a pattern has no matches.
    """
    files: list[epath.Path] = []
    for path in map(as_path, paths):
        if "*" in path.name and not path.exists():
            inside = sorted(inner for inner in path.parent.glob(path.name) if shard_of(inner))
            if not inside:
                raise FileNotFoundError(f"no shard matches {path}: give the outputs of --shard I/N")
        elif shard_of(path) or not path.is_dir():
            inside = [path]
        else:
            inside = _in_folder(path)
        files += inside
    return files


def _in_folder(folder: epath.Path) -> list[epath.Path]:
    inside = sorted(inner for inner in folder.iterdir() if shard_of(inner))
    names = sorted({name for name, _ in filter(None, map(shard_of, inside))})
    if not names:
        raise ValueError(f"{folder} has no shards: give the outputs of --shard I/N")
    if len(names) > 1 and EVALUATION not in names:
        raise ValueError(
            f"{folder} has shards of {names[0]} and of {names[1]}: give those of one output, such "
            f"as '{folder}/{names[0]}-*'"
        )
    return inside


def read_json(path: Any) -> dict[str, Any]:
    """Returns the JSON object of a shard's settings or cost. Raises ValueError, OSError."""
    value = strict_json.read(as_path(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: judge the shard again")
    return value
