"""Reinforcement learning with rule-based rewards (SPCT section 3; GRPO, arXiv 2402.03300).

One step: comparisons -> rollouts -> rewards and advantages -> reference log-probs -> `updates_per_rollout` updates. The arrays that
sample are the arrays that train; the reference is the RFT model, at rest in `reference_dtype`.
"""

import time
from collections.abc import Callable

import jax
from flax import nnx

from grm_jax.training import checkpoint, loop, optim, rollouts, steps
from grm_jax.training import state as states


def train(
    config,
    mesh,
    tokenizer,
    reference_params,
    comparisons_at: Callable,
    folder,
    data_identity: str = "",
):
    """Trains the policy from the RFT model's parameters.

    Args:
      config: an experiment.
      reference_params: parameters of the RFT model: start of the policy, and (cast to `reference_dtype`) its reference. Given as a function
        that makes them, they do not stay in memory through the stage.
      comparisons_at: place -> Comparison, for any place from 0 on; step i takes places i * P to (i + 1) * P.
      folder: where the stage lives; a checkpoint in it is gone on from.
      data_identity: what names the data, checked on resume.

    Returns:
      The trained parameters.
    """
    rl = config.rl
    cfg = steps.model_config(config)
    abstract = states.abstract_model(cfg, mesh)
    graphdef = abstract[0]
    update = steps.build_grpo_step(config, mesh, abstract)
    reference_logps = steps.build_logps(config, mesh, abstract, rl.reference_dtype)
    policy_logps = steps.build_logps(config, mesh, abstract, name="policy_logps")
    tx = optim.make_optimizer(rl, "rl")
    # In a list, to be taken out: from the first step on only the policy and the reference are needed.
    held = [states.given(reference_params)]
    del reference_params
    identity = {
        "reference": checkpoint.fingerprint(held[0]),
        "data": data_identity,
        "seed": config.seed,
        "rl.prompts": rl.prompts,
    }
    reference = jax.jit(
        lambda p: states.compute_params(p, rl.reference_dtype),
        out_shardings=states.shardings(abstract[1], mesh),
    )(held[0])

    def step(state, i, seed):
        held.clear()  # where a checkpoint was gone on from, nobody has taken it
        comparisons = [
            comparisons_at(place) for place in range(i * rl.prompts, (i + 1) * rl.prompts)
        ]
        prompts, too_long = rollouts.make_prompts(
            comparisons, config.template, tokenizer, seed, rl.prompt_len
        )
        rolled = rollouts.roll_out(
            nnx.merge(graphdef, state["params"]), prompts, tokenizer, rl, seed
        )
        times = {"rollout_s": rolled.metrics["rollout_s"]}

        start = time.perf_counter()
        arrays = states.put_batch(rollouts.trim(rolled.batch, rl.length_buckets), mesh)
        rollout = {name: arrays[name] for name in steps.rollout_shapes(config)}
        arrays["ref_logps"] = jax.block_until_ready(reference_logps.fn(reference, rollout))
        times["reference_s"] = time.perf_counter() - start

        start = time.perf_counter()
        several = rl.updates_per_rollout > 1
        arrays["old_logps"] = (
            policy_logps.fn(state["params"], rollout) if several else arrays["ref_logps"]
        )
        for number in range(rl.updates_per_rollout):
            state, metrics = update.fn(state, arrays)
            if number == 0:
                # The gap says something only while policy and sampler are the same weights.
                first = {name: metrics[name] for name in ("gap_mean", "gap_max")}
            if several and not float(metrics["finite"]):
                metrics = {**metrics, "updated": number}
                break  # another update would hide that this one was not made
        metrics = {**jax.device_get({**metrics, **first}), **rolled.metrics}
        times["update_s"] = time.perf_counter() - start
        tokens = float(rolled.batch["mask"].sum())
        metrics |= {
            **times,
            "too_long": too_long,
            "update_tokens_per_s": tokens * rl.updates_per_rollout / times["update_s"],
        }
        what = f"{i} (items {', '.join(str(c.id) for c in comparisons[:4])}{', ...' if len(comparisons) > 4 else ''})"
        return state, metrics, what

    def fresh():
        # A copy: the policy's buffers are donated, the reference's and the caller's stay.
        return states.init_state(
            jax.tree.map(lambda x: x.copy(), held.pop()), tx, mesh, config.seed
        )

    state = loop.train(
        "rl",
        rl,
        folder,
        fresh=fresh,
        abstract=update.args[0],
        step=step,
        programs=(reference_logps, update)
        if rl.updates_per_rollout == 1
        else (reference_logps, policy_logps, update),
        identity=identity,
        settings={"template": config.template},
        shown=("reward", "parse_rate", "kl", "entropy", "length"),
        tensorboard=config.tensorboard,
    )
    return state["params"]
