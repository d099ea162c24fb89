"""GRPO with rule-based rewards: the RL stage of SPCT (section 3; GRPO, arXiv 2402.03300).

This file reads in the order of a step:

    comparisons -> prompts -> G critiques of each -> rewards of +1 or -1 -> group advantages
    -> reference log-probs -> clipped objective + beta * KL -> AdamW

The prompts and the rewards come from a `rollouts.Environment`. The one of this stage has
comparisons and the rule; the one of the stage `policy` has queries and a judge (policy.py).

The policy's own arrays sample and train. The reference is the frozen RFT model, in
`rl.reference_dtype`. With LoRA policy and reference are two sets of adapters on one frozen base.

Axes: P prompts, S prompt tokens (left-padded), G samples per prompt, T completion tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax.models import TokenLogps, abstract_model, grouped_token_logps
from grm_jax.sharding import state_shardings, with_shardings
from grm_jax.storage import PathLike, fetch
from grm_jax.training import (
    checkpoint,
    loop,
    losses,
    optim,
    rft_data,
    rollouts,
    sources,
    state as states,
)
from grm_jax.training.programs import Metrics, Program, Shapes, build_update, model_config
from grm_jax.types import Comparison, Critique

CORRECT, INCORRECT = 1.0, -1.0  # SPCT equation 11; there is no reward for the format


def train(run: loop.Run, start: Callable[[], Any], folder: PathLike) -> Any:
    """Trains the policy from the RFT model's parameters, with rule-based rewards.

    Args, returns: see `train_in`.
    """
    return train_in(run, critique_environment(run), start, folder)


def train_in(
    run: loop.Run, environment: rollouts.Environment, start: Callable[[], Any], folder: PathLike
) -> Any:
    """Trains a policy with the prompts and rewards of an environment.

    Args:
      run: config, mesh, tokenizer and stop signal; `config.rl` has the settings.
      environment: prompts and rewards.
      start: () -> the first float32 parameters, new arrays on each call: the reference is made of
        one set, and without a checkpoint the policy starts from another.
      folder: of the stage; it resumes from the newest checkpoint there.

    Returns:
      The trained parameters.
    """
    config, mesh, rl = run.config, run.mesh, run.config.rl
    programs = build_programs(config, mesh)
    reference, fingerprint = make_reference(start(), rl.reference_dtype, mesh)

    def step(state: states.State, i: int, seed: int) -> tuple[states.State, Metrics, str]:
        batch = environment.prompts(i, seed)
        state, metrics = grpo_step(run, environment, programs, reference, state, batch)
        ids = [str(prompt.id) for prompt in batch.prompts]
        return state, metrics, f"{i} (items {', '.join(ids[:4])}{', ...' * (len(ids) > 4)})"

    stage = loop.Stage(
        environment.stage,
        rl,
        folder,
        init=lambda: states.init_state(start(), optim.make_optimizer(rl), mesh, config.seed),
        abstract_state=programs.update.args[0],
        step=step,
        identity={
            "reference": fingerprint,
            **run.base,
            "data": environment.identity,
            "seed": config.seed,
            "rl.prompts": rl.prompts,  # of the stage policy too, as in earlier checkpoints
        },
        settings={"template": config.template, **environment.settings},
        programs=[p for p in programs if isinstance(p, Program)],
        shown=environment.shown,
        tensorboard=config.tensorboard,
    )
    return loop.train(stage, run.stop)["params"]


def grpo_step(
    run: loop.Run,
    environment: rollouts.Environment,
    programs: Programs,
    reference: Any,
    state: states.State,
    batch: rollouts.PromptBatch,
) -> tuple[states.State, Metrics]:
    """Makes one GRPO step: rollouts, reference log-probs, `rl.updates_per_rollout` updates."""
    rl = run.config.rl
    frozen = run.frozen
    policy = nnx.merge(programs.graphdef, states.join(state["params"], frozen))
    rollout, rollout_metrics = rollouts.roll_out(policy, environment, batch, run.tokenizer, rl)
    arrays = states.put_batch(rollouts.trim(rollout, rl.length_buckets), run.mesh)
    completions = {name: arrays[name] for name in rollout_shapes(run.config)}

    start = time.perf_counter()
    arrays["ref_logps"] = jax.block_until_ready(
        programs.reference_logps.fn(reference, completions, frozen)
    )
    reference_s = time.perf_counter() - start

    start = time.perf_counter()
    # Without a program for them there is one update, which is on-policy and ignores old log-probs.
    arrays["old_logps"] = (
        programs.policy_logps.fn(state["params"], completions, frozen)
        if programs.policy_logps
        else arrays["ref_logps"]
    )
    state, metrics = update_policy(programs.update, state, arrays, frozen, rl.updates_per_rollout)
    update_s = time.perf_counter() - start
    return state, {
        **rollouts.rescaled(metrics, rollout, arrays),
        **rollout_metrics,
        "reference_s": reference_s,
        "update_s": update_s,
        "too_long": batch.too_long,
        "update_tokens_per_s": float(rollout["mask"].sum()) * rl.updates_per_rollout / update_s,
    }


def critique_environment(run: loop.Run, stage: str = "rl") -> rollouts.Environment:
    """Returns the environment of the RL stage: critiques of comparisons, +1 or -1 by the rule.

    stage: that `config.rl` belongs to, for logs and errors.
    """
    config, rl = run.config, run.config.rl
    source = comparison_source(config, run.workdir)

    def prompts(i: int, seed: int) -> rollouts.PromptBatch:
        comparisons = source.take(rl.first_item + i * rl.prompts, rl.prompts)
        chosen, too_long = rollouts.make_prompts(
            comparisons, config.template, run.tokenizer, seed, rl.prompt_len, stage
        )
        return rollouts.PromptBatch(chosen, too_long, seed)

    return rollouts.Environment(
        stage,
        prompts,
        rule_rewards,
        source.identity,
        shown=("reward", "parse_rate", "kl", "entropy", "length"),
    )


def comparison_source(config: ConfigDict, workdir: PathLike | None) -> sources.Source:
    """Returns the training comparisons without the easy ones of `rl.easy_trials`, if it is set."""
    path = config.rl.get("easy_trials", "")
    easy = rft_data.easy_ids(rft_data.read_trials(fetch(path))) if path else ()
    return sources.judging(config, without=easy, workdir=workdir)


def make_reference(params: Any, dtype: str, mesh: Mesh) -> tuple[Any, str]:
    """Returns the reference's parameters in `dtype`, and the fingerprint of the float32 ones."""
    cast = jax.jit(
        lambda p: states.compute_params(p, dtype), out_shardings=state_shardings(params, mesh)
    )
    return cast(params), checkpoint.fingerprint(params)


