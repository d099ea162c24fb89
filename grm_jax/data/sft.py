"""Examples for supervised fine-tuning: a chat prompt and a completion, as text and as tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grm_jax.data import fields
from grm_jax.data.records import Account, Malformed, read_records
from grm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and the completion to learn.

    Attributes:
      messages: the prompt as chat turns; the last one is the user's.
      completion: the assistant's text; the loss is over its tokens only.
      kind: its source, for counts: "general", "hinted", "non_hinted" or any other name.
      id: name of its record.
    """

    messages: tuple[dict[str, str], ...]
    completion: str
    kind: str = "general"
    id: str | None = None


def read_examples(
    path: str | Path, max_skipped: float = 0.0, account: Account | None = None
) -> Iterator[Example]:
    """Yields the examples of a file, see `example_of`.

    A malformed record is logged with its line and skipped, up to the share `max_skipped` (see
    `records.Account`).
    """
    account = Account() if account is None else account
    account.max_share = max_skipped
    for record in read_records(path):
        account.seen += 1
        try:
            if record.problem:
                raise Malformed(record.problem)
            yield example_of(record.fields, f"{Path(path).stem}-{record.line}")
        except Malformed as error:
            account.report(str(path), record.line, str(error))
            account.check()
    account.check(final=True)


def example_of(record: dict, name: str) -> Example:
    """Returns the example of a record. Raises Malformed.

    A record is {"messages", "completion"}, {"query", "answer"}, or {"messages"}: a chat whose last
    turn is the completion. The prompt ends with a turn of the user or of a tool.
    """
    record = {key: value for key, value in record.items() if value is not None}
    if "query" in record and "answer" in record:
        prompt = [{"role": "user", "content": fields.text(record, "query")}]
        completion = fields.text(record, "answer")
    else:
        if "completion" not in record and not record.get("messages"):
            raise Malformed("no 'completion', no 'query' with 'answer', and no chat in 'messages'")
        prompt = fields.turns(fields.items(record, "messages", "turns"), "the field 'messages'")
        if "completion" in record:
            completion = fields.text(record, "completion")
        else:
            *prompt, last = prompt
            if last["role"] != "assistant":
                raise Malformed(
                    f"the chat ends with a turn of the {last['role']}: end with the assistant's, "
                    "which is the completion"
                )
            completion = last["content"]
    if not completion:
        raise Malformed("the completion is empty: give a text")
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise Malformed("the completion does not follow a turn of the user")
    kind = fields.text(record, "kind") if "kind" in record else "general"
    id = fields.own_id(record) or name
    return Example(tuple(prompt), completion, kind, id)


def from_instruction(instruction: Any) -> Example:
    """Returns the example of a general instruction of the judging world."""
    prompt = {"role": "user", "content": instruction.query}
    return Example((prompt,), instruction.answer, "general", instruction.id)


def encode(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns (prompt ids, completion ids).

    The completion ends with "<end_of_turn>", or with the end of text if the vocabulary lacks it.
    """
    prompt = tokenizer.encode_chat(list(example.messages), add_generation_prompt=True)
    end = tokenizer.id_of("<end_of_turn>")
    end = tokenizer.eos_id if end is None else end
    if end is None:
        raise ValueError("the tokenizer has neither <end_of_turn> nor an end-of-text token")
    return prompt, [*tokenizer.encode(example.completion), end]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of many examples in two flat arrays.

    Attributes:
      tokens: int32, the concatenated examples, each its prompt and then its completion.
      ends: int64 (examples,), end of each in `tokens`.
      prompts: int32 (examples,), length of each prompt.
    """

    tokens: np.ndarray
    ends: np.ndarray
    prompts: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, prompt and completion."""
        return np.diff(self.ends, prepend=0)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Returns (tokens, prompt length) of example i."""
        start = self.ends[i - 1] if i else 0
        return self.tokens[start : self.ends[i]], int(self.prompts[i])

    def save(self, folder: str | Path) -> None:
        """Writes three .npy files for `Encoded.load`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for field in dataclasses.fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: str | Path) -> Encoded:
        """Memory-maps what `save` wrote."""
        paths = [Path(folder) / f"{field.name}.npy" for field in dataclasses.fields(cls)]
        return cls(*(np.load(path, mmap_mode="r") for path in paths))


def encode_all(
    examples: Sequence[Example], tokenizer: Tokenizer, max_skipped: float = 0.01
) -> Encoded:
    """Encodes examples into flat arrays.

    An example that the chat format rejects, such as two turns of the user in a row, is logged with
    its id and skipped. Raises TooManyMalformed above the share `max_skipped`.
    """
    tokens, prompts = [np.zeros(0, np.int32)], []
    account = Account(max_skipped, "examples for the chat format of this model")
    for number, example in enumerate(examples, 1):
        account.seen += 1
        try:
            prompt, completion = encode(example, tokenizer)
        except ValueError as error:
            account.report(f"example {example.id}", number, str(error))
            account.check()
            continue
        tokens.append(np.array(prompt + completion, np.int32))
        prompts.append(len(prompt))
    account.check(final=True)
    ends = np.cumsum([len(ids) for ids in tokens[1:]], dtype=np.int64)
    return Encoded(np.concatenate(tokens), ends, np.array(prompts, np.int32))
