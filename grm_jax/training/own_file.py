"""The comparisons of `config.data.file`, split once into WORKDIR/data.

    WORKDIR/data/file/            the indexed comparisons, in two sections: train and held_out
    WORKDIR/data/held_out.jsonl   the held-out ones again, for `grm judge`

The split is by query, so no query is on both sides. `config.data.held_out_file` replaces it: the
queries of that file are then dropped from the training part.
"""

import dataclasses
import hashlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from grm_jax import strict_json
from grm_jax.data import indexed, splits
from grm_jax.data.sources import hub_hint
from grm_jax.storage import as_path, check_scheme, fetch, is_remote, write_atomic
from grm_jax.training import overlap
from grm_jax.training.errors import TrainingError
from grm_jax.types import Comparison

log = logging.getLogger(__name__)

FIELDS = ("file", "held_out_file")  # of config.data
TRAIN, HELD_OUT = "train", "held_out"
HELD_OUT_ROWS = "held_out.jsonl"


def is_path(name: str) -> bool:
    """Whether a data field names a local or a bucket's file, and not "-" or a data set of a hub."""
    return bool(name) and name != "-" and not name.startswith("hf://")


def index(config: Any, workdir: Any = None) -> indexed.Index:
    """Returns the comparisons, in the sections TRAIN and HELD_OUT. Process 0 writes them.

    Once WORKDIR/config.json exists the file is not read again; until then another file or share
    replaces the comparisons. workdir: None uses a temporary folder.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has no comparisons, or is not the one that the run began with.
    """
    alone = workdir is None
    root = as_path(tempfile.mkdtemp(prefix="grm_jax-") if alone else workdir) / "data"
    settings = root / "file_settings.json"
    expected = {name: config.data[name] for name in ("held_out_share", "held_out_most", "seed")}
    if alone or jax.process_index() == 0:
        expected |= {name: _digest(config.data[name]) for name in FIELDS}
    if settings.exists():
        changed = _changed(strict_json.read(settings), expected)
        begun = (root.parent / "config.json").exists()
        if changed and not begun and jax.process_count() == 1:
            log.info("config.data.%s has changed: %s is written again", changed, root)
            (root / "file").rmtree(missing_ok=True)
            settings.unlink()
        elif changed:
            raise TrainingError(
                f"config.data.{changed} has changed since this run began ({root} has its "
                f"comparisons): use another --workdir, or remove {root.parent} to start over"
            )

    def write() -> None:
        train, held_out, counts = _read(config)
        # Neither training nor the evaluation shows a reference answer.
        shown = (dataclasses.replace(c, reference=None) for c in held_out)
        rows = (strict_json.dumps(splits.as_row(c)) for c in shown)
        write_atomic(root / HELD_OUT_ROWS, "".join(row + "\n" for row in rows))
        write_atomic(settings, strict_json.dumps({**expected, "counts": counts}, indent=2) + "\n")
        indexed.write_index(root / "file", [(TRAIN, _lines(train)), (HELD_OUT, _lines(held_out))])

    return indexed.open_or_write(root / "file", write, alone)


def _lines(comparisons: Sequence[Comparison]) -> Iterator[str]:
    return (strict_json.dumps(vars(c)) for c in comparisons)


def _read(config: Any) -> tuple[list[Comparison], list[Comparison], dict[str, int]]:
    """Returns the training part, the held-out part, and counts of rows."""
    data = config.data
    labelled = splits.read_labelled(_source(data.file), data.max_skipped)
    counts = labelled.counts
    log.info("%s: %s", data.file, ", ".join(f"{n} {name}" for name, n in counts.items()))
    if not data.held_out_file:
        train, held_out = splits.split(
            labelled.comparisons, data.held_out_share, data.held_out_most, data.seed
        )
    else:
        held_out = splits.read_labelled(_source(data.held_out_file), data.max_skipped).comparisons
        train = splits.without_queries(labelled.comparisons, held_out)
        total = len(labelled.comparisons)
        if dropped := total - len(train):
            log.warning(overlap.DROPPED, dropped, total, data.file, data.held_out_file)
        if not train:
            raise TrainingError(
                f"config.data.held_out_file={data.held_out_file} has all queries of "
                f"config.data.file={data.file}: nothing is left to train on"
            )
    if "eval" in config.stages and all(c.n == 1 for c in held_out):
        raise ValueError(
            f"{data.held_out_file or data.file}: all comparisons that are held out have one "
            "response, and the evaluation compares several: --config.stages=rft,rl trains without"
        )
    log.info("%d comparisons to train on, %d held out by query", len(train), len(held_out))
    return train, held_out, counts | {"train": len(train), "held_out": len(held_out)}


def _source(name: str) -> str:
    if is_path(name) and (hint := hub_hint(name)):
        raise FileNotFoundError(f"no data file {name}{hint}")
    return str(fetch(name)) if is_path(name) else name


def _digest(name: str) -> str:
    """Returns a hash of a file's content, or the name of what cannot be read twice. "" for none."""
    if not is_path(name):
        return name
    check_scheme(name, "data")
    if not is_remote(name) and not Path(name).expanduser().exists():
        return ""
    path = fetch(name)
    if not path.is_file():  # a folder, or a pipe that is read once
        return name
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(saved: dict[str, Any], expected: dict[str, Any]) -> str:
    """Returns the first setting in which saved comparisons differ from those expected, or "".

    A file that no longer exists is not compared.
    """
    for name, value in expected.items():
        if saved.get(name) != value and (value or name not in FIELDS):
            return name
    return ""
