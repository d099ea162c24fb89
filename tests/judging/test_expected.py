"""Expected scores against brute force over all scores, with full forward passes."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_judge import fake_judge, well_formed, world_tokenizer
from flax import nnx

from grm_jax.judging import expected
from grm_jax.judging.expected import ExpectedScores, TokenTree, model_log_probs, row_program
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


@pytest.mark.parametrize("after", ["", " Done. Some more words follow."])
def test_none_after_a_byte_that_is_no_text(log_probs, tokenizer, after):
    """Decoded, it is three bytes long, so that the places of the scores would be wrong."""
    ids = [*tokenizer.encode("fine"), tokenizer.id_of("<0xFF>")]
    ids += tokenizer.encode(f" so \\boxed{{7, 4}}{after}")
    critique = parse(tokenizer.decode(ids), 2)
    assert critique.scores == (7, 4)
    exact, template = ExpectedScores(log_probs, tokenizer), templates.load("compact")
    assert exact([([1], ids, critique)], template) == [None]


def test_none_on_a_scale_with_values_of_three_tokens(log_probs, tokenizer):
    ids = tokenizer.encode("\\boxed{100, 40}")
    template = dataclasses.replace(templates.load("compact"), low=0, high=100)
    critique = parse(tokenizer.decode(ids), 2, 0, 100)
    assert critique.scores == (100, 40)
    assert ExpectedScores(log_probs, tokenizer)([([1], ids, critique)], template) == [None]


@pytest.mark.parametrize("scores", [(7, 4), (1, 10), (10, 10), (3, 1)])
def test_equal_to_brute_force(model, log_probs, tokenizer, scores):
    text = well_formed(scores)
    prompt, ids = tokenizer.encode(PROMPT, bos=True), tokenizer.encode(text)
    critique, template = parse(text, 2), templates.load("compact")
    exact = ExpectedScores(log_probs, tokenizer)
    places = exact.locate(ids, text, critique, template)
    assert [lead for _, lead in places] == ["", " "]  # this vocabulary splits "{7" and ", 4"
    sample, expectations = (prompt, ids, critique), []
    (place_masses,) = exact._masses([sample], [(0, exact._places(ids, critique, template))])
    for (place, lead), one in zip(places, place_masses, strict=True):
        masses = by_brute_force(model, tokenizer, prompt, ids, place, lead, range(1, 11))
        expectations.append(sum(value * p for value, p in masses.items()))
        shares = np.array(list(one.values())) / sum(one.values())
        np.testing.assert_allclose(shares, list(masses.values()), rtol=1e-3)
    (scored,) = exact([sample], template)
    np.testing.assert_allclose(scored, expectations, rtol=2e-4)


def test_ten_takes_its_probability_from_one(tokenizer):
    one, zero, seven = map(tokenizer.id_of, "107")
    known = {one: 0.5, zero: 0.4, seven: 0.5}  # of 0: after a 1

    def log_probs(row):
        width = max(map(len, row.targets))
        probs = np.full((len(row.queries), width), 1e-30)
        for probs_W, tokens in zip(probs, row.targets):
            probs_W[: len(tokens)] = [known.get(token, 1e-30) for token in tokens]
        return np.log(probs)

    text = "### Score\n\\boxed{7}"
    ids, template = tokenizer.encode(text), templates.load("compact/single")
    (scores,) = ExpectedScores(log_probs, tokenizer)([([2], ids, parse(text, 1))], template)
    assert scores == pytest.approx((0.3 * 1 + 0.2 * 10 + 0.5 * 7,))


@pytest.mark.parametrize("row_tokens", [4096, 90])
def test_critiques_of_a_comparison_do_not_affect_each_other(
    log_probs, tokenizer, monkeypatch, row_tokens
):
    """Two orders, critiques of several lengths, one unparsed; in one pass and in several."""
    monkeypatch.setattr(expected, "ROW_TOKENS", row_tokens)
    template = templates.load("compact")
    prompts = [tokenizer.encode(f"{PROMPT} {end}", bos=True) for end in ("a blue moon", "a cat")]
    texts = [well_formed((7, 4)), "a red " + well_formed((1, 10)), "no box", well_formed((10, 2))]
    samples = [
        (prompts[i % 2], tokenizer.encode(text), parse(text, 2)) for i, text in enumerate(texts)
    ]
    scores = ExpectedScores(log_probs, tokenizer)
    passes = []
    counting = ExpectedScores(lambda row: passes.append(row) or log_probs(row), tokenizer)
    together = counting(samples, template)
    assert (len(passes) == 1) == (row_tokens == 4096)
    for sample, got in zip(samples, together, strict=True):
        (alone,) = scores([sample], template)
        assert (got is None) == (alone is None) == (sample[2].status != "ok")
        np.testing.assert_allclose(got or (), alone or (), rtol=2e-4)


def test_binary_and_choice(model, log_probs, tokenizer):
    prompt = tokenizer.encode(PROMPT, bos=True)
    exact = ExpectedScores(log_probs, tokenizer)
    text = well_formed([1])
    ids, template = tokenizer.encode(text), templates.load("compact/single_binary")
    ((place, lead),) = exact.locate(ids, text, parse(text, 1, 0, 1), template)
    masses = by_brute_force(model, tokenizer, prompt, ids, place, lead, (0, 1))
    np.testing.assert_allclose(
        exact([(prompt, ids, parse(text, 1, 0, 1))], template), [[masses[1]]], rtol=1e-4
    )
    text = "### Best\n\\boxed{2}"
    ids, template = tokenizer.encode(text), templates.load("compact/llm_judge")
    critique = parse(text, 3, output="choice")
    ((place, lead),) = exact.locate(ids, text, critique, template)
    masses = by_brute_force(model, tokenizer, prompt, ids, place, lead, (1, 2, 3))
    np.testing.assert_allclose(
        exact([(prompt, ids, critique)], template), [[masses[v] for v in (1, 2, 3)]], rtol=1e-4
    )


@pytest.mark.parametrize(
    "text", ["### Scores\n\\boxed{7.5, 4}", "no box", "### Scores\n\\boxed{07, 4}"]
)
def test_none_if_a_score_is_not_a_whole_number(log_probs, tokenizer, text):
    critique = dataclasses.replace(parse(text, 2), order=(0, 1))
    ids, template = tokenizer.encode(text), templates.load("compact")
    (scores,) = ExpectedScores(log_probs, tokenizer)([([2], ids, critique)], template)
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
    gemma_scores = ExpectedScores(lambda *_: None, gemma)
    for scores in ((7, 4), (10, 1), (1, 10)):
        text = well_formed(scores)
        ids = gemma.encode(text)
        places = gemma_scores.locate(ids, text, parse(text, 2), templates.load("grm"))
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
    row = TokenTree()
    row.add([7, 7, 7, 7], 0)
    row.add_query(1, [5, 9])
    row.add_query(3, [7])
    with jax.set_mesh(mesh):
        placed = build_model(model.cfg, nnx.Rngs(0))
        nnx.update(
            placed, jax.device_put(nnx.state(model), state_shardings(nnx.state(placed), mesh))
        )
        slots, queries = np.zeros((6, 64), np.int32), np.arange(4, dtype=np.int32)
        logps = row_program(mesh)(placed, slots, queries, np.zeros((4, 1), np.int32))
    assert logps.sharding.is_fully_replicated and len(logps.sharding.device_set) == 8
    logps, expected = model_log_probs(placed, mesh)(row), model_log_probs(model)(row)
    assert logps.shape == (2, 2)
    np.testing.assert_allclose(logps, expected, atol=1e-4)
