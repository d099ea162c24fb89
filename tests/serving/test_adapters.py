"""Adapters of TRL and Tunix: groups of a batch, statuses, and split groups."""

import asyncio
import logging
import math

import pytest

from grm_jax.judging.groups import FAILED, UNPARSED, GroupRewards, ResponseReward
from grm_jax.serving.adapters import batches, trl, tunix


class Scorer:
    """Rewards a response with its length; texts "unparsed" and "failed" get that status."""

    def __init__(self):
        self.groups = []

    def __call__(self, groups):
        self.groups += groups
        return [GroupRewards(None, tuple(map(self.reward, group.responses))) for group in groups]

    @staticmethod
    def reward(text):
        if text in (UNPARSED, FAILED):
            return ResponseReward(None, text, f"it is {text}")
        return ResponseReward(float(len(text)))


def repeated(prompts, n):
    return [prompt for prompt in prompts for _ in range(n)]


def chat(text, role="user"):
    return [{"role": role, "content": text}]


# ---------------------------------------------------------------- TRL


@pytest.mark.parametrize("size", [3, None])
def test_trl_gets_one_reward_per_completion(size):
    func = trl.reward_func(scorer := Scorer(), size)
    completions = ["a", "bb", "ccc", "dddd", "e", ""]
    kwargs = dict(completion_ids=[[1]] * 6, trainer_state=None)
    assert func(prompts=repeated("pq", 3), completions=completions, **kwargs) == [1, 2, 3, 4, 1, 0]
    assert [(g.prompt, g.responses) for g in scorer.groups] == [
        ("p", ("a", "bb", "ccc")),
        ("q", ("dddd", "e", "")),
    ]


def test_trl_messages_columns_and_names():
    func = trl.reward_func(scorer := Scorer(), 2, reference="solution", principles="rubric")
    func(
        prompts=[chat("p"), chat("p")],
        completions=[
            chat("first", "assistant"),
            [
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "tool", "content": "5"},
                {"role": "assistant", "content": [{"type": "text", "text": "second"}]},
            ],
        ],
        completion_ids=[[1], [2]],
        solution=["4", "4"],
        rubric=["Be right.", "Be right."],
    )
    (group,) = scorer.groups
    assert group.prompt == chat("p") and group.responses == ("first", "second")
    assert (group.reference, group.principles) == ("4", "Be right.")
    assert func.__name__ == "judge"


def test_trl_gets_none_for_a_response_without_a_reward_and_logs_the_statuses():
    metrics, columns = {}, {}
    func = trl.reward_func(Scorer(), 4)
    rewards = func(
        prompts=["p"] * 4,
        completions=["a", UNPARSED, FAILED, "dd"],
        completion_ids=[],
        log_metric=metrics.__setitem__,
        log_extra=columns.__setitem__,
    )
    assert rewards == [1, None, None, 2]
    assert metrics == {"judge/unparsed": 0.25, "judge/failed": 0.25}
    assert columns["judge_status"] == ["scored", "unparsed", "failed", "scored"]
    assert columns["judge_reason"] == ["", "it is unparsed", "it is failed", ""]


def test_trl_awaits_a_coroutine_function():
    async def scorer(groups):
        await asyncio.sleep(0)
        return Scorer()(groups)

    func = trl.reward_func_async(scorer, 2, name="quality")
    assert asyncio.iscoroutinefunction(func) and func.__name__ == "quality"
    rewards = func(prompts=["p", "p"], completions=["a", "bb"], completion_ids=[])
    assert asyncio.run(rewards) == [1, 2]


