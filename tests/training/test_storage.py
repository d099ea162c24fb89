"""Folders that may stand in a bucket."""

import pytest

from grm_jax.training import storage


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder under the name of a bucket."""
    place = storage.epath.Path(tmp_path / "bucket")
    monkeypatch.setattr(storage, "folder_of", lambda path: place / str(path).removeprefix("gs://bucket/"))
    storage.fetched.cache_clear()
    yield place
    storage.fetched.cache_clear()


def test_what_a_bucket_holds_is_copied_once(bucket):
    (bucket / "model" / "deep").mkdir(parents=True)
    (bucket / "model" / "config.json").write_text("{}")
    (bucket / "model" / "deep" / "weights").write_bytes(b"1234")
    found = storage.fetched("gs://bucket/model")
    assert (found / "config.json").read_text() == "{}" and (found / "deep" / "weights").read_bytes() == b"1234"
    assert storage.fetched("gs://bucket/model") == found
    assert storage.fetched("gs://bucket/model/config.json").read_text() == "{}"
    with pytest.raises(FileNotFoundError, match="gs://bucket/nothing does not exist"):
        storage.fetched("gs://bucket/nothing")


def test_local_paths_stay_as_they_are(tmp_path):
    assert storage.fetched(str(tmp_path)) == tmp_path
