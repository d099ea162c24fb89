"""Groups of a trainer's batch, which has one prompt and one completion per sample."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grm_jax.judging.groups import FAILED, UNPARSED, Group, GroupRewards, ResponseReward
from grm_jax.serving.transcripts import turns_of
from grm_jax.types import Turn


class Unscored(RuntimeError):
    """Responses have no reward, and the trainer takes nothing but numbers."""


class SplitGroup(ValueError):
    """A batch has parts of groups, so that their rewards could not be compared."""


# ---------------------------------------------------------------- texts


def prompt_of(prompt: Any) -> str | list[Turn]:
    """Returns the prompt of a trainer, a text or messages, as the prompt of a group.

    A text with the control tokens of a chat template becomes turns.
    """
    return turns_of(prompt) if isinstance(prompt, str) else turns(prompt)


def turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Returns messages as turns of a conversation. Raises ValueError for one that has no role."""
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"a message has no role: {message!r:.80}")
    return [{"role": m["role"], "content": message_text(m.get("content"))} for m in messages]


def completion_text(completion: Any) -> str:
    """Returns the text of a completion, a text or messages.

    Of several messages, such as calls of tools and their results, it is the text of the last.
    """
    if isinstance(completion, str):
        return completion
    return turns(completion)[-1]["content"] if len(completion) else ""


def message_text(content: Any) -> str:
    """Returns the text of a message's content: a text, None, or a list of parts.

    Raises ValueError for a part that is no text, such as an image.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise ValueError(f"a message has a part that is no text: {part!r:.80}")
        texts.append(text)
    return "".join(texts)


# ---------------------------------------------------------------- groups


def sizes_of_runs(prompts: Sequence[Any]) -> list[int]:
    """Returns how many equal prompts follow each other, such as [4, 4] of a a a a b b b b."""
    return [len(list(run)) for _, run in itertools.groupby(prompts, key=json_key)]


def json_key(value: Any) -> str:
    """Returns a text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def groups_of_batch(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    size: int,
    references: Sequence[Any] | None = None,
    principles: Sequence[Any] | None = None,
) -> Iterator[Group]:
    """Yields the groups of a batch in which the samples of a prompt follow each other.

    Raises SplitGroup if `size` successive samples have different prompts.
    """
    for start in range(0, len(prompts), size):
        members = slice(start, start + size)
        if len(prompts[members]) < size or len(sizes_of_runs(prompts[members])) > 1:
            raise SplitGroup(
                f"samples {start} to {start + size - 1} have different prompts: the {size} samples "
                "of a prompt must follow each other in one batch"
            )
        texts = [completion_text(completion) for completion in completions[members]]
        yield Group(
            prompt_of(prompts[start]),
            tuple(texts),
            _text_at(references, start),
            _text_at(principles, start),
        )


def _text_at(column: Sequence[Any] | None, index: int) -> str | None:
    value = None if column is None else column[index]
    return None if value is None else str(value)


def flat(results: Sequence[GroupRewards]) -> list[ResponseReward]:
    """Returns the rewards of all groups in the order of the samples."""
    return [reward for result in results for reward in result.rewards]


def shares(rewards: Sequence[ResponseReward]) -> dict[str, float]:
    """Returns the shares of samples with status "unparsed" and "failed"."""
    statuses = [reward.status for reward in rewards]
    return {status: statuses.count(status) / len(statuses) for status in (UNPARSED, FAILED)}


def first_reason(rewards: Sequence[ResponseReward], status: str) -> str:
    """Returns how many samples have a status, and the reason of the first."""
    matches = [reward for reward in rewards if reward.status == status]
    return f"{len(matches)} of {len(rewards)} responses are {status}: {matches[0].reason}"
