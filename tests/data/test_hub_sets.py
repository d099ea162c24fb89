"""Data sets of the Hub by name, against the stand-in hub of tests/hub_server.py."""

import gzip
import io
import json

import pytest
from huggingface_hub import constants

from grm_jax.data import sources
from grm_jax.data.comparisons import read_comparisons, read_rows

PAIR = {"prompt": "Which is prime?", "chosen": "7", "rejected": "8"}
LINES = (json.dumps(PAIR) + "\n").encode()
CARD = b"""---
license: mit
configs:
- config_name: prefs
  default: true
  data_files:
  - split: train
    path: data/a-*
  - split: test
    path: ["data/b.jsonl"]
- config_name: extra
  data_files: extra/*.jsonl
---
# A data set
"""


def parquet(count: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist([PAIR] * count), file)
    return file.getvalue()


def count(source: str) -> int:
    return sum(row.comparison is not None for row in read_rows(source))


def test_only_the_files_of_the_split_are_downloaded(hub):
    files = {
        "data/train-00000-of-00002.parquet": parquet(2),
        "data/train-00001-of-00002.parquet": parquet(1),
        "data/test-00000-of-00001.parquet": parquet(5),
        "loader.py": b"raise SystemExit",
        "dataset_infos.json": b"{}",
    }
    hub.add("org/set", files, kind="dataset")
    assert count("hf://datasets/org/set/train") == 3
    assert sorted(hub.downloads()) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert len(list(read_comparisons("hf://datasets/org/set/test"))) == 5
    assert count("hf://datasets/org/set/data/test-00000-of-00001.parquet") == 5
    with pytest.raises(ValueError, match="has the splits test, train: add one, as in hf://datas"):
        count("hf://datasets/org/set")
    with pytest.raises(FileNotFoundError, match="set/dev does not exist; the splits are test, t"):
        count("hf://datasets/org/set/dev")


def test_configs_of_the_card(hub):
    files = {"README.md": CARD, "data/a-1.jsonl": LINES, "data/a-2.jsonl": LINES}
    files |= {"data/b.jsonl": LINES, "extra/x.jsonl": LINES * 4, "other.jsonl": LINES}
    hub.add("org/set", files, kind="dataset")
    for choice, expected in (
        ("train", 2),
        ("prefs/train", 2),
        ("test", 1),
        ("extra", 4),
        ("extra/train", 4),
        ("other.jsonl", 1),
    ):
        assert count(f"hf://datasets/org/set/{choice}") == expected, choice
    with pytest.raises(ValueError, match="has the splits train, test: add one"):
        count("hf://datasets/org/set")
    with pytest.raises(FileNotFoundError, match="the splits are train, test, extra/train"):
        count("hf://datasets/org/set/dev")


def test_files_without_a_split_in_their_names(hub):
    """As nvidia/HelpSteer2: files with splits, and folders of other files."""
    files = {"train.jsonl.gz": gzip.compress(LINES), "validation.jsonl.gz": gzip.compress(LINES)}
    hub.add("org/set", files | {"preference/preference.jsonl": LINES * 3}, kind="dataset")
    assert count("hf://datasets/org/set/train") == 1
    assert count("hf://datasets/org/set/preference") == 3
    hub.add("org/flat", {"a.jsonl": LINES, "b.jsonl": LINES}, kind="dataset")
    assert count("hf://datasets/org/flat") == count("hf://datasets/org/flat/train") == 2
    nested = {f"{name}/{split}.jsonl": LINES for name in "ab" for split in ("train", "test")}
    hub.add("org/nested", nested, kind="dataset")
    assert count("hf://datasets/org/nested/train") == 2
    assert count("hf://datasets/org/nested/a/test") == 1
    with pytest.raises(ValueError, match="nested/a has the splits test, train: add one, as in"):
        count("hf://datasets/org/nested/a")


def test_the_configs_of_a_conversion_are_not_mixed(hub):
    files = {f"{c}/{s}/0000.parquet": parquet(1) for c in ("one", "two") for s in ("train", "test")}
    hub.add("org/set", files, "refs/convert/parquet", "dataset")
    name = "hf://datasets/org/set@refs/convert/parquet"
    assert count(f"{name}/one/train") == 1
    with pytest.raises(FileNotFoundError, match="the splits are one/test, one/train, two/test"):
        count(f"{name}/train")
    with pytest.raises(ValueError, match="has the splits one/test, one/train, two/test, two/tra"):
        count(name)


@pytest.mark.parametrize("configs", ["[1, 2]", "x", "{a: b}", "[{data_files: [{split: a}]}]", "*a"])
def test_a_card_of_another_form_declares_nothing(hub, configs):
    card = f"---\nconfigs: {configs}\n---\n".encode()
    hub.add("org/set", {"README.md": card, "a.jsonl": LINES}, kind="dataset")
    assert count("hf://datasets/org/set") == 1


def test_a_config_may_name_a_folder(hub):
    card = b"---\nconfigs:\n- config_name: c\n  data_dir: d\n---\n"
    files = {"README.md": card, "d/train.jsonl": LINES, "d/test.jsonl": LINES, "e.jsonl": LINES}
    hub.add("org/set", files, kind="dataset")
    assert count("hf://datasets/org/set/c/train") == count("hf://datasets/org/set/test") == 1


def test_revisions_scripts_and_wrong_names(hub):
    hub.add("org/set", {"a.jsonl": LINES}, kind="dataset", revision="v1")
    hub.add("org/set", {"a.jsonl": LINES * 2}, kind="dataset")
    assert count("hf://datasets/org/set@v1") == 1 and count("hf://datasets/org/set") == 2
    old, new = sources.digest("hf://datasets/org/set@v1"), sources.digest("hf://datasets/org/set")
    assert old != new
    hub.add("org/script", {"script.py": b"raise SystemExit"}, kind="dataset")
    hub.add("org/script", {"0.parquet": parquet(3)}, "refs/convert/parquet", "dataset")
    with pytest.raises(FileNotFoundError, match="scripts are not run: try .*@refs/convert/parq"):
        count("hf://datasets/org/script")
    assert count("hf://datasets/org/script@refs/convert/parquet") == 3
    with pytest.raises(ValueError, match="write hf://datasets/ORG/NAME"):
        count("hf://datasets/set")
    with pytest.raises(FileNotFoundError, match="org/none"):
        count("hf://datasets/org/none")


def test_gated_and_offline(hub, monkeypatch):
    hub.add("org/gated", {"a.jsonl": LINES}, kind="dataset", gated=True)
    with pytest.raises(FileNotFoundError, match="gated: accept its terms at .*/datasets/org/gated"):
        count("hf://datasets/org/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert count("hf://datasets/org/gated") == 1
    from grm_jax import hub as hubs

    hubs._listing.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert count("hf://datasets/org/gated") == 1
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        count("hf://datasets/org/other")
