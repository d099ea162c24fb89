"""Compares our GRPO loss and advantages with Tunix's on the same arrays.

    GRM_PEERS=PYTHON pytest --run peers tests/training/test_losses_peers.py

PYTHON is an interpreter with the `bench` extra.
"""

import os
import shlex
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import random_case

from grm_jax.training import losses

pytestmark = pytest.mark.peers


def tunix(tmp_path, **arrays):
    if "GRM_PEERS" not in os.environ:
        pytest.skip("GRM_PEERS is not set: set it to an interpreter with the `bench` extra")
    np.savez(tmp_path / "in.npz", **arrays)
    script = Path(__file__).parent / "peer_tunix_loss.py"
    command = [
        *shlex.split(os.environ["GRM_PEERS"]),
        str(script),
        str(tmp_path / "in.npz"),
        str(tmp_path / "out.npz"),
    ]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    return np.load(tmp_path / "out.npz")


def case(seed, kl, beta=0.08):
    logps, old, ref, mask, adv = (np.float32(x) for x in random_case(seed))
    rewards = np.random.default_rng(seed).choice([-1.0, 1.0], 8)
    return dict(
        logps=logps,
        old=old,
        ref=ref,
        mask=mask,
        advantages=adv,
        rewards=rewards,
        group=4,
        beta=beta,
        clip=0.2,
        kl=kl,
    )


@pytest.mark.parametrize("theirs,ours", [("low_var_kl", "k3"), ("mse_kl", "k2")])
def test_the_same_formula_gives_the_same_loss_and_gradient(tmp_path, theirs, ours):
    data = case(0, theirs)
    peer = tunix(tmp_path, **data)

    def loss(x):
        args = (jnp.asarray(data[name]) for name in ("ref", "mask", "advantages"))
        objective = losses.GrpoObjective(0.08, kl_estimator=ours)
        return losses.grpo_loss(x, *args, objective, jnp.asarray(data["old"]))[0]

    value, grad = jax.value_and_grad(loss)(jnp.asarray(data["logps"]))
    np.testing.assert_allclose(value, peer["loss"], atol=1e-5)
    np.testing.assert_allclose(grad, peer["grad"], atol=1e-5)


def test_tunix_has_another_default_kl_and_another_std(tmp_path):
    """Tunix's default KL is k1, which is an error here.

    Its advantages divide by the sample std (ddof 1) plus 1e-6, ours by the population std.
    """
    data = case(1, "low_var_kl")
    peer = tunix(tmp_path, **data)
    assert str(peer["default_kl"]) == "kl"
    groups = data["rewards"].reshape(-1, 4)
    ours = np.asarray(losses.group_advantages(jnp.float32(groups)))
    theirs = peer["advantages"].reshape(-1, 4)
    np.testing.assert_allclose(theirs, ours * np.sqrt(3 / 4), atol=1e-4)
