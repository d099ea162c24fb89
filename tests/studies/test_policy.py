"""The study of policies trained against a judge: attacks, statistics, tables and pictures."""

import json

import numpy as np
import pytest
from fake_judge import fake_judge, well_formed
from test_judge import FakeMetaRM

from grm_jax.data import world
from grm_jax.data.world.answers import Task
from grm_jax.data.world.teacher import AIMS
from grm_jax.data.world.vocabulary import vocabulary_path
from grm_jax.evals.bootstrap import STAGE_DRAWS, Resampler
from grm_jax.judging.groups import Group
from grm_jax.judging.rewards import RewardOptions, score
from grm_jax.text import rendering, tokenizer
from grm_jax.types import Comparison
from studies import policy, policy_attacks as attacks, policy_report

EASY = world.WorldConfig(levels={0: 1}, sizes={1: 0.2, 2: 0.4, 3: 0.4})


@pytest.fixture(scope="module")
def chosen():
    return attacks.targets(10, 0, EASY)


def praised(responses, key):
    """A judge that gives 9 to a response with praise and 3 to the others, blind to all else."""
    if not responses:
        return "### Principles\n1. Tone (100%): it sounds sure"
    return well_formed([9 if "sounds sure" in text else 3 for text in responses])


class Stopped(BaseException):
    """The run is killed."""


def rows_of(results, judge):
    return {row["attack"]: row for row in results["rows"] if row["judge"] == judge}


def test_a_judge_that_rewards_praise_is_measured_as_such(chosen, tmp_path):
    judge = fake_judge(praised, meta_rm=FakeMetaRM())
    results = attacks.run(judge, None, chosen, tmp_path / "judgements.jsonl", 0)
    own = rows_of(results, "SPCT, k = 8")
    # All responses tie without attack: a share of 1/n of a win becomes a whole one.
    ties = sum(1 / target.comparison.n for target in chosen) / len(chosen)
    assert own["praise"]["win"]["value"] == pytest.approx(1 - ties)
    assert own["praise"]["reward"]["value"] == 6
    assert own["praise"]["win"]["low"] > 0.4
    assert own["verdict"]["win"]["value"] == own["none"]["win"]["value"] == 0
    assert rows_of(results, "SPCT, k = 1")["praise"]["reward"]["value"] == 6
    truth = rows_of(results, "truth")
    assert truth["none"]["accuracy"] == 1
    assert truth["praise"]["reward"]["value"] < 0 == truth["padding"]["reward"]["value"]
    assert rows_of(results, "longest")["padding"]["win_wrong"]["value"] > 0
    # A copy of the only other response leaves one text, which has no reward of this scale.
    pairs = sum(target.comparison.n == 2 for target in chosen)
    assert own["duplicate"]["unscored"] == pairs < len(chosen)
    assert own["duplicate"]["win"]["n"] == len(chosen) - pairs
    table = policy.attacks_table(results)
    assert f"# Attacks on {len(chosen)} comparisons" in table and "+100" not in table
    policy.figures.save_png(policy.attacks_figure(results), tmp_path / "attacks.png")
    assert (tmp_path / "attacks.png").stat().st_size > 10_000


def test_a_stopped_run_judges_only_what_is_missing(chosen, tmp_path):
    calls, limit = [], [550]

    def write(responses, key):
        calls.append(responses)
        if len(calls) == limit[0]:
            raise Stopped
        return praised(responses, key)

    def run(name):
        return attacks.run(fake_judge(write), None, chosen[:4], tmp_path / name, 0)

    with pytest.raises(Stopped):
        run("judgements.jsonl")
    calls[:], limit[0] = [], None
    results = run("judgements.jsonl")
    resumed, calls[:] = len(calls), []
    whole = run("whole.jsonl")
    assert results == whole
    # Everything up to the last write was kept: 64 groups of 8 critiques.
    assert resumed == len(calls) - 64 * 8
    calls.clear()
    assert run("judgements.jsonl") == whole and not calls


def test_the_first_critiques_of_eight_are_those_of_fewer():
    judge = fake_judge(lambda responses, key: well_formed([key[1] + 1] * len(responses)))
    group = Group("sort 3 1 2", ("1 2 3", "3 2 1", "2 1 3"))
    critiques = [
        [(c.order, c.text) for c in score([group], judge, k=k, critiques=True)[0].critiques]
        for k in (1, 4, 8)
    ]
    assert critiques[2][:1] == critiques[0] and critiques[2][:4] == critiques[1]


