"""A mixture of requests from many clients at once, and the count of what came back.

Each valid request is sent until it is answered with a reward (a retry after an error is a client's
part); its reward must be the one of the request sent alone. Malformed ones must be refused with
status 400, cancelled ones may end in any way.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import random

import httpx

PROMPTS = ("name a moon", "name a cat", "say what is red")
TEXTS = ("a blue moon", "a red cat", "the sky is blue", "it is a river", "no")
MALFORMED = (b"{", b"[]", b'{"groups": 1}', b'{"groups": [{"prompt": "x"}]}', b"\xff", b"")


@dataclasses.dataclass
class Outcome:
    """counts: by kind and what happened. rewards: by request, with the texts of the critiques.

    seconds: of answered requests.
    """

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    rewards: dict[int, list] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    seconds: list[float] = dataclasses.field(default_factory=list)
    new_tokens: int = 0


def body(number: int, **options) -> dict:
    """The number-th valid request, different from all others."""
    rng = random.Random(number)
    group = {"prompt": f"{rng.choice(PROMPTS)} {number}", "responses": rng.sample(TEXTS, 2)}
    return {"groups": [group], "k": 2, "seed": number % 7, "critiques": True, **options}


def result(reply: httpx.Response) -> list:
    """The rewards of a reply and the texts of its critiques, which were sampled."""
    (group,) = reply.json()["groups"]
    assert group["new_tokens"] and len(group["critiques"]) == 2, group
    return [group["rewards"], [critique["text"] for critique in group["critiques"]]]


def kinds(requests: int, seed: int = 0) -> list[tuple[str, int]]:
    """The plan: 5% malformed, 5% cancelled, 2% duplicates of an earlier request, the rest valid."""
    rng, plan = random.Random(seed), []
    for number in range(requests):
        draw = rng.random()
        if draw < 0.05:
            plan.append(("malformed", number))
        elif draw < 0.10:
            plan.append(("cancelled", number))
        elif draw < 0.12 and plan:
            valid = [n for kind, n in plan if kind == "valid"]
            plan.append(("duplicate", rng.choice(valid)) if valid else ("valid", number))
        else:
            plan.append(("valid", number))
    return plan


async def run(
    url: str, requests: int, clients: int, slow_reader: bool = True, **options
) -> Outcome:
    """Sends the plan from `clients` connections; returns the outcome once all are answered."""
    plan, outcome = collections.deque(kinds(requests)), Outcome()
    limits = httpx.Limits(max_connections=clients + 8)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        tasks = [
            asyncio.create_task(_client(client, plan, outcome, options)) for _ in range(clients)
        ]
        reader = asyncio.create_task(_read_slowly(url)) if slow_reader else None
        await asyncio.gather(*tasks)
        if reader is not None:
            reader.cancel()
    return outcome


async def _client(client, plan, outcome, options) -> None:
    while plan:
        kind, number = plan.popleft()
        if kind == "malformed":
            data = MALFORMED[number % len(MALFORMED)]
            with contextlib.suppress(httpx.TransportError):  # the server may be down
                reply = await client.post("/v1/score", content=data)
                outcome.counts["malformed", reply.status_code] += 1
        elif kind == "cancelled":
            outcome.counts["cancelled", await _cancelled(client, number, options)] += 1
        else:
            await _until_answered(client, kind, number, outcome, options)


async def _until_answered(client, kind, number, outcome, options) -> None:
    loop = asyncio.get_running_loop()
    while True:
        start = loop.time()
        try:
            reply = await client.post("/v1/score", json=body(number, **options))
        except httpx.TransportError:
            outcome.counts[kind, "connection"] += 1
            await asyncio.sleep(0.2)
            continue
        if reply.status_code in (429, 503):
            outcome.counts[kind, reply.status_code] += 1
            await asyncio.sleep(0.2)
            continue
        outcome.counts[kind, reply.status_code] += 1
        assert reply.status_code == 200, reply.text
        outcome.rewards[number].append(result(reply))
        outcome.seconds.append(loop.time() - start)
        outcome.new_tokens += reply.json()["groups"][0]["new_tokens"]
        return


async def _cancelled(client, number, options) -> str:
    task = asyncio.create_task(client.post("/v1/score", json=body(10**6 + number, **options)))
    await asyncio.sleep(random.Random(number).random() * 0.2)
    task.cancel()
    try:
        return str((await task).status_code)
    except (asyncio.CancelledError, httpx.TransportError):
        return "cancelled"


async def _read_slowly(url: str) -> None:
    """Streams long completions, and reads a few bytes a second."""
    address = httpx.URL(url)
    fields = {"messages": [{"role": "user", "content": "moon"}], "n": 64, "stream": True}
    data = json.dumps(fields).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(data)}\r\n\r\n"
    while True:
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=16)
        try:
            writer.write(head.encode() + data)
            while await reader.read(8):
                await asyncio.sleep(0.5)
        except OSError:
            pass
        finally:
            writer.close()


def check_equal(pairs: list[tuple]) -> None:
    """The results of each pair are equal, but for draws within rounding of a boundary.

    Where a sample is in the batch changes the order of float32 sums: of 1,000 texts of random
    weights, one differed.
    """
    different = sum(first != second for first, second in pairs)
    assert different <= 1 + 0.02 * len(pairs), f"{different} of {len(pairs)}"


def check(outcome: Outcome, requests: int) -> None:
    """Every valid request was answered once, every malformed one refused, equal ones alike."""
    plan = kinds(requests)
    expected = collections.Counter(n for kind, n in plan if kind in ("valid", "duplicate"))
    assert {n: len(rewards) for n, rewards in outcome.rewards.items()} == dict(expected)
    check_equal([(first, other) for first, *others in outcome.rewards.values() for other in others])
    malformed = sum(kind == "malformed" for kind, _ in plan)
    assert outcome.counts["malformed", 400] == malformed
