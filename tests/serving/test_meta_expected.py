"""A server with a meta reward model and expected scores gives the rewards of `score`."""

import pytest
from fake_judge import world_tokenizer
from flax import nnx
from toy_server import Lengths, build, serving, toy_judge, toy_model

from grm_jax.devices import watch_compilations
from grm_jax.judging.expected import ExpectedScores, model_log_probs
from grm_jax.judging.groups import rewards_to_json
from grm_jax.judging.meta import MetaRM
from grm_jax.judging.rewards import score
from grm_jax.models import build_model, get_config
from grm_jax.serving.limits import Limits

LENGTHS = Lengths(max_prompt=96, max_new_tokens=24)
GROUPS = [
    {"prompt": "name a moon", "responses": ["a blue moon", "a red cat"]},
    {"prompt": "name a cat " * 8, "responses": ["a blue cat", "a red moon " * 3]},
]
OPTIONS = [{"k": 4}, {"k": 4, "k_meta": 1}, {"k": 4, "k_meta": 3, "reward": "expected"}]


class Expected(ExpectedScores):
    """Reads the scores at the last two tokens; the toy's texts are not those of its tokens."""

    def locate(self, ids, text, critique, template):
        return [(len(ids) - 2, ""), (len(ids) - 1, "")]


@pytest.fixture(scope="module")
def judge():
    tokenizer = world_tokenizer()
    cfg = get_config("tiny_gemma2", scalar_head=True, vocab_size=tokenizer.vocab_size)
    model = build_model(cfg.replace(max_length=1024, num_layers=2), nnx.Rngs(1))
    return toy_judge(
        meta_rm=MetaRM(model, tokenizer, "compact/meta_rm"),
        expected=Expected(model_log_probs(toy_model()), tokenizer),
    )


@pytest.fixture(scope="module")
def server(judge):
    limits = Limits(read_timeout=60.0, responses=4)
    with serving(build(judge, limits, LENGTHS, (4, 2), expected=True)) as running:
        yield running


def test_rewards_equal_those_of_score_and_compile_nothing(server, judge):
    compiled, replies = [], []
    with watch_compilations(lambda n, done: compiled.append(n)):
        for options in OPTIONS:
            fields = {"groups": GROUPS, "critiques": True, **options}
            replies.append(server.post("/v1/score", fields).json())
    assert not compiled
    for options, reply in zip(OPTIONS, replies):
        results = score(GROUPS, judge, critiques=True, **options)
        assert reply.get("groups") == [rewards_to_json(result) for result in results], options
        assert {r["status"] for g in reply["groups"] for r in g["rewards"]} == {"scored"}
        assert all(c["meta_score"] is not None for g in reply["groups"] for c in g["critiques"])
    means = [[r["reward"] for r in reply["groups"][0]["rewards"]] for reply in replies]
    assert means[0] != means[1]  # the meta reward model selects
    assert any(value % 1 for value in means[2])  # expectations