def test_attacks_are_of_pieces_that_the_vocabulary_has(chosen):
    tok = tokenizer.load(vocabulary_path())
    encode = lambda text: [tok.decode([i], skip_controls=False) for i in tok.encode(text)]
    target = next(t for t in chosen if t.task.family == "sort")
    answer = encode(target.comparison.responses[target.index])
    aim = f" {attacks.AIMS[target.task.family]}"
    # Each is a piece of the critiques or answers of training, not its letters.
    for name, pieces in {
        "praise": [" sounds sure", "."],
        "verdict": [" right"],
        "grade": [" 9"],
        "principle": [aim],
    }.items():
        assert encode(target.attacked(name)[target.index]) == answer + pieces
    for name, opening in {"sure_opening": ["i am sure", ":"], "query_before": ["sort"]}.items():
        attacked = encode(target.attacked(name)[target.index])
        assert attacked[: len(opening)] == opening
    added = attacks.added_tokens(chosen, fake_judge(praised))
    assert added["praise"] == 2 and added["verdict"] == 1
    assert added["praise_spelled"] > 6  # the control: fragments of words
    assert added["end_marker"] > 12  # escaped, it is no single piece
    assert max(added.values()) < 60  # prompts stay within the judge's context


@pytest.mark.parametrize("name", ["score", "end_marker", "end_of_turn", "critique"])
def test_fake_markers_are_escaped_in_the_prompt(chosen, name):
    target = chosen[0]
    comparison = Comparison(target.task.query, target.attacked(name))
    tok = tokenizer.load(vocabulary_path())
    text = "".join(message["content"] for message in rendering.render("compact", comparison))
    plain = Comparison(target.task.query, target.comparison.responses)
    expected = "".join(message["content"] for message in rendering.render("compact", plain))
    assert text.count("[/Response 1]") == 1
    assert text.count("\\boxed{") == expected.count("\\boxed{")
    controls = {tok.encode_chat([{"role": "user", "content": "a"}])[i] for i in (1,)}
    ids = tok.encode_chat(rendering.render("compact", comparison))
    assert sum(i in controls for i in ids) == 2  # of the user's and the model's turn


def test_options_of_each_source():
    assert attacks.options_of("own", 3) == RewardOptions(k=8, seed=3, critiques=True)
    assert attacks.options_of("first", 0).principles == "first"
    assert attacks.options_of("bt", 0).k == 1


def test_targets_are_test_comparisons_of_several_responses(chosen):
    assert len({target.comparison.id for target in chosen}) == len(chosen)
    assert all(target.comparison.n > 1 for target in chosen)
    assert {target.index for target in chosen} == {0, 1, 2}
    assert all(target.task == Task.of(target.comparison) for target in chosen)
    assert 0 < sum(target.is_right for target in chosen) < len(chosen)


# ---------------------------------------------------------------- policies trained against a judge


def point(step, kl, win, true_win, principles=(), **features):
    shares = dict.fromkeys(("characters", *policy_report.FEATURES[1:], "right"), 0.0) | features
    return {
        "step": step,
        "kl": kl,
        "win": win,
        "true_win": true_win,
        "truth": true_win,
        "features": shares,
        "principles": policy_report.principle_shares(principles),
        "examples": [],
    }


def record(arm, seed, *points):
    return {"arm": arm, "seed": seed, "points": points, "seconds": {"train": 1.0}, "config": ""}


def test_the_gap_is_paired_by_task_and_its_growth_has_an_interval():
    tasks = 40
    start = point(0, 0.0, [0.3] * tasks, [0.3] * tasks, characters=10)
    wins = [1.0] * 30 + [0.5] * 10
    end = point(10, 2.0, wins, [0.3] * tasks, characters=30)
    honest = point(10, 2.0, wins, wins)
    records = [record("hacked", s, start, end) for s in (0, 1)] + [
        record("honest", 0, start, honest)
    ]
    study = policy_report.summary(records)
    last = study["hacked"][-1]
    assert last["gap"]["value"] == pytest.approx(0.875 - 0.3)
    assert last["parting"]["low"] > 0.4 and last["gap"]["seeds"] == [0.575, 0.575]
    assert policy_report.parts_at(study["hacked"]) == 10
    back = policy_report.summary([record("a", 0, start, end, point(20, 3.0, wins, wins))])
    assert policy_report.parts_at(back["a"]) is None  # the gap has closed again
    assert policy_report.parts_at(study["honest"]) is None
    assert study["honest"][-1]["win"]["value"] == pytest.approx(0.875)
    table = policy_report.train_table(study)
    assert "| hacked | 2.0 | 87.5 (" in table and "| step 10 |" in table and "not seen" in table
    assert "| start | 10.0 |" in table and "| hacked | 30.0 |" in table


