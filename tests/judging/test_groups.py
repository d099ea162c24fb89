"""Groups and options of rewards: what is refused, and their JSON."""

import dataclasses
import json
import subprocess
import sys

import pytest
from fake_judge import by_number, fake_judge, group

from grm_jax.judging import groups as group_data
from grm_jax.judging.reward_rules import REWARDS
from grm_jax.judging.rewards import RewardOptions, options_of, score


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q"}, r"groups\[1\]: a group has no responses"),
        ({"prompt": " ", "responses": ["a"]}, r"groups\[1\]: prompt is empty"),
        ({"prompt": "q", "responses": []}, r"groups\[1\]: responses is empty"),
        ({"prompt": "q", "responses": ["a", 3]}, r"groups\[1\]: responses\[1\] is a int"),
        ({"prompt": 3, "responses": ["a"]}, r"groups\[1\]: prompt is 3: give"),
        ({"prompt": [{"role": "user"}], "responses": ["a"]}, r"groups\[1\]: prompt\[0\] is "),
        ({"prompt": "q", "responses": ["a"], "id": 3}, r"groups\[1\]: id is 3"),
        ({"prompt": "q", "responses": ["a"], "principles": []}, r"\[1\]: principles is a list"),
        ({"prompt": "q", "responses": ["a"], "principles": " "}, r"\[1\]: principles is empty"),
        ({"prompt": "q", "responses": ["a"], "refrence": "r"}, r"did you mean 'reference'\?"),
        ("text", r"groups\[1\]: a group is a str"),
    ],
)
def test_a_malformed_group_is_named_by_its_index_and_field(row, message):
    good = {"prompt": "q", "responses": ["a"]}
    with pytest.raises(ValueError, match=message):
        score([good, row], fake_judge(by_number))


@pytest.mark.parametrize("groups", ["text", {"prompt": "q", "responses": ["a"]}, 3, None])
def test_groups_are_a_list(groups):
    with pytest.raises(ValueError, match=f"groups is a {type(groups).__name__}: give a list"):
        score(groups, fake_judge(by_number))
    assert score([], fake_judge(by_number)) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k = 0"),
        ({"k": "8"}, "k = '8' is a str: use an integer"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"reward": "men"}, "unknown reward 'men': did you mean 'mean'"),
        ({"reward": ["mean"]}, "reward = .* use one of mean, rank"),
        ({"principles": "given"}, "principles 'given'"),
        ({"block_size": 33}, "block_size = 33: use 1 to 32"),
        ({"length_penalty": -1}, "length_penalty = -1"),
        ({"length_penalty": float("nan")}, "length_penalty = nan"),
        ({"length_free": 0.5}, "length_free = 0.5"),
        ({"critiques": 1}, "critiques = 1: use True or False"),
        ({"k": 2, "k_meta": 3}, "k_meta = 3"),
        ({"sede": 3}, "unknown field 'sede': did you mean 'seed'"),
    ],
)
def test_a_wrong_option_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        options_of(fields)


@pytest.mark.parametrize("reward", ["rank", "win_rate"])
def test_a_single_response_has_no_rank(reward):
    with pytest.raises(ValueError, match=rf"groups\[1\] has one response, and reward '{reward}'"):
        score([group(7, 3), group(5)], fake_judge(by_number), reward=reward)


def test_keywords_replace_options_and_a_misspelt_one_is_answered_with_the_nearest():
    judge, options = fake_judge(by_number), RewardOptions(k=2, reward="rank")
    assert score([group(7, 3)], judge, options)[0].values == [1, 0]
    assert score([group(7, 3)], judge, options, reward="mean")[0].values == [7, 3]
    with pytest.raises(
        TypeError, match=r"score\(\) takes no argument 'rewards': did you mean 'rew"
    ):
        score([group(7, 3)], judge, rewards="mean")


def test_groups_options_and_rewards_survive_json():
    sent = group(6, 4, id="a", principles="1. Truth (100%): it is true")
    options = RewardOptions(k=2, critiques=True, max_new_tokens=99)
    assert options_of(json.loads(json.dumps(dataclasses.asdict(options)))) == options
    fields = json.loads(json.dumps(group_data.group_to_json(sent)))
    assert group_data.group_of(fields) == sent
    known = group(6, 4, reference="r")
    assert group_data.group_of(group_data.group_to_json(known)) == known
    (result,) = score([fields], fake_judge(by_number), options)
    assert len(result.critiques) == 2 and result.principles == sent.principles
    again = group_data.rewards_of(json.loads(json.dumps(group_data.rewards_to_json(result))))
    assert again == result
    failed = group_data.GroupRewards.without(sent, "failed", "too late")
    assert group_data.rewards_of(group_data.rewards_to_json(failed)) == failed
    for reward in ({"reward": None, "status": "scored"}, {"reward": 0, "status": "failed"}):
        with pytest.raises(ValueError, match="reward .* with status"):
            group_data.rewards_of({**fields, "rewards": [reward]} | {"prompt_tokens": 0})


def test_score_is_public_and_imports_no_jax():
    code = "import sys, grm_jax; print(grm_jax.serving.score.__module__, 'jax' in sys.modules)"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.split() == ["grm_jax.judging.rewards", "False"]
    assert list(REWARDS) == ["mean", "rank", "win_rate", "expected"]
