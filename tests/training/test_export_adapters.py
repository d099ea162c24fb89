"""With LoRA, a finished stage exports hf/ (merged) and lora/ (a folder of peft)."""

import json
import types

import jax
import numpy as np
import resume_child
from etils import epath
from flax import nnx

from grm_jax import checkpoints
from grm_jax.judging.metadata import MetaRMMetadata
from grm_jax.models import abstract_model, lora
from grm_jax.sharding import make_mesh
from grm_jax.training import finished, programs, state as states


def arrays(model):
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(nnx.state(model))]


def test_the_base_with_the_exported_adapter_is_the_exported_model(tmp_path, monkeypatch):
    """Of a meta reward model, whose head is in the adapter's folder."""
    monkeypatch.setattr(finished.loop, "saved_weights", lambda folder: "fingerprint")
    config = resume_child.make_config()
    config.lora.update(rank=2, alpha=4.0)
    config.export, config.init = True, "org/base"
    mesh = make_mesh(devices=jax.devices()[:1])
    cfg = programs.model_config(config, scalar_head=True)
    params, frozen = states.split(states.init_params(cfg, mesh, 0))
    trained = jax.tree.map(lambda x: x + 0.05, params)
    run = types.SimpleNamespace(config=config, mesh=mesh, frozen=frozen)
    finished.export(run, "meta_rm", folder := epath.Path(tmp_path) / "stage", trained)

    plain = cfg.replace(lora=None)
    base = nnx.merge(abstract_model(cfg, mesh)[0], states.join(params, frozen))
    checkpoints.save(lora.merge_weights(base), tmp_path / "base")  # B of new adapters is zero
    settings = json.loads((folder / "lora" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "org/base"
    assert (settings["r"], settings["lora_alpha"]) == (2, 4.0)
    options = {"dtype": "bfloat16", "cfg": plain}
    ours = checkpoints.load(tmp_path / "base", adapter=folder / "lora", **options)
    theirs = checkpoints.load(folder / "hf", **options)
    for one, two in zip(arrays(ours), arrays(theirs), strict=True):
        np.testing.assert_allclose(one, two, rtol=2**-7)  # products are summed in another order
    metadata = MetaRMMetadata.load(folder / "lora")
    assert metadata == MetaRMMetadata.load(folder / "hf") != MetaRMMetadata()

    marker = (folder / finished.EXPORT).read_text()
    (folder / "lora" / "adapter_model.safetensors").unlink()
    finished.export(run, "meta_rm", folder, trained)  # repeated, as for damaged files of hf/
    assert (folder / "lora" / "adapter_model.safetensors").exists()
    assert (folder / finished.EXPORT).read_text() == marker
