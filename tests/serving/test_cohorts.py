"""Cohorts: responses that arrive one per call are scored as one group, once."""

import asyncio

import pytest

from grm_jax.judging.groups import FAILED, Group, GroupRewards, ResponseReward
from grm_jax.serving.cohorts import Cohorts

FOREVER = 600.0


class Scorer:
    """Rewards a response with its number; waits for `gate`; fails the first `failures` groups."""

    def __init__(self, failures=0):
        self.groups, self.cancelled, self.failures = [], 0, failures
        self.gate, self.started = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def __call__(self, group):
        self.groups.append(group)
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if len(self.groups) <= self.failures:
            return GroupRewards.without(group, FAILED, "the server stopped")
        return GroupRewards(group.id, tuple(ResponseReward(float(r)) for r in group.responses))


def one(response, group="g", prompt="q", **fields):
    return Group(prompt, [str(response)], id=group, **fields)


def start(cohorts, response, index=None, size=3, attempt=0, **fields):
    return asyncio.ensure_future(
        cohorts.reward(one(response, **fields), size, index=index, attempt=attempt)
    )


async def values(*tasks):
    return [reward.reward for reward in await asyncio.gather(*tasks)]


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_group_is_scored_once_in_the_order_of_its_indices():
    async def run():
        cohorts = Cohorts(scorer := Scorer(), FOREVER)
        tasks = [start(cohorts, 10 + i, i) for i in (2, 0, 1)]
        assert await values(*tasks) == [12, 10, 11]
        (group,) = scorer.groups
        assert group == Group("q", ["10", "11", "12"], id="g")

    asyncio.run(run())


def test_groups_and_attempts_do_not_mix():
    async def run():
        cohorts = Cohorts(scorer := Scorer(), FOREVER)
        tasks = [
            start(cohorts, 100 * attempt + 10 * g + i, i, 2, attempt, group=str(g))
            for i in range(2)
            for g in range(2)
            for attempt in range(2)
        ]
        assert await values(*tasks) == [0, 100, 10, 110, 1, 101, 11, 111]
        assert len(scorer.groups) == 4

    asyncio.run(run())


def test_a_missing_sibling_is_an_explicit_failure():
    async def run():
        cohorts = Cohorts(scorer := Scorer(), 0.01)
        rewards = await asyncio.gather(start(cohorts, 0, 0, 4), start(cohorts, 3, 3, 4))
        assert rewards[0] == rewards[1]
        assert (rewards[0].reward, rewards[0].status) == (None, FAILED)
        assert "2 of 4 responses of group 'g' (without index 1, 2) arrived" in rewards[0].reason
        assert not scorer.groups and not cohorts._cohorts
        # The late ones and the retries of the others make a group.
        cohorts.timeout = FOREVER
        assert await values(*(start(cohorts, i, i, 4) for i in range(4))) == [0, 1, 2, 3]

    asyncio.run(run())


@pytest.mark.parametrize("when", ["while collecting", "while scoring", "after scoring"])
def test_a_retry_gets_the_reward_of_the_first(when):
    async def run():
        cohorts = Cohorts(scorer := Scorer(), FOREVER)
        scorer.gate.clear()
        tasks = [start(cohorts, i, i) for i in range(2)]
        if when == "while collecting":
            tasks.append(start(cohorts, 1, 1))
            await settle()
        tasks.append(start(cohorts, 2, 2))
        await scorer.started.wait()
        if when == "while scoring":
            tasks.append(start(cohorts, 1, 1))
            await settle()
        scorer.gate.set()
        rewards = await values(*tasks)
        if when == "after scoring":
            rewards += await values(start(cohorts, 1, 1))
        assert sorted(rewards) == [0, 1, 1, 2] and len(scorer.groups) == 1

    asyncio.run(run())


def test_a_cancelled_retry_does_not_withdraw_the_response_of_the_first():
    async def run():
        cohorts = Cohorts(Scorer(), FOREVER)
        first, again = start(cohorts, 0, 0, 2), start(cohorts, 0, 0, 2)
        await settle()
        again.cancel()
        await settle()
        assert await values(first, start(cohorts, 1, 1, 2)) == [0, 1]

    asyncio.run(run())


def test_a_cancelled_call_withdraws_its_response():
    async def run():
        cohorts = Cohorts(scorer := Scorer(), FOREVER)
        tasks = [start(cohorts, i, i) for i in range(2)]
        await settle()
        tasks[1].cancel()
        await settle()
        last = start(cohorts, 2, 2)
        await settle()
        assert not scorer.groups  # 1 is missing
        assert await values(tasks[0], last, start(cohorts, 11, 1)) == [0, 2, 11]

    asyncio.run(run())


