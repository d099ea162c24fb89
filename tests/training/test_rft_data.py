"""Tests the data of rejective fine-tuning: correctness, outcomes, hints, samplers, files."""

import dataclasses
import http.server
import json
import threading

import pytest

from experiments import spct_27b, spct_tiny
from grm_jax.data import mixtures, world
from grm_jax.data.sft import Example, read_examples
from grm_jax.data.world import vocabulary
from grm_jax.text import tokenizer
from grm_jax.training import rft_data, rft_samplers, sources
from grm_jax.training.rft_data import CritiqueReply, RftOptions, build, is_correct
from grm_jax.types import Comparison

COMPACT = RftOptions(template="compact")
PAIR = Comparison("q", ("x", "y"), label=1, id="pair")


def scripted(*texts):
    """Returns a sampler of these replies.

    Scores are in the comparison's order: (9, 2) gives response 0 a 9. A string is the whole reply;
    None is a failed request.
    """
    queue = list(texts)

    def sample(requests):
        replies = []
        for request in requests:
            scores = queue.pop(0)
            if scores is None or isinstance(scores, str):
                replies.append(None if scores is None else CritiqueReply(scores))
                continue
            scores_text = ", ".join(str(scores[i]) for i in request.order)
            replies.append(CritiqueReply(f"because\n\n\\boxed{{{scores_text}}}"))
        return replies

    return sample


# ---------------------------------------------------------------- correctness


@pytest.mark.parametrize(
    "label, scores, correct",
    [
        (1, (3, 4), True),
        (1, (4, 4), False),  # a tie with the best is wrong
        (1, (4, 3), False),
        (1, None, False),
        (2, (5, 5, 6), True),  # the order of the other responses does not matter
        (2, (1, 6, 6), False),
        ((0.2, 0.9, 0.4), (1, 3, 2), True),
        ((1.0,), (1,), True),
        ((1.0,), (0,), False),
        ((0.0,), (0,), True),
    ],
)
def test_a_critique_is_correct_if_only_the_best_response_has_the_top_score(label, scores, correct):
    n = len(label) if isinstance(label, tuple) else label + 1
    assert is_correct(Comparison("q", ("r",) * n, label=label), scores) == correct


@pytest.mark.parametrize("label", [None, (0.5, 0.5)])
def test_a_comparison_without_one_best_response_is_an_error(label):
    with pytest.raises(ValueError, match="exactly one response must be best"):
        build([Comparison("q", ("a", "b"), label=label)], scripted(), COMPACT)


# ---------------------------------------------------------------- outcomes


def test_wrong_samples_are_rejected_and_counted():
    rft_set = build([PAIR], scripted((2, 9), (9, 2), (5, 5), (1, 8)), COMPACT)
    assert rft_set.summary() == {
        "comparison/kept": 1,
        "hinted/kept": 1,
        "non_hinted/kept": 1,
        "non_hinted/tie": 1,
        "non_hinted/wrong": 1,
    }
    assert [e.kind for e in rft_set.examples] == ["non_hinted", "hinted"]


def test_too_easy_drops_only_the_non_hinted_samples():
    rft_set = build([PAIR], scripted((2, 9), (2, 9), (2, 9), (2, 9)), COMPACT)
    assert rft_set.summary() == {
        "comparison/too_easy": 1,
        "hinted/kept": 1,
        "non_hinted/too_easy": 3,
    }
    assert [e.kind for e in rft_set.examples] == ["hinted"]
    # A failed sample leaves fewer than N samples, so the comparison does not count as easy.
    rft_set = build([PAIR], scripted((2, 9), (2, 9), None, (2, 9)), COMPACT)
    assert rft_set.outcomes["non_hinted/kept"] == 2 and rft_set.outcomes["non_hinted/failed"] == 1


def test_unparsed_samples_keep_the_parsers_status():
    rft_set = build([PAIR], scripted("no box", r"\boxed{1}", r"\boxed{11, 2}", (9, 2)), COMPACT)
    assert rft_set.summary() == {
        "comparison/never_right": 1,
        "hinted/wrong": 1,
        "non_hinted/no_scores": 1,
        "non_hinted/out_of_range": 1,
        "non_hinted/wrong_count": 1,
    }
    assert not rft_set.examples and len(rft_set.trials) == 4


