"""Which finished stages count as evaluated."""

import json

import pytest
from etils import epath

from grm_jax.training import finished, loop


@pytest.fixture
def folders(tmp_path, monkeypatch):
    # Without parameters: the fingerprint is that of the result.
    fingerprint = lambda folder: loop.read_result(folder)[loop.WEIGHTS]
    monkeypatch.setattr(loop, "saved_weights", fingerprint)
    return {stage: epath.Path(tmp_path / stage) for stage in (*finished.TRAINED, "eval")}


def finish(folders, stage, weights):
    folders[stage].mkdir(exist_ok=True)
    (folders[stage] / loop.RESULT).write_text(json.dumps({loop.WEIGHTS: weights}))


def test_an_evaluation_is_outdated_by_the_stages_that_it_judges_with(folders):
    finish(folders, "rft", "a")
    finish(folders, "eval", {"rft": "a"})
    assert finished.is_evaluated(folders)
    for other in ("sft", "policy"):  # answer, and do not judge
        finish(folders, other, "b")
    assert finished.is_evaluated(folders)
    finish(folders, "rl", "c")
    assert not finished.is_evaluated(folders)
