"""seqio tasks and mixtures: sources, rates, malformed records, and training on them."""

import dataclasses
import gzip
import json
import subprocess
import sys

import jax
import pytest

from experiments import spct_27b, spct_tiny
from grm_jax.data import batches, indexed, mixtures, records, sft, world
from grm_jax.data.comparisons import from_json, read_comparisons
from grm_jax.training import sources


def read(task, split="train"):
    texts = mixtures.read(task, split, mixtures.COMPARISON)
    return [from_json(json.loads(text)) for text in texts]


def pairs(path, count):
    rows = [
        {"instruction": f"q{i}", "output_1": "a", "output_2": "b", "label": 1} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path):
    """spct_27b on a mixture of two files at rates 3 and 1, below data.folder."""
    for name, count in (("t_many", 40), ("t_few", 30)):
        pairs(tmp_path / f"{name}.jsonl", count)
        mixtures.add_comparisons(name, {"train": f"{name}.jsonl"}, layout="offsetbias")
    mixtures.add_mixture("t_mixed", {"t_many": 3.0, "t_few": 1.0})
    config = spct_27b.get_config()
    config.data.update(judging="t_mixed", held_out="", folder=str(tmp_path), seed=7)
    return config


# ---------------------------------------------------------------- tasks


def test_world_task_gives_the_worlds_items_in_order():
    mixtures.add_world("t_world", {"train": 30})
    assert read("t_world") == world.make_items("train", 0, 30)


def test_general_tasks_give_examples(tmp_path):
    mixtures.add_general_world("t_general", {"train": 6})
    first = json.loads(next(mixtures.read("t_general", "train", mixtures.EXAMPLE)))
    (instruction,) = world.general_items("train", 0, 1)
    assert first["completion"] == instruction.answer
    (tmp_path / "chats.jsonl").write_text(json.dumps({"query": "q", "answer": "a"}) + "\n")
    mixtures.add_examples("t_chats", {"train": str(tmp_path / "chats.jsonl")})
    mixtures.add_mixture("t_both", {"t_chats": 1.0, "t_general": 1.0})
    config = spct_27b.get_config()
    config.data.update(general="t_both", general_items=7)
    examples = sources.general(config)
    assert len(examples) == 7 and all(isinstance(one, sft.Example) for one in examples)
    assert {one.completion for one in examples} > {"a"}


def test_malformed_records_stop_the_run_with_file_and_line(tmp_path, monkeypatch):
    path = pairs(tmp_path / "bad.jsonl", 1)
    path.write_text(path.read_text() + '{"label": 9}\n')
    mixtures.add_comparisons("t_bad", {"train": str(path)}, layout="offsetbias")
    monkeypatch.setattr(mixtures.SETTINGS, "max_skipped", 0.1)
    with pytest.raises(records.TooManyMalformed, match=r"bad\.jsonl:2: the field 'label' is 9"):
        read("t_bad")
    monkeypatch.setattr(mixtures.SETTINGS, "max_skipped", 0.5)
    assert len(read("t_bad")) == 1
    assert mixtures.ACCOUNTS["t_bad/train"].summary()["malformed"] == 1


def test_task_of_another_kind_is_refused():
    mixtures.add_general_world("t_general", {"train": 3})
    with pytest.raises(ValueError, match="no feature 'comparison', but example"):
        read("t_general")


def test_a_source_without_items_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    mixtures.add_comparisons("t_empty", {"train": str(tmp_path / "empty.jsonl")})
    with pytest.raises(ValueError, match="source 't_empty' has no items: check its files"):
        read("t_empty")


def test_an_unknown_mixture_is_an_error():
    with pytest.raises(ValueError, match="unknown seqio mixture or task 'spct_hubb'.*spct_hub"):
        mixtures.tasks("spct_hubb")


def test_rates_of_nested_mixtures_in_the_order_of_registration():
    for name in ("t_z", "t_a", "t_n"):
        mixtures.add_world(name, {"train": 1})
    mixtures.add_mixture("t_inner", {"t_a": 1.0, "t_n": 3.0})
    mixtures.add_mixture("t_outer", {"t_z": 2.0, "t_inner": 8.0})
    assert mixtures.tasks("t_outer") == {"t_z": 2.0, "t_a": 2.0, "t_n": 6.0}
    assert list(mixtures.tasks("t_outer")) == ["t_z", "t_a", "t_n"]
    assert list(mixtures.tasks("spct")) == [
        "skywork",
        "ultrafeedback",
        "helpsteer2",
        "offsetbias",
        "math",
    ]


