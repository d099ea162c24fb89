"""Many clients at once: every valid request is answered once, with the reward of a run alone.

pytest tests/serving/test_load.py --run slow      # 64 clients, 5,000 requests, SIGKILL
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import load
import ports
import psutil
import pytest
from toy_server import toy_judge, toy_model, wait_until

from grm_jax import checkpoints

ROOT = Path(__file__).resolve().parents[2]


def alone(url, numbers, **options):
    """Results of requests that are sent one after the other."""
    with httpx.Client(base_url=url, timeout=None) as client:
        for number in numbers:
            reply = client.post("/v1/score", json=load.body(number, **options))
            yield number, load.result(reply)


def test_a_mixed_load_loses_nothing_and_changes_no_reward(server):
    requests = 120
    outcome = asyncio.run(load.run(server.url, requests, clients=16, slow_reader=False))
    load.check(outcome, requests)
    for number, rewards in alone(server.url, list(outcome.rewards)[:10]):
        assert outcome.rewards[number][0] == rewards
    service = server.service
    wait_until(lambda: not service.engine.engine.busy and not service.contexts)
    assert not service.engine._live and not service.engine._owners


# ---------------------------------------------------------------- grm serve as a process


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with the weights and the tokenizer of the toy."""
    folder = tmp_path_factory.mktemp("toy") / "hf"
    judge = toy_judge(scores=False)
    checkpoints.save(toy_model(), folder)
    judge.tokenizer.save(folder)
    return folder


@pytest.fixture
def port():
    return ports.free_pair()


def start(model, port, *options):
    command = [sys.executable, "-m", "grm_jax.cli", "serve", "--model", str(model)]
    command += ["--template", "compact", "--port", str(port), *options]
    command += ["--max_prompt", "256", "--max_new_tokens", "32", "--dtype", "float32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def ready():
        assert process.poll() is None
        try:
            return httpx.get(f"{url}/readyz", timeout=None).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(ready)
    return process, url


def prompts(url):
    """The number of prompts that a server has prefilled."""
    lines = httpx.get(f"{url}/metrics", timeout=None).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("grm_prompts_total "))


@pytest.mark.slow
def test_five_thousand_requests_of_64_clients(model, port):
    requests = int(os.environ.get("GRM_LOAD_REQUESTS", "5000"))
    process, url = start(model, port, "--read_timeout", "5")
    try:
        asyncio.run(load.run(url, 500, clients=64))  # caches fill
        before = psutil.Process(process.pid).memory_info().rss
        outcome = asyncio.run(load.run(url, requests, clients=64))
        grown = psutil.Process(process.pid).memory_info().rss - before
        load.check(outcome, requests)
        print(dict(outcome.counts), f"memory grew by {grown / 2**20:.0f} MiB")
        numbers = list(outcome.rewards)[::20]
        load.check_equal([(outcome.rewards[n][0], result) for n, result in alone(url, numbers)])
        assert grown < 200 * 2**20
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_server_is_restarted_and_retries_get_the_same_rewards(model, port):
    requests, outcome = 400, []
    process, url = start(model, port)
    assert prompts(url) < 20  # those of the start
    thread = threading.Thread(
        target=lambda: outcome.append(asyncio.run(load.run(url, requests, 32, slow_reader=False)))
    )
    thread.start()
    try:
        wait_until(lambda: prompts(url) > 100)  # in mid-load
        process.kill()
        process.wait()
        process, url = start(model, port)
        thread.join()
        # Cancelled and malformed requests are not retried: those of the outage may be missing.
        (result,) = outcome
        assert result.counts["valid", "connection"] > 0
        assert result.counts["malformed", 200] == 0
        numbers = {n for kind, n in load.kinds(requests) if kind == "valid"}
        assert set(result.rewards) == numbers
        pairs = [(result.rewards[n][0], again) for n, again in alone(url, sorted(numbers)[::7])]
        load.check_equal(pairs)
    finally:
        process.kill()
        process.wait()
