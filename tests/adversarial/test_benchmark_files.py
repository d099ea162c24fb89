"""Damaged files of public benchmarks: a list of comparisons, or one line that names the file."""

import itertools
import json
import zipfile

import fuzz
import numpy as np
import pytest

from grm_jax.data.records import strict_records
from grm_jax.evals.benchmarks import BENCHMARKS

# benchmark -> its file in the data folder, and the format in which a changed copy is written
FILES = {
    "gsm8k": "grade_school_math/data/example_model_solutions.jsonl",
    "humanevalpack": "evaluation/create/humaneval-x/data/python/data/humanevalpack.jsonl",
    "llamafactory_dpo_demo": "data/dpo_en_demo.json",
    "llamafactory_kto_demo": "data/kto_en_demo.json",
    "pandalm": "data/testset-v1.json",
    "prometheus_hhh": "eval/benchmark/data/hhh_alignment_eval.json",
    "rm_bench": "data/chat_filtered.json",
}
TOYS = {
    "rewardbench": (
        "filtered.jsonl",
        [
            {"prompt": f"p{i}", "chosen": "c", "rejected": "r", "subset": "hep-go", "id": i}
            for i in range(4)
        ],
    ),
    "judgebench": (
        "judgebench_gpt.jsonl",
        [
            {
                "pair_id": str(i),
                "original_id": "o",
                "source": "mmlu-pro-math",
                "question": "q",
                "response_model": "gpt-4o-2024-05-13",
                "response_A": "a",
                "response_B": "b",
                "label": ("A>B", "B>A")[i % 2],
            }
            for i in range(4)
        ],
    ),
    "llmbar": (
        "Natural/dataset.json",
        [{"input": f"i{i}", "output_1": "x", "output_2": "y", "label": 1} for i in range(4)],
    ),
}


def check_loads(name, root):
    """Loads a benchmark and checks what it accepts."""
    for comparison in BENCHMARKS[name].load(root):
        json.dumps([comparison.turns, comparison.responses, comparison.meta], allow_nan=False)
        assert comparison.responses and all(isinstance(r, str) for r in comparison.responses)
        if isinstance(comparison.label, int):
            assert 0 <= comparison.label < comparison.n
        elif comparison.label is not None:
            assert np.isfinite(comparison.label).all()
            assert len(comparison.label) == comparison.n


def changed(rng, records, path):
    """Writes the records with one to three of them changed, or the file's bytes."""
    records = list(records)
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(records))
        records[i] = fuzz.change_json(rng, records[i])
    lines = path.suffix == ".jsonl"
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records)
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(fuzz.change_bytes(rng, data) if rng.random() < 0.2 else data)


def run(name, records, file, folder, cases, record_property, fast, full):
    path = folder / name / file
    path.parent.mkdir(parents=True)

    def draws():
        for i, rng in cases(fast, full):
            changed(rng, records, path)
            yield f"{name} {i}", folder

    fuzz.run(f"files of {name}", draws(), lambda root: check_loads(name, root), record_property)


@pytest.mark.parametrize("name", TOYS)
def test_changed_toys(name, tmp_path, cases, record_property):
    run(name, TOYS[name][1], TOYS[name][0], tmp_path, cases, record_property, 25, 500)


@pytest.mark.parametrize("name", FILES)
def test_changed_public_files(name, tmp_path, cases, record_property, shared_data):
    benchmark = BENCHMARKS[name]
    folders = [shared_data / alias for alias in (name, *benchmark.aliases)]
    paths = [folder / FILES[name] for folder in folders if (folder / FILES[name]).exists()]
    if not paths:
        pytest.skip(f"no {FILES[name]} in the data folder")
    records = list(itertools.islice(strict_records(paths[0]), 6))
    run(name, records, FILES[name], tmp_path, cases, record_property, 15, 500)


def test_a_damaged_zip_of_realmistake(tmp_path):
    folder = tmp_path / "realmistake"
    folder.mkdir()
    (folder / "README.md").write_text("the password is `open`")
    (folder / "data.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="benchmark realmistake: .*zip"):
        BENCHMARKS["realmistake"].load(tmp_path)
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.writestr("data/math/gpt.jsonl", '{"label": "error"}\n')
    with pytest.raises(ValueError, match="benchmark realmistake: .*missing: 'llm_response'"):
        BENCHMARKS["realmistake"].load(tmp_path)