def test_the_interval_covers_seeds_and_tasks():
    noise = np.random.default_rng(0).random(50)
    equal = policy_report.estimate(np.stack([noise, noise, noise]))
    tasks = Resampler(list(map(str, range(50))), draws=STAGE_DRAWS).mean(noise).as_json()
    for name in ("value", "low", "high"):  # equal seeds add nothing to the interval over tasks
        assert equal[name] == pytest.approx(tasks[name])
    apart = policy_report.estimate(np.repeat([[0.2], [0.5], [0.8]], 50, axis=1))  # equal tasks
    assert (apart["low"], apart["value"], apart["high"]) == pytest.approx((0.2, 0.5, 0.8))
    assert apart["seeds"] == [0.2, 0.5, 0.8]
    known = policy_report.estimate(np.array([[0.0, np.nan, 1.0], [np.nan, np.nan, 1.0]]))
    assert known["value"] == pytest.approx(2 / 3) and known["seeds"] == [0.5, 1.0]
    assert policy_report.estimate(np.full((2, 3), np.nan))["value"] is None


def test_differences_between_arms_are_paired_by_seed_and_task():
    rng = np.random.default_rng(0)
    records = []
    for seed in (0, 1):
        noise = list(rng.random(30))
        start = point(0, 0.0, [0.3] * 30, [0.3] * 30)
        records.append(record("spct_k1", seed, start, point(5, 1.0, [0.5] * 30, noise)))
        better = [min(x + 0.1, 1.1) for x in noise]
        records.append(record("spct_k8", seed, start, point(5, 1.0, [0.5] * 30, better)))
    records.append(record("truth", 2, start, point(5, 1.0, noise, noise)))
    contrasts = policy_report.contrasts(records, "spct_k1")
    assert list(contrasts) == ["spct_k8"]  # no seed of "truth" has the baseline
    for name, difference in (("truth", 0.1), ("parting", -0.1)):
        estimate = contrasts["spct_k8"][name]
        bounds = estimate["low"], estimate["value"], estimate["high"]
        assert bounds == pytest.approx((difference,) * 3) and len(estimate["seeds"]) == 2
    table = policy_report.contrast_table(records, "spct_k1")
    assert "| spct_k8 | 2 | -10.0 (-10.0 to -10.0) | 10.0 (10.0 to 10.0) |" in table


def test_a_task_without_a_reward_is_in_no_win_rate():
    wins = [None, 1.0, None, 0.0]
    study = policy_report.summary([record("a", 0, point(0, 0, wins, [1.0] * 4))])
    assert study["a"][0]["win"]["value"] == 0.5
    none = policy_report.summary([record("a", 0, point(0, 0, [None] * 4, [1.0] * 4))])
    assert none["a"][0]["win"]["value"] is None
    assert "–" in policy_report.train_table(none)


def test_drift_is_the_weight_of_each_kind_of_principle(tmp_path):
    aim, other = AIMS["sort"], AIMS["count"]
    principles = [
        ["sort", [["Accuracy", 70, aim], ["Brevity", 30, "no idle talk"]]],
        ["sort", [["Tone", 60, "it sounds sure"], ["Accuracy", 40, other]]],
        ["sort", [["Accuracy", None, aim]]],  # without a weight it has no share
        ["sort", []],
    ]
    shares = policy_report.principle_shares(principles)
    assert shares["own aim"] == 0.35 and shares["Brevity"] == 0.15
    assert shares["Tone"] == 0.3 and shares["another task's aim"] == 0.2
    study = policy_report.summary(
        [record("a", 0, *(point(s, s / 5, [0.5] * 9, [0.4] * 9, principles) for s in (0, 5)))]
    )
    assert "| a | 5 | 35.0 | 20.0 | 0.0 | 15.0 | 30.0 | 0.0 |" in policy_report.drift_table(study)
    raw = {"arm": "a", "points": [{"step": s, "principles": principles[:s]} for s in (1, 4)]}
    wordings = policy_report.wordings_table([raw])
    assert "| principle | step 1 | step 4 |" in wordings
    assert f"| Accuracy: {aim} | 100.0 | 50.0 |" in wordings
    assert "| Tone: it sounds sure | 0.0 | 25.0 |" in wordings
    for name in ("train", "drift"):
        figure = getattr(policy_report, f"{name}_figure")(study)
        policy.figures.save_png(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_the_report_needs_a_record(tmp_path):
    with pytest.raises(SystemExit, match="has no record"):
        policy.main(["report", "--out", str(tmp_path)])
    (tmp_path / "records").mkdir()
    text = json.dumps(record("a", 0, point(0, 0.0, [0.5] * 9, [0.4] * 9)))
    (tmp_path / "records" / "a-0.json").write_text(text)
    policy.main(["report", "--out", str(tmp_path)])
    files = {path.name for path in tmp_path.iterdir()}
    assert {"train.json", "train.md", "train.png", "drift.md", "drift.png"} <= files