def rule_rewards(
    batch: rollouts.PromptBatch, replies: rollouts.Replies, lengths_PxG: np.ndarray
) -> rollouts.Rewards:
    """Returns the rewards of critiques by the rule; every critique has one."""
    critiques = [
        [rft_data.parse_reply(p.comparison, p.order, reply, p.template) for reply in group]
        for p, group in zip(batch.prompts, replies)
    ]
    rewards = [
        [reward(p.comparison, c) for c in group] for p, group in zip(batch.prompts, critiques)
    ]
    rewards_PxG = np.array(rewards, np.float32)
    metrics = rollouts.rollout_metrics(batch.prompts, rewards_PxG, critiques, lengths_PxG)
    return rollouts.Rewards(rewards_PxG, metrics)


def reward(comparison: Comparison, critique: Critique) -> float:
    """Returns +1 if the labelled best response has the strictly highest score, else -1.

    Unparsed critiques get -1 (SPCT equation 11).
    """
    return CORRECT if rft_data.is_correct(comparison, critique.scores) else INCORRECT


def update_policy(
    update: Program, state: states.State, batch: Any, frozen: Any, updates: int
) -> tuple[states.State, Metrics]:
    """Makes the updates of a rollout, and stops at one that is not finite.

    Returns:
      (state, metrics of the last update). `gap_mean` and `gap_max` are of the first, where policy
      and sampler have the same weights. After an early stop, `updated` is the number of updates
      before it.
    """
    gap: Metrics = {}
    for number in range(updates):
        state, metrics = update.fn(state, batch, frozen)
        gap = gap or {name: metrics[name] for name in ("gap_mean", "gap_max")}
        if updates > 1 and not float(metrics["finite"]):
            metrics = {**metrics, "updated": number}
            break  # another update would hide that this one failed
    return state, jax.device_get({**metrics, **gap})


class Programs(NamedTuple):
    """The programs of a step, and the graph of the model."""

    graphdef: nnx.GraphDef
    reference_logps: Program
    policy_logps: Program | None  # for several updates per rollout
    update: Program


def build_programs(config: ConfigDict, mesh: Mesh) -> Programs:
    """Builds the programs of `config.rl` without allocating anything."""
    model, several = abstract_model(model_config(config), mesh), config.rl.updates_per_rollout > 1
    return Programs(
        model[0],
        build_logps(config, mesh, model, config.rl.reference_dtype),
        build_logps(config, mesh, model, name="policy_logps") if several else None,
        build_grpo_update(config, mesh, model),
    )


def rollout_shapes(config: ConfigDict) -> Shapes:
    """Returns the arrays that log-probs are computed from: each prompt once, its G completions."""
    rl = config.rl
    P, G, S, T = rl.prompts, rl.group_size, rl.prompt_len, rl.max_new_tokens
    return {
        "prompts": ((P, S), jnp.int32),
        "prompt_lengths": ((P,), jnp.int32),
        "completions": ((P, G, T), jnp.int32),
        "mask": ((P, G, T), jnp.float32),
    }


def grpo_batch_shapes(config: ConfigDict) -> Shapes:
    """Returns the arrays of an update: rollouts, advantages, and three sets of log-probs."""
    shapes = rollout_shapes(config)
    shape_PxGxT = shapes["mask"][0]
    return {
        **shapes,
        "advantages": (shape_PxGxT[:2], jnp.float32),
        "ref_logps": (shape_PxGxT, jnp.float32),
        "old_logps": (shape_PxGxT, jnp.float32),
        "sampler_logps": (shape_PxGxT, jnp.float32),
    }


