"""Tests the stage policy: parity with the stage rl, statuses of rewards, resume, judge sources."""

import dataclasses
import json
import random
import signal
import time

import jax
import numpy as np
import pytest
import resume_child
import test_resume
from fake_judge import world_tokenizer
from flax import nnx
from toy_server import serving, toy_judge, toy_model, toy_service

from experiments import policy_world
from grm_jax import checkpoints
from grm_jax.judging.groups import FAILED, UNPARSED, Group, GroupRewards, ResponseReward
from grm_jax.judging.meta import MetaRM
from grm_jax.models import build_model, get_config
from grm_jax.sharding import make_mesh
from grm_jax.training import (
    checkpoint,
    config_check,
    grpo,
    loop,
    memory,
    metrics,
    policy,
    reward_sources,
    rollouts,
    sources,
    state as states,
)
from grm_jax.training.errors import TrainingError
from grm_jax.training.programs import model_config
from grm_jax.training.replies import CritiqueReply
from grm_jax.training.reward_sources import JudgeSettings, Question


@pytest.fixture(scope="module")
def config():
    config = resume_child.make_policy_config()
    for section in (config.rl, config.policy):
        section.update(steps=2, save_every=1, updates_per_rollout=1, length_buckets=1)
    return config


@pytest.fixture
def tiny(config, monkeypatch):
    """A Run under its mesh, without ahead-of-time compilation, with a judge that needs no model."""
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(loop, "compile_ahead", lambda *_: 0.0)
    monkeypatch.setitem(reward_sources.SOURCES, "toy", resume_child.toy)
    with jax.set_mesh(mesh):
        yield loop.Run(config, mesh, sources.load_tokenizer(config))


def with_judge(run, **fields):
    config = run.config.copy_and_resolve_references()
    config.policy.judge = fields
    return dataclasses.replace(run, config=config)


def first_params(run):
    return lambda: states.init_params(model_config(run.config), run.mesh, 0)


def logged(folder):
    """Returns the rows of a stage's metrics without times."""
    rows = metrics.read_jsonl(folder / "metrics.jsonl")
    timed = ("_s", "memory_gib", "memory_peak_gib")
    return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows]


