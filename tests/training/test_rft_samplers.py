"""Tests the samplers of rejective fine-tuning (teacher, endpoint, file, model) and their store."""

import dataclasses
import http.server
import json
import threading
import types

import pytest

from grm_jax.data import world
from grm_jax.data.comparisons import placed
from grm_jax.data.world import vocabulary
from grm_jax.text import tokenizer
from grm_jax.training import endpoint_sampler, replies, rft_data, rft_samplers
from grm_jax.training.errors import TrainingError
from grm_jax.training.rft_data import CritiqueReply, RftOptions, build
from grm_jax.types import Comparison

COMPACT = RftOptions(template="compact")
PAIR = Comparison("q", ("x", "y"), label=1, id="pair")


def test_the_teacher_is_reproducible_and_has_the_configured_accuracy():
    items = world.make_items("train", 0, 400)
    a = build(items, rft_samplers.teacher(0.6, 0.3), COMPACT)
    b = build(items, rft_samplers.teacher(0.6, 0.3), RftOptions(template="compact", chunk=7))
    assert a.examples == b.examples and a.summary() == b.summary()
    assert a.outcomes["hinted/kept"] == 400
    assert 0.4 < sum(t.right for t in a.trials if not t.hinted) / 1200 < 0.75


def test_reply_files_of_an_earlier_version_are_read(tmp_path):
    """Earlier versions wrote files without a header, under the same keys."""
    (request,) = rft_data.requests_for(PAIR, RftOptions(template="compact", samples=1, hinted=0))
    key = rft_samplers._key(request, "salt")
    row = {"key": key, "text": "t", "finish": "stop", "order": [1, 0]}
    (tmp_path / "000000.jsonl").write_text(json.dumps(row) + "\n")
    with rft_samplers.open_replies(tmp_path) as store:
        (reply,) = rft_samplers.stored(
            lambda requests: pytest.fail("sampled a stored reply"), store, "salt"
        )([request])
    assert reply == CritiqueReply("t", "stop", (1, 0))


class FakeServer(http.server.BaseHTTPRequestHandler):
    """Answers 503 to the first request, and 400 to "bad" in the model's name or in a prompt."""

    calls: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.calls.append((self.path, body, self.headers.get("Authorization")))
        bad = "bad" in body["model"] or "bad word" in body["messages"][0]["content"]
        status = 400 if bad else 503 if len(self.calls) == 1 else 200
        answer = {
            "choices": [{"message": {"content": r"fine \boxed{2, 9}"}, "finish_reason": "stop"}]
        }
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer if status == 200 else {"error": "no"}).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    FakeServer.calls = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeServer) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
        httpd.shutdown()


