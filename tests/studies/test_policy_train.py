"""Policies trained against a judge: the configs of the arms, evaluation of checkpoints."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from fake_judge import fake_judge, well_formed
from flax import nnx

from grm_jax import checkpoints
from grm_jax.data.world.answers import Task
from grm_jax.judging.groups import GroupRewards, ResponseReward
from grm_jax.models import abstract_model, build_model
from grm_jax.sharding import make_mesh
from grm_jax.training import checkpoint, loop, sources
from grm_jax.training.programs import model_config
from grm_jax.training.reward_sources import SOURCES, JudgeSettings, check
from studies import policy, policy_train

TASKS = [
    Task("largest of 4 7", "largest", ("4", "7"), id="t0"),
    Task("last of a b", "last", ("a", "b"), id="t1"),
]


@pytest.fixture
def setting(tmp_path):
    return policy_train.Setting("judge", "meta", "scalar", tmp_path, ("a", "b"), steps=6, points=3)


def test_every_arm_is_a_source_of_rewards(setting):
    assert policy.ARMS.split(",") == list(policy_train.ARMS)
    configs = {arm: policy_train.run_config(setting, arm, 2) for arm in policy_train.ARMS}
    settings = {arm: JudgeSettings.of(config.policy.judge) for arm, config in configs.items()}
    for arm, one in settings.items():
        check(one)
        assert one.source in SOURCES, arm
    assert [settings[f"spct_k{k}"].k for k in (1, 4, 8)] == [1, 4, 8]
    assert settings["spct_k8_meta"].meta_rm == "meta" and not settings["spct_k8"].meta_rm
    assert settings["first_k8"].principles == "first"
    assert (settings["bt"].path, settings["bt"].temperature) == ("scalar", 0)
    # The judge compares up to three responses; a scalar scores each alone.
    assert {one.block_size for one in settings.values()} == {3}
    assert all(config.seed == 2 and config.policy.save_every == 2 for config in configs.values())


def test_a_record_depends_on_arm_models_and_steps_but_not_on_folders(setting):
    def hash_of(one, arm="spct_k1", seed=0):
        return policy_train.config_hash(policy_train.run_config(one, arm, seed), one)

    moved = dataclasses.replace(setting, judge="elsewhere/judge", bt="elsewhere/bt")
    assert hash_of(setting) == hash_of(moved)
    changed = [hash_of(setting, "spct_k4"), hash_of(setting, "spct_k1", 1)]
    changed += [hash_of(dataclasses.replace(setting, models=("a", "c")))]
    changed += [hash_of(dataclasses.replace(setting, steps=9))]
    assert len({hash_of(setting), *changed}) == 5


def test_wins_by_the_judge_and_by_the_truth_are_apart():
    def longest(questions, groups, seed):
        assert [question.truth for question in questions] == [task.truth for task in judged_tasks]
        return [
            GroupRewards(g.id, tuple(ResponseReward(float(len(x))) for x in g.responses))
            for g in groups
        ]

    judged_tasks = [TASKS[0], TASKS[0], TASKS[1]]
    texts = [["it is: 4 4 4 4", "so: 7"], ["so: b", "let me think about it step by step: a"]]
    rivals = [["so: 7", "so: 4"], ["so: b", "so: b"]]
    judge = fake_judge(lambda responses, key: well_formed([5] * len(responses)))
    point = policy_train.measure(TASKS, texts, rivals, longest, judge)
    # Task 0: the long wrong answer wins for the judge and loses; "so: 7" ties with both, and with
    # one in truth. Task 1: "so: b" ties with its copies and is not judged; the long one is wrong.
    assert point["win"] == [round((1 + 1 / 3) / 2, 4), round((1 / 3 + 1) / 2, 4)]
    assert point["true_win"] == [0.25, round((1 / 3 + 0) / 2, 4)]
    assert point["truth"] == [0.55, 0.55]
    assert len(point["principles"]) == 3 * policy_train.REFERENCE_K
    assert point["principles"][0] == ["largest", [["Accuracy", 60, "the facts are right"],
                                                  ["Clarity", 40, "easy to follow"]]]  # fmt: skip
    assert point["features"]["wordy"] == 0.25 and point["features"]["distinct"] == 1


def test_an_answer_without_a_reward_is_in_no_win_rate():
    def unparsed(questions, groups, seed):
        return [GroupRewards.without(group, "unparsed", "no scores") for group in groups]

    judge = fake_judge(lambda responses, key: well_formed([5] * len(responses)))
    point = policy_train.measure(
        TASKS, [["so: 7"], ["so: a"]], [["so: 4"], ["so: b"]], unparsed, judge
    )
    assert point["win"] == [None, None] and point["true_win"] == [1.0, 0.0]


def test_features_of_answers():
    texts = [["i am sure: 7", "so: 7 sounds sure."], ["last of a b", "so: a or b\n\n\\fbox{9}"]]
    shares = policy_train.features(TASKS, texts)
    expected = dict(sure=0.5, query=0.25, markers=0.25, hedged=0.25, right=0.25, distinct=1.0)
    assert shares | expected == shares
    assert shares["characters"] == np.mean([len(text) for own in texts for text in own])


def test_a_folder_without_the_stage_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="has no finished stages sft and policy: train them"):
        policy_train.evaluate_run(tmp_path, "", 2)


def test_kl_is_the_mean_over_the_steps_before_a_checkpoint(tmp_path):
    lines = [f'{{"step": {s}, "kl_sequence": {s / 10}}}\n' for s in range(1, 21)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    kl = policy_train.kl_by_step(tmp_path)
    assert kl(10) == pytest.approx(0.8) and kl(2) == pytest.approx(0.15) and kl(0) == 0


def test_parameters_of_each_checkpoint_are_loaded(setting, tmp_path):
    config = policy_train.run_config(setting, "truth", 0)
    config.model_overrides.update(num_layers=2, d_model=16, d_ff=16, vocab_size=800)
    mesh = make_mesh(**config.mesh)
    shared = loop.Run(config, mesh, sources.load_tokenizer(config))
    _, abstract = abstract_model(model_config(config), mesh)
    make = lambda value: jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, value, x.dtype), x.sharding), abstract
    )
    with checkpoint.Checkpoints(tmp_path / "policy" / "checkpoints", keep=3) as store:
        for step in (2, 4):
            store.save(step, {"params": make(step), "step": np.int32(step)}, {})
    loop.save_params(tmp_path / "sft", make(0.5), 1)
    for step, value in ((0, 0.5), (2, 2), (4, 4)):
        params = policy_train.params_at(shared, tmp_path, step)
        assert jax.tree.structure(params) == jax.tree.structure(abstract)
        assert all((np.asarray(x) == value).all() for x in jax.tree.leaves(params))


@pytest.mark.slow
def test_a_study_of_two_arms_is_trained_evaluated_and_resumed(tmp_path, monkeypatch):
    """The whole command with a randomly initialised judge: python -m pytest --run slow."""
    config = policy_train.run_config(policy_train.Setting("", "", "", tmp_path), "truth", 0)
    judge = tmp_path / "judge"
    model = build_model(model_config(config), nnx.Rngs(0))
    checkpoints.save(model, judge, like=sources.tokenizer_path(config))
    extra = "sft.steps=60,sft.tasks=100,policy.prompts=8,policy.max_new_tokens=8"
    sizes = ["--steps", "4", "--points", "2", "--tasks", "4", "--extra", extra]
    folders = ["--workdir", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    command = ["train", "--judge", str(judge), "--seeds", "0", *sizes, *folders, "--arms"]
    policy.main([*command, "truth"])
    records = tmp_path / "out" / "records"
    first = (records / "truth-0.json").read_text()
    points = json.loads(first)["points"]
    assert [point["step"] for point in points] == [0, 2, 4]
    assert all(point["win"] == point["true_win"] for point in points)  # the truth is the judge
    trained = []
    run = policy_train.main.run
    monkeypatch.setattr(
        policy_train.main,
        "run",
        lambda config, folder: (trained.append(folder.name), run(config, folder)),
    )
    policy.main([*command, "truth,longest"])
    assert (records / "truth-0.json").read_text() == first
    assert trained == ["sft-0", "longest-0"]  # the finished arm is not run again
    assert "| longest |" in (tmp_path / "out" / "train.md").read_text()
    run = str(tmp_path / "runs" / "longest-0")
    policy.main(["drift", "--runs", run, "--judge", str(judge), "--tasks", "2", "--out", run])
    assert "| longest-0 | 4 |" in (tmp_path / "runs" / "longest-0" / "drift.md").read_text()
