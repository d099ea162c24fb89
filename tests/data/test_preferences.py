"""Pairs with texts and chats in every combination, OpenAI's formats, single responses."""

import itertools

import pytest

from grm_jax.data.comparisons import detect
from grm_jax.data.layouts import LAYOUTS
from grm_jax.data.records import Malformed


def turn(role, content):
    return {"role": role, "content": content}


SYSTEM, USER = turn("system", "Be brief."), turn("user", "Which is prime?")
EARLIER = [turn("user", "Hello"), turn("assistant", "Hi")]


def answer(text):
    return turn("assistant", text)


# Forms of a prompt -> the query that it means; None: the query is in the chats alone.
PROMPTS = {
    "a text": "Which is prime?",
    "a chat": [USER],
    "a chat of several turns": [*EARLIER, USER],
    "a chat with a system turn": [SYSTEM, USER],
    "none": None,
}
# Forms of a side, from the answer and the query's turns.
SIDES = {
    "a text": lambda text, query: text,
    "a message": lambda text, query: answer(text),
    "a list of one message": lambda text, query: [answer(text)],
    "a chat": lambda text, query: [*query, answer(text)],
    "a list of one text": lambda text, query: [text],
    "ShareGPT": lambda text, query: [{"from": "gpt", "value": text}],
    "parts": lambda text, query: [turn("assistant", [{"type": "text", "text": text}])],
}


def read(record):
    (comparison,) = LAYOUTS[detect(record)].read(record, "r-1")
    return comparison


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("sides", itertools.product(SIDES, SIDES), ids=" beside ".join)
def test_every_mix_of_texts_and_chats(prompt, sides):
    query = PROMPTS[prompt]
    turns = [USER] if query is None or isinstance(query, str) else query
    record = {
        key: SIDES[s](text, turns)
        for key, s, text in zip(("chosen", "rejected"), sides, "7 8".split())
    }
    record |= {} if query is None else {"prompt": query}
    if query is None and "a chat" not in sides:
        with pytest.raises(Malformed, match="without a prompt|there is no query"):
            read(record)
        return
    if (
        query is None
        and sides != ("a chat", "a chat")
        and not {"a text", "a list of one text"} & {*sides}
    ):
        with pytest.raises(Malformed, match="there is no query"):
            read(record)
        return
    comparison = read(record)
    assert comparison.turns == turns and comparison.responses == ("7", "8")
    assert comparison.label == 0


@pytest.mark.parametrize(
    "record, turns",
    [
        ({"prompt": USER["content"], "chosen": [SYSTEM, USER, answer("7")]}, [SYSTEM, USER]),
        ({"prompt": [SYSTEM, USER], "chosen": [USER, answer("7")]}, [SYSTEM, USER]),
        ({"prompt": "Hello", "chosen": [*EARLIER, USER, answer("7")]}, [*EARLIER, USER]),
        ({"prompt": USER["content"], "chosen": [*EARLIER, USER, answer("7")]}, [*EARLIER, USER]),
        ({"prompt": "<|user|>Which is prime?<|bot|>", "chosen": [USER, answer("7")]}, [USER]),
        ({"prompt": f" {USER['content']}\n", "chosen": [USER, answer("7")]}, None),
        ({"system": "Be brief.", "question": USER["content"], "chosen": "7"}, [SYSTEM, USER]),
        ({"system": "Be brief.", "prompt": [USER], "chosen": [answer("7")]}, [SYSTEM, USER]),
        ({"instruction": "Which is prime?", "input": "", "chosen": "7"}, [USER]),
        ({"system": "", "input": "Which is prime?", "chosen": "7"}, [USER]),
        ({"prompt": "", "chosen": [USER, answer("7")]}, [USER]),
        ({"conversations": [USER], "chosen": {"from": "gpt", "value": "7"}}, [USER]),
        ({"messages": [USER, answer("7")], "chosen": [USER, answer("7")]}, [USER]),
        ({"chosen": "\n\nHuman: Which is prime?\n\nAssistant: 7"}, [USER]),
    ],
)
def test_published_forms(record, turns):
    def worse(value):
        if isinstance(value, list):
            return [*value[:-1], answer("8")]
        return value.replace("7", "8") if isinstance(value, str) else {"from": "gpt", "value": "8"}

    comparison = read(record | {"rejected": worse(record["chosen"])})
    assert comparison.responses == ("7", "8")
    if turns is not None:
        assert comparison.turns == turns


@pytest.mark.parametrize(
    "record, reason",
    [
        ({"prompt": "Other?", "chosen": [USER, answer("7")]}, "does not repeat the prompt"),
        ({"chosen": [USER, answer("7"), USER]}, "ends with a turn of the user"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [USER]}, "there is no query"),
        ({"prompt": "q", "chosen": []}, "chosen has no turns"),
        ({"prompt": "q", "chosen": [answer("7"), USER, answer("8")]}, "answer different turns"),
        ({"prompt": "q", "chosen": [turn("assistant", [{"type": "image"}])]}, "must be texts"),
    ],
)
def test_contradictions_are_malformed(record, reason):
    record = {"rejected": record["chosen"] if "ends" in reason else "8", **record}
    with pytest.raises(Malformed, match=reason):
        read(record)


def test_openai_formats():
    choices = [{"index": 0, "message": answer("7"), "logprobs": None}, {"index": 1, "text": "8"}]
    for responses in (
        {"choices": choices},
        {"responses": ["7", "8"]},
        {"responses": [answer("7"), [answer("8")]]},
    ):
        comparison = read({"messages": [SYSTEM, USER], "label": 1, **responses})
        assert comparison.turns == [SYSTEM, USER] and comparison.responses == ("7", "8")
        assert comparison.label == 1
    pair = read(
        {
            "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [answer("7")],
            "non_preferred_output": [answer("8")],
        }
    )
    assert (pair.turns, pair.responses, pair.label) == ([USER], ("7", "8"), 0)
    with pytest.raises(Malformed, match="already answered"):
        read({"messages": [USER, answer("7")], "responses": ["7"]})


def test_single_responses_for_kto():
    for record in (
        {"prompt": USER["content"], "completion": "7"},
        {"prompt": [USER], "completion": [answer("7")]},
        {"messages": [USER, answer("7")]},
        {"conversations": [{"from": "human", "value": USER["content"]}, answer("7")]},
    ):
        for label in (True, False, "True", "false"):
            comparison = read({**record, "label": label})
            assert comparison.turns == [USER] and comparison.responses == ("7",)
            assert comparison.label == (float(str(label).lower() == "true"),)


@pytest.mark.parametrize(
    "label, expected",
    [(1, 1), ("1", 1), (1.0, 1), ("[0, 1]", (0.0, 1.0)), ([0.5, 2], (0.5, 2.0)), ("", None)],
)
def test_labels_of_tables(label, expected):
    assert read({"query": "q", "responses": '["a", "b"]', "label": label}).label == expected
