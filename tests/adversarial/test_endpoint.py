"""An OpenAI-compatible server that misbehaves: no fault is a text, a traceback or a hang."""

import asyncio
import logging
import random
import re
import threading
import time
from types import SimpleNamespace

import fuzz
import pytest
import raw_server
from raw_server import ACCEPTED, GOOD, LIMIT, REFUSED, WAITING, encoded, http, reply, serving

from grm_jax import endpoint
from grm_jax.endpoint.tries import FailedTry, request

KEY = "sk-secret-key"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)


def body(number):
    return {"messages": [{"role": "user", "content": str(number)}], "max_tokens": 50}


def number_of(request):
    return int(request["messages"][0]["content"])


def ask(url, on_failed_try=lambda *_: None, **options):
    """The result of one request; an EndpointError is a Failure too."""
    server = endpoint.Server(url, "m", **{"timeout": 60, "retries": 0, "pause": 0.0, **options})
    try:
        ((index, result),) = endpoint.complete(server, [body(0)], on_failed_try)
    except endpoint.EndpointError as error:
        return endpoint.Failure("refused", str(error), True)
    assert index == 0
    return result


def check_result(result):
    """Properties of every result."""
    if isinstance(result, endpoint.Failure):
        assert result.reason.isprintable() and 10 < len(result.reason) < 600, result.reason
        assert KEY not in result.reason and result.kind
        return None
    text = result.text
    assert isinstance(text, str) and text.strip() and not re.search(r"[\ud800-\udfff]", text)
    assert result.finish in ("stop", "length", None)
    for count in (result.prompt_tokens, result.new_tokens):
        assert count is None or (type(count) is int and count >= 0)
    return text


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_reply_with_a_text_is_a_completion(name):
    with serving(lambda request: ACCEPTED[name]) as server:
        assert check_result(ask(server.url)) == GOOD


@pytest.mark.parametrize("name", REFUSED)
def test_a_reply_without_a_text_is_a_failure_with_a_reason(name):
    tries = []
    with serving(lambda request: REFUSED[name]) as server:
        limit = LIMIT if name in WAITING else 60
        result = ask(server.url, lambda *failed: tries.append(failed), timeout=limit)
        assert check_result(result) is None
        assert (result.kind == "timeout") == (name in WAITING), result
        assert [repeated for *_, repeated in tries] == [False]
        # None if this machine stalls for LIMIT.
        assert len(server.requests) == 1 or (name in WAITING and not server.requests)
        for head, _ in server.requests:
            assert b"authorization: bearer sk-secret-key" in head.lower()


def text_of(value):
    """What a changed reply holds, by the rules in docs/training.md; None without a text."""
    if not isinstance(value, dict) or value.get("error"):
        return None
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict) or choice.get("error"):
        return None
    message, finish = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict) or message.get("refusal"):
        return None
    if finish not in (None, "", "stop", "length"):
        return None
    content = message.get("content")
    if isinstance(content, list):
        if not all(
            isinstance(part, dict)
            and part.get("type", "text") == "text"
            and isinstance(part.get("text"), str)
            for part in content
        ):
            return None
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str) or not content.strip() or "\ud800" in content:
        return None
    return content


def holds_non_finite(value):
    return bool(re.search(rb"(?<!\")(NaN|Infinity)|\d{300}|(\[){100}", encoded(value)))


def test_odd_replies(record_property, cases):
    script = {"steps": []}
    with serving(lambda request: script["steps"]) as server:

        def check(case):
            steps, value = case
            script["steps"] = steps
            waits = value == {} and any(isinstance(step, float) for step in steps)
            text = check_result(ask(server.url, timeout=LIMIT if waits else 60))
            if value is not None:
                expected = None if holds_non_finite(value) else text_of(value)
                assert text == expected, f"{text!r:.100}, not {expected!r:.100}"
            if text is None:
                raise ValueError("refused")

        def draw(rng):
            if rng.random() < 0.25:
                name = rng.choice([*ACCEPTED, *REFUSED])
                steps = ACCEPTED.get(name) or REFUSED.get(name)
                return name, (steps, reply() if name in ACCEPTED else {})
            label, steps, value = raw_server.odd_reply(rng)
            return label, (steps, value)

        draws = (draw(rng) for _, rng in cases(fast=100, full=2000))
        fuzz.run("endpoint replies", draws, check, record_property)


