"""LoRA in training: what is trained and stored, the reference, exact resume, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resume_child
from flax import nnx

from grm_jax.models import abstract_model, build_model, lora
from grm_jax.sharding import make_mesh
from grm_jax.storage import as_path
from grm_jax.training import (
    checkpoint,
    config_check,
    finished,
    grpo,
    loop,
    losses,
    main,
    meta_rm,
    optim,
    programs,
    rft,
    sources,
    state as states,
)


def make_config(base="bfloat16", **fields):
    config = resume_child.make_config()
    config.lora.update(rank=2, alpha=4.0, base=base, **fields)
    config.rft.update(steps=2, warmup_steps=0, save_every=1)
    config.rl.update(steps=1, updates_per_rollout=1)
    config.meta_rm.update(steps=1, warmup_steps=0, likelihood=0.0)
    return config


SLOW = [pytest.param(base, marks=pytest.mark.slow) for base in ("bfloat16", "int4")]


@pytest.fixture
def run(monkeypatch):
    """A Run with LoRA, under its mesh, without ahead-of-time compilation."""
    config = make_config()
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(loop, "compile_ahead", lambda *_: 0.0)
    with jax.set_mesh(mesh):
        yield loop.Run(config, mesh, sources.load_tokenizer(config))


def first(run):
    return lambda: sources.first_params(run.config, programs.model_config(run.config), run.mesh)


def is_adapter(path):
    return path.endswith((".a.value", ".b.value")) or path == f"{lora.HEAD}.value"


def arrays(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("base", [*SLOW, "int8"])
def test_an_update_differentiates_and_changes_the_adapters_alone(base):
    """Its gradient is that of the whole model with respect to the adapters."""
    config, mesh = make_config(base), make_mesh(devices=jax.devices()[:1])
    config.rft.update(lr=1.0, clip_norm=0.0, micro_batches=2)
    cfg = programs.model_config(config)
    params, frozen = states.split(states.init_params(cfg, mesh, 0))
    params = jax.tree.map(lambda x: x + 0.05, params)
    rng, shape = np.random.default_rng(0), (config.batch_size, config.seq_len)
    ones = np.ones(shape, np.int32)
    batch = {
        "tokens": rng.integers(3, 800, shape).astype(np.int32),
        "positions": np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1)),
        "segment_ids": ones,
        "weights": ones.astype(np.float32),
    }
    program = rft.build_sft_update(config, mesh)
    before, base_before = arrays(params), arrays(frozen)
    graphdef, _ = abstract_model(cfg, mesh)

    def loss(params):
        from grm_jax.models import token_logps

        model = nnx.merge(graphdef, states.compute_params(states.join(params, frozen), cfg.dtype))
        inputs = (batch["tokens"], batch["positions"], batch["segment_ids"])
        return losses.sft_loss(token_logps(model, *inputs).logps, batch["weights"], ones.sum())

    with jax.set_mesh(mesh):
        expected = jax.jit(jax.grad(loss))(params)
        state = states.init_state(params, optim.make_optimizer(config.rft), mesh, 0)
        state, metrics = program.fn(state, states.put_batch(batch, mesh), frozen)
    norm = np.sqrt(sum((x**2).sum() for x in arrays(expected)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert all(map(is_adapter, checkpoint.flatten(state["params"])))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, arrays(state["params"])))
    for one, two in zip(base_before, arrays(frozen)):
        np.testing.assert_array_equal(one, two)
    size = sum(x.size for x in before)
    assert sum(x.size for x in arrays(state["opt_state"]) if x.ndim) == 2 * size
    # The base is stored as it is used, the adapters in float32.
    dtypes = {x.dtype for x in jax.tree.leaves(frozen)}
    assert dtypes == (
        {jnp.dtype("bfloat16")}
        if base == "bfloat16"
        else {jnp.dtype(name) for name in (base, "int8", "float32", "bfloat16")}
    )
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_the_stages_train_and_store_adapters_on_one_base(run, monkeypatch, tmp_path):
    monkeypatch.setattr(grpo, "reward", resume_child.chance_reward)
    config, loads = run.config, []
    frozen_params = sources.frozen_params
    monkeypatch.setattr(
        sources, "frozen_params", lambda *args: loads.append(1) or frozen_params(*args)
    )
    folders = {stage: as_path(tmp_path / stage) for stage in finished.TRAINED}

    def trained(stage):
        return lambda: finished.load(run, stage, folders[stage])

    rft_params = rft.train(run, first(run), folders["rft"])
    rl_params = grpo.train(run, trained("rft"), folders["rl"])
    meta_params = meta_rm.train(
        run, trained("rft"), trained("rl"), folders["rft"], folders["meta_rm"]
    )
    assert loads == [1]  # no second base for the reference or the meta reward model
    for params in (rft_params, rl_params, meta_params):
        assert all(map(is_adapter, checkpoint.flatten(params)))
    assert meta_params[lora.HEAD].dtype == jnp.float32
    random_head = states.split(meta_rm.add_head(config, run.mesh, trained("rft")(), config.seed))[
        0
    ][lora.HEAD]
    assert np.abs(np.asarray(meta_params[lora.HEAD][...] - random_head[...])).max() > 0
    base = {"base": checkpoint.fingerprint(run.frozen)}
    for stage in ("rft", "rl", "meta_rm"):
        assert base.items() <= loop.read_result(folders[stage])["identity"].items()
    # A checkpoint has the adapters and their moments, one of all weights three times these bytes.
    model_bytes = 4 * programs.model_config(config).num_params
    adapter_bytes = sum(x.nbytes for x in arrays(rl_params))
    stored = sum(
        file.stat().st_size
        for file in (tmp_path / "rl" / "checkpoints").rglob("*")
        if file.is_file() and file.parent.name == "d"
    )
    assert 3 * adapter_bytes < stored < model_bytes  # the files may hold some values twice


def test_the_reference_without_rft_is_the_base(run):
    """New adapters have no effect."""
    programs_ = grpo.build_programs(run.config, run.mesh)
    reference, _ = grpo.make_reference(first(run)(), "float32", run.mesh)
    shapes = grpo.rollout_shapes(run.config)
    batch = {name: np.ones(shape, dtype) for name, (shape, dtype) in shapes.items()}
    batch = states.put_batch(batch, run.mesh)
    logps = programs_.reference_logps.fn(reference, batch, run.frozen)
    plain = run.config.copy_and_resolve_references()
    plain.lora.rank = 0
    plain.model_overrides["param_dtype"] = "bfloat16"
    graphdef, _ = abstract_model(programs.model_config(plain), run.mesh)
    flat = {lora.base_path(path): value for path, value in checkpoint.flatten(run.frozen).items()}
    _, abstract = abstract_model(programs.model_config(plain), run.mesh)
    leaves = [flat[path] for path in checkpoint.flatten(abstract)]
    params = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
    expected = grpo.build_logps(plain, run.mesh).fn(params, batch, nnx.State({}))
    np.testing.assert_array_equal(logps, expected)


def test_a_stopped_stage_resumes_bit_for_bit(run, monkeypatch, tmp_path):
    whole = rft.train(run, first(run), tmp_path / "whole")
    real = loop.step_seed
    monkeypatch.setattr(loop, "step_seed", lambda seed, i: real(seed, i) if i < 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rft.train(run, first(run), tmp_path / "stopped")
    monkeypatch.setattr(loop, "step_seed", real)
    monkeypatch.setattr(states, "init_state", lambda *_: 1 / 0)
    resumed = rft.train(run, first(run), tmp_path / "stopped")
    for one, two in zip(arrays(whole), arrays(resumed), strict=True):
        np.testing.assert_array_equal(one, two)


def test_another_rank_in_the_same_workdir_is_refused_in_one_line(tmp_path):
    config = make_config()
    cfg = programs.model_config(config)
    main.save_config(config, cfg, tmp_path)
    main.check_workdir(config, cfg, tmp_path)
    config.lora.rank = 8
    with pytest.raises(checkpoint.CheckpointError, match="lora was 'rank 2, .* is 'rank 8") as e:
        main.check_workdir(config, programs.model_config(config), tmp_path)
    assert "\n" not in str(e.value)
    config.lora.rank = 0
    with pytest.raises(checkpoint.CheckpointError, match="lora was 'rank 2.* and is 'off'"):
        main.check_workdir(config, programs.model_config(config), tmp_path)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("rank", -1, "config.lora.rank=-1: use 1 or more, or 0 to train all weights"),
        ("alpha", 0.0, "config.lora.alpha=0.0: use a number above 0"),
        ("targets", ("q_proj", "wq"), "config.lora.targets=.*'wq': use one of q_proj"),
        ("targets", (), "config.lora.targets=().*at least 1"),
        ("base", "int2", "config.lora.base='int2': did you mean 'int8'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(field, value, message):
    config = make_config()
    with config.unlocked(), config.ignore_type():
        config.lora[field] = value
    with pytest.raises(ValueError, match=message.replace("()", r"\(\)")) as error:
        config_check.check(config)
    assert "\n" not in str(error.value)


def test_rank_0_is_full_fine_tuning():
    config = make_config()
    config.lora.rank = 0
    cfg = programs.model_config(config)
    assert (cfg.lora, cfg.quantize, cfg.param_dtype) == (None, None, "float32")
    params = nnx.state(build_model(cfg, nnx.Rngs(0)))
    trained, frozen = states.split(params)
    assert trained is params and not jax.tree.leaves(frozen)
    assert states.join(params, frozen) is params
