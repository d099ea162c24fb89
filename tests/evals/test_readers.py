"""Readers of the benchmarks on made-up files of each layout and format; missing files."""

import gzip
import importlib.resources.abc
import json
import sys

import numpy as np
import pytest

from grm_jax.evals.benchmarks import BENCHMARKS
from grm_jax.evals.files import MissingData


def parquet(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def arrow(path, rows):
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows))
    gzip.open(path, "wt").write(text) if path.suffix == ".gz" else path.write_text(text)


REWARDBENCH = [
    {"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "subset": s, "id": i}
    for i, s in enumerate(["donotanswer", "hep-go", "anthropic_harmless"])
]


@pytest.mark.parametrize(
    "write, path",
    [
        (parquet, "reward-bench/data/filtered-00000-of-00001.parquet"),
        (arrow, "rewardbench/filtered/data-00000-of-00001.arrow"),
        (jsonl, "rewardbench/filtered.jsonl"),
        (jsonl, "rewardbench/data/filtered.jsonl.gz"),
        (parquet, "data/filtered-00000-of-00001.parquet"),  # --data is the benchmark's own folder
    ],
)
def test_every_format_gives_the_same_comparisons(tmp_path, write, path):
    write(tmp_path / path, REWARDBENCH)
    comparisons = BENCHMARKS["rewardbench"].load(tmp_path)
    subsets = [c.meta["subset"] for c in comparisons]
    assert subsets == ["donotanswer", "hep-go"]  # prior sets are skipped
    assert all(c.responses[c.best].startswith("good") for c in comparisons)


def test_tfds(tmp_path, monkeypatch):
    # To write a TFDS folder, tfds imports the backport of a module of Python 3.11.
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features.FeaturesDict(
        {
            "prompt": tfds.features.Text(),
            "chosen": tfds.features.Text(),
            "rejected": tfds.features.Text(),
        }
        | {"subset": tfds.features.Text(), "id": tfds.features.Scalar(np.int64)}
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="rewardbench",
        version="1.0.0",
        data_dir=str(tmp_path),
        split_datasets={"filtered": list(enumerate(REWARDBENCH))},
        features=features,
        file_format="tfrecord",
        disable_shuffling=True,
    )
    comparisons = BENCHMARKS["rewardbench"].load(tmp_path)
    assert [c.turns[0]["content"] for c in comparisons] == ["p0", "p1"]


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if not name.startswith("world")])
def test_missing_files_raise_an_error_with_instructions(tmp_path, name):
    with pytest.raises(MissingData) as error:
        BENCHMARKS[name].load(tmp_path)
    message = str(error.value)
    assert name in message and "Put there:" in message and str(tmp_path) in message


def test_files_of_other_benchmarks_under_the_same_root_are_ignored(tmp_path):
    parquet(tmp_path / "reward-bench-2/data/test-00000-of-00001.parquet", [{"prompt": "x"}])
    with pytest.raises(MissingData):
        BENCHMARKS["rewardbench"].load(tmp_path)


def test_an_unknown_benchmark_raises_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'rm_bench'"):
        BENCHMARKS["rmbench"]


def test_duplicate_ids_raise(tmp_path):
    jsonl(tmp_path / "rewardbench/filtered.jsonl", REWARDBENCH[:1] * 2)
    with pytest.raises(ValueError, match="occurs twice"):
        BENCHMARKS["rewardbench"].load(tmp_path)


def test_rewardbench2(tmp_path):
    rows = [
        {"id": "7", "prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"},
        {"id": "ref:3", "prompt": "p", "chosen": ["a"], "rejected": ["b"], "subset": "Ties"},
        {"id": "tied:3", "prompt": "p", "chosen": ["a", "e"], "rejected": ["b"], "subset": "Ties"},
    ]
    parquet(tmp_path / "reward-bench-2/data/test-00000-of-00001.parquet", rows)
    math, ref, tied = BENCHMARKS["rewardbench2"].load(tmp_path)
    assert math.n == 4 and math.responses[math.best] == "a"
    assert ref.meta["group"] == tied.meta["group"] and sum(tied.rewards) == 2


def test_ppe_preference_drops_ties_and_keeps_the_order(tmp_path):
    base = {
        "prompt": "p",
        "response_1": "a",
        "response_2": "b",
        "model_a": "m",
        "model_b": "n",
        "language": "English",
    }
    rows = [
        base | {"question_id": w, "winner": w, "hard_prompt": True}
        for w in ("model_a", "model_b", "tie", "tie (bothbad)")
    ]
    parquet(tmp_path / "PPE-Human-Preference-V1/data/test-00000-of-00001.parquet", rows)
    first, second = BENCHMARKS["ppe_preference"].load(tmp_path)
    assert (first.label, second.label) == (0, 1)
    assert first.responses == ("a", "b") and first.meta["slices"] == ["hard"]