def test_without_rejection_every_parsed_sample_is_kept():
    options = RftOptions(template="compact", reject=False)
    rft_set = build([PAIR], scripted((2, 9), (2, 9), (9, 2), "no box"), options)
    assert rft_set.summary() == {"comparison/kept": 1, "hinted/no_scores": 1, "non_hinted/kept": 3}


@pytest.mark.parametrize("samples, hinted", [(0, 1), (3, 0)])
def test_either_kind_of_sample_can_be_disabled(samples, hinted):
    options = RftOptions(template="compact", samples=samples, hinted=hinted)
    rft_set = build([PAIR], scripted(*[(9, 2), (2, 9), (2, 9)][: samples + hinted]), options)
    assert {e.kind for e in rft_set.examples} <= {"hinted" if hinted else "non_hinted"}


def test_without_samples_the_set_has_only_general_instructions(tmp_path):
    assert not build([PAIR], scripted(), RftOptions(template="compact", samples=0, hinted=0)).trials
    from experiments.spct_tiny import get_config
    from grm_jax.training import rft

    config = get_config("no_hinted,no_non_hinted")
    config.data.general_items = 5
    config.rft.comparisons = 10
    tok = tokenizer.load(vocabulary.vocabulary_path())
    assert len(rft.prepare(config, tok, None, tmp_path / "a")) == 5
    config.data.general_items = 0
    with pytest.raises(
        ValueError, match="the RFT set is empty.*config.rft.samples=0.*config.data.general_items=0"
    ):
        rft.prepare(config, tok, None, tmp_path / "b")


def test_trials_have_their_correctness_and_outcome():
    rft_set = build([PAIR], scripted((2, 9), (2, 9), (2, 9), (9, 2)), COMPACT)
    assert [(t.right, t.outcome, t.hinted) for t in rft_set.trials] == [
        (True, "too_easy", False)
    ] * 3 + [(False, "wrong", True)]
    row = json.loads(json.dumps(dataclasses.asdict(rft_set.trials[0])))
    assert row["comparison"]["id"] == "pair" and row["right"] is True


# ---------------------------------------------------------------- prompts


def test_the_hint_is_in_the_request_but_not_in_the_example():
    requests_seen = []

    def sample(requests):
        requests_seen.extend(requests)
        return rft_samplers.teacher(1.0, 0.0)(requests)

    items = [c for c in world.make_items("train", 0, 60) if c.n in (1, 3)]
    rft_set = build(items, sample, COMPACT)
    for request in requests_seen:
        text = request.messages[0]["content"]
        assert ("Hint:" in text) == request.hinted
        if request.hinted and request.comparison.n == 3:
            assert (
                f"Response {request.order.index(request.comparison.label) + 1}."
                in text.split("Hint:")[1]
            )
        if request.hinted and request.comparison.n == 1:
            assert f"{request.comparison.label[0]:g}" in text.split("Hint:")[1]
    hinted = [e for e in rft_set.examples if e.kind == "hinted"]
    assert len(hinted) == len(items)
    assert not any("Hint" in m["content"] for e in rft_set.examples for m in e.messages)


def test_the_prompt_of_an_example_has_the_response_order_of_its_critique():
    comparisons = [c for c in world.make_items("train", 0, 80) if c.n >= 3]
    rft_set = build(comparisons, rft_samplers.teacher(0.7, 0.0), COMPACT)
    by_text = {(t.comparison.id, t.text): t for t in rft_set.trials}
    for e in rft_set.examples:
        trial = by_text[e.id, e.completion]
        responses = [
            text.split("\n")[1] for text in e.messages[0]["content"].split("[Response ")[1:]
        ]
        assert responses == [trial.comparison.responses[i] for i in trial.order]
    assert len({t.order for t in rft_set.trials if t.comparison is comparisons[0]}) > 1


def test_the_hint_has_the_strength_of_the_preference():
    c = Comparison("q", ("x", "y"), label=0, id="s", meta={"strength": 3})
    assert rft_data.hint_of(c, (1, 0)) == "the best response is Response 2; it is much better."


def test_a_single_response_gets_the_binary_template_without_reference():
    c = Comparison("q", ("x",), label=(1.0,), id="one", reference="x")
    assert rft_data.training_template("grm", c) == "grm/single_binary"
    # The reference is never in a training prompt.
    assert "Reference" not in rft_data.requests_for(c, COMPACT)[0].messages[0]["content"]


# ---------------------------------------------------------------- samplers


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


