"""verl, OpenRLHF and NeMo-Gym: calls with their published signatures, and a running server."""

import asyncio
import inspect

import pytest
from raw_server import RawServer, encoded, http

from grm_jax.judging.groups import FAILED, SCORED, UNPARSED, Group, GroupRewards, ResponseReward
from grm_jax.judging.rewards import score
from grm_jax.serving.adapters import batches, nemo_gym, openrlhf, verl
from grm_jax.serving.client import Client

FOREVER = 600.0


def reward_of(text):
    if text in (UNPARSED, FAILED):
        return ResponseReward(None, text, f"it is {text}")
    return ResponseReward(float(len(text)))


def rewards_of(groups):
    return [GroupRewards(g.id, tuple(map(reward_of, g.responses))) for g in groups]


class AsyncScorer:
    def __init__(self):
        self.groups = []

    async def __call__(self, groups):
        self.groups += groups
        return rewards_of(groups)


def verl_call(compute_score, text, index=3, **info):
    """One call as verl's naive reward manager makes it."""
    info = {"split": "train", "index": index, "question": "q", "num_turns": 2} | info
    return compute_score(data_source="gsm8k", solution_str=text, ground_truth="4", extra_info=info)


def gather(*calls, **kwargs):
    async def run():
        return await asyncio.gather(*(call() for call in calls), **kwargs)

    return asyncio.run(run())


# ---------------------------------------------------------------- verl


def test_verl_collects_the_samples_of_a_prompt():
    compute_score = verl.compute_score(scorer := AsyncScorer(), 3, reference=True)
    assert inspect.iscoroutinefunction(compute_score)  # verl calls other functions in a thread
    calls = [
        lambda text=text, index=index: verl_call(compute_score, text, index)
        for text in ("a", "bb", "ccc")
        for index in (0, 1)
    ]
    results = gather(*calls)
    assert [r["score"] for r in results] == [1, 1, 2, 2, 3, 3]
    assert {r["judge_unparsed"] for r in results} == {0.0}
    assert [group.responses for group in scorer.groups] == [("a", "bb", "ccc")] * 2
    assert scorer.groups[0].reference == "4" and scorer.groups[0].prompt == "q"


def test_verl_rows_come_again_in_the_next_epoch():
    compute_score = verl.compute_score(scorer := AsyncScorer(), 2)
    for texts in (("a", "bb"), ("a", "ccc"), ("dddd", "ccc")):
        calls = [
            lambda text=text, i=i: verl_call(compute_score, text, rollout_index=i)
            for i, text in enumerate(texts)
        ]
        assert [r["score"] for r in gather(*calls)] == list(map(len, texts))
    assert len(scorer.groups) == 3


def test_verl_router_arguments_messages_and_sizes_by_split():
    import numpy as np

    compute_score = verl.compute_score(
        scorer := AsyncScorer(), {"train": 8, "test": 1}, prompt="prompt"
    )
    turns = np.array([{"role": "user", "content": "hi"}], dtype=object)  # as pandas reads them
    call = compute_score(
        data_source="chat",
        solution_str="yes",
        ground_truth="",
        extra_info={"split": "test", "uid": "u", "prompt": turns},
        reward_router_address="10.0.0.1:80",
        reward_model_tokenizer=None,
    )
    assert asyncio.run(call)["score"] == 3
    assert scorer.groups[0].prompt == [{"role": "user", "content": "hi"}]
    assert scorer.groups[0].id == "u"


def test_verl_raises_for_a_missing_sample_and_names_the_way_out():
    compute_score = verl.compute_score(scorer := AsyncScorer(), 3, timeout=0.01)
    calls = [lambda: verl_call(compute_score, "a"), lambda: verl_call(compute_score, "b")]
    errors = gather(*calls, return_exceptions=True)
    for error in errors:
        assert isinstance(error, batches.Unscored)
        assert "2 of 3 responses" in str(error) and "compute_score_by_server" in str(error)
    assert not scorer.groups


def test_verl_unscored_samples():
    strict, lenient = (verl.compute_score(AsyncScorer(), 2, unparsed=x) for x in (None, 5.5))
    texts = ("a", UNPARSED)
    calls = [lambda f=f, t=t: verl_call(f, t) for f in (strict, lenient) for t in texts]
    results = gather(*calls, return_exceptions=True)
    assert results[0] == results[2] == {"score": 1.0, "judge_unparsed": 0.0}
    assert isinstance(results[1], batches.Unscored) and "it is unparsed" in str(results[1])
    assert results[3] == {"score": 5.5, "judge_unparsed": 1.0}
    failing = [lambda t=t: verl_call(lenient, t) for t in ("a", FAILED)]
    assert isinstance(gather(*failing, return_exceptions=True)[1], batches.Unscored)


@pytest.mark.parametrize(
    "info, message",
    [
        ({"question": None}, "extra_info has no 'question', it has split, index"),
        ({"index": None}, "neither 'uid' nor 'index'"),
    ],
)
def test_verl_data_without_a_prompt_or_a_row_is_refused(info, message):
    with pytest.raises(ValueError, match=message):
        asyncio.run(verl_call(verl.compute_score(AsyncScorer(), 1), "a", **info))


