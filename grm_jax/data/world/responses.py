"""Responses of graded quality: an opening in some manner, then an answer; and the grading rule.

Manner and quality are drawn independently, except that a hedged response has a brief opening, to
balance its length. So neither length nor confidence predicts the correct response: long-winded
wrong, terse correct and confidently wrong responses are all common.
"""

import random

from grm_jax.data.world.families import Args, Family

# Openings by manner. Each ends with a colon: the answer follows the last colon. Every manner has an
# opening, so an item of an answer always follows a space and is always the same vocabulary piece.
OPENINGS = {
    "terse": ("so: ",),
    "plain": ("answer: ", "it is: "),
    "sure": ("i am sure: ", "no doubt: "),
    "wordy": ("let me think about it step by step: ", "what a nice question, here is my answer: "),
}
NO_ANSWERS = ("pass", "no idea", "tea")

# Grades, best first. A hedged response names the correct result and another one.
RIGHT, HEDGED, WRONG, EMPTY = 3, 2, 1, 0


def answer_of(response: str) -> str:
    """Returns the answer of a response: the text after its last colon, or all of it."""
    return response.rsplit(": ", 1)[-1].strip()


def manner_of(response: str) -> str:
    """Returns the manner of a response's opening: "terse", "plain", "sure" or "wordy"."""
    for manner, openings in OPENINGS.items():
        if any(opening and response.startswith(opening) for opening in openings):
            return manner
    return "terse"


def grade(family: Family, args: Args, response: str) -> int:
    """Grades a response from its text alone: RIGHT, HEDGED, WRONG or EMPTY."""
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
    """Returns the result that a response gives, "both" if it is hedged, "nothing" if empty."""
    answer = answer_of(response)
    if answer in NO_ANSWERS and family.read(args, answer) != family.solve(args):
        return "nothing"
    if " or " in answer:
        return "both"
    return family.read(args, answer)


def draw_opening(rng: random.Random, *, brief: bool = False) -> str:
    """Draws an opening. Brief ones compensate for long answers (hedged: two results)."""
    manners = ("terse", "plain") if brief else tuple(OPENINGS)
    return rng.choice(OPENINGS[rng.choice(manners)])


def write_response(rng: random.Random, family: Family, args: Args, target: int) -> str:
    """Writes a response intended for the grade `target`, in a random manner.

    Its grade may differ ("no idea" has two words, which may be correct): callers grade the text.
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
