"""Tests of settings that were accepted and then ignored, or failed after the training."""

import json

import jax
import pytest

from experiments import own_data, policy_world, spct_tiny
from grm_jax.data import mixtures
from grm_jax.judging.options import Options
from grm_jax.sharding import make_mesh
from grm_jax.training import (
    config_check,
    eval_stage,
    finished,
    grpo,
    inputs,
    loop,
    memory,
    meta_rm,
    policy,
    programs,
    rft,
    rft_data,
    rft_samplers,
    sources,
)


def rows(path, text):
    lines = [{"query": f"{text} {i}", "responses": ["a", "b"], "label": 0} for i in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_the_split_train_of_a_benchmark_is_held_out(tmp_path):
    mixtures.add_comparisons("s_train", {"train": rows(tmp_path / "a.jsonl", "training")})
    mixtures.add_comparisons("s_bench", {"train": rows(tmp_path / "b.jsonl", "benchmark")})
    config = spct_tiny.get_config("eval.split=train")
    config.data.update(judging="s_train", held_out="s_bench", general_items=0)
    config.data.shuffle_labels = True  # only of the training comparisons
    config_check.check(config, complete=True)
    held_out = eval_stage.held_out(config, tmp_path / "run")
    assert {(c.query.split()[0], c.label) for c in held_out} == {("benchmark", 0)}
    trained = sources.judging(config, workdir=tmp_path / "run").take(0, 4)
    assert {c.query.split()[0] for c in trained} == {"training"}


@pytest.mark.parametrize("module", [spct_tiny, own_data])
def test_the_split_train_of_the_training_data_is_refused(module):
    config = module.get_config()
    config.eval.split = "train"
    message = f"config.eval.split='train': config.data.judging='{config.data.judging}' trains on it"
    for refuse in (
        lambda: config_check.check(config, complete=True),
        lambda: sources.judging(config, config.eval.split),
    ):
        with pytest.raises(ValueError, match=message):
            refuse()


def test_the_files_of_a_judge_without_a_source_are_checked():
    config = policy_world.get_config()
    config.policy.judge = {"path": "/no/judge", "meta_rm": "/no/meta"}
    with pytest.raises(inputs.MissingInputs, match="config.policy.judge.path names /no/judge"):
        sources.check(config)
    config.policy.judge = {"source": "served", "url": "http://host", "path": "/no/judge"}
    sources.check(config)
    config.policy.judge = {"source": "rule"}
    with config.unlocked():
        config.policy.easy_trials = "/no/trials"
    with pytest.raises(inputs.MissingInputs, match="config.policy.easy_trials names /no/trials"):
        sources.check(config)


def test_seeds_are_within_the_limit_of_the_sampler():
    most = 2**31 - 2
    config = spct_tiny.get_config(f"seed={most},eval.seed={most},data.seed={2**32 - 1}")
    config_check.check(config, complete=True)
    Options(seed=config.seed + 1)  # the meta RM's critiques have the next seed
    Options(seed=config.eval.seed)
    sources.judging(config).take(0, 2)
    for field in ("seed", "eval.seed"):
        with pytest.raises(ValueError, match=f"config.{field}={most + 1}: use 0 to {most}"):
            config_check.check(spct_tiny.get_config(f"{field}={most + 1}"), complete=True)


@pytest.fixture
def tiny(monkeypatch):
    """Returns a function that makes a Run of a config, under its mesh."""
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield lambda config: loop.Run(config, mesh, sources.load_tokenizer(config))


def test_without_the_section_rl_the_critiques_have_the_length_of_their_sampler(
    tiny, monkeypatch, tmp_path
):
    config = spct_tiny.get_config("stages=rft")
    with config.unlocked():
        del config.rl
    config_check.check(config, complete=True)
    default = min(1024, programs.model_config(config).max_length // 2)
    assert finished._metadata(config, "rft").max_new_tokens == default
    config.rft.sampling = {"max_new_tokens": 30}
    assert finished._metadata(config, "rft").max_new_tokens == 30
    lengths = []
    monkeypatch.setattr(rft_samplers, "model", lambda *args, **_: lengths.append(args[2]))
    monkeypatch.setattr(rft_data, "build", lambda *_: rft_data.RftSet())
    monkeypatch.setattr(rft_samplers, "stored", lambda *_: None)
    run = tiny(config)
    params = sources.first_params(config, programs.model_config(config), run.mesh)
    meta_rm.sample_policy(run, params, tmp_path)
    assert lengths == [30]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("group_packed", False, "config.policy.group_packed=False is no longer supported"),
        ("easy_trials", "x.jsonl", "config.policy.easy_trials=x.jsonl: only .*source='rule' reads"),
        ("profile_steps", (12, 10), r"config.policy.profile_steps=\(12, 10\): name the first step"),
    ],
)
def test_settings_without_effect_are_refused(field, value, message):
    config = policy_world.get_config()
    with config.unlocked():
        config.policy[field] = value
    with pytest.raises(ValueError, match=message):
        config_check.check(config, complete=True)


def test_messages_name_the_section_of_their_stage(tiny, monkeypatch):
    config = policy_world.get_config("policy.prompt_len=8")
    config.policy.judge = {"source": "rule"}
    run = tiny(policy.with_section(config, "rl", "policy"))
    with pytest.raises(ValueError, match=r"raise config.policy.prompt_len \(8\)"):
        policy.environment(run).prompts(0, 0)
    assert policy.environment(run).stage == "policy"

    def choose(config, stage, mesh, report, **_):
        report(f"{stage}: remat=full")
        return config

    lines = []
    monkeypatch.setattr(memory, "choose", choose)
    monkeypatch.setattr(memory, "is_open", lambda *_: True)
    monkeypatch.setattr(grpo, "train_in", lambda *_: None)
    monkeypatch.setattr(rft, "fine_tune", lambda *_: None)
    policy.train(run.with_config(config), lambda: None, "", lines.append)
    config.sft.tasks = 1
    policy.train_sft(run.with_config(config), lambda: None, "", lines.append)
    assert lines == ["policy: remat=full", "sft: remat=full"]
