"""Preference records as people have them: pairs for TRL, OpenAI's formats, and our own.

Queries and responses may be texts or chats, in every combination. `layouts.py` registers the
functions of this file as layouts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grm_jax import display
from grm_jax.data import fields
from grm_jax.data.fields import Record
from grm_jax.data.records import Malformed
from grm_jax.types import Comparison, Turn

PAIR = ("chosen", "rejected")
QUERIES = ("query", "prompt", "question", "instruction", "conversations", "messages", "input")
CONVERSATIONS = ("conversations", "messages")  # the answer may be their last turn
Chat = list[Turn]


def better_first(
    query: str | Chat, better: Sequence[str], worse: Sequence[str], name: str, **options: Any
) -> Comparison:
    """Returns a comparison, better responses first: an index label for one, rewards for several."""
    label = 0 if len(better) == 1 else (1.0,) * len(better) + (0.0,) * len(worse)
    return Comparison(query, (*better, *worse), label=label, id=name, **options)


def categories(record: Record) -> dict[str, Any]:
    """Returns the fields of a record that name its part of a benchmark."""
    return {key: record[key] for key in ("subset", "category_path", "section") if key in record}


def query_of(record: Record) -> str | Chat | None:
    """Returns the query of a record, None without one: a text, or the turns of a chat.

    A `system` text comes first, and an `input` beside an `instruction` (Alpaca) is its second part.
    """
    key = next((key for key in QUERIES if record.get(key) not in (None, "", [])), None)
    if key is None:
        return None
    query = fields.query(record, key)
    if key in CONVERSATIONS and isinstance(query, list) and query[-1]["role"] == "assistant":
        return None
    if key == "instruction" and isinstance(query, str) and _given(record, "input"):
        query = f"{query}\n{fields.text(record, 'input')}"
    if _given(record, "system"):
        system: Turn = {"role": "system", "content": fields.text(record, "system")}
        query = [system, *_chat(query)]
    return query


def _given(record: Record, key: str) -> bool:
    """Whether a field is present; "" is how CSV files write an absent one."""
    return record.get(key) not in (None, "")


def _chat(query: str | Chat | None) -> Chat:
    return [{"role": "user", "content": query}] if isinstance(query, str) else query or []


# ---------------------------------------------------------------- a query with its responses


def has_responses(record: Record) -> bool:
    """Whether a record has a list of responses, or of OpenAI's choices beside a query."""
    return "responses" in record or (
        "choices" in record and not record.keys().isdisjoint(("query", "prompt", "messages"))
    )


def comparison(record: Record, name: str) -> list[Comparison]:
    """A query and a list of responses, with an optional label, reference, id and meta.

    The query is `query`, `prompt` or `messages`: a text or turns. `responses`, or `choices`, has
    texts, messages, or the choices of a chat completion.
    """
    query = query_of(record)
    if query is None:
        key = next((key for key in QUERIES if key in record), "query")
        fields.query(record, key)
        raise Malformed(f"the field {key!r} is empty or already answered: end with the user's turn")
    key = "responses" if "responses" in record else "choices"
    responses = tuple(_response(item, key) for item in fields.items(record, key, "texts"))
    meta = fields.field(record, "meta", dict, "an object") if _given(record, "meta") else {}
    reference = fields.text(record, "reference") if _given(record, "reference") else None
    id = fields.own_id(record) or name
    return [Comparison(query, responses, reference, _label(record), id, dict(meta))]


def check_unambiguous(record: Record) -> None:
    """Raises Malformed for a query, or responses, under two names with different contents."""
    for first, second in (("query", "prompt"), ("responses", "choices")):
        is_both = _given(record, first) and _given(record, second)
        if is_both and _chat(record[first]) != _chat(record[second]):
            raise Malformed(
                f"the fields {first!r} and {second!r} differ: remove one, or name the format"
            )


def _response(item: Any, key: str) -> Any:
    """Returns the text of a response; `Comparison` refuses what is neither text nor message."""
    if isinstance(item, list) and len(item) == 1:
        item = item[0]
    if not isinstance(item, dict):
        return item
    item = item.get("message") or item
    if isinstance(item, dict) and item.get("content") is None and isinstance(item.get("text"), str):
        return item["text"]
    named = {"role": "assistant", **item} if isinstance(item, dict) else item
    return fields.turns([named], f"the field {key!r}")[0]["content"]


def _label(record: Record) -> int | tuple[float, ...] | None:
    label = record.get("label")
    if isinstance(label, str):
        label = fields.from_json_text(label) if label else None
    if isinstance(label, list):
        return tuple(fields.number({"label": reward}, "label") for reward in label)
    if isinstance(label, float) and label.is_integer():  # an index in a column with gaps
        return int(label)
    if label is None or (isinstance(label, int) and not isinstance(label, bool)):
        return label
    raise Malformed(
        f"the field 'label' is {display.shown(label)}: give the index of the best response, or a "
        "list of rewards"
    )


# ---------------------------------------------------------------- chosen and rejected


def is_pair(record: Record) -> bool:
    """Whether a record has `chosen` and `rejected`."""
    others = ("conversation_input", "full_chosen")  # of RMB and Math-Step-DPO-10K
    return {*PAIR} <= record.keys() and record.keys().isdisjoint(others)


def preference(record: Record, name: str) -> list[Comparison]:
    """`chosen` and `rejected`, and `prompt`: texts or chats in any combination.

    A side is a text, a list of texts, a message, or a chat. A chat holds the answer alone, or the
    prompt as well. Without a prompt the turns that both chats share are the query. Instead of
    `prompt`: `question`, or `instruction` with `input`. Optional: `system`.
    """
    query, sides = query_of(record), {key: _side(record, key) for key in PAIR}
    if query is None and all(fields.is_transcript(record[key]) for key in PAIR):
        sides = {key: fields.transcript(record[key]) for key in PAIR}
    query, answers = _answers(query, sides)
    return [
        better_first(query, answers["chosen"], answers["rejected"], name, meta=categories(record))
    ]


