"""Tests the data of rejective fine-tuning: correctness, outcomes, hints, files."""

import dataclasses
import json

import pytest

from experiments import spct_27b, spct_tiny
from grm_jax.data import mixtures, world
from grm_jax.data.sft import Example, read_examples
from grm_jax.data.world import vocabulary
from grm_jax.text import tokenizer
from grm_jax.training import rft, rft_data, rft_samplers, sources
from grm_jax.training.errors import TrainingError
from grm_jax.training.rft_data import CritiqueReply, RftOptions, build, is_correct
from grm_jax.types import Comparison

COMPACT = RftOptions(template="compact")
PAIR = Comparison("q", ("x", "y"), label=1, id="pair")


def scripted(*texts):
    """Returns a sampler of these replies.

    Scores are in the comparison's order: (9, 2) gives response 0 a 9. A string is the whole reply;
    None is a failed request.
    """
    queue = list(texts)

    def sample(requests):
        replies = []
        for request in requests:
            scores = queue.pop(0)
            if scores is None or isinstance(scores, str):
                replies.append(None if scores is None else CritiqueReply(scores))
                continue
            scores_text = ", ".join(str(scores[i]) for i in request.order)
            replies.append(CritiqueReply(f"because\n\n\\boxed{{{scores_text}}}"))
        return replies

    return sample


# ---------------------------------------------------------------- correctness


@pytest.mark.parametrize(
    "label, scores, correct",
    [
        (1, (3, 4), True),
        (1, (4, 4), False),  # a tie with the best is wrong
        (1, (4, 3), False),
        (1, None, False),
        (2, (5, 5, 6), True),  # the order of the other responses does not matter
        (2, (1, 6, 6), False),
        ((0.2, 0.9, 0.4), (1, 3, 2), True),
        ((1.0,), (1,), True),
        ((1.0,), (0,), False),
        ((0.0,), (0,), True),
    ],
)
def test_a_critique_is_correct_if_only_the_best_response_has_the_top_score(label, scores, correct):
    n = len(label) if isinstance(label, tuple) else label + 1
    assert is_correct(Comparison("q", ("r",) * n, label=label), scores) == correct


@pytest.mark.parametrize("label", [None, (0.5, 0.5)])
def test_a_comparison_without_one_best_response_is_an_error(label):
    with pytest.raises(TrainingError, match="exactly one response must be best"):
        build([Comparison("q", ("a", "b"), label=label)], scripted(), COMPACT)


# ---------------------------------------------------------------- outcomes


def test_wrong_samples_are_rejected_and_counted():
    rft_set = build([PAIR], scripted((2, 9), (9, 2), (5, 5), (1, 8)), COMPACT)
    assert rft_set.summary() == {
        "comparison/kept": 1,
        "hinted/kept": 1,
        "non_hinted/kept": 1,
        "non_hinted/tie": 1,
        "non_hinted/wrong": 1,
    }
    assert [e.kind for e in rft_set.examples] == ["non_hinted", "hinted"]


def test_too_easy_drops_only_the_non_hinted_samples():
    rft_set = build([PAIR], scripted((2, 9), (2, 9), (2, 9), (2, 9)), COMPACT)
    assert rft_set.summary() == {
        "comparison/too_easy": 1,
        "hinted/kept": 1,
        "non_hinted/too_easy": 3,
    }
    assert [e.kind for e in rft_set.examples] == ["hinted"]
    # A failed sample leaves fewer than N samples, so the comparison does not count as easy.
    rft_set = build([PAIR], scripted((2, 9), (2, 9), None, (2, 9)), COMPACT)
    assert rft_set.outcomes["non_hinted/kept"] == 2 and rft_set.outcomes["non_hinted/failed"] == 1


def test_unparsed_samples_keep_the_parsers_status():
    rft_set = build([PAIR], scripted("no box", r"\boxed{1}", r"\boxed{11, 2}", (9, 2)), COMPACT)
    assert rft_set.summary() == {
        "comparison/never_right": 1,
        "hinted/wrong": 1,
        "non_hinted/no_scores": 1,
        "non_hinted/out_of_range": 1,
        "non_hinted/wrong_count": 1,
    }
    assert not rft_set.examples and len(rft_set.trials) == 4


def test_without_rejection_every_parsed_sample_is_kept():
    options = RftOptions(template="compact", reject=False)
    rft_set = build([PAIR], scripted((2, 9), (2, 9), (9, 2), "no box"), options)
    assert rft_set.summary() == {"comparison/kept": 1, "hinted/no_scores": 1, "non_hinted/kept": 3}