@pytest.mark.parametrize("size", [8, None])
def test_a_group_split_over_4_processes_is_refused_with_the_batch_size(size, monkeypatch):
    """8 samples of a prompt, 4 processes with 6 of 24 samples: TRL accepts 24 % 8 == 0."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    func = trl.reward_func(scorer := Scorer(), size)
    batch = repeated("pqr", 8)
    for process in range(4):
        prompts = batch[6 * process : 6 * process + 6]
        with pytest.raises(ValueError) as error:
            func(prompts=prompts, completions=["a"] * 6, completion_ids=[])
        if size:
            assert "a group of 8 responses is split" in str(error.value)
            assert "per_device_train_batch_size x steps_per_generation" in str(error.value)
            assert "a multiple of 8, such as 8" in str(error.value)
        else:
            assert "num_generations is not set, and 4 processes run" in str(error.value)
    assert not scorer.groups
    # The way out: 8 per process.
    for process in range(3):
        prompts = batch[8 * process : 8 * process + 8]
        rewards = trl.reward_func(scorer, 8)(prompts=prompts, completions=["a"] * 8)
        assert rewards == [1] * 8


def test_half_groups_are_refused_without_num_generations():
    with pytest.raises(batches.SplitGroup, match="2, 4, 2 to successive prompts"):
        trl.reward_func(Scorer())(prompts=[*"ppqqqqpp"], completions=["a"] * 8)
    with pytest.raises(batches.SplitGroup, match="a group of 4"):
        trl.reward_func(Scorer(), 4)(prompts=[*"pqpqpqpq"], completions=["a"] * 8)


def test_a_prompt_that_follows_itself_is_two_groups():
    func = trl.reward_func(scorer := Scorer(), 2, num_generations_eval=3)
    func(prompts=["p"] * 4, completions=["a"] * 4)
    assert [len(group.responses) for group in scorer.groups] == [2, 2]
    func(prompts=["q"] * 3, completions=["a"] * 3)
    assert len(scorer.groups[2].responses) == 3


def test_a_larger_group_of_the_evaluation_is_not_split():
    func = trl.reward_func(scorer := Scorer(), 2, num_generations_eval=4)
    func(prompts=[*"ppppqqqq"], completions=["a"] * 8)
    assert [len(group.responses) for group in scorer.groups] == [4, 4]


def test_a_wrong_column_is_named():
    func = trl.reward_func(Scorer(), 1, reference="solutoin")
    with pytest.raises(ValueError, match="no column 'solutoin'; it has solution"):
        func(prompts=["p"], completions=["a"], completion_ids=[], solution=["4"])


# ---------------------------------------------------------------- Tunix


def test_tunix_gets_numbers_and_num_generations():
    """Tunix passes fields of its config by the names of the parameters."""
    import inspect

    fn = tunix.reward_fn(scorer := Scorer(), reference="answer")
    assert "num_generations" in inspect.signature(fn).parameters and fn.__name__ == "judge"
    rewards = fn(["p"] * 4, ["a", "bb", "a", "ccc"], num_generations=2, answer=["x"] * 4)
    assert rewards == [1, 2, 1, 3]
    assert [group.reference for group in scorer.groups] == ["x", "x"]


def test_tunix_unparsed_responses_get_the_mean_of_their_group(caplog):
    fn = tunix.reward_fn(Scorer())
    texts = ["a", "ccc", UNPARSED, UNPARSED, UNPARSED, UNPARSED]
    with caplog.at_level(logging.WARNING):
        assert fn(repeated("pq", 3), texts, num_generations=3) == [1, 3, 2, 2, 2, 2]
    assert "4 of 6 responses are unparsed: it is unparsed" in caplog.text
    assert all(math.isfinite(value) for value in fn(["p"] * 2, ["a", UNPARSED]))


def test_tunix_raises_for_what_it_cannot_take():
    with pytest.raises(batches.Unscored, match="1 of 2 responses are failed: it is failed"):
        tunix.reward_fn(Scorer())(["p"] * 2, ["a", FAILED])
    with pytest.raises(batches.Unscored, match="2 of 2 responses are unparsed"):
        tunix.reward_fn(Scorer())(["p"] * 2, [UNPARSED] * 2)
    with pytest.raises(batches.Unscored, match="1 of 2 responses are unparsed"):
        tunix.reward_fn(Scorer(), unparsed="raise")(["p"] * 2, ["a", UNPARSED])
    with pytest.raises(batches.SplitGroup):
        tunix.reward_fn(Scorer())([*"ppqq"], ["a"] * 4, num_generations=4)
    with pytest.raises(ValueError, match="unparsed='zero'"):
        tunix.reward_fn(Scorer(), unparsed="zero")
