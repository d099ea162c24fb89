"""LoRA adapters in folders of `peft`: merged on load, and refused where they do not fit.

Parity with `peft` itself: tests/models/test_parity_peft.py.
"""

import shutil

import gguf_toys
import jax
import numpy as np
import pytest
import test_deepmind
import toys
from flax import nnx
from safetensors.numpy import load_file, save_file
from toys import ALPHA, OUTER, RANK, write_adapter

from grm_jax import checkpoints
from grm_jax.checkpoints.loading import flat_params
from grm_jax.checkpoints.peft import open_adapters
from grm_jax.checkpoints.peft_config import AdapterConfig
from grm_jax.cli import main
from grm_jax.models import lora
from grm_jax.sharding import make_mesh


def merged_by_hand(values, adapter):
    """Returns the base's tensors + scale B A, in the base's dtype."""
    tensors, out = load_file(adapter / "adapter_model.safetensors"), dict(values)
    for name in tensors:
        if name.endswith("lora_A.weight"):
            key = name.removeprefix(OUTER).removesuffix("lora_A.weight") + "weight"
            b = tensors[name.replace("lora_A", "lora_B")]
            merged = values[key].astype(np.float32) + (ALPHA / RANK * b) @ tensors[name]
            out[key] = merged.astype(values[key].dtype)
    return out


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(base of Gemma 3, adapter, folder merged by hand), of bfloat16."""
    root = tmp_path_factory.mktemp("peft")
    values = toys.tensors(toys.GEMMA3)
    base = toys.write_folder(root / "base", toys.GEMMA3, values, files=2)
    adapter = write_adapter(root / "adapter", range(8))
    merged = toys.write_folder(root / "merged", toys.GEMMA3, merged_by_hand(values, adapter))
    return base, adapter, merged


def assert_equal(one, two):
    one, two = (jax.tree.leaves(nnx.state(model)) for model in (one, two))
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("mesh", [None, (1, 4, 2)])
def test_a_base_with_an_adapter_equals_the_merged_folder(toy, mesh, quantize):
    """Bit for bit: merged in float32, rounded once, quantised after it."""
    base, adapter, merged = toy
    mesh = mesh and make_mesh(*mesh)
    options = {"mesh": mesh, "quantize": quantize}
    loaded = checkpoints.load(base, adapter=adapter, **options)
    assert_equal(loaded, checkpoints.load(merged, **options))


@pytest.mark.parametrize("layout", ["gguf", "flax", "flax, gates (2, D, F)"])
def test_bases_of_other_formats_are_merged(tmp_path, layout):
    """Of GGUF, whose Llama has interleaved heads; of Flax, which stacks keys and values."""
    config = toys.LLAMA if layout == "gguf" else toys.GEMMA2
    values = toys.tensors(config, dtype=np.float32)
    adapter = write_adapter(tmp_path / "adapter", range(config["num_hidden_layers"]), lora.TARGETS)
    if layout == "gguf":
        base = gguf_toys.write(tmp_path / "base.gguf", config, values)
    else:
        tree = test_deepmind.nested(config, values, gates_df="gates" in layout)
        base = test_deepmind.write(tmp_path / "base", tree)
    folder = toys.write_folder(tmp_path / "merged", config, merged_by_hand(values, adapter))
    merged = checkpoints.load(folder, dtype="float32")
    loaded = checkpoints.load(base, dtype="float32", adapter=adapter, cfg=merged.cfg)
    ours, theirs = (flat_params(nnx.state(model)) for model in (loaded, merged))
    for path, value in theirs.items():
        rows = len(value[...])
        np.testing.assert_array_equal(ours[path][...][:rows], value[...])  # Flax pads the table


def test_grm_convert_writes_the_merged_folder(toy, tmp_path, capsys):
    base, adapter, merged = toy
    adapter = shutil.copytree(adapter, tmp_path / "adapter")
    (adapter / "judge.json").write_text('{"max_new_tokens": 7}')
    command = ["convert", str(base), str(tmp_path / "out"), "--lora", str(adapter), "--quiet"]
    assert main(command) == 0
    assert toys.raw(tmp_path / "out") == toys.raw(merged)
    assert (tmp_path / "out/judge.json").read_text() == '{"max_new_tokens": 7}'
    command[2] = str(adapter)
    assert main(command) == 2
    assert "holds an adapter: give another folder" in capsys.readouterr().err


def test_a_hub_name_of_an_adapter_loads_without_its_other_files(toy, hub):
    base, adapter, merged = toy
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    hub.add("org/adapter", files | {"optimizer.pt": b"pickle", "judge.json": b"{}"})
    assert_equal(checkpoints.load(base, adapter="org/adapter"), checkpoints.load(merged))
    assert sorted(hub.downloads()) == [
        "adapter_config.json", "adapter_model.safetensors", "judge.json",
    ]  # fmt: skip


CFG = checkpoints.hf_config.from_hf(toys.GEMMA3, "toy")


@pytest.mark.parametrize(
    "field, value",
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["embed_tokens"]),
        ("init_lora_weights", "pissa"),
        ("peft_type", "LOHA"),
        ("task_type", "TOKEN_CLS"),
        ("layer_replication", [[0, 4]]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["mlp.experts"]),
        ("a_field_of_a_later_version", 1),
        ("rank_pattern", {"(a+)+b": 2}),
        ("r", 0),
        ("lora_alpha", "16"),
        ("target_modules", None),
        ("target_modules", "(.*"),
        ("target_modules", [1]),
        ("layers_to_transform", [-1]),
    ],
)
def test_a_field_that_is_wrong_or_not_supported_is_named(tmp_path, field, value):
    folder = write_adapter(tmp_path, range(8), **{field: value})
    with pytest.raises(ValueError) as error:
        open_adapters(folder, CFG)
    assert field in str(error.value) and "\n" not in str(error.value)
    assert "is not supported: merge it" in str(error.value) or "is wrong: " in str(error.value)


def test_fields_of_training_alone_have_no_effect(tmp_path):
    fields = {"lora_dropout": 0.1, "inference_mode": False, "init_lora_weights": "gaussian"}
    fields |= {"use_dora": False, "later": None, "later_list": [], "megatron_core": "megatron.core"}
    adapters = open_adapters(write_adapter(tmp_path, range(8), **fields), CFG)
    assert {a.scale for a in adapters.modules.values()} == {ALPHA / RANK}
    assert len(adapters.modules) == 3 * 8


@pytest.mark.parametrize(
    "layers, fields, message",
    [
        (range(9), {}, r"layers\.8\.\S+ has no counterpart in toy, which has 8 layers \(the "
                       r"adapter's base is org/base\)"),
        (range(7), {}, r"lacks base_model\.model\.model\.layers\.7\.self_attn\.q_proj\.lora_A"),
        (range(8), {"r": 4}, r"q_proj\.lora_A\.weight is \(2, 32\), and toy with rank 4 needs"),
        (range(8), {"target_modules": ["q_proj"]}, r"down_proj\.lora_A\.weight is not among the"),
        (range(8), {"layers_to_transform": [0, 1]}, r"layers\.2\.\S+ is not among the modules"),
        (range(0), {"target_modules": ["fc1"]}, r"no module of toy matches target_modules"),
    ],
)  # fmt: skip
def test_an_adapter_of_another_base_is_refused_by_tensor(tmp_path, layers, fields, message):
    with pytest.raises(ValueError, match=message):
        open_adapters(write_adapter(tmp_path, layers, **fields), CFG)


def test_an_adapter_of_a_wider_base_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is \(2, 32\), and wide with rank 2 needs \(2, 48\)"):
        open_adapters(write_adapter(tmp_path, range(8)), CFG.replace(d_model=48, name="wide"))


@pytest.mark.parametrize(
    "name", ["lm_head.lora_A.weight", "model.embed_tokens.lora_embedding_A", "score.weight",
             "model.layers.0.self_attn.q_proj.lora_magnitude_vector"],
)  # fmt: skip
def test_adapters_of_other_modules_are_refused(tmp_path, name):
    folder = write_adapter(tmp_path, range(8))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[OUTER + name] = np.ones((2, 32), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"{name} is not supported: only q_proj"):
        open_adapters(folder, CFG)


def test_missing_files_and_pickles_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json: give the folder of"):
        open_adapters(tmp_path, CFG)
    folder = write_adapter(tmp_path / "adapter", range(8))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin, a pickle, which can run code"):
        open_adapters(folder, CFG)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="has no adapter_model.safetensors"):
        open_adapters(folder, CFG)


def test_an_adapter_folder_as_a_model_names_the_flag(tmp_path):
    folder = write_adapter(tmp_path / "adapter", range(8))
    with pytest.raises(ValueError, match="holds an adapter .* load its base with --lora"):
        checkpoints.load(folder)


@pytest.mark.parametrize(
    "config, module, adapted",
    [
        (AdapterConfig(target_modules=("q_proj",)), "model.layers.3.self_attn.q_proj", True),
        (AdapterConfig(target_modules=("proj",)), "model.layers.3.self_attn.q_proj", False),
        (AdapterConfig(target_modules=r"model.*\.q_proj"), "model.layers.3.self_attn.q_proj", True),
        (AdapterConfig(target_modules=r"q_proj"), "model.layers.3.self_attn.q_proj", False),
        (AdapterConfig(target_modules="ALL-linear"), "model.layers.3.mlp.up_proj", True),
        (AdapterConfig(target_modules="all-linear"), "lm_head", False),
        (AdapterConfig(target_modules=("layers.3.mlp.up_proj",)),
         "model.layers.3.mlp.up_proj", True),
        (AdapterConfig(target_modules=("layers.3.mlp.up_proj",)),
         "model.layers.13.mlp.up_proj", False),
        (AdapterConfig(target_modules=("up_proj",), exclude_modules=r".*\.3\..*"),
         "model.layers.3.mlp.up_proj", False),
        (AdapterConfig(target_modules=("up_proj",), layers_to_transform=(1,)),
         "model.layers.11.mlp.up_proj", False),
        (AdapterConfig(target_modules=("up_proj",), layers_to_transform=(1,),
                       layers_pattern=("h",)), "model.layers.1.mlp.up_proj", False),
    ],
)  # fmt: skip
def test_modules_are_chosen_as_in_peft(config, module, adapted):
    assert config.adapts(module) is adapted


def test_damaged_files_fail_in_one_line(tmp_path, request):
    folder, rng = (
        write_adapter(tmp_path, range(8)),
        np.random.default_rng(request.config.getoption("--fuzz-seed")),
    )
    file = folder / "adapter_model.safetensors"
    whole, refused = file.read_bytes(), 0
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(150):
        damaged = bytearray(whole)
        for at in rng.integers(header, size=rng.choice([1, 3, 20])):
            damaged[at] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            open_adapters(folder, CFG)
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            assert "\n" not in str(error) and str(folder) in str(error)
    assert refused > 100  # a changed space or digit may leave the file valid


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_adapters_of_multimodal_models_have_the_names_of_their_base(tmp_path, prefix):
    """A regular expression may select the language model, so it is matched against these names."""
    targets = r".*language_model.*\.(q_proj|o_proj|down_proj)"
    folder = write_adapter(tmp_path, range(8), target_modules=targets)
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {k.replace(f"{OUTER}model.", OUTER + prefix): v for k, v in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    assert len(open_adapters(folder, CFG).modules) == 3 * 8
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="is not among the modules of adapter_config.json"):
        open_adapters(folder, CFG)
