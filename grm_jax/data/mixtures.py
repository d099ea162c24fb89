"""seqio tasks and mixtures over comparisons and SFT examples, from JSON files, TFDS and the judging world.

Importing this module imports TensorFlow (seconds). What comes out is Python and numpy:

    add_comparisons("helpsteer2", {"train": ["preference.jsonl.gz"]}, layout="helpsteer2")
    add_comparisons_from_tfds("my_prefs", "my_prefs:1.0.0", layout="skywork", data_dir=...)
    add_mixture("judging", {"helpsteer2": 1.0, "my_prefs": 0.5})
    for comparison in Comparisons("judging", "train", seed=0): ...

    add_examples("general", {"train": ["chats.jsonl"]}, tokenizer)
    for batch in PackedExamples("general", "train", batch_size=64, seq_len=2048, seed=0): ...

Both iterators count what they gave in `position`; opened with it they go on exactly there. tf.data finds the place by
running up to it, so for long runs over data that fit in memory `packing.PackedBatches` and `batches.ComparisonBatches`
are better: they find any step at once, and give the same batches to any number of processes.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import seqio  # noqa: E402  (the log level must be set before TensorFlow is imported)
import tensorflow as tf  # noqa: E402

from grm_jax.data import sft, world  # noqa: E402
from grm_jax.data.comparisons import convert, read_comparisons  # noqa: E402
from grm_jax.data.layouts import LAYOUTS  # noqa: E402
from grm_jax.data.records import Account, Record  # noqa: E402
from grm_jax.types import Comparison  # noqa: E402

Files = Mapping[str, str | Path | Sequence[str | Path]]

# Why the generator of a task stopped: tf.data turns exceptions into its own, without their type.
_stopped: dict[str, Exception] = {}
ACCOUNTS: dict[
    str, Account
] = {}  # "task/split" -> what became of its records, filled while the task is read


# ---------------------------------------------------------------- comparisons


def add_comparisons(
    name: str, files: Files, layout: str = "comparison", max_skipped: float = 0.01
) -> None:
    """A task over files in a published layout (`layouts.LAYOUTS`): .jsonl or .json, gzipped or not, by split.

    A malformed record is logged with file and line; above the share `max_skipped` reading stops with TooManyMalformed.
    """
    LAYOUTS[layout]

    def rows(split: str) -> Iterator[Comparison]:
        ACCOUNTS[f"{name}/{split}"] = account = Account(max_skipped)
        paths = files[split]
        return read_comparisons(paths, layout, max_skipped, account)

    _add_comparison_task(name, rows, tuple(files))


def add_comparisons_from_tfds(
    name: str,
    tfds_name: str,
    layout: str = "comparison",
    splits: Mapping[str, str] | None = None,
    data_dir: str | None = None,
    max_skipped: float = 0.01,
) -> None:
    """A task over a TFDS set whose features are the columns of a layout. splits: ours -> the set's; the same if absent."""
    chosen = LAYOUTS[layout]
    source = seqio.TfdsDataSource(
        tfds_name, splits=dict(splits) if splits else None, tfds_data_dir=data_dir
    )

    def rows(split: str) -> Iterator[Comparison]:
        ACCOUNTS[f"{name}/{split}"] = account = Account(max_skipped)
        for number, record in enumerate(
            source.get_dataset(split, shuffle=False).as_numpy_iterator(), 1
        ):
            content = Record(number, number, _plain(record))
            yield from convert(content, chosen, f"{name}-{split}-{number}", tfds_name, account)
            account.check()
        account.check(final=True)

    _add_comparison_task(name, rows, tuple(splits) if splits else tuple(source.splits))


def add_world(
    name: str,
    counts: Mapping[str, int],
    seed: int = 0,
    families: Sequence[str] | None = None,
    config: world.WorldConfig = world.DEFAULT,
) -> None:
    """A task over the first items of the judging world. counts: split -> number of items."""

    def rows(split: str) -> Iterator[Comparison]:
        for i in range(counts[split]):
            yield world.make_items(split, i, 1, seed, families, config)[0]

    _add_comparison_task(name, rows, tuple(counts))


