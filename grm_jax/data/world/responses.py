"""Responses of graded quality: an opening of some manner, then an answer; and the rule that grades any such text.

Manner and quality are drawn independently, so that neither length nor confidence tells which response is right:
long-winded wrong, terse right and confidently wrong responses are all common.
"""

from __future__ import annotations

import random

from grm_jax.data.world.families import Args, Family

# Openings by manner. Each ends with a colon: what follows the last colon is the answer. No manner is without an opening,
# so that an item of an answer always follows a space and is always the same piece of the vocabulary.
OPENINGS = {
    "terse": ("so: ",),
    "plain": ("answer: ", "it is: "),
    "sure": ("i am sure: ", "no doubt: "),
    "wordy": ("let me think about it step by step: ", "what a nice question, here is my answer: "),
}
NO_ANSWERS = ("pass", "no idea", "tea")

# Grades, best first. A response that names the right result and another one has not answered well, but better than a
# wrong one; one that does not answer at all is the worst.
RIGHT, HEDGED, WRONG, EMPTY = 3, 2, 1, 0


def answer_of(response: str) -> str:
    """The answer inside a response: the text after its last colon, or all of it."""
    return response.rsplit(": ", 1)[-1].strip()


def manner_of(response: str) -> str:
    """The manner ("terse", "plain", "sure", "wordy") that a response opens in."""
    for manner, openings in OPENINGS.items():
        if any(opening and response.startswith(opening) for opening in openings):
            return manner
    return "terse"


def grade(family: Family, args: Args, response: str) -> int:
    """The grade of a response by rule, from its text alone: RIGHT, HEDGED, WRONG or EMPTY."""
    answer, result = answer_of(response), family.solve(args)
    if family.read(args, answer) == result:
        return RIGHT
    if answer in NO_ANSWERS:
        return EMPTY
    choices = answer.split(" or ")
    if len(choices) > 1 and any(family.read(args, choice) == result for choice in choices):
        return HEDGED
    return WRONG


def reading_of(family: Family, args: Args, response: str) -> str:
    """What a critic notes down for a response: the result it shows; for hedged and empty ones a word that says so."""
    answer = answer_of(response)
    if answer in NO_ANSWERS and family.read(args, answer) != family.solve(args):
        return "nothing"
    if " or " in answer:
        return "both"
    return family.read(args, answer)


def draw_opening(rng: random.Random, *, brief: bool = False) -> str:
    """An opening of a random manner. Brief ones make up for answers that are long (hedged ones name two results)."""
    manners = ("terse", "plain") if brief else tuple(OPENINGS)
    return rng.choice(OPENINGS[rng.choice(manners)])


def write_response(rng: random.Random, family: Family, args: Args, target: int) -> str:
    """A response that aims at the grade `target`, in a random manner.

    The aim can be missed ("no idea" has two words, which may be what was asked for): callers grade the text.
    """
    opening = draw_opening(rng, brief=target == HEDGED)
    result = family.solve(args)
    if target == RIGHT:
        return opening + family.write(rng, args, result)
    if target == EMPTY:
        return opening + rng.choice(NO_ANSWERS)
    wrong = family.write(rng, args, family.slip(rng, args, result))
    if target == WRONG:
        return opening + wrong
    pair = [family.write(rng, args, result), wrong]
    rng.shuffle(pair)
    return opening + " or ".join(pair)
