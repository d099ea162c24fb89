"""A judge whose critiques come from a function: real tokenizer, templates, parser and votes."""

import hashlib
import re

import numpy as np

from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.judging.groups import Group
from grm_jax.judging.judge import Judge
from grm_jax.sampling import Completion
from grm_jax.text import tokenizer as tokenizers

RESPONSE = re.compile(r"\[Response (\d+)\]\n(.*?)\n\[/Response \1\]", re.DOTALL)


def well_formed(scores, analysis="One is better than the other.") -> str:
    """Returns the text of a critique that parses."""
    return (
        "### Principles\n1. Accuracy (60%): the facts are right\n"
        "2. Clarity (40%): easy to follow\n\n"
        f"### Analysis\n{analysis}\n\n### Scores\n\\boxed{{{', '.join(map(str, scores))}}}"
    )


def world_tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.load(vocabulary_path())


def completion(request, sample, ids, finish="stop", error=None) -> Completion:
    nothing = np.zeros(0, np.float32)
    return Completion(request, sample, np.array(ids, np.int32), nothing, nothing, finish, error)


def fake_sampler(tokenizer, write, prompts=None, finish="stop"):
    """Samples write(responses in prompt order, key), key = (item, sample, seed).

    prompts: a list to which the prompts are appended.
    """

    def sample(requests):
        for index, request in enumerate(requests):
            prompt = tokenizer.decode(request.prompt)
            if prompts is not None:
                prompts.append(prompt)
            responses = [text for _, text in RESPONSE.findall(prompt)]
            for number in range(request.k):
                text = write(responses, (request.item, number, request.seed))
                ids = tokenizer.encode(text) + [tokenizer.eos_id] * (finish == "stop")
                yield completion(index, number, ids, finish)

    return sample


def fake_judge(write, **options) -> Judge:
    """A Judge around `write`. options: those of Judge, and prompts and finish of the sampler."""
    tokenizer = options.pop("tokenizer", None) or world_tokenizer()
    sampler = fake_sampler(
        tokenizer, write, options.pop("prompts", None), options.pop("finish", "stop")
    )
    return Judge(tokenizer, sampler, **{"template": "compact", **options})


def by_length(responses, key) -> str:
    """A judge that prefers long responses, with a little noise from the sample's key."""
    noise = hash(key) % 2
    return well_formed([min(10, max(1, len(text) % 9 + 1 + noise)) for text in responses])


def first_wins(responses, key) -> str:
    """A judge with nothing but position bias."""
    return well_formed([9] + [4] * (len(responses) - 1))


# ---------------------------------------------------------------- groups

PRINCIPLES = "### Principles\n1. Truth (100%): it is true"


def by_number(responses, key) -> str:
    """A judge that scores a response by the number it ends in; "3/5" is 3, in sample 1 it is 5."""
    if not responses:
        return PRINCIPLES
    scores = [text.split()[-1].split("/") if text.strip() else ["1"] for text in responses]
    return well_formed([numbers[key[1] % len(numbers)] for numbers in scores])


def group(*scores, **fields) -> Group:
    responses = tuple(f"answer {i} is worth {x}" for i, x in enumerate(scores))
    return Group(**{"prompt": "Question?", "responses": responses, **fields})


def digest_of(texts) -> bytes:
    return hashlib.sha256("|".join(sorted(texts)).encode()).digest()
