"""Adapters of `peft` (make_adapters.py): its logits and gradients are ours, and it loads ours.

    GRM_PEERS=PYTHON pytest --run peers tests/models/test_parity_peft.py

PYTHON is an interpreter with torch, transformers and peft; without it, the stored results are
compared.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from make_adapters import ADAPTERS, FOURTH, SAMPLES
from parity_cases import CASES, batch, sample
from parity_ours import GOLDENS, GRADIENTS, LOGITS, distance, folder, golden, logits_of
from safetensors.numpy import load_file
from test_parity_peers import peer

from grm_jax.checkpoints import load
from grm_jax.checkpoints.peft_config import read_config
from grm_jax.checkpoints.peft_state import load_adapters, save_adapters
from grm_jax.models import lora
from grm_jax.models.lora import LoraConfig

STORED = GOLDENS / "adapters"
RESULTS = dict(np.load(STORED / "results.npz"))
LANGUAGE_MODELS = [name for name, (case, _) in ADAPTERS.items() if not case.scalar]
WEIGHTS = "adapter_model.safetensors"
IN_TRAINING = ("gemma2", "qwen2", "llama3_scalar")  # the others take --run slow
RANK, SCALE = 4, 1.5  # of our models


@functools.cache
def merged(name):
    return load(folder(ADAPTERS[name][0]), dtype="float32", adapter=STORED / name)


@functools.cache
def unmerged(name):
    """Returns a model with adapters of rank 4, of which those of peft are loaded.

    Ranks and scales differ from those of the folder; B absorbs the scale.
    """
    tensors = load_file(STORED / name / WEIGHTS)
    targets = {key.split(".")[-3] for key in tensors if "lora_A" in key}
    config = LoraConfig(RANK, RANK * SCALE, tuple(t for t in lora.TARGETS if t in targets))
    case, _ = ADAPTERS[name]
    model = load(folder(case), dtype="float32", lora=config, scalar_head=case.scalar)
    graphdef, params = nnx.split(model)
    return nnx.merge(graphdef, load_adapters(params, model.cfg, STORED / name))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_logits_of_a_merged_adapter_are_those_of_peft(name):
    tokens, mask = batch(ADAPTERS[name][0])
    theirs = RESULTS[f"{name}/logits"]
    assert distance(logits_of(merged(name), tokens, mask)[:, FOURTH], theirs) <= LOGITS
    assert distance(golden("transformers")[f"{name}/logits"][:, FOURTH], theirs) > 0.05


def test_rewards_of_a_classifiers_merged_adapter_are_those_of_peft():
    model, tokens = merged("llama3_scalar"), map(jnp.asarray, batch(ADAPTERS["llama3_scalar"][0]))
    assert model.cfg.scalar_head
    ours = nnx.jit(lambda model, *batch: model.rewards(*batch))(model, *tokens)
    theirs = RESULTS["llama3_scalar/logits"][:, 0]
    assert np.abs(ours - theirs).max() <= LOGITS * np.abs(theirs).max()
    assert np.abs(golden("rewards")["llama3_right/rewards"] - theirs).max() > 0.05


def in_training(name, scratch, results):
    """Returns the logits of a model in training, and (tensor, our gradient, theirs) for each.

    Gradients are saved as an adapter is, so that they have the names and shapes of peft's.
    """
    (case, _), model = ADAPTERS[name], unmerged(name)
    tokens, mask = map(jnp.asarray, batch(case))
    graphdef, trained, frozen = nnx.split(model, lora.is_trained, ...)

    def objective(trained):
        model = nnx.merge(graphdef, trained, frozen)
        if case.scalar:
            rewards = model.rewards(tokens, mask)
            return rewards.sum(), rewards[:, None]
        logits = model(tokens)
        logps = jax.nn.log_softmax(logits[:, :-1])
        return jnp.take_along_axis(logps, tokens[:, 1:, None], -1).mean(), logits[:, FOURTH]

    (_, logits), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(trained)
    save_adapters(gradients, model.cfg, scratch)
    ours, stored = load_file(scratch / WEIGHTS), load_file(STORED / name / WEIGHTS)
    theirs, triples = results[f"{name}/gradients"], []
    for tensor in sorted(stored):
        values, gradient = stored[tensor], ours[tensor]
        if "lora_A" in tensor:
            gradient = gradient[: len(values)]
        elif "lora_B" in tensor:  # ours is the gradient of B times the ratio of the scales
            gradient = gradient[:, : values.shape[1]] * scale_of(name, tensor) / SCALE
        count = min(SAMPLES, values.size)
        triples.append((tensor, sample(gradient, SAMPLES), theirs[:count]))
        theirs = theirs[count:]
    assert not len(theirs)
    return logits, triples


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_TRAINING else pytest.param(name, marks=pytest.mark.slow)
        for name in ADAPTERS
    ],
)
def test_logits_and_gradients_of_an_adapter_in_training_are_those_of_peft(name, tmp_path):
    logits, gradients = in_training(name, tmp_path, RESULTS)
    assert distance(logits, RESULTS[f"{name}/logits"]) <= LOGITS
    for tensor, ours, theirs in gradients:
        assert np.abs(ours - theirs).max() <= GRADIENTS * np.abs(theirs).max(), tensor


def scale_of(name, tensor):
    return read_config(STORED / name).scale(tensor.split("base_model.model.")[1].rsplit(".", 2)[0])


@pytest.mark.parametrize("name", IN_TRAINING)
def test_saved_adapters_load_again(name, tmp_path):
    """Into another model: adapters, and the head of a classifier."""
    model = unmerged(name)
    _, params = nnx.split(model)
    save_adapters(lora.adapters(params), model.cfg, tmp_path, base="org/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert set(config["target_modules"]) == set(model.cfg.lora.targets)
    case, _ = ADAPTERS[name]
    new = load(folder(case), dtype="float32", lora=model.cfg.lora, scalar_head=case.scalar)
    loaded = load_adapters(lora.adapters(nnx.state(new)), model.cfg, tmp_path)
    for ours, theirs in zip(
        jax.tree.leaves(loaded), jax.tree.leaves(lora.adapters(params)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    again = load(folder(case), dtype="float32", adapter=tmp_path)
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(m)) for m in (again, merged(name)))):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_an_adapter_of_a_higher_rank_or_another_target_is_refused(tmp_path):
    model = unmerged("qwen2")
    cfg, params = model.cfg, nnx.state(model)
    with pytest.raises(ValueError, match="q_proj with rank 4, and the model has rank 2"):
        load_adapters(params, cfg.replace(lora=LoraConfig(2, 4.0)), STORED / "qwen2")
    without = nnx.filter_state(params, lambda path, _: "v_DxKxH" not in path)
    with pytest.raises(
        ValueError, match="adapts .*v_proj with .* raise the rank, or add the target"
    ):
        load_adapters(without, cfg, STORED / "qwen2")
    with pytest.raises(ValueError, match="has no adapters"):
        save_adapters(params, cfg.replace(lora=None), tmp_path)


@pytest.mark.peers
def test_the_stored_adapters_and_results_are_those_of_peft(tmp_path):
    peer("make_adapters.py", "write", tmp_path)
    for name, values in np.load(tmp_path / "results.npz").items():
        bound = 1e-4 * np.abs(RESULTS[name]).max()
        np.testing.assert_allclose(values, RESULTS[name], rtol=0, atol=bound)
    for name in ADAPTERS:
        ours, theirs = (load_file(root / name / WEIGHTS) for root in (STORED, tmp_path))
        assert ours.keys() == theirs.keys()
        for tensor, values in ours.items():
            np.testing.assert_array_equal(values, theirs[tensor])


@pytest.mark.peers
@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_loads_our_adapters(tmp_path, name):
    """Unmerged and merged there, they give the logits that they give here."""
    model, (case, _) = unmerged(name), ADAPTERS[name]
    save_adapters(nnx.state(model), model.cfg, tmp_path / "adapter")
    peer("make_adapters.py", "serve", folder(case), tmp_path / "adapter", tmp_path / "out.npz")
    tokens, mask = batch(CASES["llama3_right"])
    if case.scalar:
        ours = np.asarray(model.rewards(tokens, mask))[:, None]
    else:
        ours = logits_of(model, tokens, mask)
    for theirs in np.load(tmp_path / "out.npz").values():
        assert distance(ours, theirs, None if case.scalar else mask) <= LOGITS
