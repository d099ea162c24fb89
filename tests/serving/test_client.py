"""The client: rewards over HTTP, and an explicit failure for everything else."""

import asyncio
import json
import threading

import pytest
import raw_server
from raw_server import RESET, RawServer, encoded, http

from grm_jax.judging.groups import FAILED, SCORED, UNPARSED, Group
from grm_jax.judging.rewards import RewardOptions
from grm_jax.serving.client import Client

GROUP = Group([{"role": "user", "content": "q"}], ["a", "bb"], "4", id="g")


def reward(value, status=SCORED, reason=None):
    return {"reward": value, "status": status, "reason": reason}


def answer(*rewards, id="g", **fields):
    group = {"id": id, "rewards": list(rewards), "prompt_tokens": 5, "new_tokens": 7, **fields}
    return {"groups": [group], "model": "judge"}


GOOD = answer(reward(2.5), reward(None, UNPARSED, "no scores"))


def served(body):
    """The answer of a server that rewards a response with its length."""
    (group,) = body["groups"]
    return answer(*(reward(float(len(r))) for r in group["responses"]), id=group.get("id"))


def client(server, **fields):
    fields = {"timeout": 5.0, "pause": 0.0, "retries": 0, "deadline": 60.0} | fields
    return Client(server.url.removesuffix("/v1"), **fields)


def test_rewards_and_statuses_of_a_group():
    server = RawServer(lambda body: [http(encoded(GOOD))])
    (result,) = client(server, options=RewardOptions(k=3, reward="rank"))([GROUP])
    assert result.values == [2.5, None] and result.id == "g"
    assert (result.rewards[1].status, result.rewards[1].reason) == (UNPARSED, "no scores")
    assert (result.prompt_tokens, result.new_tokens) == (5, 7)
    ((head, body),) = server.requests
    assert head.startswith(b"POST /v1/score HTTP")
    body = json.loads(body)
    fields = {"prompt": GROUP.prompt, "responses": ["a", "bb"], "reference": "4", "id": "g"}
    assert body["groups"] == [fields]
    assert (body["k"], body["reward"], body["seed"]) == (3, "rank", 0)


def test_many_groups_keep_their_order_also_without_blocking():
    server = RawServer(lambda body: [http(encoded(served(body)))])
    groups = [Group(f"q{i}", ["a" * i, "b"], id=f"g{i}") for i in range(1, 40)]
    expected = [[float(i), 1.0] for i in range(1, 40)]
    assert [r.values for r in client(server, parallel=7)(groups)] == expected
    results = asyncio.run(client(server, parallel=7).score_async(groups))
    assert [r.values for r in results] == expected
    assert client(server)([]) == []


@pytest.mark.parametrize("how", ["plain", "async"])
def test_results_are_in_the_order_of_the_groups_whatever_ends_first(how):
    other = threading.Event()

    def script(body):
        if body["groups"][0]["id"] == "g1":
            other.wait(60)
        else:
            other.set()
        return [http(encoded(served(body)))]

    scorer = client(RawServer(script), timeout=60.0)
    groups = [Group("q", ["a" * i], id=f"g{i}") for i in (1, 2)]
    results = scorer(groups) if how == "plain" else asyncio.run(scorer.score_async(groups))
    assert [result.values for result in results] == [[1.0], [2.0]]


def test_a_call_within_a_running_event_loop():
    """As in a notebook, or in a trainer that calls plain functions from a coroutine."""
    server = RawServer(lambda body: [http(encoded(served(body)))])

    async def run():
        return client(server)([GROUP])

    assert asyncio.run(run())[0].values == [1.0, 2.0]


NO_REWARDS = {
    "one reward too few": [http(encoded(answer(reward(1.0))))],
    "one reward too many": [http(encoded(answer(*[reward(1.0)] * 3)))],
    "another group": [http(encoded(answer(reward(1.0), reward(2.0), id="h")))],
    "no id": [http(encoded({"groups": [{"rewards": [reward(1.0), reward(2.0)]}]}))],
    "two groups": [http(encoded({"groups": GOOD["groups"] * 2}))],
    "no groups": [http(encoded({"groups": []}))],
    "NaN": [http(encoded(GOOD).replace(b"2.5", b"NaN"))],
    "infinity": [http(encoded(GOOD).replace(b"2.5", b"1e999"))],
    "a text as a reward": [http(encoded(answer(reward("9"), reward(1.0))))],
    "true as a reward": [http(encoded(answer(reward(True), reward(1.0))))],
    "a number that failed": [http(encoded(answer(reward(5.5, FAILED, "x"), reward(1.0))))],
    "scored without a number": [http(encoded(answer(reward(None), reward(1.0))))],
    "an unknown status": [http(encoded(answer(reward(None, "neutral"), reward(1.0))))],
    "a list of numbers": [http(encoded({"groups": [{"id": "g", "rewards": [1.0, 2.0]}]}))],
    "an error with status 200": [http(encoded({"error": {"message": "overloaded"}}))],
    "an error beside rewards": [http(encoded({**GOOD, "error": "overloaded"}))],
    "status 500": [http(b"{}", "500 No")],
    "status 429": [http(b'{"error": "busy"}', "429 Too Many Requests")],
    "a closed port": None,
} | {
    name: raw_server.REFUSED[name]
    for name in ("HTML", "HTML as JSON", "list", "empty body", "reset", "closed", "half a response",
                 "unauthorised", "a redirect", "deep JSON", "two replies", "not UTF-8")
}  # fmt: skip