def test_many_requests_get_their_own_texts_through_a_server_that_fails_often():
    """A quarter of the tries fails, in every way but waits; no text is lost, swapped or invented.

    A limit that ends a wait soon also ends good tries on a slow machine, again and again.
    """
    rng, waits = random.Random(0), (*WAITING, "a wait of years")
    faults = [name for name in REFUSED if name not in waits]
    kinds = []

    def script(request):
        if rng.random() < 0.25:
            return REFUSED[rng.choice(faults)]
        return [http(encoded(reply(f"reply to {number_of(request)}")))]

    with serving(script) as server:
        options = endpoint.Server(
            server.url, "m", timeout=600, retries=30, pause=0.001, parallel=16, total_timeout=600
        )
        results = dict(
            endpoint.complete(
                options, [body(i) for i in range(400)], lambda kind, *_: kinds.append(kind)
            )
        )
        assert sorted(results) == list(range(400))
        failed = [result for result in results.values() if check_result(result) is None]
        # Refused for good: a failure at the first try.
        assert {result.kind for result in failed} <= {"HTTP 401", "HTTP 404", "HTTP 302"}
        texts = {i: result.text for i, result in results.items() if result not in failed}
        assert texts == {i: f"reply to {i}" for i in texts} and len(texts) > 350
        assert len(server.requests) >= 400 and len(set(kinds)) > 8


# ---------------------------------------------------------------- deadlines, retries, refusals


def test_a_request_ends_at_its_total_deadline():
    with serving(lambda request: [100.0]) as server:
        options = endpoint.Server(
            server.url, "m", timeout=0.2, retries=100, pause=0.0, total_timeout=0.7
        )
        start = time.monotonic()
        ((_, result),) = endpoint.complete(options, [body(0)])
        assert time.monotonic() - start > 0.5  # it is repeated until then
        assert result.kind == "timeout" and len(server.requests) < 10  # of 100 retries


