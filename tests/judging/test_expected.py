"""Expected scores against brute force over all scores, with full forward passes."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_judge import fake_judge, well_formed, world_tokenizer
from flax import nnx

from grm_jax.judging.expected import ExpectedScores, model_log_probs, positions_program
from grm_jax.judging.options import Options
from grm_jax.models import build_model, get_config
from grm_jax.sharding import make_mesh, state_shardings
from grm_jax.text import parse, templates, tokenizer as tokenizers
from grm_jax.types import Comparison

PROMPT = "Judge these."


@pytest.fixture(scope="module")
def tokenizer():
    return world_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    cfg = get_config("tiny_gemma2").replace(
        vocab_size=tokenizer.vocab_size, max_length=512, final_cap=None
    )
    model = build_model(cfg, nnx.Rngs(0))
    # Sharper, so that probabilities differ between positions by more than rounding.
    model.embedder.table_VxD[...] = model.embedder.table_VxD[...] * 4
    return model


@pytest.fixture(scope="module")
def log_probs(model):
    return model_log_probs(model)


def by_brute_force(model, tokenizer, prompt, ids, place, lead, values):
    """Returns P of each value at one position: the product of its tokens; P(1) without P(10)."""
    forward = nnx.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    before = prompt + ids[:place]

    def probability(pieces):
        tokens = [tokenizer.id_of(piece.replace(" ", "▁")) for piece in pieces]
        logps = np.asarray(forward(model, np.array([before + tokens], np.int32)))[0]
        return np.exp(sum(logps[len(before) - 1 + i, token] for i, token in enumerate(tokens)))

    mass = {value: probability([lead + str(value)[0], *str(value)[1:]]) for value in values}
    if 10 in mass:
        mass[1] -= mass[10]
    total = sum(mass.values())
    return {value: p / total for value, p in mass.items()}


@pytest.mark.parametrize("scores", [(7, 4), (1, 10), (10, 10), (3, 1)])
def test_equal_to_brute_force(model, log_probs, tokenizer, scores):
    text = well_formed(scores)
    prompt, ids = tokenizer.encode(PROMPT, bos=True), tokenizer.encode(text)
    critique, template = parse(text, 2), templates.load("compact")
    exact = ExpectedScores(log_probs, tokenizer, negligible=0)
    places = exact.locate(ids, text, critique, template)
    assert [lead for _, lead in places] == ["", " "]  # this vocabulary splits "{7" and ", 4"
    expectations = []
    for place, lead in places:
        masses = by_brute_force(model, tokenizer, prompt, ids, place, lead, range(1, 11))
        expectations.append(sum(value * p for value, p in masses.items()))
    scored = exact(prompt, ids, text, critique, template)
    np.testing.assert_allclose(scored, expectations, rtol=2e-4)
    rough = ExpectedScores(log_probs, tokenizer, negligible=1e-2)(
        prompt, ids, text, critique, template
    )
    assert all(abs(a - b) <= 9e-2 for a, b in zip(rough, scored))


def test_binary_and_choice(model, log_probs, tokenizer):
    prompt = tokenizer.encode(PROMPT, bos=True)
    exact = ExpectedScores(log_probs, tokenizer)
    text = well_formed([1])
    ids, template = tokenizer.encode(text), templates.load("compact/single_binary")
    ((place, lead),) = exact.locate(ids, text, parse(text, 1, 0, 1), template)
    masses = by_brute_force(model, tokenizer, prompt, ids, place, lead, (0, 1))
    np.testing.assert_allclose(
        exact(prompt, ids, text, parse(text, 1, 0, 1), template), [masses[1]], rtol=1e-4
    )
    text = "### Best\n\\boxed{2}"
    ids, template = tokenizer.encode(text), templates.load("compact/llm_judge")
    critique = parse(text, 3, output="choice")
    ((place, lead),) = exact.locate(ids, text, critique, template)
    masses = by_brute_force(model, tokenizer, prompt, ids, place, lead, (1, 2, 3))
    np.testing.assert_allclose(
        exact(prompt, ids, text, critique, template), [masses[v] for v in (1, 2, 3)], rtol=1e-4
    )


@pytest.mark.parametrize(
    "text", ["### Scores\n\\boxed{7.5, 4}", "no box", "### Scores\n\\boxed{07, 4}"]
)
def test_none_if_a_score_is_not_a_whole_number(log_probs, tokenizer, text):
    critique = dataclasses.replace(parse(text, 2), order=(0, 1))
    expected = ExpectedScores(log_probs, tokenizer)
    ids, template = tokenizer.encode(text), templates.load("compact")
    scores = expected([2], ids, text, critique, template)
    assert scores is None or text.endswith("{07, 4}")


def test_a_judge_breaks_ties_by_expected_scores(log_probs, tokenizer):
    judge = fake_judge(
        lambda responses, key: well_formed([7] * len(responses)),
        tokenizer=tokenizer,
        expected=ExpectedScores(log_probs, tokenizer),
    )
    (verdict,) = judge([Comparison("q", ("a", "b"))], k=2, vote="expected")
    assert verdict.votes["sum"] == (14, 14) and not verdict.tie
    assert all(1 < score < 10 for score in verdict.scores)
    first, second = verdict.critiques
    assert first.order != second.order
    assert verdict.scores[0] == pytest.approx(
        (first.expected_scores[0] + second.expected_scores[0]) / 2
    )
    with pytest.raises(ValueError, match="built without them"):
        fake_judge(lambda *_: "", tokenizer=tokenizer)([Comparison("q", ("a", "b"))], expected=True)


def test_score_tokens_of_gemmas_own_tokenizer():
    root = Path(os.environ.get("GRM_TOKENIZERS", "/nowhere"))
    if not (root / "gemma3" / "tokenizer.model").is_file():
        pytest.skip("set GRM_TOKENIZERS to a folder with gemma3/tokenizer.model")
    gemma = tokenizers.load(root / "gemma3" / "tokenizer.model")
    expected = ExpectedScores(lambda *_: None, gemma)
    for scores in ((7, 4), (10, 1), (1, 10)):
        text = well_formed(scores)
        ids = gemma.encode(text)
        places = expected.locate(ids, text, parse(text, 2), templates.load("grm"))
        assert [gemma.decode([ids[at]]).strip() for at, _ in places] == [
            str(score)[0] for score in scores
        ]
        assert all(
            gemma.id_of(lead.replace(" ", "▁") + str(d)) is not None
            for _, lead in places
            for d in range(10)
        )


def test_a_comparison_without_expected_scores_fails_alone(log_probs, tokenizer):
    judge = fake_judge(
        lambda responses, key: well_formed([7.5 if "half" in responses else 7, 4]),
        tokenizer=tokenizer,
        expected=ExpectedScores(log_probs, tokenizer),
    )
    pairs = [Comparison("q", ("half", "b")), Comparison("q", ("a", "b"))]
    results = dict(judge.stream(pairs, Options(k=1, vote="expected")))
    assert "whole numbers" in results[0].reason and len(results[1].scores) == 2


def test_log_probs_are_replicated_over_the_mesh(model):
    """Every host reads the result of the program."""
    mesh = make_mesh(2, 2, 2)
    tokens, positions = np.full((1, 64), 7, np.int32), np.arange(4, dtype=np.int32)
    with jax.set_mesh(mesh):
        placed = build_model(model.cfg, nnx.Rngs(0))
        nnx.update(
            placed, jax.device_put(nnx.state(model), state_shardings(nnx.state(placed), mesh))
        )
        logps = positions_program(mesh)(placed, tokens, np.ones_like(tokens), positions)
    assert logps.sharding.is_fully_replicated and len(logps.sharding.device_set) == 8
    ids = tokens[0, :4].tolist()
    logps = model_log_probs(placed, mesh)(ids, [1, 3])
    np.testing.assert_allclose(logps, model_log_probs(model)(ids, [1, 3]), atol=1e-4)
