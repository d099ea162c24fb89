"""The three trainings, of one step each: what they keep in memory, what their checkpoints are tied to, where a bad update stops."""

import dataclasses
import gc
import json

import jax
import pytest
import resume_child

from grm_jax import Judge
from grm_jax.sharding import make_mesh
from grm_jax.training import grpo, loop, main, meta_rm, metrics, rft, sources, steps
from grm_jax.training import state as states


@pytest.fixture
def setting(monkeypatch):
    """(config, mesh, tokenizer, abstract parameters), with the mesh set and nothing compiled ahead."""
    config = resume_child.make_config()
    config.rft.update(steps=1, warmup_steps=0)
    config.rl.update(steps=1)
    config.meta_rm.update(steps=1, warmup_steps=0)
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(loop, "compile_ahead", lambda *_: 0.0)
    with jax.set_mesh(mesh):
        abstract = states.abstract_model(steps.model_config(config), mesh)[1]
        yield config, mesh, sources.load_tokenizer(config), abstract


def wrapped(monkeypatch, name, around):
    """`around(fn, state, batch)` in the place of the update that `steps.NAME` builds."""
    build = getattr(steps, name)

    def built(*args):
        program = build(*args)
        return dataclasses.replace(
            program, fn=lambda state, batch: around(program.fn, state, batch)
        )

    monkeypatch.setattr(steps, name, built)


def test_a_stage_keeps_its_state_and_reference_and_no_first_parameters(
    setting, monkeypatch, tmp_path
):
    config, mesh, tokenizer, abstract = setting
    table = (config.model_overrides["vocab_size"], config.model_overrides["d_model"])
    seen = []

    def count(fn, state, batch):
        gc.collect()
        seen.append(sum(x.shape == table for x in jax.live_arrays()))
        return fn(state, batch)

    for name in ("build_sft_step", "build_grpo_step", "build_meta_rm_step"):
        wrapped(monkeypatch, name, count)

    def first():
        return states.init_params(steps.model_config(config), mesh, 0)

    def last(stage):
        return lambda: loop.load_params(tmp_path / stage, abstract)

    assert first().flat_state()  # the shape is the table's, and of nothing else
    assert sum(x.shape == table for x in jax.tree.leaves(abstract)) == 1
    rft.train(config, mesh, tokenizer, first, tmp_path / "rft")
    at = sources.judging(config).at
    grpo.train(config, mesh, tokenizer, last("rft"), at, tmp_path / "rl", "world")
    meta_rm.train(
        config, mesh, tokenizer, last("rft"), last("rl"), tmp_path / "rft", tmp_path / "meta_rm"
    )
    # The weights and two moments; in RL the reference too, in both updates.
    assert seen == [3, 4, 4, 3]
    tied = {
        stage: set(loop.read_result(tmp_path / stage)["identity"])
        for stage in ("rft", "rl", "meta_rm")
    }
    assert {"batch_size", "seq_len"} <= tied["rft"] and "rl.prompts" in tied["rl"]
    assert {"meta_rm.batch_size", "meta_rm.seq_len", "meta_rm.likelihood"} <= tied["meta_rm"]


def test_no_further_update_of_a_rollout_after_one_that_is_not_finite(
    setting, monkeypatch, tmp_path
):
    config, mesh, tokenizer, _ = setting
    config.rl.update(updates_per_rollout=4)
    calls = []

    def poisoned(fn, state, batch):
        calls.append(len(calls))
        state, row = fn(state, batch)
        return state, {**row, "finite": row["finite"] * (len(calls) != 2)}

    wrapped(monkeypatch, "build_grpo_step", poisoned)
    first = lambda: states.init_params(steps.model_config(config), mesh, 0)  # noqa: E731
    at = sources.judging(config).at
    with pytest.raises(
        loop.NonFiniteLoss, match="at step 0.*1 of its updates were made before.*no checkpoint yet"
    ):
        grpo.train(config, mesh, tokenizer, first, at, tmp_path, "world")
    assert calls == [0, 1] and not metrics.read_jsonl(tmp_path / "metrics.jsonl")