@pytest.mark.parametrize("name", NO_REWARDS)
def test_everything_else_is_a_failure_with_a_reason(name):
    steps = NO_REWARDS[name]
    scorer = client(RawServer(lambda body: steps))
    if steps is None:
        scorer = Client("http://127.0.0.1:9", retries=0)
    (result,) = scorer([GROUP])
    assert result.values == [None, None] and result.id == "g"
    for one in result.rewards:
        assert one.status == FAILED and "127.0.0.1" in one.reason and "\n" not in one.reason


@pytest.mark.parametrize("how", ["plain", "async"])
def test_a_server_that_never_answers_ends_by_the_deadline(how):
    release = threading.Event()
    server = RawServer(lambda body: [release.wait(60) or b""])
    slow = client(server, timeout=0.2, retries=1000, deadline=0.5)
    groups = [GROUP] * 5
    results = slow(groups) if how == "plain" else asyncio.run(slow.score_async(groups))
    release.set()
    assert [r.rewards[0].status for r in results] == [FAILED] * 5
    assert "within" in results[0].rewards[0].reason


@pytest.mark.parametrize("how", ["plain", "async"])
def test_all_groups_of_a_call_share_its_deadline(how):
    release = threading.Event()
    server = RawServer(lambda body: [release.wait(60) or b""])
    slow = client(server, timeout=60.0, deadline=0.5, parallel=1)
    results = slow([GROUP] * 3) if how == "plain" else asyncio.run(slow.score_async([GROUP] * 3))
    release.set()
    reasons = [result.rewards[0].reason for result in results]
    assert all("no time for a request within 0.5 s" in reason for reason in reasons[1:]), reasons


def test_a_failed_try_is_repeated_with_the_same_body():
    steps = [
        [http(b"{}", "429 Too Many Requests", Retry_After="0.01")],
        [http(b"{}", "503 No")],
        [RESET],
        [http(encoded(answer(reward(1.0))))],
        [http(encoded(GOOD))],
    ]
    server = RawServer(lambda body: steps[len(server.requests) - 1])
    (result,) = client(server, retries=4)([GROUP])
    assert result.values == [2.5, None]
    assert len({body for _, body in server.requests}) == 1 and len(server.requests) == 5


def test_a_refused_request_is_not_repeated():
    error = {"error": {"message": "unknown field 'k'"}}
    server = RawServer(lambda body: [http(encoded(error), "400 Bad Request")])
    (result,) = client(server, retries=4)([GROUP])
    assert "unknown field 'k'" in result.rewards[0].reason and len(server.requests) == 1


def test_cancelling_closes_the_connection():
    begun, ended = threading.Event(), threading.Event()

    async def run():
        def answered(reader, writer):
            async def watch():
                await reader.readuntil(b"\r\n\r\n")
                begun.set()
                while await reader.read(4096):  # until the client hangs up
                    pass
                ended.set()
                writer.close()

            return watch()

        async with await asyncio.start_server(answered, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            task = asyncio.create_task(Client(f"http://127.0.0.1:{port}").score_async([GROUP]))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while not ended.is_set():
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_the_key_is_sent_and_not_shown(monkeypatch):
    monkeypatch.setenv("GRM_API_KEY", "secret-key-1")
    server = RawServer(lambda body: [http(b'{"error": "wrong key secret-key-1"}', "401 No")])
    (result,) = client(server)([GROUP])
    assert b"authorization: bearer secret-key-1" in server.requests[0][0].lower()
    assert "secret" not in result.rewards[0].reason


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"url": "http://h:8000/v1/"}, "without /v1"),
        ({"url": "h:8000"}, "url=h:8000"),
        ({"deadline": 0}, "deadline=0"),
        ({"parallel": 0}, "parallel="),
    ],
)
def test_a_wrong_setting_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Client(**{"url": "http://h:8000"} | fields)