def test_the_hub_mixture_reads_the_published_sets_by_name(hub, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    def turns(answer):
        return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]

    def lines(*rows):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    def parquet(*rows):
        pa.parquet.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "x.parquet")
        return (tmp_path / "x.parquet").read_bytes()

    scored = [{"response": "a", "overall_score": 1.0}, {"response": "b", "overall_score": 2.0}]
    strong = {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 2}
    solutions = {"prompt": "q", "full_chosen": "a", "full_rejected": "b", "chosen": "x"}
    sets = {
        "Skywork/Skywork-Reward-Preference-80K-v0.2": {
            "data/train-00000-of-00001.parquet": parquet(
                {"chosen": turns("a"), "rejected": turns("b"), "source": "s"}
            )
        },
        "openbmb/UltraFeedback": {
            f"{name}.jsonl": lines({"instruction": name, "completions": scored})
            for name in ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa")
        }
        | {"ultrachat.jsonl": lines({"instruction": "q", "completions": scored[:1]})},
        "nvidia/HelpSteer2": {
            "preference/preference.jsonl.gz": gzip.compress(
                lines(strong | {"split": "train"}, strong | {"split": "val"})
            ),
            "train.jsonl.gz": b"another table",
        },
        "NCSOFT/offsetbias": {
            "train.jsonl": lines({"instruction": "q", "output_1": "a", "output_2": "b", "label": 2})
        },
        "xinlai/Math-Step-DPO-10K": {"data/train-00000-of-00001.parquet": parquet(solutions)},
    }
    for name, files in sets.items():
        hub.add(name, files, kind="dataset")
    assert len(mixtures.identity("helpsteer2_hub", "train")[2]) == 1
    assert not [name for name in hub.downloads() if name.endswith(".gz")]  # hashed by its listing
    counts = {task: len(read(task)) for task in mixtures.tasks("spct_hub")}
    assert counts == {
        "skywork_hub": 1, "ultrafeedback_hub": 5, "helpsteer2_hub": 1, "offsetbias_hub": 1,
        "math_hub": 1,
    }  # fmt: skip
    (pair,) = read("math_hub")
    assert pair.responses[pair.label] == "a" and pair.query == "q"
    assert "train.jsonl.gz" not in hub.downloads()


