"""Tests the mesh that rollouts sample under."""

from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from grm_jax.models import get_config
from grm_jax.sharding import device_mesh, make_mesh
from grm_jax.training import rollouts


@pytest.mark.parametrize("tensor, fsdp", [(0, 4), (2, 2), (8, 1)])
def test_rollouts_split_the_weights_over_more_chips_than_training(tensor, fsdp, monkeypatch):
    meshes = []

    def sample(*args, **settings):
        meshes.append(device_mesh())
        raise InterruptedError

    monkeypatch.setattr(rollouts.sampling, "sample", sample)
    policy = SimpleNamespace(cfg=get_config("tiny_gemma2"))
    rl = ConfigDict(
        dict(group_size=2, max_new_tokens=4, temperature=1.0, prompt_slots=0, rollout_tensor=tensor)
    )
    batch = SimpleNamespace(prompts=[], seed=0)
    tokenizer = SimpleNamespace(stop_ids=())
    mesh = make_mesh(fsdp=4, devices=jax.devices()[:4])
    with jax.set_mesh(mesh), pytest.raises(InterruptedError):
        rollouts.roll_out(policy, None, batch, tokenizer, rl)
    (sampled,) = meshes
    assert dict(sampled.shape) == {"data": 1, "fsdp": fsdp, "tensor": 4 // fsdp}
    assert list(sampled.devices.flat) == list(mesh.devices.flat)
