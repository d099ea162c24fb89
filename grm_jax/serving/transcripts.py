"""Prompts and answers in texts with the control tokens of a chat template, as trainers send them.

    split("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>",
          "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n")
    # ([{"role": "user", "content": "Hi"}], "Hello")

The templates of Qwen and other ChatML models, Gemma, Llama 3, DeepSeek, Mistral, Phi and Zephyr are
recognised. A text of another template is returned as it is, without control tokens at both ends.
"""

from __future__ import annotations

import re

from grm_jax.types import Turn

_ROLE = r"(?P<{}>system|developer|user|assistant|model|tool|ipython)"
# Template: what begins a turn, and the control tokens that end it.
_TEMPLATES = {
    "chatml": (r"<\|im_start\|>" + _ROLE.format("chatml") + r"\n", ["<|im_end|>"]),
    "gemma": (r"<start_of_turn>" + _ROLE.format("gemma") + r"\n", ["<end_of_turn>"]),
    "llama": (
        r"<\|start_header_id\|>" + _ROLE.format("llama") + r"<\|end_header_id\|>\n\n",
        ["<|eot_id|>", "<|eom_id|>"],
    ),
    "deepseek": (r"<｜(?P<deepseek>User|Assistant)｜>", ["<｜end▁of▁sentence｜>"]),
    "phi": (r"<\|" + _ROLE.format("phi") + r"\|>\n?", ["<|end|>", "</s>"]),
    "mistral": (r"(?P<mistral>\[/?INST\]) ?", ["</s>"]),
}
_HEADER = re.compile("|".join(header for header, _ in _TEMPLATES.values()))
_ROLES = {
    "developer": "system", "model": "assistant", "ipython": "tool",
    "User": "user", "Assistant": "assistant", "[INST]": "user", "[/INST]": "assistant",
}  # fmt: skip
_BEGIN = ["<bos>", "<s>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"]
_END = [token for _, ends in _TEMPLATES.values() for token in ends]
_END += ["<|endoftext|>", "<|end_of_text|>", "<eos>"]
_PAD = ["<pad>", "<|pad|>", "<unk>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"]


def _any(tokens: list[str]) -> str:
    return "|".join(map(re.escape, tokens))


_BEGINNING = re.compile(rf"(?:{_any(_PAD + _END)})*(?:{_any(_BEGIN)})*")  # left padding first
_ENDING = re.compile(rf"(?:(?:{_any(_END + _PAD)})\s*)+\Z")
_OVERLAP = 64  # characters by which the end of a prompt is found


def turns_of(text: str) -> str | list[Turn]:
    """Returns the conversation of a prompt; a text without turns is returned as a text.

    The empty turn of the assistant at its end, where the answer is to begin, is dropped.
    """
    text = text[_begin(text) :]
    headers = list(_HEADER.finditer(text))
    if not headers:
        return text
    turns: list[Turn] = []
    if first := text[: headers[0].start()].strip():
        turns.append({"role": "system", "content": first})
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends):
        name = header.group(header.lastgroup or 0)
        content = _answer(text[header.end() : end], header.lastgroup).strip()
        turns.append({"role": _ROLES.get(name, name), "content": content})
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns


def split(query: str, prompt: str | None = None) -> tuple[str | list[Turn], str]:
    """Returns (prompt, answer) of a text that holds both.

    Args:
      prompt: the text that `query` begins with; its beginning may be cut off in `query`. Without
        it, the answer is the last turn of the assistant: a policy that writes control tokens can
        then decide what the judge sees as its answer.

    Raises ValueError if the query does not begin with the prompt, or has no turn of the assistant.
    """
    if prompt is None:
        return _split_turns(query)
    header = _HEADER.search(prompt)
    answer = query[_prompt_end(query, prompt) :]
    return turns_of(prompt), _answer(answer, header.lastgroup if header else None)


def _answer(text: str, template: str | None) -> str:
    """Returns a text up to the token that ends a turn of its template."""
    if template is not None:
        _, ends = _TEMPLATES[template]
        text = re.split(_any(ends), text, maxsplit=1)[0]
    return text[: ending.start()] if (ending := _ENDING.search(text)) else text


def _begin(text: str) -> int:
    """Returns the index at which a text begins after control tokens."""
    match = _BEGINNING.match(text)
    return match.end() if match else 0


def _split_turns(query: str) -> tuple[str | list[Turn], str]:
    turns = turns_of(query)
    if isinstance(turns, str) or turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise ValueError(
            f"the query has no turn of the assistant: {query[:60]!r}. Send its prompt in prompts"
        )
    return turns[:-1], turns[-1]["content"]


def _prompt_end(query: str, prompt: str) -> int:
    """Returns the index in `query` at which the answer begins."""
    if query.startswith(prompt):
        return len(prompt)
    begin, begin_of_prompt = _begin(query), _begin(prompt)
    if query.startswith(prompt[begin_of_prompt:], begin):
        return begin + len(prompt) - begin_of_prompt
    tail = prompt[-_OVERLAP:]
    place = query.find(tail)
    if len(tail) == _OVERLAP and place >= 0 and prompt[:-_OVERLAP].endswith(query[begin:place]):
        return place + len(tail)
    raise ValueError(
        f"a query does not begin with its prompt: {query[:60]!r}, and the prompt is {prompt[:60]!r}"
    )