def test_scoring_is_cancelled_with_the_last_call_of_its_group():
    async def run():
        cohorts = Cohorts(scorer := Scorer(), FOREVER)
        scorer.gate.clear()
        tasks = [start(cohorts, i, i) for i in range(3)]
        await scorer.started.wait()
        for number, task in enumerate(tasks):
            assert scorer.cancelled == 0, number
            task.cancel()
            await settle()
        assert scorer.cancelled == 1 and not cohorts._cohorts
        scorer.gate.set()
        assert await values(*(start(cohorts, i, i) for i in range(3))) == [0, 1, 2]

    asyncio.run(run())


def test_a_group_that_failed_is_scored_anew():
    async def run():
        cohorts = Cohorts(scorer := Scorer(failures=1), FOREVER)
        rewards = await asyncio.gather(*(start(cohorts, i, i) for i in range(3)))
        assert [r.reason for r in rewards] == ["the server stopped"] * 3
        assert await values(*(start(cohorts, i, i) for i in range(3))) == [0, 1, 2]
        assert len(scorer.groups) == 2

    asyncio.run(run())


def test_every_call_raises_what_scoring_raises():
    async def fail(group):
        raise OSError("no engine")

    async def run():
        cohorts = Cohorts(fail, FOREVER)
        results = await asyncio.gather(
            *(start(cohorts, i, i) for i in range(3)), return_exceptions=True
        )
        assert [str(error) for error in results] == ["no engine"] * 3
        assert not cohorts._cohorts

    asyncio.run(run())


@pytest.mark.parametrize(
    "call, message",
    [
        (dict(response=9, index=0), "response 0 of group 'g' has another text"),
        (dict(response=1, index=1, size=4), "group 'g' has 3 responses, and 4 in this call"),
        (dict(response=1, index=1, prompt="p"), "another prompt"),
        (dict(response=1, index=1, reference="r"), "another prompt, reference"),
        (dict(response=1), "an index with every response, or with none"),
        (dict(response=1, index=3), "index 3 in a group of 3"),
        (dict(response=1, index=-1), "index -1 in a group of 3"),
        (dict(response=1, index=0, group=None), "no id"),
    ],
)
def test_a_contradiction_is_refused_and_the_group_goes_ahead(call, message):
    async def run():
        cohorts = Cohorts(Scorer(), FOREVER)
        first = start(cohorts, 0, 0)
        await settle()
        with pytest.raises(ValueError, match=message):
            await start(cohorts, **call)
        assert await values(first, start(cohorts, 1, 1), start(cohorts, 2, 2)) == [0, 1, 2]

    asyncio.run(run())


def test_closing_fails_the_groups_that_miss_responses_and_later_calls():
    async def run():
        cohorts = Cohorts(scorer := Scorer(), FOREVER)
        scorer.gate.clear()
        full = [start(cohorts, i, i, 2, group="full") for i in range(2)]
        parts = [start(cohorts, i, i, 3) for i in range(2)]
        await scorer.started.wait()
        await settle()
        cohorts.close(RuntimeError("closed"))
        parts.append(start(cohorts, 2, 2, 3))
        for error in await asyncio.gather(*parts, return_exceptions=True):
            assert isinstance(error, RuntimeError) and str(error) == "closed"
        scorer.gate.set()
        assert await values(*full) == [0, 1] and len(scorer.groups) == 1

    asyncio.run(run())


def test_responses_without_an_index_are_numbered_as_they_arrive():
    async def run():
        cohorts = Cohorts(scorer := Scorer(), FOREVER)
        tasks = [start(cohorts, i % 3, size=3) for i in range(5)]
        await settle()
        assert len(scorer.groups) == 1
        tasks[3].cancel()
        await settle()
        tasks += [start(cohorts, 7), start(cohorts, 8)]
        del tasks[3]
        assert await values(*tasks) == [0, 1, 2, 1, 7, 8]
        assert sorted(scorer.groups[1].responses) == ["1", "7", "8"]
        assert not cohorts._cohorts

    asyncio.run(run())


def test_a_bounded_number_of_scored_groups_is_kept():
    async def run():
        cohorts = Cohorts(scorer := Scorer(), FOREVER, kept=2)
        for g in range(5):
            await values(*(start(cohorts, i, i, 2, group=str(g)) for i in range(2)))
        assert [key for key, _ in cohorts._cohorts] == ["3", "4"]
        assert all(not cohort.texts for cohort in cohorts._cohorts.values())
        assert await values(start(cohorts, 1, 1, 2, group="4")) == [1]
        assert len(scorer.groups) == 5

    asyncio.run(run())