def test_the_rule_as_reward_gives_the_numbers_of_the_stage_rl(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(grpo, "reward", resume_child.chance_reward)
    rl = grpo.train(tiny, first_params(tiny), tmp_path / "rl")
    ruled = with_judge(tiny, source="rule")
    own = policy.train(ruled, first_params(tiny), tmp_path / "policy")
    jax.tree.map(np.testing.assert_array_equal, rl, own)
    assert logged(tmp_path / "rl") == logged(tmp_path / "policy")
    assert all(row["grad_norm"] > 0 for row in logged(tmp_path / "rl"))


def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, monkeypatch):
    whole = policy.train(tiny, first_params(tiny), tmp_path / "whole")
    real = loop.step_seed
    for last in (0, 1):
        stop_at = lambda words, i, last=last: real(words, i) if i < last else 1 / 0
        monkeypatch.setattr(loop, "step_seed", stop_at)
        with pytest.raises(ZeroDivisionError):
            policy.train(tiny, first_params(tiny), tmp_path / "killed")
    monkeypatch.setattr(loop, "step_seed", real)
    resumed = policy.train(tiny, first_params(tiny), tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    rows = logged(tmp_path / "whole")
    assert rows == logged(tmp_path / "killed") and len(rows) == 2
    assert all(row["grad_norm"] > 0 and 1 <= row["reward"] <= 10 for row in rows)
    assert all(0 <= row["true_reward"] <= 1 for row in rows)
    record = loop.read_result(tmp_path / "whole")
    assert record["stage"] == "policy" and record["identity"]["data"].startswith("tasks/train/")
    assert checkpoint.fingerprint(whole) == record["weights"]


@pytest.mark.slow
def test_adapters_trained_with_votes_of_a_meta_rm_resume_exactly(tiny, tmp_path, monkeypatch):
    model = build_model(toy_model().cfg.replace(scalar_head=True), nnx.Rngs(1))
    meta_rm = MetaRM(model, world_tokenizer(), "compact/meta_rm")
    judge = toy_judge(meta_rm=meta_rm)
    source = lambda settings, run: reward_sources.by_judge(judge, settings)
    monkeypatch.setitem(reward_sources.SOURCES, "toy", source)
    run = with_judge(tiny, source="toy", k=4, k_meta=2, block_size=2)
    run.config.lora.update(rank=2, alpha=4.0, base="int8")
    start = lambda: sources.first_params(run.config, model_config(run.config), run.mesh)
    whole = policy.train(run, start, tmp_path / "whole")
    real = loop.step_seed
    monkeypatch.setattr(loop, "step_seed", lambda words, i: real(words, i) if i < 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy.train(run, start, tmp_path / "killed")
    monkeypatch.setattr(loop, "step_seed", real)
    resumed = policy.train(run, start, tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    rows = logged(tmp_path / "whole")
    assert rows == logged(tmp_path / "killed") and len(rows) == 2
    assert all(row["grad_norm"] > 0 for row in rows)


@pytest.mark.slow
def test_a_run_killed_at_ten_moments_equals_an_uninterrupted_one(tmp_path):
    """SIGKILL in the stage policy, ten times over several runs, after a random number of steps."""
    whole, rng, kill_steps, runs = tmp_path / "whole", random.Random(0), [], 0
    test_resume.finish(test_resume.start(whole, "policy"))
    while len(kill_steps) < test_resume.KILLS:
        workdir, runs = tmp_path / str(runs), runs + 1
        for target in sorted(rng.sample(range(8), 5)):
            process = test_resume.start(workdir, "policy")
            while process.poll() is None and len(test_resume.rows_in(workdir, "policy")) < target:
                time.sleep(0.005)
            # Target 0 kills the run during start-up, in the stage sft or in the first steps.
            time.sleep(rng.random() * (0.1 if target else 10))
            if process.poll() is None and not loop.is_done(workdir / "policy"):
                process.send_signal(signal.SIGKILL)
                kill_steps.append(len(test_resume.rows_in(workdir, "policy")))
            process.kill()
            process.communicate()
        test_resume.finish(test_resume.start(workdir, "policy"))
        test_resume.compare(whole, workdir, ("sft", "policy"))
    print(f"killed after steps {kill_steps}, in {runs} runs")


# ---------------------------------------------------------------- statuses


def batch_of(answers, truths=None):
    """Returns (batch, replies, lengths) of these answers."""
    truth = None if truths is None else lambda text: truths[text]
    questions = [Question(f"question {i}", [1], str(i), truth) for i in range(len(answers))]
    replies = [[CritiqueReply(text, "stop") for text in group] for group in answers]
    lengths = np.array([[len(text) for text in group] for group in answers])
    return rollouts.PromptBatch(questions, 0, 7), replies, lengths


def rewards_with(scorer, answers, truths=None):
    batch, replies, lengths = batch_of(answers, truths)
    judged, _ = policy.judge(batch, replies, scorer)
    return policy.rewards_of(batch, replies, judged, lengths), judged


def test_answers_without_a_reward_are_masked_and_counted():
    none = {status: ResponseReward(None, status, "why") for status in (UNPARSED, FAILED)}
    number = ResponseReward

    def scorer(questions, groups, seed):
        assert [group.prompt for group in groups] == ["question 0", "question 1", "question 3"]
        assert seed == policy.judge_seed(7) != 7
        rows = [
            (number(2.0), none[UNPARSED], number(4.0)),
            (none[FAILED], number(9.0), none[FAILED]),
            (number(1.0), number(1.0), number(3.0)),
        ]
        return [GroupRewards(group.id, row) for group, row in zip(groups, rows)]

    answers = [["a", "b", "c"], ["a", "b", "c"], ["a", "a", "a"], ["a", "b", "c"]]
    rewards, judged = rewards_with(scorer, answers, {"a": 0.0, "b": 0.5, "c": 1.0})
    advantages = rollouts.advantages(rewards.values, rewards.counted, True)
    # The group with one reward is dropped; the one of equal answers counts, with advantage 0.
    np.testing.assert_array_equal(rewards.counted, [[1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_allclose(
        advantages,
        [[-1, 0, 1], [0, 0, 0], [0, 0, 0], [-(0.5**0.5), -(0.5**0.5), 2**0.5]],
        rtol=1e-6,
    )
    row = rewards.metrics
    assert (row["unparsed"], row["failed"]) == (1 / 9, 2 / 9)
    assert (row["group_same"], row["group_zero"]) == (1 / 4, 1 / 4)
    assert row["reward"] == np.mean([2, 4, 9, 1, 1, 3])
    assert row["true_reward"] == np.mean([0.5, 0.5, 0, 0.5])
    assert row["pair_accuracy"] == 3.5 / 4  # a tie counts half
    policy.check_scored(judged, 0.5)
    with pytest.raises(TrainingError, match=r"3 of 9 answers have no reward \(2 failed, 1 unparse"):
        policy.check_scored(judged, 0.3)


def test_pairs_count_as_right_in_the_order_of_the_truth():
    group = reward_sources.rewards_of(Group("q", ("a", "b", "c")), (1, 2, 3))
    for truths, share in (((0.1, 0.5, 1), 1), ((1, 0.5, 0.1), 0), ((0.5, 1, 0.5), 1 / 2)):
        assert policy.pair_accuracy([group], [truths]) == {"pair_accuracy": share}
    assert policy.pair_accuracy([group, None], [(1, 1, 1), (0, 1, 1)]) == {}


def test_masked_answers_do_not_change_the_update(tiny, tmp_path, monkeypatch):
    """An answer without a reward has mask 0 and advantage 0 in the update."""
    tiny = with_judge(tiny, source="longest")
    longest, seen, build = reward_sources.SOURCES["longest"], [], grpo.build_grpo_update

    def without_first(settings, run):
        def scores(questions, groups, seed):
            results = longest(settings, run)(questions, groups, seed)
            lost = ResponseReward(None, UNPARSED, "no scores")
            return [dataclasses.replace(r, rewards=(lost, *r.rewards[1:])) for r in results]

        return scores

    def build_recorded(*args):
        program = build(*args)
        record = lambda *args: seen.append(jax.device_get(args[1])) or program.fn(*args)
        return dataclasses.replace(program, fn=record)

    monkeypatch.setitem(reward_sources.SOURCES, "longest", without_first)
    monkeypatch.setattr(grpo, "build_grpo_update", build_recorded)
    tiny.config.policy.update(steps=1)
    policy.train(tiny, first_params(tiny), tmp_path)
    mask, advantages = seen[0]["mask"], seen[0]["advantages"]
    assert not mask[:, 0].any() and (mask[:, 1:].sum(axis=2) >= 1).all()
    assert not advantages[:, 0].any() and advantages[:, 1:].any()
    assert logged(tmp_path)[0]["unparsed"] == 0.25


# ---------------------------------------------------------------- sources


def test_colocated_and_served_judge_give_the_same_rewards(tiny):
    judge = toy_judge()
    groups = [Group(f"add {i} 2", (f"so: {i}", f"answer: {i + 2}"), id=str(i)) for i in range(3)]
    settings = JudgeSettings(k=3, block_size=2)
    here = reward_sources.by_judge(judge, settings)([], groups, 11)
    assert all(value is not None for group in here for value in group.values)
    assert here != reward_sources.by_judge(judge, settings)([], groups, 12)
    with serving(toy_service(judge)) as server:
        served = dataclasses.replace(settings, source="served", url=server.url)
        assert reward_sources.served(served, tiny)([], groups, 11) == here


def test_a_server_that_is_down_gives_failed_and_no_number(tiny):
    settings = JudgeSettings(source="served", url="http://127.0.0.1:9", retries=0)
    (result,) = reward_sources.served(settings, tiny)([], [Group("add 1 2", ("3", "4"))], 0)
    assert [reward.status for reward in result.rewards] == [FAILED, FAILED]
    assert result.values == [None, None]
    with pytest.raises(TrainingError, match="2 of 2 answers have no reward.*resume"):
        policy.check_scored([result], 0.5)


def test_rewards_of_functions(tiny):
    answers = [["so: 3", "no doubt: 4"], ["pass", "so: 3"]]
    truth, longest = (reward_sources.SOURCES[name]({}, tiny) for name in ("truth", "longest"))
    rewards, _ = rewards_with(longest, answers)
    np.testing.assert_array_equal(rewards.values, [[5, 11], [4, 5]])
    assert "true_reward" not in rewards.metrics
    quality = {"so: 3": 1.0, "no doubt: 4": 0.1, "pass": 0.0}
    rewards, _ = rewards_with(truth, answers, quality)
    np.testing.assert_array_equal(rewards.values, np.float32([[1, 0.1], [0, 1]]))
    with pytest.raises(TrainingError, match="only the judging world has the true quality"):
        rewards_with(truth, answers)


# ---------------------------------------------------------------- configs and the supervised start


def test_questions_of_the_world_have_a_truth_and_other_queries_none(tiny):
    at, identity = policy.question_source(tiny.config)
    question = policy.make_question(tiny.tokenizer, at(5))
    assert question.truth("pass") == 0.0 and isinstance(question.prompt, str)
    assert identity.startswith("tasks/train/0/")
    assert tiny.tokenizer.decode(question.tokens).count(question.prompt) == 1


def test_demonstrations_are_answers_to_other_tasks_than_those_of_rl():
    config = policy_world.get_config("sft.tasks=20,sft.demonstrations=3")
    examples = policy.demonstrations(config)
    assert len(examples) == 60 and examples == policy.demonstrations(config)
    assert config.sft.first_item >= config.policy.steps * config.policy.prompts
    assert {example.kind for example in examples} == {"demonstration"}


@pytest.mark.parametrize(
    "field, message",
    [
        ("policy.judge.source=served", "config.policy.judge.url is empty: source='served' needs"),
        ("policy.judge.path=", "config.policy.judge.path is empty: source='colocated' needs it"),
        ("policy.judge.source=trut", "config.policy.judge.source='trut': did you mean 'truth'"),
        ("policy.judge.reward=rnk", "config.policy.judge.unknown reward 'rnk'"),
        ("policy.judge.k=0", "config.policy.judge.k=0"),
        ("policy.judge.quantize=int2", "config.policy.judge.quantize='int2': did you mean 'int8'"),
        ("policy.group_size=1", "config.policy.group_size=1: .* set at least 2"),
        ("policy.max_unscored=2.0", "config.policy.max_unscored=2.0"),
        ("policy.prompt_len=4000", "config.policy.prompt_len . config.policy.max_new_tokens takes"),
        ("sft.lr=0", "config.sft.lr=0"),
    ],
)
def test_wrong_settings_are_refused_with_their_field(field, message):
    with pytest.raises(ValueError, match=message):
        config_check.check(policy_world.get_config(field), complete=True)


def test_the_experiment_passes_the_checks_and_its_record_has_what_rewards_depend_on():
    config = policy_world.get_config("policy.judge.k=4,policy.judge.k_meta=2")
    config_check.check(config, complete=True)
    settings = JudgeSettings.of(config.policy.judge)
    assert (settings.k, settings.options(3).k_meta, settings.options(3).seed) == (4, 2, 3)
    assert settings.options().max_new_tokens is None
    shown = dataclasses.replace(settings, source="served").shown()
    assert shown["policy.judge.k"] == 4 and "policy.judge.url" not in shown
    json.dumps(shown)


def test_the_record_names_the_weights_of_the_judge(tmp_path):
    """Other weights under the same path are another name, so that a resumed run warns."""
    names = []
    for weights in (b"one", b"two"):
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(weights)
        names.append(JudgeSettings(path=str(tmp_path)).shown()["policy.judge.path"])
    assert names[0] != names[1] and all(name.startswith(tmp_path.name) for name in names)


@pytest.fixture(scope="module")
def judge_folders(tmp_path_factory):
    """Folders of a random judge and of a meta reward model, without a tokenizer."""
    root = tmp_path_factory.mktemp("judges")
    for name, scalar_head in (("judge", False), ("meta_rm", True)):
        cfg = get_config("tiny_gemma2", num_layers=2, scalar_head=scalar_head)
        checkpoints.save(build_model(cfg, nnx.Rngs(0)), root / name)
    return {name: str(root / name) for name in ("judge", "meta_rm")}


def test_the_memory_of_an_update_excludes_the_judge_and_its_meta_rm(judge_folders, monkeypatch):
    mesh = make_mesh(fsdp=2, devices=jax.devices()[:2])
    alone = JudgeSettings(path=judge_folders["judge"], dtype="float32")
    both = dataclasses.replace(alone, meta_rm=judge_folders["meta_rm"])
    weights = 4 * get_config("tiny_gemma2", num_layers=2).num_params
    split, sampler = weights / 2, weights  # `fsdp` does not split the sampler's
    assert split + sampler <= reward_sources.resident_bytes(alone, mesh) < 1.1 * (split + sampler)
    stored = reward_sources.resident_bytes(both, mesh) - reward_sources.resident_bytes(alone, mesh)
    assert split <= stored < 1.1 * split  # nothing is sampled from a scalar head
    int8 = dataclasses.replace(alone, quantize="int8")
    assert reward_sources.resident_bytes(int8, mesh) < 0.5 * (split + sampler)
    assert reward_sources.resident_bytes(JudgeSettings(source="longest"), mesh) == 0

    config = policy_world.get_config("policy.micro_rows=-1")
    config.policy.judge.update(path=both.path, meta_rm=both.meta_rm, dtype="float32")
    taken = reward_sources.resident_bytes(both, mesh)
    limits = []
    record_limit = lambda estimates, _, limit: limits.append(limit) or dict.fromkeys(estimates, 0.0)
    monkeypatch.setattr(memory, "search", record_limit)
    monkeypatch.setattr(grpo, "train_in", lambda *_: None)
    monkeypatch.setattr(memory, "device_memory", lambda: (2**30, 0))
    monkeypatch.setattr(policy, "environment", lambda run: None)
    with jax.set_mesh(mesh):
        policy.train(loop.Run(config, mesh, None), None, "")
    assert limits == [0.9 * 2**30 - taken]


def test_metrics_of_an_update_are_means_over_the_answers_that_count():
    mask = np.array([[[1, 1], [1, 0]], [[0, 0], [0, 0]]], np.float32)
    arrays = {"mask": mask, "sampler_logps": mask * -1.0, "ref_logps": mask * -1.5}
    row = rollouts.rescaled({"kl": 0.5, "clip_share": 0.25, "loss": 3.0}, {"mask": mask}, arrays)
    assert row == {"kl": 1.0, "clip_share": 0.5, "loss": 3.0, "kl_sequence": 0.75}
