"""Scalar reward models as judges: rewards as in transformers, options, rows, meshes."""

import json

import numpy as np
import pytest
from scalar_toys import COMPARISONS, TOYS

from grm_jax import Comparison, Judge
from grm_jax.judging.scalar import ScalarJudge

GIVEN = [Comparison(**fields) for fields in COMPARISONS]
TOLERANCE = 1e-4  # of the largest reward


@pytest.fixture(scope="module")
def goldens(pytestconfig):
    path = pytestconfig.rootpath / "tests/judging/goldens/scalar.json"
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("scalar")
    return {name: toy.write(root / name) for name, toy in TOYS.items()}


@pytest.fixture(scope="module")
def judges(folders):
    return {name: Judge.load(folder, dtype="float32") for name, folder in folders.items()}


def rewards_of(verdicts) -> np.ndarray:
    return np.array([score for verdict in verdicts for score in verdict.scores])


@pytest.mark.parametrize("name", TOYS)
def test_rewards_are_those_of_transformers(judges, goldens, name):
    judge, golden = judges[name], goldens[name]
    assert isinstance(judge, ScalarJudge)
    padding, ids = TOYS[name].config["pad_token_id"], [i for c in GIVEN for i in judge.encode(c)]
    for ours, theirs in zip(ids, golden["ids"], strict=True):
        ends_in_padding = theirs[-1] == padding
        assert ours == (theirs[:-1] if ends_in_padding else theirs)
        assert ends_in_padding == (name == "llama3_pad_is_eos")
    together = rewards_of(judge(GIVEN))
    alone = rewards_of(verdict for c in GIVEN for verdict in judge(c))
    np.testing.assert_array_equal(together, alone)  # no reward depends on the other texts
    for padded in ("alone", "left", "right"):
        theirs = np.array(golden[padded])
        assert np.abs(together - theirs).max() <= TOLERANCE * np.abs(theirs).max()