# ---------------------------------------------------------------- OpenRLHF

PROMPT = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


def test_openrlhf_calls_with_one_query():
    """As SingleTurnAgentExecutor: reward_func([query], [prompt], [label])."""
    groups = []
    func = openrlhf.reward_func(lambda g: groups.extend(g) or rewards_of(g))
    info = func([f"{PROMPT}four<|im_end|>"], [PROMPT], ["4"])
    assert info == {"rewards": [4.0], "scores": [4.0], "extra_logs": {"judge_unparsed": [0.0]}}
    assert groups == [Group("q", ["four"], "4")]


def test_openrlhf_queries_of_one_prompt_are_a_group():
    groups = []
    func = openrlhf.reward_func(lambda g: groups.extend(g) or rewards_of(g))
    other = PROMPT.replace("q", "p")
    queries = [PROMPT + "a", other + "bb", PROMPT + "ccc"]
    assert func(queries, [PROMPT, other, PROMPT], [None] * 3)["rewards"] == [1, 2, 3]
    assert [group.responses for group in groups] == [("a", "ccc"), ("bb",)]


def test_openrlhf_raises_for_a_response_without_a_reward():
    with pytest.raises(batches.Unscored, match="1 of 1 responses are failed: it is failed"):
        openrlhf.reward_func(rewards_of)([PROMPT + FAILED], [PROMPT], [None])
    with pytest.raises(batches.Unscored, match="unparsed"):
        openrlhf.reward_func(rewards_of)([PROMPT + UNPARSED], [PROMPT], [None])
    info = openrlhf.reward_func(rewards_of, unparsed=1.0)([PROMPT + UNPARSED], [PROMPT], [None])
    assert (info["rewards"], info["extra_logs"]) == ([1.0], {"judge_unparsed": [1.0]})


# ---------------------------------------------------------------- NeMo-Gym


def gym_rewards(steps):
    """The rewards of /compare and of /verify by a server that answers with these steps."""
    server = RawServer(lambda body: steps)
    client = Client(server.url.removesuffix("/v1"), retries=0)
    objects = [nemo_gym.response_obj(text) for text in "ab"]
    body = {"responses_create_params": {"input": []}, "response": objects[0]}
    verified = asyncio.run(nemo_gym.verify_async(client, body, "g", 2, 0))
    return [*nemo_gym.compare(client, [], objects).rewards, verified]


@pytest.mark.parametrize(
    "answer",
    [{}, {"rewards": [1.0], "reward": None}, {"rewards": [1.0, "3"], "reward": True}, [3.0, 3.5],
     {"rewards": [3.0, 3.5], "reward": 3.5, "error": "overloaded"}],
)  # fmt: skip
def test_an_answer_of_a_gym_that_is_no_reward_is_a_failure(answer):
    for reward in gym_rewards([http(encoded(answer))]):
        assert (reward.reward, reward.status) == (None, FAILED) and reward.reason


def test_statuses_of_a_gym_keep_their_meaning():
    error = encoded({"error": {"message": "the response is unparsed: no scores"}})
    for reward in gym_rewards([http(error, "422 Unprocessable Entity")]):
        assert reward.status == UNPARSED and "no scores" in reward.reason
    for reward in gym_rewards([http(error, "503 Service Unavailable")]):
        assert reward.status == FAILED
    values = [r.reward for r in gym_rewards([http(encoded({"rewards": [1, 2.5], "reward": 7}))])]
    assert values == [1.0, 2.5, 7.0]


# ---------------------------------------------------------------- a running server

QUESTION = [{"role": "user", "content": "name a moon of Jupiter"}]
TEXTS = ("io is a moon", "luna")


@pytest.fixture(scope="module")
def expected(server):
    """The rewards of the group by `score` in this process."""
    (result,) = score([Group(QUESTION, TEXTS)], server.service.judge)
    assert {reward.status for reward in result.rewards} == {SCORED}
    return result.values


def test_every_host_gets_the_rewards_of_score_in_process(server, expected):
    client = Client(server.url)
    assert client([Group(QUESTION, TEXTS)])[0].values == expected
    compared = nemo_gym.compare(client, QUESTION, [nemo_gym.response_obj(t) for t in TEXTS])
    assert compared.values == expected
    by_server = verl.compute_score_by_server(client, 2)
    in_process = verl.compute_score(client.score_async, 2)
    for compute_score in (by_server, in_process):
        calls = [
            lambda t=t, i=i, f=compute_score: verl_call(
                f, t, question=QUESTION, rollout_index=i, uid=str(id(f))
            )
            for i, t in enumerate(TEXTS)
        ]
        assert [r["score"] for r in gather(*calls)] == expected


def test_samples_in_two_event_loops_are_one_group_of_the_server(server, expected):
    """As verl's reward workers, which are processes: each has its own loop and connections."""
    import threading

    results = {}

    def worker(i):
        compute_score = verl.compute_score_by_server(Client(server.url), 2)
        call = verl_call(compute_score, TEXTS[i], question=QUESTION, rollout_index=i, uid="two")
        results[i] = asyncio.run(call)["score"]

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [results[0], results[1]] == expected