@pytest.mark.parametrize(
    "settings, limits",
    [({"retries": 100, "total_timeout": 7}, [2, 2, 2, 1]), ({"retries": 2}, [2, 2, 2])],
)
def test_the_tries_of_a_server_that_never_answers(settings, limits, monkeypatch):
    """On a clock that only the tries move."""
    clock, tries, repeats = [100.0], [], []

    async def fetch(client, method, url, content, seconds, parse):
        tries.append(seconds)
        clock[0] += seconds
        raise FailedTry("timeout", "no answer")

    monkeypatch.setattr("grm_jax.endpoint.tries.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("grm_jax.endpoint.tries.fetch", fetch)
    server = endpoint.Server("http://host/v1", "m", timeout=2, pause=0, **settings)
    end = clock[0] + server.seconds
    result = asyncio.run(
        request(None, server, b"{}", lambda *failed: repeats.append(failed[2]), end)
    )
    assert tries == limits and result.kind == "timeout"
    assert repeats == [True] * (len(limits) - 1) + [False]


def test_a_server_that_never_answers_gets_every_retry():
    repeats = []
    with serving(lambda request: [100.0]) as server:
        result = ask(server.url, lambda *failed: repeats.append(failed[2]), timeout=0.2, retries=2,
                     total_timeout=600)  # fmt: skip
        assert result.kind == "timeout" and repeats == [True, True, False]


def test_retry_after_is_obeyed():
    answers = [[http(b"{}", "429 X", Retry_After="0.3")], [raw_server.WHOLE]]
    with serving(lambda request: answers.pop(0)) as server:
        options = endpoint.Server(server.url, "m", pause=0.0)
        start = time.monotonic()
        ((_, result),) = endpoint.complete(options, [body(0)])
        assert result.text == GOOD and time.monotonic() - start > 0.3
        assert (result.prompt_tokens, result.new_tokens) == (12, 5)


@pytest.mark.parametrize(
    "name, message",
    [
        ("unauthorised", r"answered 401: bad key \*\*\*"),
        ("no such model", "answered 404"),
        ("a redirect", "answered 302: a redirect, which is not followed"),
    ],
)
def test_a_server_that_refuses_every_request_ends_the_run_early(name, message):
    with serving(lambda request: REFUSED[name]) as server:
        options = endpoint.Server(server.url, "m", parallel=2)
        with pytest.raises(endpoint.EndpointError, match=message):
            list(endpoint.complete(options, [body(i) for i in range(500)]))
        assert len(server.requests) < 20


def test_results_come_as_they_end_and_closing_cancels_the_rest():
    def script(request):
        return [raw_server.WHOLE] if number_of(request) else [600.0]

    with serving(script) as server:
        options = endpoint.Server(server.url, "m", parallel=2)
        results = endpoint.complete(options, [body(i) for i in range(4)])
        assert [next(results)[0] for _ in range(3)] == [1, 2, 3]
        (thread,) = (t for t in threading.enumerate() if t.name == "endpoint")
        results.close()
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("url", ["https://127.0.0.1:{port}/v1", "http://127.0.0.1:9/v1"])
def test_a_failed_connection_names_its_cause(url):
    with serving(lambda request: [raw_server.WHOLE]) as server:
        port = server.url.split(":")[-1].split("/")[0]
        result = ask(url.format(port=port))
    assert result.kind == "connection" and check_result(result) is None
    assert re.search("refused|SSL", result.reason)


@pytest.mark.parametrize(
    "url",
    ["http://me:pass-word@host/v1", "https://host/v1?api_key=pass-word", "pass",
     "ftp://host/v1", "http://", "http://[::1", "http://host:99999999/v1", "http://ho\x00st/v1",
     5, None],
)  # fmt: skip
def test_addresses_that_cannot_be_used_are_refused(url):
    with pytest.raises(ValueError, match="^url") as error:
        endpoint.Server(url, "m")
    assert "pass-word" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "setting",
    [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": "1"}, {"parallel": 0}, {"retries": -1},
     {"pause": -1}, {"total_timeout": float("inf")}, {"retries": 1.5}, {"parallel": True},
     {"key_variable": 5}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"^{name}="):
        endpoint.Server("http://host/v1", "m", **setting)


def test_a_key_comes_from_a_file_or_is_refused_without_quoting_it(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    (tmp_path / "key").write_text("from-file\n")
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path / "key"))
    with serving(lambda request: [raw_server.WHOLE]) as server:
        assert ask(server.url).text == GOOD
        assert b"authorization: bearer from-file" in server.requests[0][0].lower()
    for bad in ("sk-one\nsk-two", "sk-schlüssel", "sk-\x00"):
        (tmp_path / "key").write_text(bad)
        with pytest.raises(ValueError, match="OPENAI_API_KEY has a character") as error:
            ask("http://127.0.0.1:9")
        assert "sk-" not in str(error.value)


def test_logs_hold_no_key(caplog):
    with caplog.at_level(logging.DEBUG), serving(lambda _: REFUSED["unauthorised"]) as server:
        ask(server.url)
    assert KEY not in caplog.text


def test_a_time_out_that_is_too_short_and_samples_that_are_equal_are_warned_about():
    server = endpoint.Server("http://host/v1", "m")
    assert "8,192 new tokens take 273 s" in endpoint.time_warning(server, 8192)
    assert not endpoint.time_warning(server, 1024)
    prompt, other = [{"role": "user", "content": "q"}], [{"role": "user", "content": "r"}]
    equal = [(prompt, "a"), (other, "b"), (prompt, "a"), (other, "c"), (["single"], "a")]
    assert "all samples of 1 of 2 prompts are equal" in endpoint.equal_warning(equal, 0.5)
    assert not endpoint.equal_warning(equal, 0.0)
    assert not endpoint.equal_warning(equal[1:], 0.5)
