"""Int8 and int4 weights: close to the float ones in every family, exact where they can be."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from grm_jax import checkpoints
from grm_jax.checkpoints.cli import convert
from grm_jax.checkpoints.loading import flat_params
from grm_jax.models import build_model, get_config, quantize, weight_bytes
from grm_jax.models.weights import FROM_HEADS, TO_HEADS, project
from grm_jax.sampling import Request, plan
from grm_jax.sampling.weights import for_decoding
from grm_jax.sharding import make_mesh, use_mesh
from grm_jax.training.config_rules import SECTIONS
from grm_jax.training.state import make_state

FAMILIES = ("tiny_gemma2", "tiny_gemma3", "tiny_llama3", "tiny_qwen2", "tiny_qwen3")
# Differences of logits over the logits' standard deviation: 0.02 to 0.034 measured with int8, 0.35
# to 0.43 with int4. A model of random weights multiplies the rounding from layer to layer.
BOUND = {"int8": 0.04, "int4": 0.5}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    cfg = get_config(request.param, dtype="float32")
    path = tmp_path_factory.mktemp(request.param)
    checkpoints.save(build_model(cfg, nnx.Rngs(1)), path)
    return path


def load(folder, **options):
    return checkpoints.load(folder, dtype="float32", **options)


def logits(model, mesh=None):
    tokens = np.random.default_rng(0).integers(0, model.cfg.vocab_size, (2, 24))
    with use_mesh(mesh):
        return np.asarray(nnx.jit(lambda model, tokens: model(tokens))(model, tokens))


def dequantized(model):
    """Returns the float model of the same weights as a quantised one."""
    graphdef, state = nnx.split(build_model(model.cfg.replace(quantize=None), nnx.Rngs(0)))
    params, flat = flat_params(nnx.state(model)), []
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        if name in params:
            value = params[name][...]
        else:
            values = params[f"{name}.values"]
            axes = values.get_metadata()["contracted"]
            value = quantize.dequantize(values[...], params[f"{name}.scale"][...], axes)
        flat.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def error(model, reference):
    return np.std(logits(model) - reference) / np.std(reference)


def cases(kind):
    """Families for a kind; those of int4 after the first are slow."""
    slow = [pytest.mark.slow] if kind == "int4" else []
    return [pytest.param(f, kind, marks=slow[: i > 0]) for i, f in enumerate(FAMILIES)]


@pytest.mark.parametrize("folder, kind", cases("int8") + cases("int4"), indirect=["folder"])
def test_logits_are_close_to_the_float_ones_and_a_mesh_changes_nothing(folder, kind):
    reference, model = logits(load(folder)), load(folder, quantize=kind)
    assert 0 < error(model, reference) < BOUND[kind]
    np.testing.assert_allclose(logits(model), logits(dequantized(model)), atol=2e-5)
    mesh = make_mesh(1, 4, 2)
    sharded = load(folder, quantize=kind, mesh=mesh)
    np.testing.assert_allclose(logits(sharded, mesh), logits(model), atol=3e-5)
    for one, two in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, sharded)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "function, x, w, contracted",
    [
        (TO_HEADS, (2, 3, 16), (16, 4, 8), (-3,)),
        (FROM_HEADS, (2, 3, 4, 8), (4, 8, 16), (-3, -2)),
        (jnp.matmul, (2, 3, 16), (16, 24), (-2,)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scales_that_are_powers_of_two_give_the_dequantised_product(
    function, x, w, contracted, dtype
):
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, w)))
    values, scale = quantize.quantize(w, contracted)
    scale = 2.0 ** jnp.round(jnp.log2(scale))
    dequantized_w = (values * jnp.expand_dims(scale, contracted)).astype(dtype)
    x = x.astype(dtype)
    np.testing.assert_array_equal(
        project(function, x, quantize.Int8Array(values, scale)), project(function, x, dequantized_w)
    )


def test_a_scale_of_the_wrong_axis_exceeds_the_bound(monkeypatch):
    right = quantize.quantize

    def over_the_whole_weight(w, contracted, kind):
        values, scale = right(w, contracted, kind)
        return values, jnp.roll(scale, 1, axis=-1)

    monkeypatch.setattr(quantize, "quantize", over_the_whole_weight)
    cfg = get_config("tiny_qwen2", dtype="float32")
    reference = logits(build_model(cfg, nnx.Rngs(1)))
    assert error(build_model(cfg.replace(quantize="int8"), nnx.Rngs(1)), reference) > BOUND["int8"]


def test_loading_holds_the_int8_weights_and_at_most_two_float_ones(folder):
    live_bytes = []

    def progress(done, total):
        arrays = {
            x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays() if id(x) not in old
        }
        live_bytes.append(sum(arrays.values()))

    old = {id(x): x for x in jax.live_arrays()}
    model = load(folder, quantize="int8", progress=progress)
    state = nnx.state(model)
    sizes = [x.nbytes for x in jax.tree.leaves(state)]
    largest = 4 * max(x.nbytes for x in jax.tree.leaves(state) if x.dtype == jnp.int8)
    assert sum(sizes) <= weight_bytes(model.cfg) < 0.5 * weight_bytes(load(folder).cfg)
    assert max(live_bytes) <= sum(sizes) + 2 * largest


def test_decoding_keeps_the_int8_weights(folder):
    model = load(folder, quantize="int8", mesh=(mesh := make_mesh(1, 4, 2)))
    with use_mesh(mesh):
        leaves = jax.tree.leaves(nnx.state(for_decoding(model)))
    of_int8 = [x for x in leaves if x.dtype == jnp.int8]
    assert len(of_int8) == sum(x.dtype == jnp.int8 for x in jax.tree.leaves(nnx.state(model)))
    assert "fsdp" not in str([x.sharding.spec for x in leaves])


def test_the_plan_counts_int8_weights():
    cfg, requests = get_config("gemma2_9b"), [Request([0] * 1024, 8, 512)]
    hbm = 16 << 30
    with pytest.raises(MemoryError, match="17.21 GiB of weights"):
        plan.fit(cfg, requests, memory=hbm, taken=0, platform="tpu")
    int8 = cfg.replace(quantize="int8")
    assert plan.fit(int8, requests, memory=hbm, taken=0, platform="tpu") == (1, 8)
    assert cfg.num_params < weight_bytes(int8) < 1.01 * cfg.num_params


def test_a_folder_of_int8_weights_is_loaded_as_it_was_saved(folder, tmp_path):
    model = load(folder, quantize="int8")
    checkpoints.save(model, tmp_path / "a", max_file_bytes=40_000)
    files = sorted(file.name for file in (tmp_path / "a").glob("*.safetensors"))
    assert len(files) > 1
    size = sum((tmp_path / "a" / name).stat().st_size for name in files)
    assert size < 0.4 * (folder / "model.safetensors").stat().st_size
    again, sharded = load(tmp_path / "a"), load(tmp_path / "a", mesh=make_mesh(1, 4, 2))
    assert again.cfg.replace(name=model.cfg.name) == model.cfg
    for leaves in zip(
        *(jax.tree.leaves(nnx.state(m)) for m in (model, again, sharded)), strict=True
    ):
        for other in leaves[1:]:
            assert leaves[0].dtype == other.dtype
            np.testing.assert_array_equal(leaves[0], other)
    checkpoints.save(sharded, tmp_path / "b", max_file_bytes=40_000)
    for name in (*files, "config.json", "model.safetensors.index.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    convert(folder, tmp_path / "c", quantize="int8", max_file_bytes=40_000)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_other_libraries_find_neither_their_model_type_nor_their_tensors(folder, tmp_path):
    checkpoints.save(load(folder, quantize="int8"), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["model_type"] == config["quantization_config"]["quant_method"] == "grm_int8"
    names = set(checkpoints.open_checkpoint(tmp_path / "a").tensors)
    matrices = {name for name in checkpoints.open_checkpoint(folder).tensors if "norm" not in name}
    matrices = {name for name in matrices if not name.endswith(".bias")}
    assert matrices and not names & matrices
    assert names > {name + suffix for name in matrices for suffix in ("_int8", "_scale")}


def test_an_int8_tensor_of_another_format_is_refused(folder, tmp_path):
    checkpoints.save(load(folder, quantize="int8"), tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"weight_int8", b"weight_int9"))
    with pytest.raises(ValueError, match="weight_int9 has dtype I8: convert the checkpoint"):
        load(tmp_path / "a")


def test_int8_weights_are_not_trained():
    model = build_model(get_config("tiny_qwen2", quantize="int8"), nnx.Rngs(0))
    with pytest.raises(ValueError, match="quantised weights cannot be trained"):
        make_state(nnx.state(model), optax.sgd(0.1), 0)
    with pytest.raises(
        ValueError, match="config.model_overrides.quantize='int8': quantised weights"
    ):
        SECTIONS["model_overrides"]["quantize"]("config.model_overrides.quantize=", "int8")
    with pytest.raises(ValueError, match="quantize='int2' is unknown"):
        get_config("tiny_qwen2", quantize="int2")


@pytest.mark.parametrize(
    "shape, contracted, scales",
    [
        ((256, 4, 8), (-3,), (8, 4, 8)),
        ((4, 16, 16), (-3, -2), (4, 1, 16)),
        ((3, 4, 64, 16), (-3, -2), (3, 4, 2, 16)),  # a stack of layers
        ((5, 136, 24), (-2,), (5, 8, 24)),  # 136 = 8 x 17
        ((7, 131, 2), (-2,), (7, 131, 2)),  # a prime: nothing shares a scale
    ],
)
def test_groups_of_int4_are_of_up_to_32_values_that_a_product_sums_over(shape, contracted, scales):
    w = jax.random.normal(jax.random.key(0), shape)
    values, scale = quantize.quantize(w, contracted, "int4")
    assert (values.dtype, values.shape, scale.shape) == (jnp.int4, shape, scales)
    assert scale.dtype == jnp.bfloat16
    restored = quantize.dequantize(values, scale, contracted)
    axis = len(shape) + max(contracted)
    steps = jnp.repeat(scale.astype(jnp.float32), shape[axis] // scales[axis], axis=axis)
    assert (abs(restored - w) <= steps / 2 + 1e-6).all()
    assert abs(values.astype(jnp.int32)).max() == 7
    zeros, one = quantize.quantize(0 * w, contracted, "int4")
    assert not zeros.any() and (one == 1).all()


def test_an_int4_product_and_its_gradient_are_those_of_the_dequantised_weight():
    x, w = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 3, 4, 8), (4, 8, 6)])
    )
    values, scale = quantize.quantize(w, (-3, -2), "int4")
    packed = quantize.Int4Array(values, scale, (-3, -2), -1)
    plain = quantize.dequantize(values, scale, (-3, -2))
    ours = jax.value_and_grad(lambda x: jnp.sum(project(FROM_HEADS, x, packed) ** 2))(x)
    theirs = jax.value_and_grad(lambda x: jnp.sum(FROM_HEADS(x, plain) ** 2))(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_int4_weights_take_half_of_int8_and_tables_stay_int8():
    cfg = get_config("gemma2_9b", quantize="int4")
    tables = cfg.vocab_size * cfg.d_model
    matrices = cfg.num_params - tables
    assert 1 < weight_bytes(cfg) / (tables + (0.5 + 2 / 32) * matrices) < 1.01


@pytest.mark.parametrize(
    "function, x, w, contracted, split",
    [
        (TO_HEADS, (2, 3, 192), (192, 4, 8), (-3,), -3),
        (FROM_HEADS, (2, 3, 4, 64), (4, 64, 12), (-3, -2), -1),
        (jnp.matmul, (2, 3, 192), (192, 24), (-2,), -2),
        (jnp.matmul, (2, 3, 64), (64, 12), (-2,), -1),
    ],
)
def test_the_pieces_of_an_int4_product_give_the_whole(
    function, x, w, contracted, split, monkeypatch
):
    """Pieces are for other backends than the CPU."""
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((x, w)))
    packed = quantize.Int4Array(*quantize.quantize(w, contracted, "int4"), contracted, split)
    whole = quantize.product(function, x, packed)
    monkeypatch.setattr(quantize.cpu, "on_cpu", lambda: False)
    monkeypatch.setattr(quantize, "PIECE_BYTES", 4 * w.size // 2)
    assert quantize._num_pieces(packed, 4) == 2
    np.testing.assert_allclose(quantize.product(function, x, packed), whole, atol=1e-4)
    monkeypatch.setattr(quantize, "PIECE_BYTES", 1)  # no number of pieces is that small
    assert quantize._num_pieces(packed, 4) == 1


def test_int4_folders_do_not_exist(folder, tmp_path):
    with pytest.raises(ValueError, match="int4 weights are not saved"):
        checkpoints.save(load(folder, quantize="int4"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    checkpoints.save(load(folder, quantize="int8"), tmp_path / "b")
    with pytest.raises(ValueError, match="has int8 weights: quantize='int4' needs the folder"):
        load(tmp_path / "b", quantize="int4")
