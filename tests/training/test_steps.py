"""Tests the jitted updates of the stages: shared prompts, micro-batches, sharding, NaN."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx

from grm_jax.models import abstract_model, build_model, get_config, grouped_token_logps, token_logps
from grm_jax.sharding import make_mesh
from grm_jax.training import grpo, losses, meta_rm, optim, rft, state as states
from grm_jax.training.programs import model_config

NONE = nnx.State({})  # frozen parameters


def stage(**fields):
    base = dict(
        steps=10, lr=1e-2, warmup_steps=0, schedule="constant", final_lr_share=0.0,
        b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=1.0, micro_batches=1,
    )  # fmt: skip
    return ml_collections.ConfigDict(base | fields)


def make_config(**rl):
    config = ml_collections.ConfigDict(dict(model="tiny_gemma2", seq_len=24, batch_size=8))
    config.model_overrides = dict(num_layers=2)  # one local and one global layer
    config.rft = stage()
    defaults = dict(
        prompts=8,
        group_size=4,
        prompt_len=10,
        max_new_tokens=6,
        temperature=1.0,
        beta=0.08,
        clip=0.2,
    )
    config.rl = stage(**(defaults | dict(kl_estimator="k3", updates_per_rollout=1) | rl))
    config.meta_rm = stage(batch_size=8, seq_len=16, token_loss=0.0, likelihood=0.0)
    return config


def sft_batch(rng, rows=8, length=24, vocab=128):
    tokens = rng.integers(3, vocab, (rows, length)).astype(np.int32)
    # Two packed sequences of 10 and 9 tokens, then padding.
    segments = np.concatenate([np.full(10, 1), np.full(9, 2), np.zeros(length - 19)]).astype(
        np.int32
    )
    positions = np.concatenate([np.arange(10), np.arange(9), np.zeros(length - 19)]).astype(
        np.int32
    )
    weights = np.zeros(length, np.float32)
    weights[4:10] = weights[12:19] = 1
    tile = lambda x: np.tile(x, (rows, 1))  # noqa: E731
    return {
        "tokens": tokens,
        "segment_ids": tile(segments),
        "positions": tile(positions),
        "weights": tile(weights),
    }


def grpo_batch(rng, config, vocab=128):
    shapes = grpo.grpo_batch_shapes(config)
    P, G, T = shapes["mask"][0]
    S = config.rl.prompt_len
    lengths = rng.integers(1, S + 1, P).astype(np.int32)
    prompts = rng.integers(3, vocab, (P, S)).astype(np.int32)
    prompts[np.arange(S)[None] < (S - lengths)[:, None]] = 0
    mask = (np.arange(T) < rng.integers(1, T + 1, (P, G, 1))).astype(np.float32)
    noise = lambda: -rng.exponential(1.0, (P, G, T)).astype(np.float32)  # noqa: E731
    rewards = rng.choice([-1.0, 1.0], (P, G)).astype(np.float32)
    return {
        "prompts": prompts,
        "prompt_lengths": lengths,
        "completions": rng.integers(3, vocab, (P, G, T)).astype(np.int32),
        "mask": mask,
        "advantages": np.asarray(losses.group_advantages(rewards)),
        "ref_logps": noise() - 4,
        "old_logps": noise() - 4,
        "sampler_logps": noise() - 4,
    }


def run_step(config, build, batch, mesh, count=1):
    program = build(config, mesh)
    section = {rft.build_sft_update: config.rft, grpo.build_grpo_update: config.rl}.get(
        build, config.meta_rm
    )
    cfg = model_config(config, scalar_head=build is meta_rm.build_meta_rm_update)
    with jax.set_mesh(mesh):
        params, frozen = states.split(states.init_params(cfg, mesh, 0))
        state = states.init_state(params, optim.make_optimizer(section), mesh, 0)
        for _ in range(count):
            state, metrics = program.fn(state, states.put_batch(batch, mesh), frozen)
    return state, metrics


def single():
    return make_mesh(devices=jax.devices()[:1])


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance)


@pytest.mark.parametrize(
    "build,key", [(rft.build_sft_update, "rft"), (grpo.build_grpo_update, "rl")]
)
@pytest.mark.parametrize(
    ("name", "mesh_sizes"),
    [
        pytest.param("tiny_gemma2", (2, 4, 1), marks=pytest.mark.slow),
        ("tiny_gemma2", (1, 2, 4)),
        pytest.param("tiny_llama3", (1, 2, 4), marks=pytest.mark.slow),
        pytest.param("tiny_qwen2", (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("tiny_qwen3", (2, 1, 4), marks=pytest.mark.slow),
    ],
)
def test_sharding_and_accumulation_do_not_change_an_update(build, key, name, mesh_sizes):
    config = make_config()
    config.model = name
    batch = (
        sft_batch(np.random.default_rng(0))
        if key == "rft"
        else grpo_batch(np.random.default_rng(0), config)
    )
    plain, plain_metrics = run_step(config, build, batch, single())
    config[key].micro_batches = 1 if mesh_sizes[1] == 4 else 2
    other, other_metrics = run_step(config, build, batch, make_mesh(*mesh_sizes))
    assert_close(other_metrics, plain_metrics, rtol=2e-5, atol=2e-6)
    # Adam amplifies gradients that are rounding noise, so compare moments, not parameters.
    assert_close(other["opt_state"], plain["opt_state"], rtol=1e-3, atol=2e-6)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(other["params"])} == {8}


def test_sft_reduces_the_loss_and_counts_steps():
    config = make_config()
    batch = sft_batch(np.random.default_rng(1))
    _, first = run_step(config, rft.build_sft_update, batch, single())
    state, last = run_step(config, rft.build_sft_update, batch, single(), count=20)
    assert int(state["step"]) == 20
    assert float(last["loss"]) < 0.5 * float(first["loss"])


def test_sft_loss_depends_only_on_weighted_tokens():
    config = make_config()
    batch = sft_batch(np.random.default_rng(2))
    other = {**batch, "tokens": batch["tokens"].copy()}
    # The last weighted token is a target, and no other target has it in its context.
    other["tokens"][:, 18] = 5
    _, a = run_step(config, rft.build_sft_update, batch, single())
    _, b = run_step(config, rft.build_sft_update, other, single())
    assert float(a["loss"]) != float(b["loss"])
    other["tokens"] = batch["tokens"].copy()
    other["tokens"][:, 19:] = 7  # padding
    _, c = run_step(config, rft.build_sft_update, other, single())
    assert float(a["loss"]) == float(c["loss"])


def ungrouped_token_logps(model, prompts_PxS, prompt_lengths_P, completions_PxGxT):
    """Returns token log-probs of one sequence per completion, each with a copy of the prompt."""
    P, S = prompts_PxS.shape
    _, G, T = completions_PxGxT.shape
    completions = completions_PxGxT.reshape(P * G, T)
    tokens = jnp.concatenate([jnp.repeat(prompts_PxS, G, axis=0), completions], axis=1)
    is_prompt_PxS = jnp.arange(S) >= (S - prompt_lengths_P)[:, None]
    segments = jnp.concatenate(
        [jnp.repeat(is_prompt_PxS, G, axis=0), jnp.ones((P * G, T), bool)], axis=1
    )
    out = token_logps(model, tokens, None, segments.astype(jnp.int32))
    return jax.tree.map(lambda x: x[:, S:].reshape(P, G, T), out)


@pytest.mark.parametrize(
    "name",
    [
        *("tiny_gemma2", "tiny_llama3"),
        pytest.param("tiny_gemma3", marks=pytest.mark.slow),
        pytest.param("tiny_qwen2", marks=pytest.mark.slow),
        pytest.param("tiny_qwen3", marks=pytest.mark.slow),
    ],
)
def test_shared_prompts_give_the_loss_and_gradient_of_separate_sequences(name):
    """Prompts of up to 10 tokens and completions of 6 exceed the windows of 6 and 5."""
    config = make_config(prompts=3, beta=0.3)
    batch = jax.tree.map(jnp.asarray, grpo_batch(np.random.default_rng(3), config))
    graphdef, params = nnx.split(build_model(get_config(name), nnx.Rngs(1)))

    def loss(params, logps_fn):
        model = nnx.merge(graphdef, params)
        out = logps_fn(model, batch["prompts"], batch["prompt_lengths"], batch["completions"]).logps
        flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
        value, _ = losses.grpo_loss(
            flat(out), flat(batch["ref_logps"]), flat(batch["mask"]),
            batch["advantages"].reshape(-1),
            losses.GrpoObjective(beta=0.3), flat(batch["old_logps"]),
        )  # fmt: skip
        return value

    shared, separate = (
        jax.jit(jax.value_and_grad(lambda p, logps_fn=logps_fn: loss(p, logps_fn)))(params)
        for logps_fn in (grouped_token_logps, ungrouped_token_logps)
    )
    np.testing.assert_allclose(shared[0], separate[0], rtol=1e-5)
    assert_close(shared[1], separate[1], atol=1e-5, rtol=1e-4)
    assert float(optax.global_norm(separate[1])) > 1e-2


def test_reference_logps_in_bfloat16_are_close_and_in_micro_batches_equal():
    config = make_config()
    mesh = make_mesh(1, 2, 1, devices=jax.devices()[:2])
    batch = grpo_batch(np.random.default_rng(4), config)
    rollout = {name: batch[name] for name in grpo.rollout_shapes(config)}
    with jax.set_mesh(mesh):
        params = states.init_params(model_config(config), mesh, 0)
        float32_logps = grpo.build_logps(config, mesh).fn(
            params, states.put_batch(rollout, mesh), NONE
        )
        bf16_params = jax.jit(lambda p: states.compute_params(p, "bfloat16"))(params)
        program = grpo.build_logps(config, mesh, dtype="bfloat16")
        bf16_logps = program.fn(bf16_params, states.put_batch(rollout, mesh), NONE)
        config.rl.micro_batches = 4
        micro_batched = grpo.build_logps(config, mesh).fn(
            params, states.put_batch(rollout, mesh), NONE
        )
    assert jax.tree.leaves(program.args[0])[0].dtype == jax.tree.leaves(bf16_params)[0].dtype
    np.testing.assert_allclose(micro_batched, float32_logps, atol=1e-5)
    np.testing.assert_allclose(bf16_logps, float32_logps, atol=0.2)
    assert float(np.abs(np.asarray(bf16_logps) - np.asarray(float32_logps)).max()) > 0
    np.testing.assert_array_equal(np.asarray(float32_logps)[batch["mask"] == 0], 0.0)


def test_gap_kl_and_ratio_are_neutral_for_the_policys_own_log_probs():
    config = make_config(updates_per_rollout=2)
    batch = grpo_batch(np.random.default_rng(5), config)
    mesh = single()
    with jax.set_mesh(mesh):
        params = states.init_params(model_config(config), mesh, 0)
        rollout = {name: batch[name] for name in grpo.rollout_shapes(config)}
        logps = np.asarray(
            grpo.build_logps(config, mesh).fn(params, states.put_batch(rollout, mesh), NONE)
        )
    batch = {**batch, "sampler_logps": logps, "old_logps": logps, "ref_logps": logps}
    _, metrics = run_step(config, grpo.build_grpo_update, batch, mesh)
    assert (
        float(metrics["gap_max"]) < 1e-5
        and float(metrics["kl"]) < 1e-9
        and float(metrics["clip_share"]) == 0
    )
    assert abs(float(metrics["ratio_max"]) - 1) < 1e-5
    assert 0 < float(metrics["entropy"]) < np.log(128) + 1e-3


def test_a_non_finite_update_leaves_the_parameters_unchanged():
    config = make_config()
    batch = sft_batch(np.random.default_rng(6))
    batch["weights"][0, 5] = np.nan
    state, metrics = run_step(config, rft.build_sft_update, batch, single())
    assert float(metrics["finite"]) == 0.0
    initial = states.init_params(model_config(config), single(), 0)
    for updated, original in zip(
        jax.tree.leaves(state["params"]), jax.tree.leaves(initial), strict=True
    ):
        np.testing.assert_array_equal(updated, original)


def test_meta_rm_learns_labels_from_one_token():
    config = make_config()
    rng = np.random.default_rng(7)
    labels = np.array([0, 1] * 4, np.float32)
    tokens = rng.integers(10, 20, (8, 16)).astype(np.int32)
    tokens[:, 11] = np.where(labels > 0, 30, 31)
    segments = np.tile((np.arange(16) < 12).astype(np.int32), (8, 1))
    batch = {
        "tokens": tokens,
        "segment_ids": segments,
        "starts": np.full(8, 9, np.int32),
        "labels": labels,
    }
    state, metrics = run_step(config, meta_rm.build_meta_rm_update, batch, single(), count=30)
    assert float(metrics["loss"]) < 0.1 and float(metrics["accuracy"]) == 1.0
    assert metrics["last_loss"] == metrics["loss"]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_token_loss_adds_the_cross_entropy_of_every_critique_token(micro_batches):
    config = make_config()
    config.meta_rm.update(token_loss=0.5, micro_batches=micro_batches)
    rng = np.random.default_rng(8)
    labels, starts = (
        rng.integers(0, 2, 8).astype(np.float32),
        rng.integers(2, 8, 8).astype(np.int32),
    )
    tokens, lengths = rng.integers(10, 20, (8, 16)).astype(np.int32), rng.integers(9, 17, 8)
    segments = (np.arange(16) < lengths[:, None]).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": segments, "starts": starts, "labels": labels}
    _, metrics = run_step(config, meta_rm.build_meta_rm_update, batch, single())

    mesh = single()
    graphdef, _ = abstract_model(model_config(config, scalar_head=True), mesh)
    model = nnx.merge(graphdef, states.init_params(model_config(config, scalar_head=True), mesh, 0))
    scores = np.asarray(model.rewards_of(model.hidden(tokens, None, segments)), np.float64)
    losses_BxL = np.logaddexp(0, np.where(labels[:, None] > 0.5, -scores, scores))
    last = np.mean([losses_BxL[b, lengths[b] - 1] for b in range(8)])
    on_tokens = np.mean([losses_BxL[b, starts[b] : lengths[b]].mean() for b in range(8)])
    np.testing.assert_allclose(metrics["last_loss"], last, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], last + 0.5 * on_tokens, rtol=1e-5)


@pytest.mark.parametrize(
    "name, micro_batches, devices",
    [
        ("tiny_gemma2", 1, 1),
        pytest.param("tiny_gemma2", 2, 8, marks=pytest.mark.slow),
        pytest.param("tiny_llama3", 2, 8, marks=pytest.mark.slow),
        pytest.param("tiny_qwen2", 2, 8, marks=pytest.mark.slow),
        pytest.param("tiny_qwen3", 2, 8, marks=pytest.mark.slow),
    ],
)
def test_likelihood_is_added_to_the_meta_rm_score(name, micro_batches, devices):
    config = make_config()
    config.model = name
    config.meta_rm.update(likelihood=3.0, micro_batches=micro_batches)
    rng = np.random.default_rng(9)
    rows = 8 * micro_batches
    config.meta_rm.batch_size = rows
    labels, starts = (
        rng.integers(0, 2, rows).astype(np.float32),
        rng.integers(2, 8, rows).astype(np.int32),
    )
    tokens, lengths = rng.integers(10, 20, (rows, 16)).astype(np.int32), rng.integers(9, 17, rows)
    segments = (np.arange(16) < lengths[:, None]).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": segments, "starts": starts, "labels": labels}
    mesh = single() if devices == 1 else make_mesh(2, 2, 2)
    _, metrics = run_step(config, meta_rm.build_meta_rm_update, batch, mesh)

    cfg = model_config(config, scalar_head=True)
    graphdef, _ = abstract_model(cfg, single())
    params = states.init_params(cfg, single(), 0)
    model = nnx.merge(graphdef, params)
    heads = np.asarray(model.rewards(tokens, segments), np.float64)
    logps = np.asarray(jax.nn.log_softmax(model(tokens, None, segments)), np.float64)
    mean_logps = [
        np.mean([logps[b, i - 1, tokens[b, i]] for i in range(starts[b], lengths[b])])
        for b in range(rows)
    ]
    scores = heads + 3.0 * np.array(mean_logps)
    np.testing.assert_allclose(
        metrics["last_loss"],
        np.logaddexp(0, np.where(labels > 0.5, -scores, scores)).mean(),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        metrics["accuracy"], np.mean((scores > 0) == (labels > 0.5)), rtol=1e-6
    )

    program = meta_rm.build_meta_rm_scores(config, single(), rows)
    with jax.set_mesh(single()):
        np.testing.assert_allclose(
            program.fn(params, tokens, segments, starts, NONE), scores, atol=1e-4
        )


def test_programs_lower_from_shapes_alone():
    config = make_config()
    mesh = make_mesh(1, 4, 2)
    for build in (
        rft.build_sft_update,
        grpo.build_grpo_update,
        grpo.build_logps,
        meta_rm.build_meta_rm_update,
    ):
        program = build(config, mesh)
        assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(program.args))
        with jax.set_mesh(mesh):
            assert program.lower().as_text()


def test_batches_that_the_mesh_does_not_divide_are_an_error():
    with pytest.raises(ValueError, match="6 rows.*data x fsdp = 4.*multiple of 4"):
        states.put_batch({"tokens": np.zeros((6, 3), np.int32)}, make_mesh(2, 2, 2))
    with pytest.raises(ValueError, match="micro_batches=3 does not divide the 8 rows"):
        optim.split_batch({"x": jnp.zeros((8, 2))}, 3)
