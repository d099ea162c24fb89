"""Tests the three training stages at one step each: memory, identities, checks, NaN."""

import dataclasses
import gc
import json

import jax
import jax.numpy as jnp
import pytest
import resume_child

from grm_jax import Judge
from grm_jax.models import abstract_model
from grm_jax.sharding import make_mesh
from grm_jax.training import (
    checkpoint,
    grpo,
    loop,
    main,
    meta_rm,
    metrics,
    rft,
    rft_data,
    rft_samplers,
    sources,
    state as states,
)
from grm_jax.training.programs import model_config


@pytest.fixture
def tiny(monkeypatch):
    """A Run of one step per stage, under its mesh, without ahead-of-time compilation."""
    config = resume_child.make_config()
    config.rft.update(steps=1, warmup_steps=0)
    config.rl.update(steps=1)
    config.meta_rm.update(steps=1, warmup_steps=0)
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(loop, "compile_ahead", lambda *_: 0.0)
    with jax.set_mesh(mesh):
        yield loop.Run(config, mesh, sources.load_tokenizer(config))


def init_params(run):
    return lambda: states.init_params(model_config(run.config), run.mesh, 0)


def wrap_update(monkeypatch, module, name, around):
    """Patches builder `module.name`: its update becomes `around(update, state, batch)`."""
    build = getattr(module, name)

    def build_wrapped(*args):
        program = build(*args)
        return dataclasses.replace(
            program,
            fn=lambda state, batch, frozen: around(
                lambda state, batch: program.fn(state, batch, frozen), state, batch
            ),
        )

    monkeypatch.setattr(module, name, build_wrapped)


@pytest.mark.slow
def test_a_stage_has_only_its_state_and_the_reference_in_memory(tiny, monkeypatch, tmp_path):
    config, mesh = tiny.config, tiny.mesh
    _, abstract = abstract_model(model_config(config), mesh)
    table = (config.model_overrides["vocab_size"], config.model_overrides["d_model"])
    counts = []

    def count(fn, state, batch):
        gc.collect()
        counts.append(sum(x.shape == table for x in jax.live_arrays()))
        return fn(state, batch)

    wrap_update(monkeypatch, rft, "build_sft_update", count)
    wrap_update(monkeypatch, grpo, "build_grpo_update", count)
    wrap_update(monkeypatch, meta_rm, "build_meta_rm_update", count)

    def trained(stage):
        return lambda: loop.load_params(tmp_path / stage, abstract)

    # Only the embedding has this shape.
    assert sum(x.shape == table for x in jax.tree.leaves(abstract)) == 1
    folders = {stage: tmp_path / stage for stage in ("rft", "rl", "meta_rm")}
    rft.train(tiny, init_params(tiny), folders["rft"])
    grpo.train(tiny, trained("rft"), folders["rl"])
    meta_rm.train(tiny, trained("rft"), trained("rl"), folders["rft"], folders["meta_rm"])
    # Weights and two moments; both updates of RL also have the reference.
    assert counts == [3, 4, 4, 3]
    identity = {name: set(loop.read_result(path)["identity"]) for name, path in folders.items()}
    assert {"batch_size", "seq_len"} <= identity["rft"] and "rl.prompts" in identity["rl"]
    assert {"meta_rm.batch_size", "meta_rm.seq_len", "meta_rm.likelihood"} <= identity["meta_rm"]


def test_the_sampling_model_is_freed_before_training_allocates(tiny, tmp_path, monkeypatch):
    def make_sampler(config, tokenizer, mesh):
        answer = rft_samplers.teacher(principles=config.principles)

        def sample(requests):
            return answer(requests) if sample.weights.size else []

        sample.weights, sample.itself = jnp.zeros((3, 1234)), sample  # a cycle, as in an engine
        return sample

    monkeypatch.setattr(rft, "make_sampler", make_sampler)
    tiny.config.rft.update(comparisons=8)
    gc.disable()  # not at random, but at this point
    try:
        rft.prepare(tiny.config, tiny.tokenizer, tiny.mesh, tmp_path / "data")
    finally:
        gc.enable()
    assert not any(array.shape == (3, 1234) for array in jax.live_arrays())


def test_a_resumed_stage_does_not_initialise_its_state(tiny, monkeypatch, tmp_path):
    tiny.config.rft.update(steps=2, save_every=1)
    real = loop.step_seed
    monkeypatch.setattr(loop, "step_seed", lambda seed, i: real(seed, i) if i < 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rft.train(tiny, init_params(tiny), tmp_path)
    monkeypatch.setattr(loop, "step_seed", real)
    monkeypatch.setattr(states, "init_state", lambda *_: 1 / 0)
    rft.train(tiny, init_params(tiny), tmp_path)
    assert loop.is_done(tmp_path)


def test_a_non_finite_update_is_the_last_of_its_rollout(tiny, monkeypatch, tmp_path):
    tiny.config.rl.update(updates_per_rollout=4)
    calls = []

    def fail_second(fn, state, batch):
        calls.append(len(calls))
        state, row = fn(state, batch)
        return state, {**row, "finite": row["finite"] * (len(calls) != 2)}

    wrap_update(monkeypatch, grpo, "build_grpo_update", fail_second)
    message = "at step 0.*1 updates of the step were made.*none exists"
    with pytest.raises(loop.NonFiniteLoss, match=message):
        grpo.train(tiny, init_params(tiny), tmp_path)
    assert calls == [0, 1] and not metrics.read_jsonl(tmp_path / "metrics.jsonl")


@pytest.mark.slow
def test_int8_rollouts_differ_from_the_trainer_by_the_gap(tiny, tmp_path):
    rows = []
    for kind in ("", "int8"):
        tiny.config.rl.rollout_quantize = kind
        grpo.train(tiny, init_params(tiny), tmp_path / f"rl{kind}")
        rows += metrics.read_jsonl(tmp_path / f"rl{kind}" / "metrics.jsonl")
    same, int8 = (row["gap_mean"] for row in rows)
    print(f"gap_mean: {same:.1e} {int8:.1e}")
    assert same < 1e-4 < 1e-3 < int8 < 0.2


def test_an_interrupted_export_is_repeated(tmp_path):
    """The process was killed after it wrote the stage's result and before its export ended."""
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
    judge = Judge.load(tmp_path / "rft/hf")  # has the settings of the training
    assert (judge.family, judge.max_new_tokens) == ("compact", config.rl.max_new_tokens)
    assert judge.single == "compact/single_binary"


def test_missing_weights_are_an_error_before_training(tmp_path):
    from grm_jax.training import main

    config = resume_child.make_config()
    config.batch_size = config.rl.prompts = 8  # one for each emulated device
    config.init = str(tmp_path / "no weights here")
    with pytest.raises(FileNotFoundError, match="config.init names .*no weights here"):
        main.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "rft").exists()