def write_tfds(folder, records):
    """Writes a prepared TFDS data set of conversations, as `tfds.load` expects it."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
    features = tfds.features.FeaturesDict(
        {k: tfds.features.Sequence(turn) for k in ("chosen", "rejected")}
    )
    folder.mkdir(parents=True)
    file = folder / "tiny_prefs-train.tfrecord-00000-of-00001"
    with tf.io.TFRecordWriter(str(file)) as out:
        for record in records:
            out.write(features.serialize_example(features.encode_example(record)))
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name="tiny_prefs",
        filetype_suffix="tfrecord",
    )
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(records)],
        num_bytes=file.stat().st_size,
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split])


def test_tfds_data_set_is_read_by_its_fields(tmp_path):
    def chat(i, answer):
        return [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": answer}]

    write_tfds(
        tmp_path / "tiny_prefs" / "1.0.0",
        [{"chosen": chat(i, "good"), "rejected": chat(i, "bad")} for i in range(5)],
    )
    mixtures.add_comparisons_from_tfds(
        "t_tfds", "tiny_prefs:1.0.0", "skywork", {"train": "train"}, str(tmp_path)
    )
    comparisons = read("t_tfds")
    assert sorted(c.query for c in comparisons) == [f"q{i}" for i in range(5)]
    assert all(c.responses[c.best] == "good" for c in comparisons)


# ---------------------------------------------------------------- the training path


def test_every_place_is_the_files_comparison_at_its_rate(config, tmp_path):
    """The indexed mixture equals placing over the files read directly, whatever seqio does."""
    lists = [
        list(read_comparisons(tmp_path / f"{name}.jsonl", "offsetbias"))
        for name in ("t_many", "t_few")
    ]
    places = [batches.from_list(one, 7) for one in lists]
    at = batches.from_mixture(places, [3.0, 1.0], 7)
    source = sources.judging(config, workdir=tmp_path / "run")
    assert source.size == 70
    assert source.take(0, 2500) == [at(place) for place in range(2500)]
    names = [c.id.split("-")[0] for c in source.take(0, 1000)]
    assert names.count("t_many") == 750


def test_index_is_written_once_and_named_by_what_it_depends_on(config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    first = sources.judging(config, workdir=run)
    (folder,) = (run / "data").iterdir()
    assert folder.name.startswith("t_mixed-train-") and indexed.is_indexed(folder)
    with monkeypatch.context() as patch:
        patch.setattr(mixtures, "read", lambda *_: pytest.fail("was indexed already"))
        again = sources.judging(config, workdir=run)
    assert again.identity == first.identity and again.at(3) == first.at(3)
    pairs(tmp_path / "t_few.jsonl", 31)
    changed = sources.judging(config, workdir=run)
    assert changed.identity != first.identity and changed.size == 71
    assert len(list((run / "data").iterdir())) == 2


def test_index_of_a_killed_run_is_written_again(config, tmp_path):
    run = tmp_path / "run"
    first = sources.judging(config, workdir=run).take(0, 9)
    (folder,) = (run / "data").iterdir()
    (folder / indexed.READY).unlink()
    (folder / "records.jsonl").write_text("{tor")
    assert sources.judging(config, workdir=run).take(0, 9) == first


@pytest.mark.parametrize("name", ["records.jsonl", "offsets.npy", "index.json", "checksums.json"])
def test_a_damaged_file_of_an_index_is_noticed_and_the_index_is_written_again(
    name, config, tmp_path, caplog
):
    run = tmp_path / "run"
    first = sources.judging(config, workdir=run)
    expected = first.take(0, 70)
    (folder,) = (run / "data").iterdir()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 2
    (folder / name).write_bytes(data)
    again = sources.judging(config, workdir=run)
    assert again.take(0, 70) == expected and again.identity == first.identity
    assert f"{folder}: " in caplog.text and "the folder is written again" in caplog.text
    (folder / name).write_bytes(data)
    (tmp_path / "t_few.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="t_few.jsonl"):
        sources.judging(config, workdir=run)


def test_other_processes_wait_for_process_0(config, tmp_path, monkeypatch):
    waited = []

    def sleep(_):
        waited.append(True)
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_index", lambda: 0)
            sources.judging(config, workdir=tmp_path / "run")

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(sources.indexed.time, "sleep", sleep)
    source = sources.judging(config, workdir=tmp_path / "run")
    assert waited == [True] and source.size == 70


def test_users_module_registers_its_mixture(tmp_path, monkeypatch):
    pairs(tmp_path / "mine.jsonl", 4)
    (tmp_path / "my_tasks.py").write_text(
        "from grm_jax.data import mixtures\n"
        "mixtures.add_comparisons('my_pairs', {'train': 'mine.jsonl'}, layout='offsetbias')\n"
        "mixtures.add_mixture('my_mixture', {'my_pairs': 1.0})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from launch import config as configs

    fields = {"data.judging": "my_mixture", "data.module": "my_tasks", "data.folder": str(tmp_path)}
    config = configs.load("experiments/spct_tiny.py", fields)
    sources.check(config, ("rl",))
    assert sorted(c.id for c in sources.judging(config).take(0, 4)) == [
        f"mine-{i}" for i in range(1, 5)
    ]


def test_world_alone_needs_no_tensorflow():
    code = (
        "import sys\n"
        "from experiments import spct_tiny\n"
        "from grm_jax.training import sources\n"
        "config = spct_tiny.get_config()\n"
        "sources.check(config)\n"
        "assert sources.judging(config).take(0, 3) and sources.judging(config, 'test').take(0, 3)\n"
        "assert sources.general(config)\n"
        "assert not {'tensorflow', 'seqio', 'tensorflow_datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert spct_tiny.get_config().data.judging == "world"


def test_a_mixture_without_seqio_fails_with_the_command_that_installs_it(config, monkeypatch):
    import grm_jax.data

    monkeypatch.setitem(sys.modules, "seqio", None)
    monkeypatch.delitem(sys.modules, "grm_jax.data.mixtures")
    monkeypatch.delattr(grm_jax.data, "mixtures")
    with pytest.raises(ValueError, match=r'need seqio .*: pip install "grm_jax\[data\]"'):
        sources.judging(config)


def test_equal_ids_of_two_tasks_or_files_are_made_unique_and_orders_stay(tmp_path):
    """The ids of records without one are made from the name of the file."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        pairs(tmp_path / folder / "train.jsonl", 3)
    pairs(tmp_path / "own.jsonl", 2)
    mixtures.add_comparisons("u_one", {"train": ["a/train.jsonl", "own.jsonl"]})
    mixtures.add_comparisons("u_two", {"train": ["b/train.jsonl", "a/train.jsonl"]})
    mixtures.add_mixture("u_mixed", {"u_one": 5, "u_two": 6})
    config = spct_tiny.get_config()
    config.data.update(judging="u_mixed", folder=str(tmp_path), held_out="")
    config.stages = ("rft",)
    source = sources.judging(config)
    everything = {c.id: c for c in source.take(0, 1000)}
    expected = {"own-1", "own-2", *(f"u_one/train-{i}" for i in (1, 2, 3))}
    expected |= {f"u_two/train-{i}/{4 + i}" for i in (1, 2, 3)}
    expected |= {f"u_two/train-{i}/{7 + i}" for i in (1, 2, 3)}
    assert set(everything) == expected
    alone = everything["u_one/train-2"]
    assert dataclasses.replace(alone, id="train-2") == placed_pair(tmp_path / "a/train.jsonl", 2)
    left = sources.judging(config, without={"u_two/train-1/5", "train-2"})
    without = {"u_two/train-1/5", *(f"u_{one}/train-2" for one in ("one", "two"))}
    without |= {f"u_two/train-2/{line}" for line in (6, 9)}  # by the id of the file
    assert {c.id for c in left.take(0, 1000)} == expected - without


def placed_pair(path, number):
    return list(read_comparisons(path))[number - 1]


def test_a_stage_takes_no_more_comparisons_than_there_are(config, caplog):
    """More places would repeat them, with the same samples of the same prompts."""
    source = sources.judging(config)
    assert source.at_most(500, "meta_rm") == source.size == 70
    assert "the sources hold 70 comparisons, fewer than meta_rm.comparisons=500" in caplog.text
    assert source.at_most(9, "meta_rm") == 9
