"""Computes Tunix's GRPO loss, its gradient and its advantages.

    PYTHON peer_tunix_loss.py IN.npz OUT.npz

PYTHON is the interpreter of the peers' environment.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.rl import algo_core, common
from tunix.rl.grpo.grpo_learner import GRPOConfig


class LogpsModel(nnx.Module):
    """A model whose log-probabilities are its parameters."""

    def __init__(self, logps):
        self.logps = nnx.Param(logps)


def model_logps(graphdef, state, **_):
    logps = nnx.merge(graphdef, state).logps[...]
    return logps, jnp.zeros((*logps.shape, 2))


common.compute_per_token_logps = model_logps
data = dict(np.load(sys.argv[1]))
config = GRPOConfig(
    num_generations=int(data["group"]),
    num_iterations=2,
    beta=float(data["beta"]),
    epsilon=float(data["clip"]),
    kl_loss_mode=str(data["kl"]),
    loss_agg_mode="sequence-mean-token-mean",
)
config.temperature = 1.0  # Tunix's learner sets it from its rollout config.
example = types.SimpleNamespace(
    prompt_ids=None,
    completion_ids=None,
    completion_mask=jnp.asarray(data["mask"]),
    advantages=jnp.asarray(data["advantages"]),
    old_per_token_logps=jnp.asarray(data["old"]),
    ref_per_token_logps=jnp.asarray(data["ref"]),
)


def loss(logps):
    return algo_core.grpo_loss_fn(LogpsModel(logps), example, config, 0, 1)[0]


value, grad = jax.value_and_grad(loss)(jnp.asarray(data["logps"]))
advantages = algo_core.compute_advantages(data["rewards"], int(data["group"]))
np.savez(
    sys.argv[2], loss=value, grad=grad, advantages=advantages, default_kl=GRPOConfig().kl_loss_mode
)