def test_trial_files_of_an_earlier_version_are_read(tmp_path):
    rft_set = build([PAIR], scripted((2, 9), (9, 2), (5, 5), (1, 8)), COMPACT)
    rft_set.save(tmp_path)
    path = tmp_path / "trials.jsonl"
    path.write_text(path.read_text().replace('"outcome":', '"fate":'))
    assert rft_data.read_trials(path) == rft_set.trials


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
    sample = rft_samplers.endpoint(
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
    sample = rft_samplers.endpoint(rft_samplers.Endpoint(server, "bad", 50, parallel=2, pause=0.0))
    with pytest.raises(RuntimeError, match=r"4 of 4 requests failed.*answered 400"):
        sample(rft_data.requests_for(PAIR, COMPACT))
    sample = rft_samplers.endpoint(
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
        sample = rft_samplers.endpoint(
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
    sample = rft_samplers.endpoint(rft_samplers.Endpoint(server, "m", 50, pause=0.0))
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
        sample = rft_samplers.endpoint(rft_samplers.Endpoint(server, "m", 50, pause=0.0))
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


def test_easy_comparisons_are_dropped_for_rl(tmp_path, caplog):
    other = Comparison("q2", ("x", "y"), label=0, id="other")
    rft_set = build(
        [PAIR, other],
        scripted((2, 9), (2, 9), (2, 9), (9, 2), (9, 2), (2, 9), (9, 2), (9, 2)),
        COMPACT,
    )
    rft_set.save(tmp_path)
    easy = rft_data.easy_ids(rft_data.read_trials(tmp_path / "trials.jsonl"))
    assert easy == {str(PAIR.id)}
    rows = [
        {"query": "q", "responses": ["x", "y"], "label": 0, "id": name}
        for name in (PAIR.id, "other")
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixtures.add_comparisons("a", {"train": str(tmp_path / "a.jsonl")})
    config = spct_27b.get_config()
    config.data.judging = "a"
    all_comparisons, remaining = sources.judging(config), sources.judging(config, without=easy)
    assert (all_comparisons.size, remaining.size, remaining.at(0).id) == (
        2,
        1,
        "other",
    ) and all_comparisons.identity != remaining.identity
    with pytest.raises(ValueError, match="source 'a' has no comparisons but those dropped"):
        sources.judging(config, without={*easy, "other"})
    with pytest.raises(ValueError, match="judging world, which is endless"):
        sources.judging(spct_tiny.get_config(), without=easy)


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


# ---------------------------------------------------------------- mixing and files


def test_mix_keeps_all_examples_and_depends_on_the_seed():
    judging = [Example(({"role": "user", "content": "j"},), str(i), "hinted") for i in range(20)]
    general = [Example(({"role": "user", "content": "g"},), str(i)) for i in range(30)]
    mixed = rft_data.mix(judging, general, seed=1)
    assert sorted(mixed, key=str) == sorted([*judging, *general], key=str)
    assert mixed == rft_data.mix(judging, general, seed=1) != rft_data.mix(judging, general, seed=2)
    assert rft_data.mix(judging, []) and rft_data.mix([], general)


def test_saved_files_have_the_examples_outcomes_and_trials(tmp_path):
    rft_set = build(world.make_items("train", 0, 20), rft_samplers.teacher(), COMPACT)
    rft_set.save(tmp_path / "rft")
    assert list(read_examples(tmp_path / "rft" / "examples.jsonl")) == rft_set.examples
    assert json.loads((tmp_path / "rft" / "outcomes.json").read_text()) == rft_set.summary()
    assert len((tmp_path / "rft" / "trials.jsonl").read_text().splitlines()) == len(rft_set.trials)


def test_texts_with_any_line_separator_round_trip(tmp_path):
    text = "a\u2028b\u2029c\u0085d\x0be\x1cf\r\ng"
    pair = Comparison(f"q{text}", (f"x{text}", "y"), label=1, id="pair")
    rft_set = build([pair], lambda requests: [CritiqueReply(f"{text}\\boxed{{2, 9}}")] * 4, COMPACT)
    rft_set.save(tmp_path)
    assert rft_data.read_trials(tmp_path / "trials.jsonl") == rft_set.trials
    calls = []

    def sample(requests):
        calls.append(len(requests))
        return [CritiqueReply(text)] * len(requests)

    for _ in range(2):
        with rft_samplers.open_replies(tmp_path / "j") as store:
            build([pair], rft_samplers.stored(sample, store), COMPACT)
    assert calls == [4]


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