def _side(record: Record, key: str) -> list[Any]:
    """Returns a list of texts, or of turns."""
    if isinstance(record.get(key), dict):
        return fields.turns([record[key]], key)
    side = fields.field(record, key, (str, list), "a text, a list of texts, or a list of turns")
    if isinstance(side, str):
        return [side]
    if any(isinstance(item, dict) for item in side):
        return fields.turns(side, key)
    return fields.texts(record, key) or fields.turns(side, key)


def _answers(
    query: str | Chat | None, sides: Mapping[str, list[Any]]
) -> tuple[str | Chat, dict[str, list[str]]]:
    """Returns the query, and the answers to it by side. Raises Malformed where they disagree."""
    prompt, names = _chat(query), " and ".join(sides)
    chats = {key: side for key, side in sides.items() if isinstance(side[0], dict)}
    if not chats:
        if query is None:
            raise Malformed(f"{names} are texts without a prompt: name the query")
        return query, dict(sides)
    whole = {key: _with_prompt(chat, prompt, key) for key, chat in chats.items()}
    shared = _shared(list(whole.values()))
    if not shared:
        raise Malformed(f"{names} do not share their first turn: there is no query")
    if prompt and len(chats) < len(sides) and not _renders(prompt[-1], shared[-1]):
        raise Malformed(f"{names} answer different turns: give one answer to the prompt in each")
    answers = {key: [_answer(chat[len(shared) :], key)] for key, chat in whole.items()}
    if query is None or not _same(shared, prompt):
        query = shared
    return query, {**sides, **answers}


def _with_prompt(chat: Chat, prompt: Chat, key: str) -> Chat:
    """Returns the whole conversation of a side, whether or not its chat repeats the prompt."""
    system = [turn for turn in chat[:1] if turn["role"] == "system"]
    if _begins(chat, prompt) or _begins(chat, [*system, *prompt]):
        return chat
    if prompt[0]["role"] == "system" and _begins(chat, prompt[1:]):
        return [prompt[0], *chat]
    if chat[0]["role"] not in ("system", "user"):
        return [*prompt, *chat]
    if len(prompt) == 1 and len(chat) > 1:
        # A text may be any question of the chat, or the whole of it rendered.
        if _renders(prompt[0], chat[-2]) or any(_same([turn], prompt) for turn in chat[:-1]):
            return chat
    raise Malformed(f"the chat in {key!r} does not repeat the prompt: remove one of the two")


def _renders(prompt: Turn, turn: Turn) -> bool:
    """Whether a prompt contains the text of a user's turn, as a rendered chat does."""
    content = turn["content"].strip()
    return turn["role"] == "user" and bool(content) and content in prompt["content"]


def _shared(chats: Sequence[Chat]) -> Chat:
    """Returns the turns that all conversations share, at least one turn less than each."""
    count, limit = 0, min(map(len, chats)) - 1
    while count < limit and all(_same([chats[0][count]], [chat[count]]) for chat in chats):
        count += 1
    return chats[0][:count]


def _answer(rest: Chat, key: str) -> str:
    if len(rest) != 1:
        raise Malformed(f"{key} has {len(rest)} turns after those that both share: one answer")
    if rest[0]["role"] in ("system", "user"):
        raise Malformed(f"{key} ends with a turn of the {rest[0]['role']}: end with the answer")
    return rest[0]["content"]


def _begins(chat: Chat, prompt: Chat) -> bool:
    return len(chat) >= len(prompt) and _same(chat[: len(prompt)], prompt)


def _same(chat: Chat, other: Chat) -> bool:
    """Whether two chats have the same roles and, but for space around them, texts."""
    return len(chat) == len(other) and all(
        a["role"] == b["role"] and a["content"].strip() == b["content"].strip()
        for a, b in zip(chat, other)
    )


# ---------------------------------------------------------------- OpenAI's pairs, single responses


def is_openai_pair(record: Record) -> bool:
    """Whether a record has the fields of OpenAI's preference fine-tuning."""
    return {"preferred_output", "non_preferred_output"} <= record.keys()


def openai_pair(record: Record, name: str) -> list[Comparison]:
    """`input` with `messages`; `preferred_output` and `non_preferred_output`: lists of messages."""
    messages = fields.items(fields.field(record, "input", dict, "an object"), "messages")
    sides = {
        "chosen": fields.items(record, "preferred_output", "messages"),
        "rejected": fields.items(record, "non_preferred_output", "messages"),
    }
    return preference({"prompt": messages, **sides}, name)


def is_unpaired(record: Record) -> bool:
    """Whether a record has one response, and whether it is good: `label` true or false (KTO)."""
    is_bool = str(record.get("label")).lower() in ("true", "false")
    has_response = not record.keys().isdisjoint(("completion", *CONVERSATIONS))
    return is_bool and has_response and not is_pair(record) and not has_responses(record)


def unpaired(record: Record, name: str) -> list[Comparison]:
    """`prompt` and `completion` as texts or turns, or `messages` alone; `label`: true or false."""
    label = record.get("label")
    good = str(label).lower() == "true" if is_unpaired(record) else label
    reward = float(fields.checked(good, "the field 'label'", bool, "true or false"))
    key = next((key for key in ("completion", *CONVERSATIONS) if key in record), "completion")
    query, answers = _answers(query_of(record), {key: _side(record, key)})
    return [Comparison(query, tuple(answers[key][:1]), None, (reward,), name, categories(record))]
