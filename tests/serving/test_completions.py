"""/v1/chat/completions, through the `openai` package where it has the field."""

import json

import openai
import pytest

from grm_jax.judging.orders import item_of
from grm_jax.sampling import Request
from grm_jax.serving.chat import Choice

MESSAGES = [{"role": "user", "content": "name a moon"}]


@pytest.fixture(scope="module")
def client(texts):
    return openai.OpenAI(base_url=f"{texts.url}/v1", api_key="none", max_retries=0)


def sampled(service, k=1, seed=7, temperature=0.9, limit=24):
    """The samples of the same request by the offline sampler."""
    prompt = service.judge.tokenizer.encode_chat(MESSAGES)
    stop = service.judge.tokenizer.stop_ids
    request = Request(prompt, k, limit, temperature, 1.0, 0, stop, seed, item_of(prompt))
    done = sorted(service.judge.sampler([request]), key=lambda c: c.sample_index)
    return [(service.judge.tokenizer.decode(c.tokens), c) for c in done]


def create(client, **options):
    fields = {"model": "judge", "messages": MESSAGES, "temperature": 0.9, "seed": 7} | options
    return client.chat.completions.create(**fields)


def test_n_choices_equal_the_samples_of_the_offline_sampler(client, texts):
    reply = create(client, n=4, logprobs=True)
    expected = sampled(texts.service, k=4)
    assert [choice.message.content for choice in reply.choices] == [text for text, _ in expected]
    for choice, (_, completion) in zip(reply.choices, expected):
        stops = texts.service.judge.tokenizer.stop_ids
        kept = [i for i, token in enumerate(completion.tokens) if token not in stops]
        logprobs = [entry.logprob for entry in choice.logprobs.content]
        assert logprobs == pytest.approx(completion.logprobs_1[kept].tolist())
        assert choice.finish_reason == completion.finish
    tokens = sum(len(choice.logprobs.content) for choice in reply.choices)
    assert reply.usage.completion_tokens == tokens
    assert reply.usage.prompt_tokens == len(texts.service.judge.tokenizer.encode_chat(MESSAGES))


def test_a_repeated_seed_gives_the_same_text_and_no_seed_a_new_one(client):
    texts = {create(client).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1
    drawn = {create(client, seed=None).choices[0].message.content for _ in range(3)}
    assert len(drawn | texts) > 2


def test_the_fingerprint_of_a_reply_has_the_seed_that_was_drawn(client):
    reply = create(client, seed=None)
    seed = int(reply.system_fingerprint.removeprefix("seed-"))
    repeated = create(client, seed=seed)
    assert repeated.choices[0].message.content == reply.choices[0].message.content


def test_a_streamed_completion_has_the_text_of_a_plain_one(client):
    plain = create(client, n=2, logprobs=True)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(create(client, n=2, logprobs=True, **options))
    texts, logprobs, finishes = ["", ""], [[], []], [None, None]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += [e.logprob for e in choice.logprobs.content]
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in plain.choices]
    for streamed, choice in zip(logprobs, plain.choices):
        assert streamed == pytest.approx([e.logprob for e in choice.logprobs.content], abs=1e-4)
    assert finishes == [choice.finish_reason for choice in plain.choices]
    assert chunks[-1].usage == plain.usage and len(chunks) > 3  # in several parts
    assert sum(bool(c.choices and c.choices[0].delta.role) for c in chunks) == 2


def test_max_completion_tokens_limits_the_length(client):
    for name in ("max_tokens", "max_completion_tokens"):
        reply = create(client, **{name: 3}, logprobs=True)
        assert len(reply.choices[0].logprobs.content) == 3
        assert reply.choices[0].finish_reason == "length"


def test_a_stop_text_ends_a_completion_before_it(client):
    whole = create(client).choices[0].message.content
    stop = whole.split()[3]
    reply = create(client, stop=[stop, "never written"], logprobs=True)
    (choice,) = reply.choices
    assert choice.finish_reason == "stop" and choice.message.content == whole[: whole.find(stop)]
    assert reply.usage.completion_tokens == len(choice.logprobs.content)
    streamed = create(client, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in streamed) == choice.message.content


class Bytes:
    """A tokenizer whose ids are bytes; 0 is its stop token."""

    stop_ids = (0,)

    def decode(self, ids, skip_controls=True):
        return bytes(i for i in ids if i).decode("utf-8", "replace")

    def piece_bytes(self, i):
        return bytes([i] if i else [])


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    "text, stops, expected",
    [
        ("a moon é \U0001f315 ends", (), "a moon é \U0001f315 ends"),
        ("one two three", ("two",), "one "),
        ("one twice two!", ("two", "zwei"), "one twice "),
        ("ends in t", ("two",), "ends in t"),
        ("ababac", ("abac",), "ab"),
        ("é\U0001f315x", ("\U0001f315",), "é"),
    ],
)
def test_deltas_of_any_size_give_the_same_text(text, stops, expected, size):
    data = [*text.encode(), 0]
    choice, deltas = Choice(0, Bytes(), stops), []
    for start in range(0, len(data), size):
        part = data[start : start + size]
        deltas.append(choice.add(part, [-1.0] * len(part)))
    deltas.append(choice.end("stop"))
    deltas = [delta for delta in deltas if delta]
    assert "".join(delta.text for delta in deltas) == expected
    assert [delta.finish for delta in deltas if delta.finish] == ["stop"]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    assert len(entries) == choice.sampled
    assert not any("\ufffd" in delta.text for delta in deltas)
    first = expected if not stops or expected == text else expected + stops[0]
    assert bytes(b for entry in entries for b in entry["bytes"]).decode() == first


@pytest.mark.parametrize(
    "fields, status, words",
    [
        ({"n": 0}, 400, "n: "),
        ({"n": 10_000}, 400, "n = 10000: this server samples at most 128"),
        ({"temperature": -1}, 400, "temperature: "),
        ({"temperature": "hot"}, 400, "temperature: "),
        ({"max_tokens": 25}, 400, "max_tokens = 25: this server samples at most 24"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias: "),
        ({"tools": []}, 400, "unknown field 'tools'"),
        ({"stop": ["a"] * 17}, 400, "stop: List should have at most 16 items"),
        ({"stop": [1]}, 400, "stop: Input should be a valid string"),
        ({"stop": ""}, 400, "stop has an empty text"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "moon " * 400}]}, 400, "this server takes 128"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "not a text"),
        ({"model": "gpt"}, 404, "no model 'gpt'"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"timeout": 0}, 400, "timeout"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_refused_in_one_line_that_names_it(texts, fields, status, words, stream):
    reply = texts.post("/v1/chat/completions", {"messages": MESSAGES, "stream": stream} | fields)
    error = reply.json()["error"]
    assert reply.status_code == status and words in error["message"], error
    assert "\n" not in error["message"] and error["type"]


def test_the_deadline_of_a_request_ends_it_with_a_reason(texts):
    fields = {"messages": MESSAGES, "n": 100, "timeout": 0.001}
    reply = texts.post("/v1/chat/completions", fields)
    assert reply.status_code == 504 and "not finished after 0.001 s" in reply.text
    streamed = texts.post("/v1/chat/completions", fields | {"stream": True})
    assert streamed.status_code == 504 and json.loads(streamed.text)["error"]["type"]
