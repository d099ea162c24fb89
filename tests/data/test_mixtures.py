"""seqio tasks: sources, mixtures, shards, packing, exact positions, malformed records."""

import json

import numpy as np
import pytest

from grm_jax.data import records, sft, world
from grm_jax.data.world import vocabulary
from grm_jax.text import tokenizer


@pytest.fixture(scope="module")
def tasks():
    from grm_jax.data import mixtures

    return mixtures


@pytest.fixture(scope="module")
def tok():
    return tokenizer.load(vocabulary.vocabulary_path())


def take(iterable, count):
    iterator = iter(iterable)
    return [next(iterator) for _ in range(count)]


def test_world_comparisons_arrive_whole_and_in_order(tasks):
    tasks.add_world("t_world", {"train": 30})
    assert list(tasks.Comparisons("t_world", "train", seed=None)) == world.make_items(
        "train", 0, 30
    )


def test_a_mixture_of_files_and_world_goes_on_at_its_position(tasks, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"instruction": f"q{i}", "output_1": "a", "output_2": "b", "label": 1} for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.add_comparisons("t_files", {"train": path}, layout="offsetbias")
    tasks.add_world("t_world", {"train": 30})
    tasks.add_mixture("t_mixed", {"t_files": 3.0, "t_world": 1.0})
    stream = tasks.Comparisons("t_mixed", "train", seed=7, epochs=None)
    first = [c.id for c in take(stream, 60)]
    assert stream.position == 60
    again = [c.id for c in take(tasks.Comparisons("t_mixed", "train", seed=7, epochs=None), 60)]
    rest = [
        c.id
        for c in take(tasks.Comparisons("t_mixed", "train", seed=7, epochs=None, position=25), 35)
    ]
    other = [c.id for c in take(tasks.Comparisons("t_mixed", "train", seed=8, epochs=None), 60)]
    assert first == again and rest == first[25:] and other != first
    assert 30 < sum(i.startswith("pairs") for i in first) < 57


def test_processes_read_disjoint_comparisons_that_cover_all(tasks):
    tasks.add_world("t_world", {"train": 30})
    parts = [
        {
            c.id
            for c in tasks.Comparisons("t_world", "train", seed=2, process_index=i, process_count=3)
        }
        for i in range(3)
    ]
    assert [len(part) for part in parts] == [10, 10, 10]
    assert len(set.union(*parts)) == 30


def test_malformed_records_stop_the_run_with_file_and_line(tasks, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(
        '{"instruction": "q", "output_1": "a", "output_2": "b", "label": 1}\n{"label": 9}\n'
    )
    tasks.add_comparisons("t_bad", {"train": path}, layout="offsetbias", max_skipped=0.1)
    with pytest.raises(records.TooManyMalformed, match=r"bad\.jsonl:2: the field 'label' is 9"):
        list(tasks.Comparisons("t_bad", "train", seed=None))
    tasks.add_comparisons("t_bad", {"train": path}, layout="offsetbias", max_skipped=0.5)
    assert len(list(tasks.Comparisons("t_bad", "train", seed=None))) == 1
    assert tasks.ACCOUNTS["t_bad/train"].summary()["malformed"] == 1


def write_tfds(folder, records):
    """A prepared TFDS set of conversations, as `tfds.load` finds it."""
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


def test_tfds_sets_are_read_by_their_columns(tasks, tmp_path):
    def chat(i, answer):
        return [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": answer}]

    write_tfds(
        tmp_path / "tiny_prefs" / "1.0.0",
        [{"chosen": chat(i, "good"), "rejected": chat(i, "bad")} for i in range(5)],
    )
    tasks.add_comparisons_from_tfds(
        "t_tfds", "tiny_prefs:1.0.0", "skywork", {"train": "train"}, str(tmp_path)
    )
    made = list(tasks.Comparisons("t_tfds", "train", seed=None))
    assert sorted(c.query for c in made) == [f"q{i}" for i in range(5)]
    assert all(c.responses[c.best] == "good" for c in made)


def test_packed_examples_learn_completions_only_and_resume(tasks, tok):
    tasks.add_general_world("t_general", {"train": 60}, tok)
    stream = tasks.PackedExamples("t_general", "train", batch_size=2, seq_len=64, seed=0)
    first = take(stream, 6)
    rest = take(tasks.PackedExamples("t_general", "train", 2, 64, seed=0, position=3), 3)
    for a, b in zip(first[3:], rest):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    answers = {g.answer for g in world.general_items("train", 0, 60)}
    for batch in first:
        assert batch["tokens"].dtype == np.int32 and batch["weights"].dtype == np.float32
        for r in range(2):
            for segment in range(1, batch["segment_ids"][r].max() + 1):
                here = batch["segment_ids"][r] == segment
                assert batch["positions"][r][here].tolist() == list(range(here.sum()))
                learned = batch["tokens"][r][here & (batch["weights"][r] > 0)]
                assert learned[-1] == tok.id_of("<end_of_turn>")
                assert tok.decode(learned) in answers
        assert (batch["weights"][batch["segment_ids"] == 0] == 0).all()


def test_long_prompts_are_whole_or_absent(tasks, tok):
    def rows(split):
        for words in (3, 20, 60):
            yield sft.Example(
                ({"role": "user", "content": "repeat" + " cat" * words},), "answer: dog"
            )

    tasks.add_example_rows("t_long", rows, ["train"], tok)
    (batch,) = take(
        tasks.PackedExamples("t_long", "train", batch_size=1, seq_len=64, seed=None, epochs=1), 1
    )
    assert sorted(
        (batch["tokens"][0] == tok.encode(" cat")[0])[batch["segment_ids"][0] == s].sum()
        for s in (1, 2)
    ) == [3, 20]