def _plain(value):
    """A TFDS example as JSON-like Python: texts decoded, arrays as lists, dicts of lists as lists of dicts."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, tf.RaggedTensor):
        return [_plain(v) for v in value.to_list()]
    if isinstance(value, dict):
        plain = {key: _plain(v) for key, v in value.items()}
        # TFDS keeps a sequence of records (turns, completions) as one record of sequences.
        size = next(
            (
                len(plain[key])
                for key in ("content", "response")
                if isinstance(plain.get(key), list)
            ),
            None,
        )
        if size is not None:
            columns = {key: v for key, v in plain.items() if isinstance(v, list) and len(v) == size}
            return [dict(zip(columns, row)) for row in zip(*columns.values())]
        return plain
    return value


def _add_comparison_task(
    name: str, rows: Callable[[str], Iterator[Comparison]], splits: Sequence[str]
) -> None:
    def texts(split: str) -> Iterator[str]:
        for comparison in rows(split):
            yield json.dumps(dataclasses.asdict(comparison), ensure_ascii=False)

    _add_task(
        name,
        texts,
        splits,
        {"comparison": tf.TensorSpec((), tf.string)},
        lambda text: {"comparison": text},
    )


# ---------------------------------------------------------------- SFT examples


def add_examples(name: str, files: Files, tokenizer, max_skipped: float = 0.01) -> None:
    """A task over JSONL files of SFT examples (`sft.read_examples`), tokenised: features `inputs` and `targets`."""

    def rows(split: str) -> Iterator[sft.Example]:
        ACCOUNTS[f"{name}/{split}"] = account = Account(max_skipped)
        for path in _paths(files[split]):
            yield from sft.read_examples(path, max_skipped, account)

    add_example_rows(name, rows, tuple(files), tokenizer)


def _paths(paths: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [paths] if isinstance(paths, (str, Path)) else paths


def add_general_world(name: str, counts: Mapping[str, int], tokenizer, seed: int = 0) -> None:
    """A task over the general instructions of the judging world. counts: split -> number of instructions."""

    def rows(split: str) -> Iterator[sft.Example]:
        for one in world.general_items(split, 0, counts[split], seed):
            yield sft.Example(tuple(one.messages[:-1]), one.answer, "general", one.id)

    add_example_rows(name, rows, tuple(counts), tokenizer)


def add_example_rows(
    name: str, rows: Callable[[str], Iterable[sft.Example]], splits: Sequence[str], tokenizer
) -> None:
    """A task over examples from a function of the split."""

    def encoded(split: str):
        for example in rows(split):
            prompt, completion = sft.encode(example, tokenizer)
            yield np.array(prompt, np.int32), np.array(completion, np.int32)

    spec = tf.TensorSpec((None,), tf.int32)
    signature = (spec, spec)
    _add_task(
        name,
        encoded,
        splits,
        signature,
        lambda a, b: {"inputs": a, "targets": b},
        tokenizer.vocab_size,
    )


# ---------------------------------------------------------------- registration


def _add_task(name, rows, splits, signature, to_features, vocab_size: int | None = None) -> None:
    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None):
        def generate():
            _stopped.pop(name, None)
            try:
                yield from rows(split)
            except Exception as error:
                _stopped[name] = error
                raise

        spec = signature["comparison"] if isinstance(signature, dict) else signature
        return tf.data.Dataset.from_generator(generate, output_signature=spec).map(to_features)

    if vocab_size is None:
        text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, rank=0, dtype=tf.string)
        features = {"comparison": text}
    else:
        ids = seqio.Feature(seqio.PassThroughVocabulary(vocab_size), add_eos=False, dtype=tf.int32)
        features = {"inputs": ids, "targets": ids}
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=tuple(splits)),
        preprocessors=[],
        output_features=features,
        metric_fns=[],
    )


def add_mixture(name: str, rates: Mapping[str, float]) -> None:
    """A mixture of tasks of one kind. rates: task -> relative rate."""
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, list(rates.items()))


# ---------------------------------------------------------------- reading


def _tasks_of(name: str) -> list[str]:
    found = seqio.get_mixture_or_task(name)
    return [task.name for task in found.tasks] if isinstance(found, seqio.Mixture) else [name]


# Streams that are being read. tf.data's threads must not outlive the interpreter while they run a Python generator.
_streams: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_streams() -> None:
    for stream in list(_streams):
        stream.close()


def _stream(name: str, dataset: tf.data.Dataset, position: int) -> Iterator[dict]:
    """Numpy examples from a position on; a generator's own exception is raised in place of tf.data's."""
    stream = _read(_tasks_of(name), dataset.skip(position))
    _streams.add(stream)
    return stream


def _read(tasks: Sequence[str], dataset: tf.data.Dataset) -> Iterator[dict]:
    for task in tasks:
        _stopped.pop(task, None)
    rows = dataset.as_numpy_iterator()
    try:
        yield from rows
    except tf.errors.OpError as error:
        for task in tasks:
            if task in _stopped:
                raise _stopped[task] from error
        raise
    finally:
        del rows


def _shard(index: int, count: int):
    return seqio.ShardInfo(index, count) if count > 1 else None


@dataclasses.dataclass
class Comparisons:
    """Comparisons of a task or mixture.

    Attributes:
      name, split: What to read.
      seed: Of the shuffling and mixing; None keeps the order.
      epochs: Passes over the data, None for endless.
      process_index, process_count: This process reads every `process_count`-th comparison.
      position: Comparisons given so far.
    """

    name: str
    split: str
    seed: int | None = 0
    epochs: int | None = 1
    process_index: int = 0
    process_count: int = 1
    position: int = 0

    def __iter__(self) -> Iterator[Comparison]:
        # The length only matters to trimming, which texts do not have.
        dataset = seqio.get_mixture_or_task(self.name).get_dataset(
            {"comparison": 1},
            split=self.split,
            shuffle=self.seed is not None,
            seed=self.seed,
            num_epochs=self.epochs,
            shard_info=_shard(self.process_index, self.process_count),
            use_cached=False,
            trim_output_features=False,
        )
        for row in _stream(self.name, dataset, self.position):
            self.position += 1
            fields = json.loads(row["comparison"])
            label = tuple(fields["label"]) if isinstance(fields["label"], list) else fields["label"]
            yield Comparison(**{**fields, "label": label, "responses": tuple(fields["responses"])})


class _Rows(seqio.PrefixLMFeatureConverter):
    """PrefixLM packing where prompt and completion share one length, instead of having one each.

    The lengths that seqio is given bound each of them alone; examples longer than a row together are left out, where
    seqio would cut the prompt.
    """

    def __init__(self, seq_len: int):
        super().__init__(pack=True)
        self.seq_len = seq_len

    def _concat_task_feature_lengths(self, task_feature_lengths):
        return dict.fromkeys(
            super()._concat_task_feature_lengths(task_feature_lengths), self.seq_len
        )

    def get_model_feature_lengths(self, task_feature_lengths):
        return dict.fromkeys(super().get_model_feature_lengths(task_feature_lengths), self.seq_len)

    def _convert_features(self, ds, task_feature_lengths):
        ds = ds.filter(lambda x: tf.size(x["inputs"]) + tf.size(x["targets"]) <= self.seq_len)
        return super()._convert_features(ds, task_feature_lengths)


@dataclasses.dataclass
class PackedExamples:
    """Packed batches of an SFT task or mixture, by seqio's PrefixLMFeatureConverter, as the arrays of `packing`.

    Examples longer than a row are left out.

    Attributes: as of `Comparisons`; batch_size: rows of this process's batch; seq_len: tokens of a row;
      position: batches given so far.
    """

    name: str
    split: str
    batch_size: int
    seq_len: int
    seed: int | None = 0
    epochs: int | None = None
    process_index: int = 0
    process_count: int = 1
    position: int = 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        dataset = seqio.get_dataset(
            mixture_or_task_name=self.name,
            task_feature_lengths={"inputs": self.seq_len, "targets": self.seq_len},
            dataset_split=self.split,
            shuffle=self.seed is not None,
            seed=self.seed,
            num_epochs=self.epochs,
            shard_info=_shard(self.process_index, self.process_count),
            feature_converter=_Rows(self.seq_len),
            batch_size=self.batch_size,
        )
        for row in _stream(self.name, dataset, self.position):
            self.position += 1
            yield {
                "tokens": row["decoder_target_tokens"].astype(np.int32),
                "positions": row["decoder_positions"].astype(np.int32),
                "segment_ids": row["decoder_segment_ids"].astype(np.int32),
                "weights": row["decoder_loss_weights"].astype(np.float32),
            }
