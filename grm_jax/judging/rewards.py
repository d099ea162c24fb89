"""Rewards of groups: the pure function under the server and every adapter; no JAX is imported.

    groups = [Group("What is 2 + 2?", ("It is 4.", "It is 5.", "Four."))]
    (result,) = score(groups, Judge.load("path/to/model"), k=8, reward="mean")
    result.values        # such as [8.25, 1.5, 8.0]; None where a response has no reward

`reward_rules.REWARDS` has the rewards, `blocks` the blocks of large groups.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grm_jax.commands import Number
from grm_jax.endpoint import EndpointError
from grm_jax.judging import blocks, votes
from grm_jax.judging.groups import FAILED, UNPARSED, Group, GroupRewards, ResponseReward, groups_of
from grm_jax.judging.options import MAX_INT, Options
from grm_jax.judging.reward_rules import REWARDS, RewardRule
from grm_jax.registry import check_keywords, nearest
from grm_jax.types import (
    FAILED as NO_TEXT,
    UNPARSED as UNPARSED_CRITIQUES,
    Comparison,
    Critique,
    Verdict,
)

if TYPE_CHECKING:
    from grm_jax.judging.judge import Judge
    from grm_jax.text.rendering import Template

MAX_RESPONSES = 32  # in one prompt, as `text.rendering.MAX_RESPONSES`


# ---------------------------------------------------------------- options

_NUMBERS = {
    "block_size": Number(int, 1, MAX_RESPONSES),
    "length_penalty": Number(float, 0, 1e6),
    "length_free": Number(int, 0, MAX_INT),
}
_OF_JUDGE = ("k", "temperature", "seed", "max_new_tokens", "top_p", "top_k", "k_meta", "principles")


@dataclasses.dataclass(frozen=True)
class RewardOptions:
    """Settings of a call of `score`; all are values of JSON.

    Attributes:
      k: critiques per prompt.
      temperature, seed, top_p, top_k: of the sampler.
      max_new_tokens: longest critique; None for the judge's own.
      k_meta: critiques that the meta reward model keeps; half of k if None.
      principles: "own" (each critique writes its own), or "first" (one call that sees the prompt
        alone writes them, for all groups of that prompt). A group's own text replaces both.
      reward: a name of `REWARDS`.
      block_size: most responses in one prompt, 1 to 32. 1 judges every response alone.
      length_penalty: points subtracted per 1,000 characters beyond `length_free`.
      length_free: characters of a response without penalty.
      critiques: return the critiques.

    Raises:
      ValueError: names the setting and its value.
    """

    k: int = 8
    temperature: float = 0.5
    seed: int = 0
    max_new_tokens: int | None = None
    top_p: float = 1.0
    top_k: int = 0
    k_meta: int | None = None
    principles: str = "own"
    reward: str = "mean"
    block_size: int = MAX_RESPONSES
    length_penalty: float = 0.0
    length_free: int = 0
    critiques: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.reward, str):
            raise ValueError(f"reward = {self.reward!r:.80}: use one of {', '.join(REWARDS)}")
        _ = REWARDS[self.reward]
        for name, number in _NUMBERS.items():
            object.__setattr__(self, name, number.check(f"{name} = ", getattr(self, name)))
        if not isinstance(self.critiques, bool):
            raise ValueError(f"critiques = {self.critiques!r:.80}: use True or False")
        if self.block_size == 1 and self.reward == "win_rate":
            raise ValueError(
                "block_size = 1 judges every response alone, and reward 'win_rate' compares those "
                "of one prompt: use reward 'rank' or 'mean', or a larger block_size"
            )
        checked = self.of_judge(1 if self.max_new_tokens is None else self.max_new_tokens)
        for name in _OF_JUDGE:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(checked, name))

    @property
    def rule(self) -> RewardRule:
        """The reward."""
        return REWARDS[self.reward]

    def of_judge(self, max_new_tokens: int, principles: str | None = None) -> Options:
        """Returns the settings of the judge. principles: a group's own."""
        fields = {name: getattr(self, name) for name in _OF_JUDGE}
        if self.max_new_tokens is None:
            fields["max_new_tokens"] = max_new_tokens
        expected = self.rule.needs == "expected_scores"
        vote = "expected" if expected else "sum"  # raises NoVote if no critique has them
        return Options(**fields, vote=vote, given_principles=principles)


