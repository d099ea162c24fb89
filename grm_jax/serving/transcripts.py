"""Prompts and answers in texts with the control tokens of a chat template, as trainers send them.

    split("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>",
          "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n")
    # (the second text, "Hello")
    turns_of("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n")      # "Hi"

The templates of Qwen and other ChatML models, Gemma, Llama 3, DeepSeek, Mistral, Phi and Zephyr are
recognised. A text of another template is returned as it is, without control tokens at both ends.
"""

from __future__ import annotations

import re

from grm_jax.types import Turn

_ROLE = r"(?P<{}>system|developer|user|assistant|model|tool|ipython)"
_HEADERS = (
    r"<\|im_start\|>" + _ROLE.format("chatml") + r"\n",
    r"<start_of_turn>" + _ROLE.format("gemma") + r"\n",
    r"<\|start_header_id\|>" + _ROLE.format("llama") + r"<\|end_header_id\|>\n\n",
    r"<｜(?P<deepseek>User|Assistant)｜>",
    r"<\|" + _ROLE.format("phi") + r"\|>\n?",
    r"(?P<mistral>\[/?INST\]) ?",
)
_HEADER = re.compile("|".join(_HEADERS))
_ROLES = {
    "developer": "system", "model": "assistant", "ipython": "tool",
    "User": "user", "Assistant": "assistant", "[INST]": "user", "[/INST]": "assistant",
}  # fmt: skip
_BEGIN = ["<bos>", "<s>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"]
_END = [
    "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|eom_id|>", "<｜end▁of▁sentence｜>", "<|end|>",
    "</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>",
]  # fmt: skip
_PAD = ["<pad>", "<|pad|>", "<unk>", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>"]


def _any(tokens: list[str]) -> str:
    return "|".join(map(re.escape, tokens))


_BEGINNING = re.compile(rf"(?:{_any(_PAD + _END)})*(?:{_any(_BEGIN)})*")  # left padding first
_ENDING = re.compile(rf"(?:(?:{_any(_END + _PAD)})\s*)+\Z")
_THOUGHT = re.compile(r"\s*<think>\s*(?:</think>)?\s*\Z")  # some templates begin the answer
_OVERLAP = 64  # characters by which the end of a prompt is found


def turns_of(text: str) -> str | list[Turn]:
    """Returns the conversation of a prompt: the text alone if it has one user turn, or no turns.

    The turn of the assistant at its end, where the answer begins, is dropped if it is empty or has
    an empty thought.
    """
    text = text[_begin(text) :]
    headers = list(_HEADER.finditer(text))
    if not headers:
        return text
    turns: list[Turn] = []
    if first := _without_end(text[: headers[0].start()]).strip():
        turns.append({"role": "system", "content": first})  # DeepSeek writes no role
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends):
        name = header.group(header.lastgroup or 0)
        content = _without_end(text[header.end() : end]).strip()
        turns.append({"role": _ROLES.get(name, name), "content": content})
    if turns[-1]["role"] == "assistant" and not _THOUGHT.sub("", turns[-1]["content"]):
        turns.pop()
    is_text = len(turns) == 1 and turns[0]["role"] == "user"
    return turns[0]["content"] if is_text else turns


def split(query: str, prompt: str | None = None) -> tuple[str, str]:
    """Returns (prompt, answer) of a text that holds both, the answer without control tokens.

    Control tokens within the answer are text.

    Args:
      prompt: the text that `query` begins with; its beginning may be cut off in `query`. Without
        it, the answer is the last turn: a policy that writes control tokens can then decide what
        the judge sees as its answer.

    Raises ValueError if the query does not begin with the prompt, or has no two turns.
    """
    if prompt is not None:
        return prompt, _without_end(query[_prompt_end(query, prompt) :])
    headers = list(_HEADER.finditer(query))
    if len(headers) < 2:
        raise ValueError(f"the query has no turns: {query[:60]!r}. Send its prompt too")
    end = headers[-1].end()
    return query[:end], _without_end(query[end:])


def _without_end(text: str) -> str:
    ending = _ENDING.search(text)
    return text[: ending.start()] if ending else text


def _begin(text: str) -> int:
    """Returns the index at which a text begins after control tokens."""
    match = _BEGINNING.match(text)
    return match.end() if match else 0


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