def test_an_unknown_start_of_the_meta_rm_is_an_error_before_any_file_is_written(tmp_path):
    config = resume_child.make_config()
    config.meta_rm.start = "policy"
    with pytest.raises(ValueError, match="config.meta_rm.start='policy': use one of base, rft, rl"):
        main.run(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("rft.sampler", "teecher", "unknown rft.sampler 'teecher': did you mean 'teacher'"),
        ("rl.group_packed", False, "config.rl.group_packed=False is no longer supported"),
        ("rl.kl_estimator", "k1", "kl_estimator 'k1' has an expected gradient of exactly zero"),
        ("rl.temperature", 0.0, "config.rl.temperature=0.0: .* set it above 0"),
        ("rl.group_size", 1, "config.rl.group_size=1: .* set at least 2"),
        ("rl.reference_dtype", "bf17", "config.rl.reference_dtype='bf17': use float32 or bfloat16"),
        ("rl.schedule", "cosin", "unknown config.rl.schedule 'cosin'"),
        (
            "meta_rm.likelihood",
            -1.0,
            "config.meta_rm.likelihood=-1.0: the weight of a log-probability; set it to 0",
        ),
        (
            "meta_rm.warmup_steps",
            99,
            "config.meta_rm.warmup_steps=99 is not shorter than config.meta_rm.steps",
        ),
    ],
)
def test_invalid_settings_are_an_error_before_training(tmp_path, field, value, message):
    config = resume_child.make_config()
    section, name = field.split(".")
    with config.unlocked():
        config[section][name] = value
    with pytest.raises(ValueError, match=message):
        main.run(config, tmp_path)
    assert not (tmp_path / "rft").exists()


def test_a_finished_stage_keeps_its_config_and_a_change_is_logged(tmp_path, caplog):
    config = resume_child.make_config()
    cfg = model_config(config)
    main.save_config(config, cfg, tmp_path)
    (tmp_path / "rl").mkdir()
    loop.write_result(tmp_path / "rl", {"stage": "rl"})
    beta = config.rl.beta
    config.rl.beta, config.meta_rm.lr = 0.5, 0.25
    for _ in range(2):
        caplog.clear()
        main.save_config(config, cfg, tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert saved["rl"]["beta"] == beta and saved["meta_rm"]["lr"] == 0.25
        assert f"config has changed since (beta was {beta} and is 0.5)" in caplog.text
        assert "meta_rm" not in caplog.text


def test_without_critiques_that_fit_the_error_names_meta_rm_seq_len(tiny, tmp_path):
    tiny.config.meta_rm.seq_len = 4
    start, rft_folder = init_params(tiny), tmp_path / "rft"
    rft.prepare(tiny.config, tiny.tokenizer, tiny.mesh, rft_folder / "data")
    with pytest.raises(ValueError, match="0 critiques of 0 comparisons.*config.meta_rm.seq_len=4"):
        meta_rm.train(tiny, start, start, rft_folder, tmp_path / "meta_rm")


def test_the_meta_rm_resumes_only_with_its_own_critiques_and_held_out_part(
    tiny, monkeypatch, tmp_path
):
    """Else critiques that it was trained on would be held out."""
    stages = []
    monkeypatch.setattr(loop, "train", lambda stage, stop: stages.append(stage) or {"params": {}})
    monkeypatch.setattr(meta_rm, "sample_policy", lambda *args: ([], "fingerprint"))
    start, rft_folder = init_params(tiny), tmp_path / "rft"
    rft.prepare(tiny.config, tiny.tokenizer, tiny.mesh, rft_folder / "data")
    read_trials = rft_data.read_trials

    def relabelled(path):
        return [dataclasses.replace(trial, right=not trial.right) for trial in read_trials(path)]

    for held_out, read in ((0.2, read_trials), (0.2, read_trials), (0.5, read_trials),
                           (0.2, relabelled)):  # fmt: skip
        tiny.config.meta_rm.held_out = held_out
        monkeypatch.setattr(rft_data, "read_trials", read)
        meta_rm.train(tiny, start, start, rft_folder, tmp_path / "meta_rm")
    first, same, other_part, other_labels = (dict(stage.identity) for stage in stages)
    assert first == same
    changed = [checkpoint.differences(first, other) for other in (other_part, other_labels)]
    assert changed[0] == "meta_rm.held_out was 0.2 and is 0.5"
    assert changed[1].startswith("critiques was ") and "," not in changed[1]