def options_of(fields: Mapping[str, Any]) -> RewardOptions:
    """Returns the options of a JSON object. Raises ValueError that names a wrong or unknown one."""
    names = [field.name for field in dataclasses.fields(RewardOptions)]
    for name in fields:
        if name not in names:
            raise ValueError(f"unknown field {name!r:.80}: {nearest(name, names)}")
    return RewardOptions(**fields)


# ---------------------------------------------------------------- score


@dataclasses.dataclass(frozen=True)
class _Block:
    """Responses of a group that one prompt shows.

    comparison: their different texts.  owners: the caller's indices of each text.
    """

    comparison: Comparison
    owners: tuple[tuple[int, ...], ...]

    @property
    def members(self) -> list[int]:
        """The caller's indices of all responses."""
        return sorted(i for indices in self.owners for i in indices)


def score(
    groups: Sequence[Group | Mapping[str, Any]],
    judge: Judge,
    options: RewardOptions | None = None,
    **keywords: Any,
) -> list[GroupRewards]:
    """Returns the rewards of groups of responses, in the order of the groups.

    A group's rewards depend on the judge, the group and the options alone, not on the other groups
    or on the order of its responses: the judge sees them in an order drawn from their texts and the
    seed. Responses of equal text are shown once and get equal rewards. A group of one response is
    judged by the template for one response, a larger one listwise; one of more than `block_size`
    responses in overlapping blocks (`blocks.design`), whose values are made comparable
    (`blocks.combine`).

        reward = value - length_penalty * max(0, characters - length_free) / 1000

    where `value` is of `REWARDS`, and characters are the Unicode code points of the response.

    Statuses of a response: "scored"; "unparsed" if no critique that saw it has scores; "failed" if
    no prompt with it could be judged (too long, no reply of an endpoint, an error of the sampler).
    Only "scored" has a number.

    Args:
      groups: `Group` objects, or JSON objects with their fields.
      keywords: fields of `RewardOptions`, which replace those of `options`.

    Raises:
      ValueError: a malformed group, named as groups[i]; a wrong option; a reward that a group of
        one response cannot have, or that this judge cannot compute.
      TypeError: an unknown option.
    """
    check_keywords("score()", keywords, [field.name for field in dataclasses.fields(RewardOptions)])
    options = dataclasses.replace(options or RewardOptions(), **keywords)
    groups = groups_of(groups)
    for i, group in enumerate(groups):
        if problem := _problem(group, judge, options):
            raise ValueError(f"groups[{i}] {problem}")
    blocks_of = [list(_blocks(group, judge, options)) for group in groups]
    results = iter(_judged(groups, blocks_of, judge, options))
    return [
        _group_rewards(group, [(block, next(results)) for block in members], options)
        for group, members in zip(groups, blocks_of)
    ]


def _problem(group: Group, judge: Judge, options: RewardOptions) -> str:
    """Returns why a group cannot have this reward from this judge, or ""."""
    if len(group.responses) < options.rule.min_responses:
        return (
            f"has one response, and reward {options.reward!r} compares responses of a group: send "
            "the whole group, or use reward 'mean'"
        )
    if group.reference and not judge.is_scalar:
        template = _template(group, judge, options)
        if not template.own and "principles" in template.needs:
            return (
                f"has a reference, and template {template.name!r} shows the principles alone: use "
                "principles='own' and no principles of the group, or a template of your own"
            )
    return ""


def _template(group: Group, judge: Judge, options: RewardOptions) -> Template:
    settings = options.of_judge(judge.max_new_tokens, group.principles)
    return judge.template_for(group.comparison, settings)


def _blocks(group: Group, judge: Judge, options: RewardOptions) -> Iterator[_Block]:
    """Yields the blocks of a group, of its different texts in an order drawn from the seed."""
    owners: dict[str, list[int]] = {}
    for i, text in enumerate(group.responses):
        owners.setdefault(text, []).append(i)
    texts = sorted(owners, key=lambda text: _key(text, options.seed))
    most = len(texts)  # a scalar reward model sees every response alone
    if not judge.is_scalar:
        most = min(options.block_size, _template(group, judge, options).n_max)
    for indices in blocks.design(len(texts), most):
        shown = [texts[i] for i in indices]
        comparison = Comparison(group.prompt, shown, group.reference)
        yield _Block(comparison, tuple(tuple(owners[text]) for text in shown))


