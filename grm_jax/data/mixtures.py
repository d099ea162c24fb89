"""seqio tasks and mixtures of comparisons and of general instructions.

`config.data.judging`, `config.data.held_out` and `config.data.general` name one of them. To train
on your own data, write a module and name it: --config.data.module=my_tasks
--config.data.judging=my_mixture

    from grm_jax.data import mixtures

    mixtures.add_comparisons("my_pairs", {"train": "pairs.jsonl.gz"}, layout="trl")
    mixtures.add_comparisons_from_tfds("my_set", "my_set:1.0.0", "skywork", {"train": "train"})
    mixtures.add_mixture("my_mixture", {"my_pairs": 2.0, "my_set": 1.0, "skywork": 1.0})

File names are relative to `config.data.folder`. A task yields JSON texts in one string feature:
`comparison` (fields of types.Comparison) or `example` (fields of data.sft.Example). Only this
module imports seqio and TensorFlow.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

try:  # the log level must be set before TensorFlow is imported
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds
except ModuleNotFoundError as error:
    raise ValueError(
        f"mixtures and TFDS data sets need seqio and TensorFlow ({error}): "
        'pip install "grm_jax[data]"'
    ) from error

from grm_jax import strict_json
from grm_jax.data import sft, world  # noqa: E402
from grm_jax.data.comparisons import convert, read_comparisons  # noqa: E402
from grm_jax.data.layouts import LAYOUTS  # noqa: E402
from grm_jax.data.records import Account, Record  # noqa: E402
from grm_jax.data.sources import digest  # noqa: E402
from grm_jax.data.tables import plain  # noqa: E402
from grm_jax.registry import nearest  # noqa: E402
from grm_jax.storage import is_remote  # noqa: E402
from grm_jax.types import Comparison  # noqa: E402

log = logging.getLogger(__name__)

Files = Mapping[str, str | Sequence[str]]  # split -> one file or several

COMPARISON, EXAMPLE = "comparison", "example"


@dataclasses.dataclass
class Settings:
    """Settings of a run for all tasks, because seqio reads a task without arguments."""

    folder: str = "."
    max_skipped: float = 0.01


SETTINGS = Settings()
ACCOUNTS: dict[str, Account] = {}  # "task/split": counts of its records, filled while it is read
_FILES: dict[str, Files] = {}
_SETTINGS_OF: dict[str, Any] = {}  # task: what its content depends on beside its files
# Why the generator of a task failed: tf.data replaces exceptions by its own, without their type.
_failures: dict[str, Exception] = {}


# ---------------------------------------------------------------- registration


def add_comparisons(
    name: str, files: Files, layout: str | None = None, where: Mapping[str, Any] | None = None
) -> None:
    """Adds a task over files of comparisons, by split.

    files: paths, or other sources of `sources.local_files`, such as hf://datasets/ORG/NAME/SPLIT.
    layout: a name of `LAYOUTS`, detected for each record if None.  where: {field: value} that a
    record must have.
    """
    if layout is not None:
        LAYOUTS[layout]

    def comparisons(split: str) -> Iterator[Comparison]:
        account = ACCOUNTS[f"{name}/{split}"] = Account(source=name)
        return read_comparisons(paths(name, split), layout, SETTINGS.max_skipped, account, where)

    _FILES[name] = files
    # "comparison" was the default: a task without a layout keeps its identity.
    settings = [layout, dict(where)] if where else layout or "comparison"
    _add(name, COMPARISON, comparisons, tuple(files), settings)


def add_comparisons_from_tfds(
    name: str, dataset: str, layout: str, splits: Mapping[str, str], data_dir: str | None = None
) -> None:
    """Adds a task over a TFDS data set whose features are the fields of a layout.

    dataset: a TFDS name; "huggingface:OWNER__NAME" is read from the Hugging Face Hub (lower case,
    other characters than letters and digits replaced by "_").  splits: ours -> the data set's.
    """
    LAYOUTS[layout]
    source = seqio.TfdsDataSource(dataset, splits=dict(splits), tfds_data_dir=data_dir)

    def comparisons(split: str) -> Iterator[Comparison]:
        account = ACCOUNTS[f"{name}/{split}"] = Account(SETTINGS.max_skipped, name)
        examples = source.get_dataset(split, shuffle=False).as_numpy_iterator()
        for number, example in enumerate(examples, 1):
            record = Record(number, number, _rows_of(plain(example)))
            yield from convert(record, layout, f"{name}-{split}-{number}", dataset, account)
            account.check()
        account.check(final=True)

    _add(name, COMPARISON, comparisons, tuple(splits), [dataset, layout, dict(splits), data_dir])


def _rows_of(value: Any) -> Any:
    """TFDS stores a sequence of objects as an object of sequences; this undoes it."""
    if isinstance(value, list):
        return [_rows_of(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _rows_of(item) for key, item in value.items()}
    keys = [key for key in ("content", "response") if isinstance(value.get(key), list)]
    if not keys:
        return value
    size = len(value[keys[0]])
    columns = {key: v for key, v in value.items() if isinstance(v, list) and len(v) == size}
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def add_world(
    name: str,
    counts: Mapping[str, int],
    seed: int = 0,
    families: Sequence[str] | None = None,
    config: world.WorldConfig = world.DEFAULT,
) -> None:
    """Adds a task over the first items of the judging world. counts: items of each split."""

    def comparisons(split: str) -> Iterator[Comparison]:
        for i in range(counts[split]):
            yield world.make_items(split, i, 1, seed, families, config)[0]

    _add(name, COMPARISON, comparisons, tuple(counts), [dict(counts), seed, families, str(config)])


def add_examples(name: str, files: Files) -> None:
    """Adds a task over files of general instructions (`sft.read_examples`), by split."""

    def examples(split: str) -> Iterator[sft.Example]:
        account = ACCOUNTS[f"{name}/{split}"] = Account(source=name)
        for path in paths(name, split):
            yield from sft.read_examples(path, SETTINGS.max_skipped, account)

    _FILES[name] = files
    _add(name, EXAMPLE, examples, tuple(files))


def add_general_world(name: str, counts: Mapping[str, int], seed: int = 0) -> None:
    """Adds a task over general instructions of the judging world. counts: items of each split."""

    def examples(split: str) -> Iterator[sft.Example]:
        return map(sft.from_instruction, world.general_items(split, 0, counts[split], seed))

    _add(name, EXAMPLE, examples, tuple(counts), [dict(counts), seed])


def add_mixture(name: str, rates: Mapping[str, float]) -> None:
    """Adds a mixture. rates: relative rate of each task or mixture."""
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add(name, list(rates.items()))


def _add(
    name: str,
    feature: str,
    items: Callable[[str], Iterator[Any]],
    splits: Sequence[str],
    settings: Any = None,
) -> None:
    def dataset(
        split: str, shuffle_files: bool = False, seed: int | None = None
    ) -> tf.data.Dataset:
        def texts() -> Iterator[dict[str, str]]:
            try:
                for item in items(split):
                    yield {feature: strict_json.dumps(dataclasses.asdict(item))}
            except Exception as error:
                _failures[name] = error
                raise

        signature = {feature: tf.TensorSpec((), tf.string)}
        return tf.data.Dataset.from_generator(texts, output_signature=signature)

    text = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, rank=0, dtype=tf.string)
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=tuple(splits)),
        preprocessors=[],
        output_features={feature: text},
        metric_fns=[],
    )
    _SETTINGS_OF[name] = settings


# ---------------------------------------------------------------- reading


def tasks(name: str) -> dict[str, float]:
    """Returns the tasks of a mixture with their rates, in the order of registration.

    A task by itself has rate 1. Raises ValueError for an unknown name.
    """
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        raise ValueError(f"unknown seqio mixture or task {name!r}: {nearest(name, known)}")
    if name in seqio.TaskRegistry.names():
        return {name: 1.0}
    mixture = seqio.MixtureRegistry.get(name)
    order = list(mixture.rate_per_task_name)
    order += sorted(task.name for task in mixture.tasks if task.name not in order)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    return {task: rates[task] for task in order if task in rates}


def splits(task: str) -> tuple[str, ...]:
    """Returns the names of a task's splits."""
    return tuple(seqio.TaskRegistry.get(task).splits)


