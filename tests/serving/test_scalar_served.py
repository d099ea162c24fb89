"""A scalar reward model behind the server: rewards, turns, deadlines, the start, refusals."""

import concurrent.futures
import threading

import pytest
from scalar_toys import TOYS
from test_routes import response_object, verify_body
from toy_server import sent, serving, wait_until

from grm_jax.devices import watch_compilations
from grm_jax.judging.groups import group_of, rewards_to_json
from grm_jax.judging.judge import Judge
from grm_jax.judging.rewards import score
from grm_jax.serving.cli import main, parser, service_from
from grm_jax.serving.limits import Limits

TEXTS = ["a blue moon", "a red cat", "", "moon " * 30]
GROUP = {"prompt": "name a moon", "responses": TEXTS, "id": "a"}
SMALL = {"prompt": "name a moon", "responses": ["one"], "id": "b"}
LONG = {"prompt": "name moons", "responses": [f"moon {i}" for i in range(6)], "id": "long"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TOYS["qwen2"].write(tmp_path_factory.mktemp("scalar") / "toy")


def service_of(folder, *options):
    command = ["--model", str(folder), "--dtype", "float32", "--max_prompt", "256", *options]
    return service_from(parser().parse_args(command), Limits(read_timeout=60.0, grace=60.0))


@pytest.fixture(scope="module")
def scalar(folder):
    with serving(service_of(folder)) as running:
        yield running


class Gate:
    """Holds the forward passes while it is closed; `batches` counts those that began."""

    def __init__(self, service, monkeypatch):
        self.open, self.waits, self.batches = threading.Event(), threading.Event(), []
        head = service.judge.head
        score_batch = head._score_batch

        def gated(encoded, *more):
            self.batches.append(encoded)
            self.waits.set()
            self.open.wait()
            return score_batch(encoded, *more)

        monkeypatch.setattr(head, "_score_batch", gated)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open.set()  # a failed assertion must not wait for the thread


def values(results):
    return [[reward.reward for reward in result.rewards] for result in results]


def test_rewards_over_http_equal_those_of_score_and_compile_nothing(scalar, folder):
    rows = [dict(GROUP, prompt="name a moon" + "!" * 5 * n, id=str(n)) for n in range(6)]
    compiled = []
    with watch_compilations(lambda n, done: compiled.append(n)):
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            send = lambda row: scalar.post("/v1/score", {"groups": [row], "critiques": True})
            replies = list(pool.map(send, rows))
    assert not compiled
    results = score(rows, Judge.load(folder, dtype="float32"))
    assert [r.json()["groups"] for r in replies] == [[rewards_to_json(r)] for r in results]
    assert {r["status"] for g in map(rewards_to_json, results) for r in g["rewards"]} == {"scored"}


def test_the_calls_of_trainers_get_the_same_rewards(scalar, folder):
    ((first, second),) = values(
        score([dict(GROUP, responses=TEXTS[:2])], Judge.load(folder, dtype="float32"))
    )
    prompt = "<|im_start|>user\nname a moon<|im_end|>\n<|im_start|>assistant\n"
    queries = [f"{prompt}{text}<|im_end|>\n" for text in TEXTS[:2]]
    reply = scalar.post("/get_reward", {"query": queries, "prompts": [prompt] * 2})
    assert reply.json()["rewards"] == [first, second], reply.text
    history = [{"role": "user", "content": "name a moon"}]
    objects = [response_object(text) for text in TEXTS[:2]]
    reply = scalar.post("/compare", {"conversation_history": history, "response_objs": objects})
    assert reply.json()["rewards"] == [first, second], reply.text
    assert reply.json()["metrics"]["parse_rate"] == 1
    (pair,) = reply.json()["comparison_results"]
    assert (pair["score_1"], pair["score_2"]) == (first, second)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        send = lambda i: scalar.post("/verify", verify_body(TEXTS[i], index=i))
        assert [r.json()["reward"] for r in pool.map(send, range(2))] == [first, second]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_completions_are_refused_with_the_reason(scalar, stream):
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": stream}
    reply = scalar.post("/v1/chat/completions", body)
    assert reply.status_code == 404
    assert "is a scalar reward model, which writes no texts" in reply.json()["error"]["message"]
    assert scalar.client.get("/v1/models").json()["data"]
    assert "grm_rows_running 0.0" in scalar.client.get("/metrics").text


@pytest.mark.parametrize("options", [{"k": 4}, {"reward": "expected"}, {"principles": "first"}])
def test_options_without_effect_are_refused(scalar, options):
    reply = scalar.post("/v1/score", {"groups": [GROUP], **options})
    assert reply.status_code == 400
    assert "has no effect" in reply.json()["error"]["message"]


def test_a_text_too_long_for_the_server_fails_with_the_option_to_raise(scalar):
    group = dict(GROUP, responses=["moon " * 60, "cat"])
    reply = scalar.post("/v1/score", {"groups": [group]}).json()
    (first, _) = reply["groups"][0]["rewards"]
    assert first["status"] == "failed"
    assert "this server takes 256: shorten them, or raise --max_prompt" in first["reason"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--rows", "2"], "--rows 2 has no effect"),
        (["--max_new_tokens", "64"], "--max_new_tokens 64 has no effect"),
        (["--expected"], "--expected has no effect"),
        (["--meta_rm", "other"], "--meta_rm other has no effect"),
        (["--options", '{"k": 4}'], "k = 4 has no effect"),
    ],
)
def test_the_start_refuses_options_without_effect_before_it_reads_weights(
    folder, tmp_path, capsys, options, message
):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert main(["--model", str(tmp_path), "--port", "0", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_longest_prompt_beyond_the_context_is_refused(folder):
    with pytest.raises(ValueError, match="--max_prompt 600 is more than the context of .*, 512"):
        service_of(folder, "--max_prompt", "600")


@pytest.fixture(scope="module")
def one_by_one(folder):
    """A server with one text per forward pass."""
    with serving(service_of(folder, "--prompt_slots", "1", "--max_prompt", "128")) as running:
        yield running


def test_a_small_request_does_not_wait_for_a_large_one(one_by_one, monkeypatch):
    gate = Gate(one_by_one.service, monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(2) as pool, gate:
        large = pool.submit(one_by_one.post, "/v1/score", {"groups": [LONG]})
        gate.waits.wait()
        small = pool.submit(one_by_one.post, "/v1/score", {"groups": [SMALL]})
        wait_until(lambda: len(one_by_one.service.engine._calls) == 1)
        gate.open.set()
        assert large.result().status_code == small.result().status_code == 200
    assert len(gate.batches) == 7
    (ids,) = one_by_one.service.judge.encode(group_of(SMALL).comparison)
    assert gate.batches.index([ids]) == 1  # after the batch that ran when it came


@pytest.mark.parametrize("way", ["deadline", "hang-up"])
def test_a_request_that_ends_early_frees_the_thread_between_batches(one_by_one, monkeypatch, way):
    service = one_by_one.service
    gate = Gate(service, monkeypatch)
    with concurrent.futures.ThreadPoolExecutor(2) as pool, gate:
        first = pool.submit(one_by_one.post, "/v1/score", {"groups": [SMALL]})
        gate.waits.wait()  # the thread is busy with another request
        if way == "deadline":
            reply = one_by_one.post("/v1/score", {"groups": [LONG], "timeout": 0.05})
            assert reply.status_code == 504
        else:
            with sent(one_by_one.url, "/v1/score", {"groups": [LONG]}):
                wait_until(lambda: len(service.engine._calls) == 1)
        wait_until(lambda: len(service.contexts) == 1)
        assert not service.engine._calls
        gate.open.set()
        assert first.result().status_code == 200
    assert len(gate.batches) == 1


def test_weights_with_nan_end_the_start_with_the_reason(folder):
    service = service_of(folder)
    score_batch = service.judge.head._score_batch
    service.judge.head._score_batch = lambda *batch: [float("nan")] * len(score_batch(*batch))
    with serving(service, wait=False) as running:
        running.thread.join()
    assert isinstance(running.error, ValueError) and "not finite" in str(running.error)