def test_the_endpoint_retries_after_a_temporary_failure(server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    sample = endpoint_sampler.sampler(
        rft_samplers.Endpoint(server, "m", 50, 0.7, key_variable="SOME_KEY", parallel=1, pause=0.0)
    )
    replies = sample(rft_data.requests_for(PAIR, COMPACT))
    assert [reply.text for reply in replies] == [r"fine \boxed{2, 9}"] * 4
    assert len(FakeServer.calls) == 5
    path, body, key = FakeServer.calls[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert (
        body["max_tokens"] == 50
        and body["temperature"] == 0.7
        and body["messages"][0]["role"] == "user"
    )


def test_an_endpoint_that_keeps_failing_is_an_error(server):
    sample = endpoint_sampler.sampler(
        rft_samplers.Endpoint(server, "bad", 50, parallel=2, pause=0.0)
    )
    with pytest.raises(RuntimeError, match=r"4 of 4 requests failed.*answered 400"):
        sample(rft_data.requests_for(PAIR, COMPACT))
    sample = endpoint_sampler.sampler(
        rft_samplers.Endpoint(server, "bad", 50, parallel=2, pause=0.0, max_failed=1.0)
    )
    assert sample(rft_data.requests_for(PAIR, COMPACT)) == [None] * 4


def test_a_permanently_failed_request_is_stored_and_not_repeated(server, tmp_path, caplog):
    """The endpoint rejects one prompt; deleting its record makes the sampler request it again."""
    options = RftOptions(template="compact", samples=1, hinted=0, chunk=40)
    items = [
        Comparison("a bad word" if i == 7 else f"question {i}", ("x", "y"), label=1, id=str(i))
        for i in range(40)
    ]
    FakeServer.calls = [None]  # FakeServer fails only the first call
    rft_sets = []
    for _ in range(2):
        sample = endpoint_sampler.sampler(
            rft_samplers.Endpoint(server, "m", 50, parallel=4, pause=0.0)
        )
        with rft_samplers.open_replies(tmp_path / "j") as store:
            rft_sets.append(build(items, rft_samplers.stored(sample, store), options))
    assert (
        rft_sets[0].summary() == rft_sets[1].summary()
        and rft_sets[0].outcomes["non_hinted/failed"] == 1
    )
    assert len(FakeServer.calls) == 1 + 40
    (file,) = (tmp_path / "j").glob("*.jsonl")
    file.write_text(
        "".join(line + "\n" for line in file.read_text().splitlines() if '"text": null' not in line)
    )
    sample = endpoint_sampler.sampler(rft_samplers.Endpoint(server, "m", 50, pause=0.0))
    with rft_samplers.open_replies(tmp_path / "j") as store:
        build(items, rft_samplers.stored(sample, store), options)
    assert len(FakeServer.calls) == 1 + 40 + 1


def test_replies_are_stored_when_too_many_requests_fail(server, tmp_path):
    items = [
        Comparison("a bad word" if i % 2 else f"question {i}", ("x", "y"), label=1, id=str(i))
        for i in range(8)
    ]
    options = RftOptions(template="compact", samples=1, hinted=0)
    FakeServer.calls = [None]
    for calls in (8, 8 + 4):
        sample = endpoint_sampler.sampler(rft_samplers.Endpoint(server, "m", 50, pause=0.0))
        with (
            rft_samplers.open_replies(tmp_path / "j") as store,
            pytest.raises(
                rft_samplers.TooManyFailed,
                match="requests failed, more than the share of 0.05.*answered 400",
            ),
        ):
            build(items, rft_samplers.stored(sample, store), options)
        assert len(FakeServer.calls) == 1 + calls


def test_stored_replies_are_not_sampled_again(tmp_path):
    items, calls, path = world.make_items("train", 0, 6), [], tmp_path / "j" / "replies"

    def counting(fail=()):
        inner = rft_samplers.teacher(0.7)

        def sample(requests):
            calls.append(len(requests))
            return [None if i in fail else reply for i, reply in enumerate(inner(requests))]

        return sample

    def build_stored(items, sample, options=COMPACT, salt=""):
        with rft_samplers.open_replies(path) as store:
            return build(items, rft_samplers.stored(sample, store, salt), options)

    whole = build(items, rft_samplers.teacher(0.7), COMPACT)
    build_stored(items[:4], counting(fail=(1,)))
    (path / "000001.jsonl.partial").write_text('{"key": "cut o')  # of a killed process
    resumed = build_stored(items, counting())
    assert calls == [16, 8]  # a permanently failed request is not repeated either
    teacher = rft_samplers.teacher(0.7)
    expected = build(
        items,
        lambda requests: [None if i == 1 else r for i, r in enumerate(teacher(requests))],
        COMPACT,
    )
    assert (
        resumed.examples == expected.examples
        and resumed.summary() == expected.summary() != whole.summary()
    )
    # Another seed gives other response orders and prompts, so few replies are reused.
    build_stored(items, counting(), RftOptions(template="compact", seed=9))
    assert calls[-1] > 12
    # No reply of another policy is reused.
    build_stored(items, counting(), salt="another policy")
    assert calls[-1] == 24


def _config(**sampling):
    settings = dict(url="http://a/v1", model="m", max_new_tokens=50, path="", **sampling)
    rft = types.SimpleNamespace(sampler="endpoint", sampling=settings)
    return types.SimpleNamespace(rft=rft, init="")


def test_stored_replies_do_not_depend_on_how_they_are_fetched(tmp_path):
    first, *_ = rft_samplers.salts(_config())
    fetching = dict(parallel=3, retries=0, timeout=9.0, total_timeout=99.0, max_failed=0.5)
    other = _config(**fetching)
    other.rft.sampling["url"] = "http://b:8000/v1"
    assert rft_samplers.salts(other)[0] == first
    for field, value in {"model": "n", "max_new_tokens": 51, "temperature": 0.5}.items():
        other = _config()
        other.rft.sampling[field] = value
        assert rft_samplers.salts(other)[0] != first, field


def test_replies_under_the_keys_of_an_earlier_version_are_found(tmp_path):
    """Earlier versions put all of rft.sampling into the key."""
    new, old = rft_samplers.salts(_config(parallel=3))
    assert json.loads(old) == ["endpoint", dict(_config(parallel=3).rft.sampling)]
    requests = rft_data.requests_for(PAIR, COMPACT)
    with rft_samplers.open_replies(tmp_path / "j") as store:
        texts = [CritiqueReply(f"text {i}", "stop") for i in range(len(requests))]
        replies = rft_samplers.stored(lambda _: texts, store, old)(requests)
    with rft_samplers.open_replies(tmp_path / "j") as store:
        again = rft_samplers.stored(lambda _: pytest.fail("sampled again"), store, new, old)
        assert again(requests) == replies


DAMAGED = [
    {"text": [{"type": "text", "text": "a"}]},
    {"text": 5},
    {"text": "\ud83d"},
    {"text": "a", "finish": ["stop"]},
    {"text": "a", "order": [0, 0]},
    {"text": "a", "order": 1},
    {"text": "a", "order": ["0", 1]},
    {"finish": "stop"},
    {"text": {}},
]


def test_a_damaged_reply_of_an_earlier_version_is_sampled_again(tmp_path, caplog):
    options = RftOptions(template="compact", samples=len(DAMAGED), hinted=1)
    requests = rft_data.requests_for(PAIR, options)
    keys = [rft_samplers._key(request, "salt") for request in requests]
    rows = [{"key": key, **damaged} for key, damaged in zip(keys, DAMAGED)]
    (tmp_path / "000000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for calls in ([len(requests)], []):
        sampled = []

        def sample(requests, sampled=sampled):
            sampled.append(len(requests))
            return [CritiqueReply(f"text {one.sample}", "stop") for one in requests]

        with rft_samplers.open_replies(tmp_path) as store:
            replies = rft_samplers.stored(sample, store, "salt")(requests)
        assert sampled == calls
        assert [reply.text for reply in replies] == [f"text {i}" for i in range(len(requests))]
    assert "9 damaged replies are sampled again" in caplog.text


def test_replies_that_came_before_a_crash_are_stored(tmp_path):
    requests = rft_data.requests_for(PAIR, COMPACT)

    def crash(requests):
        for i in (2, 0):
            replies.report_reply(i, CritiqueReply(f"text {i}", "stop"))
        replies.report_reply(1, None)
        raise KeyboardInterrupt

    with rft_samplers.open_replies(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        rft_samplers.stored(crash, store)(requests)
    with rft_samplers.open_replies(tmp_path) as store:
        assert [record["text"] for record in store.values()] == ["text 2", "text 0"]


def test_tokens_of_an_endpoint_are_on_record(tmp_path):
    request, *_ = rft_data.requests_for(PAIR, COMPACT)
    reply = CritiqueReply("a", "stop", None, 12, 5)
    with rft_samplers.open_replies(tmp_path) as store:
        assert rft_samplers.stored(lambda _: [reply], store)([request]) == [reply]
        ((record),) = store.values()
    assert (record["prompt_tokens"], record["new_tokens"]) == (12, 5)


def test_a_url_with_a_password_is_refused_before_the_config_is_written(tmp_path):
    for sampler in ("endpoint", "teacher"):
        config = _config()
        config.rft.sampler, config.stages = sampler, ()
        config.rft.sampling["url"] = "http://me:pass-word@host/v1"
        with pytest.raises(
            ValueError, match="config.rft.sampling.url contains a password"
        ) as error:
            endpoint_sampler.probe_endpoint(config, tmp_path)
        assert "pass-word" not in str(error.value)


def test_file_samples_may_have_a_response_order(tmp_path):
    path = tmp_path / "samples.jsonl"
    rows = [
        {"id": "pair", "text": r"\boxed{9, 2}", "order": [1, 0]},
        {
            "id": "pair",
            "critiques": [{"text": r"\boxed{9, 2}", "order": [0, 1]}, {"text": r"\boxed{1, 2}"}],
        },
        {"id": "pair", "text": r"\boxed{3, 4}", "hinted": True},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rft_set = build([PAIR], rft_samplers.file(path), COMPACT)
    assert [t.right for t in rft_set.trials] == [True, False, True, True]
    assert rft_set.trials[0].order == (1, 0)
    path.write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl:1: a sample needs an 'id'"):
        rft_samplers.file(path)


def test_model_samples_differ_for_one_prompt():
    tok = tokenizer.load(vocabulary.vocabulary_path())
    requests_seen = []

    class FakeCompletion:
        def __init__(self, request, tokens, finish="stop"):
            self.request_index, self.sample_index, self.tokens, self.finish, self.error = (
                request,
                0,
                tokens,
                finish,
                None,
            )

    def runner(requests):
        requests_seen.extend(requests)
        stop = tok.id_of("<end_of_turn>")
        for i in reversed(range(len(requests))):
            yield FakeCompletion(i, [*tok.encode(f"text {i} \\boxed{{1}}"), stop])

    c = Comparison("q", ("x",), label=(1.0,), id="one")
    rft_set = build([c], rft_samplers.model(runner, tok, max_new_tokens=9, seed=4), COMPACT)
    assert [t.text for t in rft_set.trials] == [f"text {i} \\boxed{{1}}" for i in range(4)]
    assert len({(r.seed, r.item) for r in requests_seen}) == 4
    assert all(r.k == 1 and r.max_new_tokens == 9 and r.stop == tok.stop_ids for r in requests_seen)


def test_an_interrupted_stage_reuses_stored_replies(tmp_path, monkeypatch):
    """The RFT stage stores replies of slow samplers: models and endpoints."""
    from experiments.spct_tiny import get_config
    from grm_jax.training import rft

    config = get_config()
    config.rft.update(comparisons=300, sampler="endpoint")
    config.data.general_items = 0
    calls = []

    def failing_after(limit):
        inner = rft_samplers.teacher(0.7)

        def sample(requests):
            if len(calls) == limit:
                raise RuntimeError("the endpoint went away")
            calls.append(len(requests))
            return inner(requests)

        return sample

    tok = tokenizer.load(vocabulary.vocabulary_path())
    monkeypatch.setattr(rft, "make_sampler", lambda *_: failing_after(1))
    with pytest.raises(RuntimeError, match="went away"):
        rft.prepare(config, tok, None, tmp_path)
    monkeypatch.setattr(rft, "make_sampler", lambda *_: failing_after(9))
    rft.prepare(config, tok, None, tmp_path)
    assert calls == [256 * 4, 44 * 4]


def test_critiques_of_a_slow_sampler_are_counted_as_they_come(server, monkeypatch):
    steps = []
    monkeypatch.setattr(rft_data.Progress, "update", lambda self, step, _=None: steps.append(step))
    FakeServer.calls = [None]  # FakeServer fails only the first call
    sample = endpoint_sampler.sampler(rft_samplers.Endpoint(server, "m", 50, parallel=2, pause=0.0))
    items = [Comparison(f"question {i}", ("x", "y"), label=1, id=str(i)) for i in range(2)]
    build(items, sample, RftOptions(template="compact", samples=2, hinted=0, chunk=1))
    assert steps == [1, 2, 2, 3, 4, 4]


def test_a_sampling_model_uses_its_own_tokenizer_if_it_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr("grm_jax.checkpoints.load", lambda path, mesh: path)
    monkeypatch.setattr("grm_jax.judging.sampler.EngineSampler", lambda model, mesh: model)
    monkeypatch.setattr(rft_samplers, "model", lambda engine, tokenizer, *_, **__: tokenizer)
    settings, config = rft_samplers.Model(str(tmp_path), 8), types.SimpleNamespace(seed=0)
    assert settings.build(config, "the run's", None) == "the run's"
    (tmp_path / "tokenizer.model").write_bytes(vocabulary.vocabulary_path().read_bytes())
    assert settings.build(config, "the run's", None).vocab_size == vocabulary.SIZE


def judged(comparison, text, order, **fields):
    """An output row of `grm judge`."""
    critique = {"text": text, "order": order, "status": "ok", "finish": "stop"}
    texts = {"query": comparison.query, "responses": list(comparison.responses)}
    return {"id": "1", "line": 1, **texts, "critiques": [critique], "error": None, **fields}


def test_rows_of_the_judge_are_matched_by_their_texts_whatever_the_order_of_training(tmp_path):
    published = [Comparison(f"q{i}", ("good", "bad", f"{i}"), label=0) for i in range(12)]
    rows = [judged(c, r"\boxed{3, 1, 9}", [1, 2, 0]) for c in published]  # the good one has 9
    failed = {"text": "", "order": [0, 1, 2], "status": "failed"}
    rows[0]["critiques"].insert(0, failed)
    rows.append({"id": "2", "critiques": [], "error": {"line": 2, "reason": "?"}})
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = [placed(dataclasses.replace(c, id=f"row-{i}")) for i, c in enumerate(published)]
    assert len({c.responses.index("good") for c in trained}) > 1
    options = RftOptions(template="compact", samples=1, hinted=0, reject=False)
    built = build(trained, rft_samplers.file(path), options)
    assert [trial.right for trial in built.trials] == [True] * 12
    assert [example.completion for example in built.examples] == [r"\boxed{3, 1, 9}"] * 12
    shown = [trial.comparison.responses[trial.order[2]] for trial in built.trials]
    assert shown == ["good"] * 12


def test_rows_of_the_judge_without_texts_are_refused(tmp_path):
    row = judged(PAIR, "t", [0, 1])
    del row["responses"]
    path = tmp_path / "private.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(TrainingError, match="needs 'query' and 'responses'"):
        rft_samplers.file(path)