def paths(task: str, split: str) -> list[str]:
    """Returns the files of a task's split, in `SETTINGS.folder` unless their path is absolute."""
    files = _FILES.get(task, {}).get(split, ())
    return [
        path if is_remote(path) or os.path.isabs(path) else os.path.join(SETTINGS.folder, path)
        for path in ([files] if isinstance(files, str) else files)
    ]


def identity(task: str, split: str) -> list[Any]:
    """Returns JSON-ready values on which the content of a task's split depends."""
    digests = [digest(path) for path in paths(task, split)]
    return [task, split, digests, SETTINGS.max_skipped, _SETTINGS_OF.get(task)]


def read(task: str, split: str, feature: str) -> Iterator[str]:
    """Yields the JSON texts of a task's split through seqio, in order, each once.

    Raises ValueError if the task has no such feature or no items, and what its source raises.
    """
    one = seqio.TaskRegistry.get(task)
    if feature not in one.output_features:
        raise ValueError(
            f"task {task!r} has no feature {feature!r}, but {', '.join(one.output_features)}"
        )
    # The length is for trimming, which texts do not have.
    dataset = one.get_dataset(
        {feature: 1}, split, shuffle=False, num_epochs=1, trim_output_features=False
    )
    _failures.pop(task, None)
    count = 0
    try:
        for example in dataset.as_numpy_iterator():
            count += 1
            yield example[feature].decode()
    except tf.errors.OpError as error:
        raise _failures.pop(task, error) from error
    account = ACCOUNTS.get(f"{task}/{split}")
    log.info("source %s: %d items %s", task, count, account.summary() if account else "")
    if not count:
        unusable = f" but {dict(account.unusable)}" if account and account.unusable else ""
        raise ValueError(f"source {task!r} has no items{unusable}: check its files and its layout")