def _key(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()


def _judged(
    groups: Sequence[Group],
    blocks_of: Sequence[Sequence[_Block]],
    judge: Judge,
    options: RewardOptions,
) -> list[Verdict | str]:
    """Returns the verdict of every block, or the reason why there is none."""
    comparisons, settings = [], []
    for group, members in zip(groups, blocks_of):
        comparisons += [block.comparison for block in members]
        settings += [options.of_judge(judge.max_new_tokens, group.principles)] * len(members)
    results: list[Verdict | str] = ["the judge returned no verdict"] * len(comparisons)
    try:
        for i, result in judge.stream(comparisons, settings):
            results[i] = result if isinstance(result, Verdict) else result.reason
    except EndpointError as error:
        results = [str(error) if isinstance(result, str) else result for result in results]
    return results


def _group_rewards(
    group: Group, judged: Sequence[tuple[_Block, Verdict | str]], options: RewardOptions
) -> GroupRewards:
    """Returns the rewards of a group from the verdicts of its blocks."""
    rule = options.rule
    values: list[dict[int, float]] = []
    weights: list[float] = []
    verdicts = [(block, result) for block, result in judged if isinstance(result, Verdict)]
    for block, verdict in verdicts:
        if voters := [_in_group(c, block) for c in _voters(verdict, rule)]:
            members = block.members
            values.append(dict(zip(members, rule.function(voters, len(members)))))
            weights.append(len(voters))
    combined = blocks.combine(values, weights) if values else {}
    if rule.in_group and len(combined) > 1:
        combined = dict(zip(combined, rule.in_group(list(combined.values()))))
    elif rule.in_group:
        combined = {}
    rewards = [
        ResponseReward(combined[i] - _length_penalty(text, options))
        if i in combined
        else _no_reward(i, judged)
        for i, text in enumerate(group.responses)
    ]
    critiques = [_in_group(c, block) for block, verdict in verdicts for c in verdict.critiques]
    return GroupRewards(
        id=group.id,
        rewards=tuple(rewards),
        critiques=tuple(critiques) if options.critiques else (),
        principles=next((verdict.principles for _, verdict in verdicts), group.principles),
        prompt_tokens=sum(verdict.prompt_tokens for _, verdict in verdicts),
        new_tokens=sum(critique.tokens for critique in critiques),
    )


def _voters(verdict: Verdict, rule: RewardRule) -> list[Critique]:
    """Returns the critiques that count: parsed, kept by the meta reward model if there is one.

    The rewards of a scalar reward model count as the scores of one critique.
    """
    if verdict.is_scalar:
        order = tuple(range(len(verdict.scores)))
        return [Critique("", scores=verdict.scores, order=order, status="ok")]
    kept = range(len(verdict.critiques)) if verdict.kept is None else verdict.kept
    parsed = votes.parsed([verdict.critiques[i] for i in kept])
    return [critique for critique in parsed if getattr(critique, rule.needs) is not None]


def _in_group(critique: Critique, block: _Block) -> Critique:
    """Returns a critique in the caller's indices; see `GroupRewards.critiques`."""
    at = {i: position for position, owners in enumerate(block.owners) for i in owners}
    pick = lambda scores: scores and tuple(scores[at[i]] for i in block.members)
    return dataclasses.replace(
        critique,
        order=tuple(i for position in critique.order for i in block.owners[position]),
        scores=pick(critique.scores),
        expected_scores=pick(critique.expected_scores),
    )


def _length_penalty(text: str, options: RewardOptions) -> float:
    return options.length_penalty * max(0, len(text) - options.length_free) / 1000


def _no_reward(i: int, judged: Sequence[tuple[_Block, Verdict | str]]) -> ResponseReward:
    """Returns the status and the reason of a response that has no value."""
    results = [result for block, result in judged if i in block.members]
    critiques = [c for result in results if isinstance(result, Verdict) for c in result.critiques]
    if not critiques:
        return ResponseReward(None, FAILED, next(str(result) for result in results))
    if votes.parsed(critiques):
        return ResponseReward(None, FAILED, "no other response of the group has scores")
    return ResponseReward(None, UNPARSED, _unparsed_reason(critiques))


def _unparsed_reason(critiques: Sequence[Critique]) -> str:
    """Returns the counts of the statuses in words, and what to do about the most frequent one."""
    counts = Counter(critique.status for critique in critiques)
    words = {name: text for name, (text, _) in UNPARSED_CRITIQUES.items()} | {
        NO_TEXT: "have no text, as their requests failed"
    }
    texts = ", ".join(f"{count} {words[name]}" for name, count in counts.most_common())
    advice = UNPARSED_CRITIQUES.get(counts.most_common(1)[0][0], ("", "send the group again"))[1]
    return (
        f"none of {len(critiques)} critiques has scores: {texts}. What to do: "
        f"{advice.replace('--', '')}"
    )