@pytest.mark.parametrize("samples, hinted", [(0, 1), (3, 0)])
def test_either_kind_of_sample_can_be_disabled(samples, hinted):
    options = RftOptions(template="compact", samples=samples, hinted=hinted)
    rft_set = build([PAIR], scripted(*[(9, 2), (2, 9), (2, 9)][: samples + hinted]), options)
    assert {e.kind for e in rft_set.examples} <= {"hinted" if hinted else "non_hinted"}


def test_without_samples_the_set_has_only_general_instructions(tmp_path):
    assert not build([PAIR], scripted(), RftOptions(template="compact", samples=0, hinted=0)).trials
    from experiments.spct_tiny import get_config

    config = get_config("no_hinted,no_non_hinted")
    config.data.general_items = 5
    config.rft.comparisons = 10
    tok = tokenizer.load(vocabulary.vocabulary_path())
    assert len(rft.prepare(config, tok, None, tmp_path / "a")) == 5
    config.data.general_items = 0
    with pytest.raises(
        TrainingError,
        match="the RFT set is empty.*config.rft.samples=0.*config.data.general_items=0",
    ):
        rft.prepare(config, tok, None, tmp_path / "b")


def test_a_set_of_other_settings_is_built_again_until_training_has_begun(tmp_path, caplog):
    config = spct_tiny.get_config()
    tok, folder = tokenizer.load(vocabulary.vocabulary_path()), tmp_path / "data"
    config.rft.update(comparisons=4)
    config.data.general_items = 4

    def prepare(**fields):
        caplog.clear()
        config.rft.update(fields)
        return len(rft.prepare(config, tok, None, folder))

    few = prepare()
    assert prepare() == few and "built again" not in caplog.text
    assert (many := prepare(comparisons=20, hinted=0)) > few
    assert "rft.comparisons was 4 and is 20, rft.hinted was 1 and is 0; the RFT set" in caplog.text
    (tmp_path / "checkpoints").mkdir()
    assert prepare(comparisons=4) == many and "is used as it is" in caplog.text


def test_trials_have_their_correctness_and_outcome():
    rft_set = build([PAIR], scripted((2, 9), (2, 9), (2, 9), (9, 2)), COMPACT)
    assert [(t.right, t.outcome, t.hinted) for t in rft_set.trials] == [
        (True, "too_easy", False)
    ] * 3 + [(False, "wrong", True)]
    row = json.loads(json.dumps(dataclasses.asdict(rft_set.trials[0])))
    assert row["comparison"]["id"] == "pair" and row["right"] is True


# ---------------------------------------------------------------- prompts


def test_the_hint_is_in_the_request_but_not_in_the_example():
    requests_seen = []

    def sample(requests):
        requests_seen.extend(requests)
        return rft_samplers.teacher(1.0, 0.0)(requests)

    items = [c for c in world.make_items("train", 0, 60) if c.n in (1, 3)]
    rft_set = build(items, sample, COMPACT)
    for request in requests_seen:
        text = request.messages[0]["content"]
        assert ("Hint:" in text) == request.hinted
        if request.hinted and request.comparison.n == 3:
            assert (
                f"Response {request.order.index(request.comparison.label) + 1}."
                in text.split("Hint:")[1]
            )
        if request.hinted and request.comparison.n == 1:
            assert f"{request.comparison.label[0]:g}" in text.split("Hint:")[1]
    hinted = [e for e in rft_set.examples if e.kind == "hinted"]
    assert len(hinted) == len(items)
    assert not any("Hint" in m["content"] for e in rft_set.examples for m in e.messages)


def test_the_prompt_of_an_example_has_the_response_order_of_its_critique():
    comparisons = [c for c in world.make_items("train", 0, 80) if c.n >= 3]
    rft_set = build(comparisons, rft_samplers.teacher(0.7, 0.0), COMPACT)
    by_text = {(t.comparison.id, t.text): t for t in rft_set.trials}
    for e in rft_set.examples:
        trial = by_text[e.id, e.completion]
        responses = [
            text.split("\n")[1] for text in e.messages[0]["content"].split("[Response ")[1:]
        ]
        assert responses == [trial.comparison.responses[i] for i in trial.order]
    assert len({t.order for t in rft_set.trials if t.comparison is comparisons[0]}) > 1


def test_the_hint_has_the_strength_of_the_preference():
    c = Comparison("q", ("x", "y"), label=0, id="s", meta={"strength": 3})
    assert rft_data.hint_of(c, (1, 0)) == "the best response is Response 2; it is much better."


@pytest.mark.parametrize("strength", ["strong", [2], {"a": 1}, True])
def test_a_field_of_the_users_own_is_no_strength(strength):
    c = Comparison("q", ("x", "y"), label=0, id="s", meta={"strength": strength})
    assert rft_data.hint_of(c, (1, 0)) == 0