def completion_logps(model: Any, batch: Any, rl: ConfigDict, entropy: bool = False) -> TokenLogps:
    """Computes log-probs (P, G, T) of completions; the prompt of a group is processed once."""
    tokens = (batch["prompts"], batch["prompt_lengths"], batch["completions"])
    return grouped_token_logps(model, *tokens, rl.temperature, entropy, batch["mask"])


def build_logps(
    config: ConfigDict,
    mesh: Mesh,
    model: tuple[nnx.GraphDef, Any] | None = None,
    dtype: str | None = None,
    name: str = "reference_logps",
) -> Program:
    """Builds (params, rollouts, frozen) -> log-probs (P, G, T), 0 off the mask.

    With LoRA, `params` are the adapters, of the policy or of the reference, and both use the base
    `frozen`.

    Args:
      config: an experiment.
      mesh: of the program.
      model: `abstract_model` of the experiment, if the caller has it.
      dtype: of the stored `params`; None is the model's. A bfloat16 reference needs no second
        float32 copy.
      name: of the program.
    """
    cfg, rl = model_config(config), config.rl
    graphdef, every_param = model or abstract_model(cfg, mesh)
    params, frozen = states.split(every_param)
    if dtype is not None:
        cast = jax.eval_shape(lambda p: states.compute_params(p, dtype), params)
        params = with_shardings(cast, state_shardings(params, mesh))
    batch = states.abstract_batch(rollout_shapes(config), mesh)
    micro_batches = optim.micro_batch_count(rl, rl.prompts, mesh)

    def micro_logps(params: Any, micro: Any) -> jax.Array:
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        return completion_logps(model, micro, rl).logps * micro["mask"]

    def logps(params: Any, batch: Any, frozen: Any) -> jax.Array:
        params = states.join(params, frozen)
        if micro_batches == 1:
            return micro_logps(params, batch)
        micros = optim.split_batch(batch, micro_batches)
        logps_MxPxGxT = jax.lax.map(lambda micro: micro_logps(params, micro), micros)
        # The inverse of split_batch, which deals the prompts out in turn.
        return logps_MxPxGxT.swapaxes(0, 1).reshape(batch["mask"].shape)

    batch_shardings = states.batch_shardings(batch, mesh)
    fn = jax.jit(
        logps,
        in_shardings=(
            state_shardings(params, mesh),
            batch_shardings,
            state_shardings(frozen, mesh),
        ),
        out_shardings=batch_shardings["mask"],
    )
    return Program(name, fn, (params, batch, frozen))


def build_grpo_update(
    config: ConfigDict, mesh: Mesh, model: tuple[nnx.GraphDef, Any] | None = None
) -> Program:
    """Builds one update as `build_update`, with a batch as in `grpo_batch_shapes`.

    Metrics besides the loss's: `entropy` in nats per token; `gap_mean` and `gap_max`, the absolute
    difference between the sampler's log-probs and the trainer's, which are of the same policy in
    the first update of a rollout.
    """
    cfg, rl = model_config(config), config.rl
    graphdef, params = model or abstract_model(cfg, mesh)
    objective = losses.GrpoObjective(rl.beta, rl.clip, rl.kl_estimator)

    def loss_fn(params: Any, micro: Any, tokens: jax.Array) -> tuple[jax.Array, Metrics]:
        policy = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        out = completion_logps(policy, micro, rl, entropy=True)
        assert out.entropy is not None
        flat = {name: x.reshape(-1, x.shape[-1]) for name, x in micro.items() if x.ndim == 3}
        logps, mask = out.logps.reshape(flat["mask"].shape), flat["mask"]
        loss, metrics = losses.grpo_loss(
            logps,
            flat["ref_logps"],
            mask,
            micro["advantages"].reshape(-1),
            objective,
            flat["old_logps"] if rl.updates_per_rollout > 1 else None,
            rl.prompts * rl.group_size,
        )
        gap = jnp.where(mask > 0, jnp.abs(logps - flat["sampler_logps"]), 0.0)
        metrics |= {
            "entropy": (out.entropy.reshape(mask.shape) * mask).sum() / tokens,
            "gap_mean": gap.sum() / tokens,
            "gap_max": gap.max(),
        }
        return loss, jax.lax.stop_gradient(metrics)

    return build_update(
        "grpo_update",
        loss_fn,
        rl,
        mesh,
        params,
        grpo_batch_shapes(config),
        denominator=lambda batch: jnp.maximum(batch["mask"].sum(), 1),
    )


def check_packed(name: str, value: bool) -> None:
    """Refuses `group_packed=False`. name: the field with "=", as in `config_rules`."""
    if not value:
        raise ValueError(
            f"{name}False is no longer supported: remove the field; every group shares its prompt, "
            "with equal loss and gradient"
        )


def check(config: ConfigDict) -> None:
    """Raises ValueError, naming the field, for settings that would fail during training."""
    rl = config.rl
    optim.make_optimizer(rl, "rl")
    losses.check_kl_estimator(rl.kl_estimator)