def tfds_records(folder: Path, split: str) -> Iterator[dict]:
    """Returns the records of a prepared TFDS folder (NAME/CONFIG/VERSION) as JSON-like Python."""
    examples = tfds.builder_from_directory(str(folder)).as_dataset(split=split)
    return map(plain, tfds.as_numpy(examples))


# ---------------------------------------------------------------- the shipped tasks

# Paper, appendix C.1: MATH, UltraFeedback, OffsetBias, Skywork-Reward-Preference-80K-v0.2,
# HelpSteer2-Preference, and internal data that is not public. The shares of the sets are not in the
# paper: the rates are in proportion to their sizes.
add_comparisons("skywork", {"train": "skywork_reward_preference_80k_v0.2.jsonl.gz"}, "skywork")
add_comparisons("ultrafeedback", {"train": "ultrafeedback.jsonl.gz"}, "ultrafeedback")
add_comparisons("helpsteer2", {"train": "helpsteer2_preference_train.jsonl.gz"}, "helpsteer2")
add_comparisons("offsetbias", {"train": "offsetbias.jsonl.gz"}, "offsetbias")
add_comparisons("math", {"train": "math_train_solutions.jsonl.gz"}, "math")
_RATES = {"skywork": 77.0, "ultrafeedback": 64.0, "helpsteer2": 7.0, "offsetbias": 8.5, "math": 7.5}
add_mixture("spct", _RATES)
add_examples("general", {"train": "general.jsonl.gz"})
add_comparisons("rm_bench", {"test": "rm_bench.json"}, "rm_bench")

# The same mixture from the Hugging Face Hub. MATH's solutions were not published; in their place
# stand pairs of whole solutions (of problems made from MATH and GSM8K) of Math-Step-DPO-10K.
_HUB = "hf://datasets/"
_ULTRAFEEDBACK = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
_HUB_SETS = {
    "skywork": f"{_HUB}Skywork/Skywork-Reward-Preference-80K-v0.2/train",
    "ultrafeedback": [f"{_HUB}openbmb/UltraFeedback/{part}.jsonl" for part in _ULTRAFEEDBACK],
    "offsetbias": f"{_HUB}NCSOFT/offsetbias/train",
}
for _name, _source in _HUB_SETS.items():
    add_comparisons(f"{_name}_hub", {"train": _source}, _name)
add_comparisons(
    "helpsteer2_hub",
    {"train": f"{_HUB}nvidia/HelpSteer2/preference/preference.jsonl.gz"},
    "helpsteer2",
    where={"split": "train"},
)
add_comparisons("math_hub", {"train": f"{_HUB}xinlai/Math-Step-DPO-10K/train"}, "step_dpo")
add_mixture("spct_hub", {f"{name}_hub": rate for name, rate in {**_RATES, "math": 10.8}.items()})
add_comparisons("rm_bench_hub", {"test": f"{_HUB}THU-KEG/RM-Bench/total_dataset.json"}, "rm_bench")
# Public instructions in place of the paper's 1.07M, which are in-house.
add_examples("general_hub", {"train": f"{_HUB}allenai/tulu-3-sft-mixture/train"})

# studies/gsm8k_critiques.py makes these files.
_GSM8K = {"train": "gsm8k/train.jsonl", "test": "gsm8k/held_out.jsonl"}
add_comparisons("gsm8k", _GSM8K, "comparison")
add_examples("gsm8k_general", {"train": "gsm8k/general.jsonl"})

# The judging world beside other tasks. As the only source, "world" is endless and needs no seqio.
add_world("world", {"train": 20_000, "test": 2_000})
add_general_world("general_world", {"train": 20_000})