def test_a_single_response_gets_the_binary_template_without_reference():
    c = Comparison("q", ("x",), label=(1.0,), id="one", reference="x")
    assert rft_data.training_template("grm", c) == "grm/single_binary"
    # The reference is never in a training prompt.
    assert "Reference" not in rft_data.requests_for(c, COMPACT)[0].messages[0]["content"]


# ---------------------------------------------------------------- mixing and files


def test_mix_keeps_all_examples_and_depends_on_the_seed():
    judging = [Example(({"role": "user", "content": "j"},), str(i), "hinted") for i in range(20)]
    general = [Example(({"role": "user", "content": "g"},), str(i)) for i in range(30)]
    mixed = rft_data.mix(judging, general, seed=1)
    assert sorted(mixed, key=str) == sorted([*judging, *general], key=str)
    assert mixed == rft_data.mix(judging, general, seed=1) != rft_data.mix(judging, general, seed=2)
    assert rft_data.mix(judging, []) and rft_data.mix([], general)


def test_saved_files_have_the_examples_outcomes_and_trials(tmp_path):
    rft_set = build(world.make_items("train", 0, 20), rft_samplers.teacher(), COMPACT)
    rft_set.save(tmp_path / "rft")
    assert list(read_examples(tmp_path / "rft" / "examples.jsonl")) == rft_set.examples
    assert json.loads((tmp_path / "rft" / "outcomes.json").read_text()) == rft_set.summary()
    assert len((tmp_path / "rft" / "trials.jsonl").read_text().splitlines()) == len(rft_set.trials)


def test_texts_with_any_line_separator_round_trip(tmp_path):
    text = "a\u2028b\u2029c\u0085d\x0be\x1cf\r\ng"
    pair = Comparison(f"q{text}", (f"x{text}", "y"), label=1, id="pair")
    rft_set = build([pair], lambda requests: [CritiqueReply(f"{text}\\boxed{{2, 9}}")] * 4, COMPACT)
    rft_set.save(tmp_path)
    assert rft_data.read_trials(tmp_path / "trials.jsonl") == rft_set.trials
    calls = []

    def sample(requests):
        calls.append(len(requests))
        return [CritiqueReply(text)] * len(requests)

    for _ in range(2):
        with rft_samplers.open_replies(tmp_path / "j") as store:
            build([pair], rft_samplers.stored(sample, store), COMPACT)
    assert calls == [4]


def test_trial_files_of_an_earlier_version_are_read(tmp_path):
    rft_set = build([PAIR], scripted((2, 9), (9, 2), (5, 5), (1, 8)), COMPACT)
    rft_set.save(tmp_path)
    path = tmp_path / "trials.jsonl"
    path.write_text(path.read_text().replace('"outcome":', '"fate":'))
    assert rft_data.read_trials(path) == rft_set.trials


def test_only_the_first_comparisons_must_have_parsed_critiques():
    """A run that has sampled for hours is not stopped by a later chunk."""
    comparisons = [dataclasses.replace(PAIR, id=str(i)) for i in range(3 * rft_data.PILOT)]
    options = dataclasses.replace(COMPACT, hinted=0, min_parsed=0.5, chunk=rft_data.PILOT)
    first, others = 3 * rft_data.PILOT, 6 * rft_data.PILOT
    later = scripted(*[(1, 9)] * first, *["no scores"] * others)
    assert len(build(comparisons, later, options).trials) == first + others
    with pytest.raises(rft_data.TooFewParsed):
        build(comparisons, scripted(*["no scores"] * first, *[(1, 9)] * others), options)


def test_easy_comparisons_are_dropped_for_rl(tmp_path, caplog):
    other = Comparison("q2", ("x", "y"), label=0, id="other")
    rft_set = build(
        [PAIR, other],
        scripted((2, 9), (2, 9), (2, 9), (9, 2), (9, 2), (2, 9), (9, 2), (9, 2)),
        COMPACT,
    )
    rft_set.save(tmp_path)
    easy = rft_data.easy_ids(rft_data.read_trials(tmp_path / "trials.jsonl"))
    assert easy == {str(PAIR.id)}
    rows = [
        {"query": "q", "responses": ["x", "y"], "label": 0, "id": name}
        for name in (PAIR.id, "other")
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixtures.add_comparisons("a", {"train": str(tmp_path / "a.jsonl")})
    config = spct_27b.get_config()
    config.data.judging = "a"
    config.data.held_out = ""
    all_comparisons, remaining = sources.judging(config), sources.judging(config, without=easy)
    assert (all_comparisons.size, remaining.size, remaining.at(0).id) == (
        2,
        1,
        "other",
    ) and all_comparisons.identity != remaining.identity
    with pytest.raises(ValueError, match="source 'a' has no comparisons but those dropped"):
        sources.judging(config, without={*easy, "other"})
    with pytest.raises(ValueError, match="judging world, which is endless"):
        sources.judging(spct_tiny.get_config(), without=easy)