def test_an_export_that_was_cut_off_is_made_again(tmp_path):
    """Killed between a stage's result and the end of its Hugging Face folder."""
    from grm_jax import checkpoints
    from grm_jax.training import main

    config = resume_child.make_config()
    config.stages, config.export = ("rft",), True
    config.rft.update(steps=1, warmup_steps=0)
    config.mesh.update(fsdp=4, tensor=2)
    main.run(config, tmp_path)
    whole = (tmp_path / "rft/hf/model.safetensors").read_bytes()
    (tmp_path / "rft/hf/config.json").unlink()
    (tmp_path / "rft/hf/model.safetensors").write_bytes(whole[:100])
    main.run(config, tmp_path)
    assert (tmp_path / "rft/hf/model.safetensors").read_bytes() == whole
    assert checkpoints.load(tmp_path / "rft/hf").cfg.num_layers == 2
    judge = Judge.load(tmp_path / "rft/hf")  # and it knows how it was trained to be asked
    assert (judge.family, judge.max_new_tokens) == ("compact", config.rl.max_new_tokens)


def test_what_is_missing_is_said_before_anything_is_trained(tmp_path):
    from grm_jax.training import main

    config = resume_child.make_config()
    config.init = str(tmp_path / "no weights here")
    with pytest.raises(FileNotFoundError, match="config.init names .*no weights here"):
        main.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "rft").exists()


def test_a_start_of_the_meta_rm_that_does_not_exist_is_refused_before_anything_trains(tmp_path):
    config = resume_child.make_config()
    config.meta_rm.start = "policy"
    with pytest.raises(ValueError, match="meta_rm.start 'policy': use one of base, rft, rl"):
        main.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "field, value, message",
    [
        (
            "rft.sampler",
            "teecher",
            "rft.sampler 'teecher' is not known: use teacher, file, endpoint or model",
        ),
        ("rl.kl_estimator", "k1", "kl_estimator 'k1' has an expected gradient of exactly zero"),
        ("rl.temperature", 0.0, "config.rl.temperature=0.0: .* give one above 0"),
        ("rl.group_size", 1, "config.rl.group_size=1: .* give at least 2"),
        (
            "rl.reference_dtype",
            "bf17",
            "config.rl.reference_dtype='bf17': give float32 or bfloat16",
        ),
        ("rl.schedule", "cosin", "config.rl.schedule 'cosin' is not known"),
        (
            "meta_rm.likelihood",
            -1.0,
            "config.meta_rm.likelihood=-1.0: the weight of a log-probability, give 0",
        ),
        (
            "meta_rm.warmup_steps",
            99,
            "config.meta_rm.warmup_steps=99 is not shorter than config.meta_rm.steps",
        ),
    ],
)
def test_what_would_stop_a_later_stage_is_refused_before_anything_trains(
    tmp_path, field, value, message
):
    config = resume_child.make_config()
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(ValueError, match=message):
        main.run(config, tmp_path)
    assert not (tmp_path / "rft").exists()


def test_a_stage_that_is_done_keeps_its_config_and_a_change_is_told(tmp_path, caplog):
    config = resume_child.make_config()
    cfg = steps.model_config(config)
    main._note_config(config, cfg, tmp_path)
    (tmp_path / "rl").mkdir()
    loop.write_result(tmp_path / "rl", {"stage": "rl"})
    was = config.rl.beta
    config.rl.beta, config.meta_rm.lr = 0.5, 0.25
    for _ in range(2):
        caplog.clear()
        main._note_config(config, cfg, tmp_path)
        noted = json.loads((tmp_path / "config.json").read_text())
        assert noted["rl"]["beta"] == was and noted["meta_rm"]["lr"] == 0.25
        assert (
            f"rl is done, with other values than this config's (beta={was} (here 0.5))"
            in caplog.text
        )
        assert "meta_rm" not in caplog.text


def test_a_meta_rm_without_critiques_to_learn_from_says_what_to_raise(setting, tmp_path):
    config, mesh, tokenizer, _ = setting
    config.meta_rm.seq_len = 4
    first = lambda: states.init_params(steps.model_config(config), mesh, 0)  # noqa: E731
    rft.prepare(config, tokenizer, mesh, tmp_path / "rft" / "data")
    with pytest.raises(ValueError, match="0 critiques of 0 comparisons.*config.meta_rm.seq_len=4"):
        meta_rm.train(config, mesh, tokenizer, first, first, tmp_path / "rft", tmp_path / "meta_rm")