def test_ppe_correctness_pairs_and_singles(tmp_path):
    row = {
        "question_id": 1,
        "prompt": "p",
        "scores": [True, False, True],
        "sampled_conflict_pairs": [[0, 1], [1, 2]],
    }
    row |= {f"response_{i + 1}": f"r{i}" for i in range(3)}
    folder = tmp_path / "ppe_correctness/PPE-GPQA-Best-of-K/data"
    parquet(folder / "train-00000-of-00001.parquet", [row])
    pairs = BENCHMARKS["ppe_correctness"].load(tmp_path)
    assert [c.responses[c.best] for c in pairs] == ["r0", "r2"]
    assert {c.meta["subset"] for c in pairs} == {"GPQA"}
    singles = BENCHMARKS["ppe_best_of_k"].load(tmp_path)
    assert [c.label for c in singles] == [(1.0,), (0.0,), (1.0,)]
    assert singles[0].meta["pairs"] == [[0, 1], [1, 2]]


def test_rmb_at_once_and_as_pairs(tmp_path):
    turns = [{"role": "user", "content": "q"}]
    bon = {
        "bon_uid": "u",
        "conversation_input": turns,
        "bon_best": {"answer": "w"},
        "loser_list": [{"answer": "l"}, {"answer": "m"}],
    }
    pair = {
        "pair_uid": "v",
        "conversation_input": turns,
        "chosen": {"answer": "w"},
        "reject": {"answer": "l"},
    }
    for goal in ("Helpfulness", "Harmlessness"):
        for kind, row in (("BoN_set", bon), ("Pairwise_set", pair)):
            path = tmp_path / "rmb/RMB_dataset" / kind / goal / "Code" / "x.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps([row]))
    whole, split = BENCHMARKS["rmb"].load(tmp_path), BENCHMARKS["rmb_pairs"].load(tmp_path)
    assert sorted(c.n for c in whole) == [2, 2, 3, 3] and [c.n for c in split] == [2] * 6
    assert len({c.meta["group"] for c in split}) == 4


def test_judgebench_and_llmbar(tmp_path):
    row = {
        "pair_id": "x",
        "source": "mmlu-pro-law",
        "question": "q",
        "response_A": "a",
        "response_B": "b",
        "label": "B>A",
    }
    name = "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"
    jsonl(tmp_path / "judgebench/data" / name, [row])
    (comparison,) = BENCHMARKS["judgebench"].load(tmp_path)
    assert comparison.label == 1 and comparison.meta["subset"] == "mmlu-pro"
    for folder in ("LLMBar/Adversarial/Manual", "CaseStudy/Base_9"):
        path = tmp_path / "llmbar/Dataset" / folder / "dataset.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([{"input": "i", "output_1": "a", "output_2": "b", "label": 2}]))
    (comparison,) = BENCHMARKS["llmbar"].load(tmp_path)
    assert comparison.label == 1 and comparison.meta["subset"] == "Adversarial/Manual"


def test_judgebench_has_a_headline_for_each_file(tmp_path, capsys):
    """The gpt-4o file gets half of its pairs right, the claude file all; they are not pooled."""
    from grm_jax.evals import cli

    def write(name, labels):
        rows = [
            {
                **{"pair_id": str(i), "source": "mmlu-pro-law", "question": f"q{i}"},
                **{"response_A": "longer", "response_B": "b", "label": label},
            }
            for i, label in enumerate(labels)
        ]
        jsonl(tmp_path / "judgebench" / f"dataset=judgebench,response_model={name}.jsonl", rows)

    def entries(*flags):
        out = tmp_path / "out"
        argv = ["--data", str(tmp_path), "--out", str(out), "--draws", "10", *flags]
        assert cli.main([*argv, *([] if "--scores" in flags else ["--judge", "longest"])]) == 0
        return json.loads((out / "results.json").read_text())

    write("gpt-4o-2024-05-13", ["A>B", "B>A"] * 2)
    (entry,) = entries("--benchmark", "judgebench")
    write("claude-3-5-sonnet-20240620", ["A>B"] * 3)
    for names in ("judgebench", "judgebench,judgebench_claude"):
        gpt, claude = entries("--benchmark", names)
        assert gpt["metrics"] == entry["metrics"] and gpt["comparisons"] == 4
        values = [e["metrics"][e["rule"]]["accuracy"]["value"] for e in (gpt, claude)]
        assert values == [0.5, 1.0] and (gpt["of"], claude["of"]) == (4, 3)
    (tmp_path / "out" / "results.json").unlink()
    scores = tmp_path / "s.jsonl"
    jsonl(scores, [{"id": f"judgebench-gpt-{i}", "scores": [1, 0]} for i in range(4)])
    (entry,) = entries("--benchmark", "judgebench", "--scores", str(scores))
    assert entry["benchmark"] == "judgebench"
