"""Tests the model's invariances: chunks, scans, packing, padding, meshes.

test_parity_*.py compare it with other implementations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import subjaxprs

from grm_jax import sharding
from grm_jax.models import build_model, get_config, grouped_token_logps, target_logps, token_logps
from grm_jax.models.config import REMAT
from grm_jax.training import state as states

# Windows, caps and QK norm; no windows, an output head of its own; biases.
FAMILIES = ("tiny_gemma2", "tiny_gemma3", "tiny_llama3", "tiny_qwen2")


def build(name, **changes):
    """(graphdef, state, forward) of a tiny model; its weights depend on seed 0 alone."""
    graphdef, state = nnx.split(build_model(get_config(name, **changes), nnx.Rngs(0)))
    biases = jax.random.normal(jax.random.key(7), (8,))  # a new model has zeros
    state = jax.tree.map_with_path(
        lambda path, x: x + biases if "_bias_" in jax.tree_util.keystr(path) else x, state
    )
    return graphdef, state, jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args))


def tokens(rows, length, seed=1):
    return jax.random.randint(jax.random.key(seed), (rows, length), 4, 128)


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request):
    """Name, state, tokens (4, 40: several windows), logits, gradients and loss on one device."""
    graphdef, state, forward = build(request.param)
    tokens_BxL = tokens(4, 40)

    def loss(state, tokens_BxL):
        return -token_logps(nnx.merge(graphdef, state), tokens_BxL).logps.mean()

    logits, grads = forward(state, tokens_BxL), jax.jit(jax.grad(loss))(state, tokens_BxL)
    return request.param, state, tokens_BxL, logits, grads, loss


def close(a, b, bound):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.abs(a - b).max() <= bound * max(np.abs(b).max(), 1e-9)


def test_num_params_of_the_config_is_the_number_of_parameters(reference):
    name, state, *_ = reference
    assert sum(x.size for x in jax.tree.leaves(state)) == get_config(name).num_params


def test_registered_models_have_the_published_sizes():
    billions = {
        "gemma2_2b": 2.61,
        "gemma2_9b": 9.24,
        "gemma2_27b": 27.23,
        "gemma3_270m": 0.268,
        "gemma3_1b": 1.0,
        "gemma3_27b": 27.0,
    }
    for name, size in billions.items():
        assert get_config(name).num_params / 1e9 == pytest.approx(size, rel=0.01)
    exact = {
        "gemma3_270m": 268_098_176, "llama3_1b": 1_235_814_400, "llama3_3b": 3_212_749_824,
        "llama3_8b": 8_030_261_248, "llama3_70b": 70_553_706_496, "smollm2_135m": 134_515_008,
        "qwen2_0.5b": 494_032_768, "qwen2_1.5b": 1_543_714_304, "qwen2_3b": 3_085_938_688,
        "qwen2_7b": 7_615_616_512, "qwen2_14b": 14_770_033_664, "qwen2_32b": 32_763_876_352,
        "qwen2_72b": 72_706_203_648, "qwen3_0.6b": 596_049_920, "qwen3_1.7b": 1_720_574_976,
        "qwen3_4b": 4_022_468_096, "qwen3_8b": 8_190_735_360, "qwen3_14b": 14_768_307_200,
        "qwen3_32b": 32_762_123_264,
    }  # fmt: skip
    assert {name: get_config(name).num_params for name in exact} == exact


def test_chunks_remat_and_unrolled_layers_leave_logits_and_gradients_unchanged(reference):
    name, state, tokens_BxL, logits, grads, _ = reference
    graphdef, _, forward = build(name, query_chunk=7, logits_chunk=5, remat="full", unroll=8)
    close(forward(state, tokens_BxL), logits, 1e-5)
    loss = jax.jit(
        jax.grad(lambda state: -token_logps(nnx.merge(graphdef, state), tokens_BxL).logps.mean())
    )
    jax.tree.map(lambda a, b: close(a, b, 1e-4), loss(state), grads)


def products(jaxpr):
    """Number of dot_general equations, in nested jaxprs too."""
    total = sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)
    return total + sum(map(products, subjaxprs(jaxpr)))


def loss_of(graphdef, tokens_BxL):
    return lambda state: token_logps(nnx.merge(graphdef, state), tokens_BxL).logps.mean()


@pytest.mark.parametrize("family", ["tiny_gemma2", "tiny_llama3"])
def test_remat_policies_are_ordered_by_what_they_recompute(family):
    """A misspelt name of a saved tensor would recompute it."""
    counts = {}
    for remat in REMAT:
        graphdef, state = nnx.split(build_model(get_config(family, remat=remat), nnx.Rngs(0)))
        loss = loss_of(graphdef, tokens(2, 40))
        counts[remat] = products(jax.make_jaxpr(jax.grad(loss))(state).jaxpr)
    assert counts["products"] == counts["none"]  # only what is elementwise is computed again
    expensive = [counts[remat] for remat in REMAT if remat != "none"]
    assert expensive == sorted(set(expensive))
    # Without norms behind it, the backward pass needs no output of the MLP.
    layers, post_norms = len(get_config(family).pattern), get_config(family).post_norms
    assert counts["full"] - counts["outputs"] == layers * (2 if post_norms else 1)


def test_saved_tensors_leave_gradients_unchanged():
    tokens_BxL = tokens(2, 12)
    grads = {}
    for remat in ("full", "mlp"):
        graphdef, state, _ = build("tiny_gemma2", num_layers=2, remat=remat)
        grads[remat] = jax.jit(jax.grad(loss_of(graphdef, tokens_BxL)))(state)
        jax.tree.map(lambda a, b: close(a, b, 1e-6), grads[remat], grads["full"])


def test_padding_and_packing_leave_the_logits_of_a_sequence_unchanged(reference):
    """One jitted shape for a sequence alone, padded left or right, and packed with another one."""
    name, state, tokens_BxL, *_ = reference
    _, _, forward = build(name)
    a, b = tokens_BxL[0, :18], tokens_BxL[1, :22]
    pad = jnp.zeros(22, jnp.int32)
    batch = jnp.stack([jnp.concatenate(x) for x in ((a, pad), (pad, a), (a, b), (b, a))])
    ones, twos = jnp.ones(18, jnp.int32), jnp.full(22, 2)
    segments = jnp.stack(
        [jnp.concatenate(x) for x in ((ones, pad), (pad, ones), (ones, twos), (twos, ones))]
    )
    logits = forward(state, batch, None, segments)
    expected = forward(state, tokens_BxL[:, :40])[0, :18]
    for index, start in enumerate((0, 22, 0, 22)):
        close(logits[index, start : start + 18], expected, 1e-5)


def test_token_logps_are_the_log_softmax_of_the_logits(reference):
    name, state, tokens_BxL, logits, *_ = reference
    graphdef, _, _ = build(name, logits_chunk=7)
    out = jax.jit(
        lambda s: token_logps(nnx.merge(graphdef, s), tokens_BxL, temperature=0.7, entropy=True)
    )(state)
    log_p = jax.nn.log_softmax(logits / 0.7)
    expected = jnp.take_along_axis(log_p[:, :-1], tokens_BxL[:, 1:, None], axis=-1)[..., 0]
    close(out.logps[:, 1:], expected, 1e-5)
    close(out.entropy[:, 1:], -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)[:, :-1], 1e-5)
    assert not out.logps[:, 0].any()


def test_token_logps_of_packed_sequences_do_not_cross_segments(reference):
    name, state, tokens_BxL, *_ = reference
    graphdef, _, _ = build(name)
    segments = jnp.broadcast_to(jnp.array([1] * 15 + [2] * 20 + [0] * 5), tokens_BxL.shape)
    run = jax.jit(lambda s: token_logps(nnx.merge(graphdef, s), tokens_BxL, None, segments))
    logps = run(state).logps
    assert not logps[:, 15].any() and not logps[:, 35:].any() and (logps[:, 16:35] < 0).all()


def test_grouped_token_logps_equal_those_of_separate_sequences(reference):
    """Values and gradients, with prompts and completions shorter and longer than the windows."""
    name, state, tokens_BxL, *_ = reference
    graphdef, _, _ = build(name, query_chunk=8)
    P, G, T = 12, 3, 9
    prompts, lengths = tokens_BxL[:2, :P], jnp.array([12, 4])
    completions = tokens(2 * G, T, seed=2).reshape(2, G, T)
    weight = jax.random.normal(jax.random.key(3), (2, G, T))

    def grouped(state):
        out = grouped_token_logps(nnx.merge(graphdef, state), prompts, lengths, completions).logps
        return jnp.sum(out * weight), out

    def plain(state):
        repeated = jnp.broadcast_to(prompts[:, None], (2, G, P))
        batch = jnp.concatenate([repeated, completions], axis=-1).reshape(2 * G, -1)
        is_real = jnp.arange(P + T) >= (P - lengths)[:, None]
        segments = jnp.repeat(is_real.astype(jnp.int32), G, axis=0)
        out = token_logps(nnx.merge(graphdef, state), batch, None, segments).logps
        out = out[:, P:].reshape(2, G, T)
        return jnp.sum(out * weight), out

    (_, a), grad_a = jax.jit(jax.value_and_grad(grouped, has_aux=True))(state)
    (_, b), grad_b = jax.jit(jax.value_and_grad(plain, has_aux=True))(state)
    close(a, b, 1e-5)
    jax.tree.map(lambda x, y: close(x, y, 1e-5), grad_a, grad_b)


# All families share the layer code, so each mesh is tested with one of them.
MESHES = [
    ("tiny_gemma2", (1, 8, 1)),
    ("tiny_gemma2", (1, 2, 4)),
    ("tiny_gemma2", (2, 2, 2)),
    ("tiny_gemma3", (1, 4, 2)),
    ("tiny_llama3", (1, 2, 4)),
    ("tiny_qwen2", (2, 2, 2)),
    ("tiny_qwen3", (1, 4, 2)),
]


@pytest.mark.parametrize("reference, axes", MESHES, ids=str, indirect=["reference"])
def test_meshes_give_the_results_of_one_device(reference, axes):
    """Logits within 1e-5 and gradients within 1e-4 of one device, relative to the largest."""
    name, state, tokens_BxL, logits, grads, loss = reference
    graphdef, _, _ = build(name)
    mesh = sharding.make_mesh(*axes)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(state, sharding.state_shardings(state, mesh))
        batch = jax.device_put(tokens_BxL, sharding.named(mesh, None, None))
        close(jax.jit(lambda s, t: nnx.merge(graphdef, s)(t))(sharded, batch), logits, 1e-5)
        jax.tree.map(lambda a, b: close(a, b, 1e-4), jax.jit(jax.grad(loss))(sharded, batch), grads)


def test_padding_rows_of_the_embedding_are_never_predicted():
    graphdef, state, forward = build("tiny_gemma2", vocab_pad=16)
    table = state["embedder"]["table_VxD"]
    state["embedder"]["table_VxD"] = table.replace(table[...].at[128:].set(9.0))
    tokens_BxL = tokens(2, 12)
    logits = forward(state, tokens_BxL)
    assert logits.shape[-1] == 144 and (jax.nn.softmax(logits)[..., 128:] == 0).all()

    def logps(graphdef, state):
        run = jax.jit(lambda s: token_logps(nnx.merge(graphdef, s), tokens_BxL, entropy=True))
        return run(state)

    with_pad = logps(graphdef, state)
    state["embedder"]["table_VxD"] = table.replace(table[...][:128])
    without = logps(build("tiny_gemma2")[0], state)
    close(with_pad.logps, without.logps, 1e-5)
    close(with_pad.entropy, without.entropy, 1e-5)


def test_the_scalar_head_applies_to_the_last_token_that_is_not_padding():
    model = build_model(get_config("tiny_gemma2", scalar_head=True), nnx.Rngs(0))
    row = tokens(1, 10)
    padded = jnp.concatenate([jnp.pad(row, ((0, 0), (6, 0))), jnp.pad(row, ((0, 0), (0, 6)))])
    segments = (padded > 0).astype(jnp.int32)
    rewards = model.rewards(padded, segments)
    assert rewards.shape == (2,) and rewards.dtype == jnp.float32
    x = model.hidden(row)[0, -1]
    # The sum is small beside its terms, whose rounding it has.
    terms = float(jnp.abs(x * model.score_D[...]).sum())
    assert abs(float(rewards[0] - rewards[1])) <= 1e-6 * terms
    assert abs(float(rewards[0] - x @ model.score_D[...])) <= 1e-6 * terms


def test_the_scalar_head_at_a_token_equals_that_of_a_sequence_that_ends_there():
    model = build_model(get_config("tiny_gemma2", scalar_head=True), nnx.Rngs(0))
    # Without segment ids, id 0 is an ordinary token.
    row = tokens(2, 10).at[:, 4].set(0)
    scores = model.rewards_of(model.hidden(row))
    assert scores.shape == (2, 10) and scores.dtype == jnp.float32
    close(scores[:, -1], model.rewards(row), 1e-5)
    close(scores[:, 4], model.rewards(row[:, :5]), 1e-5)
    segments = jnp.pad(jnp.ones((2, 10), jnp.int32), ((0, 0), (0, 6)))
    padded = model.hidden(jnp.pad(row, ((0, 0), (0, 6))), None, segments)
    close(model.rewards_of(padded)[:, :10], scores, 1e-5)


def test_rewards_without_a_scalar_head_are_an_error():
    with pytest.raises(ValueError, match="tiny_gemma2 has no scalar head"):
        build_model(get_config("tiny_gemma2"), nnx.Rngs(0)).rewards(tokens(1, 4))


def test_invalid_configs_raise_errors_with_a_remedy():
    with pytest.raises(ValueError, match="unknown model 'gemma2_3b': did you mean 'gemma2_"):
        get_config("gemma2_3b")
    with pytest.raises(ValueError, match="remat='some' is unknown: use one of none, products, "):
        get_config("gemma2_2b", remat="some")
    with pytest.raises(ValueError, match="num_heads=8 is not a multiple of num_kv_heads=3"):
        get_config("gemma2_2b", num_kv_heads=3)


def test_target_logps_accepts_any_middle_axes():
    model = build_model(get_config("tiny_gemma2", logits_chunk=4), nnx.Rngs(0))
    x, targets = model.hidden(tokens(2, 6)), tokens(2, 6, seed=5)
    flat = target_logps(model, x, targets).logps
    out = target_logps(model, x.reshape(2, 2, 3, -1), targets.reshape(2, 2, 3)).logps
    close(out.reshape(2, 6), flat, 1e-6)


def test_the_mask_selects_log_probs_without_changing_them(reference):
    """Selected positions have the same values, entropies and gradients; the others are 0."""
    name, state, tokens_BxL, *_ = reference
    graphdef, _, _ = build(name, logits_chunk=7)
    L = tokens_BxL.shape[1]
    mask = jnp.stack([jnp.arange(L) % 5 == i for i in range(tokens_BxL.shape[0])])
    mask = mask.at[0, 3:].set(False)  # sequences with different numbers of selected positions

    def value_and_grad(**options):
        def loss(state):
            out = token_logps(nnx.merge(graphdef, state), tokens_BxL, entropy=True, **options)
            return jnp.sum((out.logps + 0.1 * out.entropy) * mask), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(state)

    (_, masked), masked_grad = value_and_grad(mask_BxL=mask.astype(jnp.float32))
    (_, full), full_grad = value_and_grad()
    jax.tree.map(lambda a, b: close(a, b * mask, 1e-6), masked, full)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), masked_grad, full_grad)


def test_chunks_without_selected_positions_are_skipped():
    """A NaN activation would reach the gradients of every chunk that is computed with it."""
    model = build_model(get_config("tiny_gemma2", logits_chunk=4), nnx.Rngs(0))
    targets = tokens(2, 12, seed=5)
    mask = jnp.zeros((2, 12), bool)
    mask = mask.at[0, jnp.array([1, 5, 11])].set(True).at[1, jnp.array([0, 2, 3, 10])].set(True)
    x = jnp.where(mask[..., None], model.hidden(tokens(2, 12)), jnp.nan)
    x = x.at[0, 0].set(0.0)  # in the one chunk that is computed
    grad = jax.grad(lambda x: target_logps(model, x, targets, mask=mask).logps.sum())(x)
    assert jnp.isfinite(grad).all() and not grad[~mask].any()
    assert (jnp.abs(grad[mask]).sum(axis=-1) > 0).all()


@pytest.mark.parametrize("devices", [1, 4])
def test_chunks_are_skipped_on_one_device_only(devices):
    """On several devices, a skipped chunk would need an all-reduce in a branch."""
    mesh = sharding.make_mesh(fsdp=devices, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        graphdef, params = states.abstract_model(get_config("tiny_gemma2", logits_chunk=4), mesh)

        def loss(params, tokens):
            return token_logps(nnx.merge(graphdef, params), tokens, mask_BxL=tokens).logps.sum()

        batch = jax.ShapeDtypeStruct((4, 13), jnp.int32)
        text = jax.jit(jax.grad(loss)).lower(params, batch).as_text()
    assert ("stablehlo.case" in text or "stablehlo.if" in text) == (devices == 1)
