"""Rewards of groups: numbers by hand, statuses, blocks, penalties, and independence of the batch."""

import json
import subprocess
import sys

import pytest
from fake_judge import fake_judge, well_formed

from grm_jax.judging import groups as group_data
from grm_jax.judging.groups import Group
from grm_jax.judging.reward_rules import REWARDS, normalised_ranks
from grm_jax.judging.rewards import RewardOptions, options_of, score


def by_digits(responses, key) -> str:
    """A judge that scores a response by the number it ends in; by sample, "3/5" is 3, then 5."""
    scores = [text.split()[-1].split("/") for text in responses]
    return well_formed([score[key[1] % len(score)] for score in scores])


def group(*scores, **fields) -> Group:
    return Group("Q?", tuple(f"answer {i}, worth {x}" for i, x in enumerate(scores)), **fields)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("mean", (6, 4, 8, 4)),
        ("rank", (2 / 3, 0.5 / 3, 1, 0.5 / 3)),
        ("win_rate", (2 / 3, 0.5 / 3, 1, 0.5 / 3)),
    ],
)
def test_each_reward_of_one_critique_by_hand(reward, expected):
    (result,) = score([group(6, 4, 8, 4, id="g")], fake_judge(by_digits), k=1, reward=reward)
    assert result.values == pytest.approx(list(expected))
    assert [r.status for r in result.rewards] == ["scored"] * 4 and result.id == "g"


def test_score_and_its_options_import_no_jax():
    code = "import sys, grm_jax; grm_jax.serving.score; print('jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_groups_and_rewards_survive_json():
    judge = fake_judge(by_digits)
    sent = group(6, 4, id="a", reference="r", principles="1. Truth (100%): it is true")
    fields = json.loads(json.dumps(group_data.group_to_json(sent)))
    (result,) = score([fields], judge, options_of({"k": 2, "critiques": True}))
    assert [result] == score([sent], judge, k=2, critiques=True)
    assert len(result.critiques) == 2 and result.principles == sent.principles
    again = group_data.rewards_of(json.loads(json.dumps(group_data.rewards_to_json(result))))
    assert again == result


def test_all_names_of_rewards():
    assert list(REWARDS) == ["mean", "rank", "win_rate", "expected"]
    assert normalised_ranks((5, 5, 5)) == (0.5, 0.5, 0.5)
    assert RewardOptions().reward == "mean"
