"""LoRA in the model: both kinds of base, loading, merging, sampling, meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from grm_jax import checkpoints, sampling
from grm_jax.models import build_model, cpu, get_config, lora
from grm_jax.models.lora import LoraConfig, LoraParam
from grm_jax.models.weights import TO_HEADS, project
from grm_jax.sharding import make_mesh, use_mesh

LORA = LoraConfig(rank=4, alpha=8.0)
# Five layers are two units and a tail; the other has biases.
BASES = {"tiny_gemma2": None, "tiny_qwen2": "int8", "tiny_llama3": "int4"}
MESHES = ((8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2))
TOKENS = np.random.default_rng(0).integers(1, 128, (8, 12))


def logits(model, mesh=None):
    with use_mesh(mesh):
        return np.asarray(nnx.jit(lambda model, tokens: model(tokens))(model, TOKENS))


def with_adapters(model, scale=0.05):
    """Returns the model with adapters that are not zero."""
    graphdef, params = nnx.split(model)

    def add_noise(x):
        noise = np.random.default_rng(x.size).normal(size=x.shape) * scale
        return jax.device_put((np.asarray(x) + noise).astype(np.float32), x.sharding)

    adapters = jax.tree.map(add_noise, lora.adapters(params))
    return nnx.merge(graphdef, adapters, lora.frozen(params))


SLOW = pytest.param("tiny_llama3", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["tiny_gemma2", "tiny_qwen2", SLOW])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / request.param
    checkpoints.save(build_model(get_config(request.param, dtype="float32"), nnx.Rngs(1)), path)
    return path


@pytest.fixture
def base(folder):
    return BASES[folder.name]


def load(folder, **options):
    return checkpoints.load(folder, dtype="float32", lora=LORA, **options)


def test_a_new_model_computes_what_its_base_computes_and_merges_to_what_it_computes(folder, base):
    plain = checkpoints.load(folder, dtype="float32", quantize=base)
    model = load(folder, quantize=base)
    if base is None:
        np.testing.assert_array_equal(logits(model), logits(plain))
    np.testing.assert_allclose(logits(model), logits(plain), atol=1e-5)

    trained = with_adapters(model)
    merged = lora.merge_weights(trained)
    assert merged.cfg.lora is None and merged.cfg.quantize is None
    assert not jax.tree.leaves(nnx.state(merged, LoraParam))
    np.testing.assert_allclose(logits(merged), logits(trained), atol=1e-5)
    assert np.abs(logits(merged) - logits(model)).max() > 0.1


def test_the_base_of_a_random_model_is_the_model_without_lora():
    plain, model = (
        build_model(get_config("tiny_gemma2", lora=one), nnx.Rngs(3)) for one in (None, LORA)
    )
    flat = {
        lora.base_path(path): value
        for path, value in checkpoints.loading.flat_params(nnx.state(model)).items()
    }
    for path, value in checkpoints.loading.flat_params(nnx.state(plain)).items():
        np.testing.assert_array_equal(flat[path][...], value[...])
    matrices = [x for path, x in flat.items() if path.endswith(".a")]
    assert len({float(x[...].flatten()[0]) for x in matrices}) == len(matrices) == 21


def test_the_product_is_that_of_the_paper():
    """Against the definition, on one weight of three axes."""
    weight = nnx.Param(jnp.ones((6, 4, 8)), axes=("embed", "heads", "head_dim"))
    one = lora.LoraWeight(weight, (-3,), LoraConfig(2, 6.0), jax.random.key(0))
    assert one.a.shape == (6, 2) and one.b.shape == (2, 4, 8)
    one.b[...] = jax.random.normal(jax.random.key(1), one.b.shape)
    x = jax.random.normal(jax.random.key(2), (1, 3, 6))
    w = np.ones((6, 4, 8)) + np.einsum("dr,rnh->dnh", one.a[...], one.b[...]) * 6.0 / 2
    np.testing.assert_allclose(
        project(TO_HEADS, x, one[...]), np.einsum("bld,dnh->blnh", x, w), atol=1e-5
    )


def test_a_mesh_changes_nothing_and_adapters_are_split_as_their_base(folder, base):
    expected = logits(with_adapters(load(folder, quantize=base)))
    for sizes in MESHES[bool(base) :: 2]:
        mesh = make_mesh(*sizes)
        model = load(folder, quantize=base, mesh=mesh)
        attn = model.units[0].attn
        weight = attn.q_DxNxH.base.values if base else attn.q_DxNxH.base
        spec = weight[...].sharding.spec
        assert attn.q_DxNxH.a[...].sharding.spec == PartitionSpec(None, spec[1], None)
        assert attn.q_DxNxH.b[...].sharding.spec == PartitionSpec(None, None, *spec[2:])
        np.testing.assert_allclose(logits(with_adapters(model), mesh), expected, atol=5e-5)


def test_only_named_targets_have_adapters():
    cfg = get_config("tiny_gemma2", lora=LoraConfig(2, 2.0, ("q_proj", "down_proj")))
    model = build_model(cfg, nnx.Rngs(0))
    paths = checkpoints.loading.flat_params(lora.adapters(nnx.state(model)))
    assert {path.split(".")[-2] for path in paths} == {"q_DxNxH", "down_FxD"}


def test_samples_are_those_of_the_merged_model(folder, base):
    model = with_adapters(load(folder, quantize=base))
    options = dict(k=2, max_new_tokens=6, temperature=0.0)
    both = (model, lora.merge_weights(model))
    one, two = (sampling.sample(m, [[5, 6, 7], [9, 8]], **options) for m in both)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-4)


def test_a_large_stack_is_unstacked_with_its_adapters(monkeypatch):
    monkeypatch.setattr(cpu, "UNSTACK_BYTES", 0)
    model = with_adapters(build_model(get_config("tiny_gemma2", lora=LORA), nnx.Rngs(0)))
    unstacked = cpu.prepare_for_decoding(model)
    assert unstacked.cfg.num_units == 1 and len(unstacked.units) == 5
    np.testing.assert_allclose(logits(unstacked), logits(model), atol=1e-5)


def test_bfloat16_activations_multiply_bfloat16_adapters(folder):
    model = with_adapters(checkpoints.load(folder, dtype="bfloat16", lora=LORA))
    assert model.units[0].attn.q_DxNxH.a[...].dtype == jnp.float32
    expected = logits(lora.merge_weights(with_adapters(load(folder))))
    assert np.std(logits(model) - expected) < 0.1 * np.std(expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 8.0), "LoRA rank=0: use 1 or more"),
        ((4, 0.0), "LoRA alpha=0.0: use a number above 0"),
        ((4, 8.0, ("q_proj", "wq")), "LoRA target 'wq' is unknown: use q_proj, k_proj"),
        ((4, 8.0, ()), "LoRA targets are empty"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        LoraConfig(*arguments)
    assert "\n" not in str(error.value)
