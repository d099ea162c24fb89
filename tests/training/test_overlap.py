"""Training comparisons that are held out as well are dropped, whatever their file and form."""

import json
import logging
import random

import pytest

from experiments import spct_tiny
from grm_jax.data import mixtures, splits
from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.text import tokenizer
from grm_jax.training import rft, rft_data, sources
from grm_jax.training.errors import TrainingError
from grm_jax.types import Comparison


def write(path, comparisons):
    path.write_text("".join(json.dumps(row) + "\n" for row in comparisons))
    return str(path)


def rows(count, start=0):
    return [
        {"id": f"t{i}", "query": f"What is {i} + {i}?", "responses": ["a", f"b {i}"], "label": 0}
        for i in range(start, start + count)
    ]


@pytest.fixture
def make_config(tmp_path):
    """Returns the config of a run that trains on the first rows and evaluates on the second."""

    def make(train, test, **fields):
        mixtures.add_comparisons("o_train", {"train": write(tmp_path / "a.jsonl", train)})
        mixtures.add_comparisons("o_test", {"test": write(tmp_path / "b.jsonl", test)})
        config = spct_tiny.get_config()
        config.data.update(judging="o_train", held_out="o_test", **fields)
        return config

    return make


FORMS = {
    "the same": lambda row: row,
    "another id": lambda row: {**row, "id": "other"},
    "the order of the responses": lambda row: {**row, "responses": row["responses"][::-1]},
    "other responses": lambda row: {**row, "responses": ["x", "y", "z"]},
    "white space": lambda row: {**row, "query": row["query"].replace(" ", " \n\t ") + "\u00a0 "},
    "case": lambda row: {**row, "query": row["query"].upper()},
    "invisible characters": lambda row: {
        **row,
        "query": row["query"].replace("W", "\u200bW\u2060"),
    },
    "full-width letters": lambda row: {**row, "query": row["query"].replace("W", "\uff37")},
    "a chat": lambda row: {**row, "query": [{"role": "user", "content": row["query"]}]},
    "a chat with a system turn": lambda row: {
        **row,
        "query": [
            {"role": "system", "content": "You are a judge."},
            {"role": "user", "content": row["query"]},
        ],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_held_out_comparison_is_not_trained_on_in_any_form(form, make_config, tmp_path, caplog):
    config = make_config(rows(10), [FORMS[form](row) for row in rows(3, start=7)])
    with caplog.at_level(logging.WARNING):
        source = sources.judging(config, workdir=tmp_path / "run")
    assert source.size == 7
    assert {source.at(i).id for i in range(7)} == {f"t{i}" for i in range(7)}
    message = "3 of 10 comparisons of o_train have a query of config.data.held_out=o_test"
    assert message in caplog.text
    record = json.loads((tmp_path / "run/data/overlap.json").read_text())
    assert record == {"held_out": "config.data.held_out=o_test", "dropped": {"o_train": 3}}


def test_the_same_file_under_another_name_is_refused(make_config, tmp_path):
    config = make_config(rows(10), rows(10))
    with pytest.raises(TrainingError, match="held_out=o_test has the queries of all 10 comparis"):
        sources.judging(config)


def test_without_the_evaluation_held_out_files_that_exist_are_compared(make_config, tmp_path):
    config = make_config(rows(10), rows(3))
    config.stages = ("rft",)
    assert sources.judging(config).size == 7
    (tmp_path / "b.jsonl").unlink()
    assert sources.judging(config).size == 10


def test_other_queries_are_kept(make_config):
    train = rows(10)
    near = [{**row, "query": row["query"].replace("+", "-")} for row in train]
    assert sources.judging(make_config(train, near)).size == 10


def test_the_key_of_ascii_text_is_that_of_any_text():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("aZ \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x00.1", k=20))
        assert splits.overlap_key(text) == splits.overlap_key(text + "\u200b")


def test_no_query_of_a_split_file_is_on_both_sides_in_another_form():
    from grm_jax.types import Comparison

    comparisons = [
        Comparison(query, ["a", "b"], label=0)
        for i in range(20)
        for query in (f"What is {i}?", f"what\u200b is  {i}?", f"\uff37hat is {i}?")
    ]
    train, held_out = splits.split(comparisons, 0.3, 100)
    assert len(held_out) == 18 and len(train) == 42
    assert splits.without_queries(comparisons, held_out) == train


def test_the_rft_set_is_built_again_if_other_queries_are_held_out(make_config, tmp_path, caplog):
    tok = tokenizer.load(vocabulary_path())
    config = make_config(rows(10), rows(3, start=7))
    samples = [{"id": f"t{i}", "text": r"\boxed{9, 1}"} for i in range(10)]
    config.rft.update(sampler="file", comparisons=10, samples=1, hinted=0, reject=False)
    config.rft.sampling = {"path": write(tmp_path / "samples.jsonl", samples)}
    config.data.general_items = 0

    def queries():
        rft.prepare(config, tok, None, tmp_path / "rft/data", tmp_path)
        trials = rft_data.read_trials(tmp_path / "rft/data/trials.jsonl")
        return {trial.comparison.query for trial in trials}

    held_out = {row["query"] for row in rows(3, start=7)}
    assert len(queries()) == 7 and not queries() & held_out
    mixtures.add_comparisons("o_other", {"test": write(tmp_path / "c.jsonl", rows(2))})
    config.data.held_out = "o_other"
    assert len(queries()) == 8 and queries() & held_out == held_out
    assert "the RFT set is built again" in caplog.text


def test_the_evaluation_notices_queries_of_a_set_that_other_queries_were_held_out_of(tmp_path):
    data = tmp_path / "rft/data"
    data.mkdir(parents=True)
    trained = [Comparison("WHAT is it?", ("a", "b"), label=0), Comparison("And this?", ("a",))]
    trials = [rft_data.Trial(c, (0, 1)[: c.n], "t", False, True, "kept") for c in trained]
    rft_data.RftSet(trials=trials).save(data)
    (data / rft.READY).write_text('{"held_out": "one"}')
    assert rft.trained_queries(tmp_path / "rft", "one") == set()
    queries = rft.trained_queries(tmp_path / "rft", "two")
    assert splits.overlap_key("what is  it?") in queries and len(queries) == 2
    assert rft.trained_queries(tmp_path / "none", "two") == set()
    (data / rft.READY).write_text("{}")  # of an earlier version
    assert rft.trained_queries(tmp_path / "rft", "two") == set()
