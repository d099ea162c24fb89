"""The programs of training, each built from a config without allocating anything.

`build_*` return a Program: a jitted function with shardings in and out, and the abstract arguments it is for. The trainer calls
`program.fn`; the compile-only path calls `program.fn.lower(*program.args).compile()` for a slice that is not there.

Axes: B rows, L positions, P prompts, S prompt slots, G completions per prompt, T completion tokens.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from grm_jax.models import critique_rewards, get_config, grouped_token_logps, token_logps
from grm_jax.training import losses, optim
from grm_jax.training import state as states


@dataclasses.dataclass(frozen=True)
class Program:
    """fn: jitted. args: its arguments as ShapeDtypeStructs with shardings. Call and lower it under `jax.set_mesh(mesh)`."""

    name: str
    fn: Callable
    args: tuple

    def lower(self):
        return self.fn.lower(*self.args)


def model_config(config, scalar_head=False):
    """The TransformerConfig of an experiment: `config.model` by name, fields replaced by `config.model_overrides`."""
    return get_config(
        config.model, **{**config.get("model_overrides", {}), "scalar_head": scalar_head}
    )


def build_update(name, loss_of, tx, section, params, mesh, batch_shapes, normaliser=None):
    """The frame of every update: gradients over micro-batches, guarded AdamW, donated state.

    loss_of(params, micro, normaliser) -> (loss, metrics); normaliser(batch) is what the whole batch divides by.
    """
    state, batch = (
        states.abstract_state(params, tx, mesh),
        states.abstract_batch(batch_shapes, mesh),
    )
    micros = optim.micro_batch_count(section, jax.tree.leaves(batch)[0].shape[0], mesh)

    def step(state, batch):
        whole = normaliser(batch) if normaliser else None
        loss, metrics, grads = optim.accumulated_value_and_grad(
            lambda p, micro: loss_of(p, micro, whole), state["params"], batch, micros
        )
        params, opt_state, norms = optim.guarded_update(
            tx, grads, state["opt_state"], state["params"], loss
        )
        step = state["step"] + norms["finite"].astype(jnp.int32)
        new_state = {**state, "params": params, "opt_state": opt_state, "step": step}
        return new_state, {"loss": loss, **metrics, **norms}

    fn = jax.jit(
        step,
        in_shardings=(states.shardings(state, mesh), states.batch_shardings(batch, mesh)),
        out_shardings=(states.shardings(state, mesh), states.replicated(mesh)),
        donate_argnums=(0,),
    )
    return Program(name, fn, (state, batch))


# ----------------------------------------------------------------------------- supervised fine-tuning (RFT)


def sft_batch_shapes(batch_size, seq_len):
    """Packed rows: segment 0 is padding; weights are 1 on the tokens to learn (completions), at their own slot."""
    shape = (batch_size, seq_len)
    ints = {name: (shape, jnp.int32) for name in ("tokens", "positions", "segment_ids")}
    return {**ints, "weights": (shape, jnp.float32)}


def build_sft_step(config, mesh, model_abstract=None):
    """One step of `config.rft`: (state, batch) -> (state, metrics), batch as in `sft_batch_shapes`."""
    cfg = model_config(config)
    graphdef, params = model_abstract or states.abstract_model(cfg, mesh)

    def loss_of(params, micro, tokens):
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        out = token_logps(
            model,
            micro["tokens"],
            micro["positions"],
            micro["segment_ids"],
            wanted_BxL=micro["weights"],
        )
        return losses.sft_loss(out.logps, micro["weights"], tokens), {}

    shapes = sft_batch_shapes(config.batch_size, config.seq_len)
    tx = optim.make_optimizer(config.rft, "rft")
    return build_update(
        "sft_update",
        loss_of,
        tx,
        config.rft,
        params,
        mesh,
        shapes,
        lambda batch: jnp.maximum(batch["weights"].sum(), 1),
    )


# ----------------------------------------------------------------------------- reinforcement learning (GRPO)


def rollout_shapes(config):
    """What the log-probability programs of `config.rl` read: prompts once, their G completions beside them."""
    rl = config.rl
    P, G, S, T = rl.prompts, rl.group_size, rl.prompt_len, rl.max_new_tokens
    return {
        "prompts": ((P, S), jnp.int32),
        "prompt_lengths": ((P,), jnp.int32),
        "completions": ((P, G, T), jnp.int32),
        "mask": ((P, G, T), jnp.float32),
    }


def grpo_batch_shapes(config):
    """The update's batch: rollouts, advantages per completion, and log-probs of reference, old policy and sampler."""
    shapes = rollout_shapes(config)
    per_token = (shapes["mask"][0], jnp.float32)
    names = ("ref_logps", "old_logps", "sampler_logps")
    return {
        **shapes,
        "advantages": (per_token[0][:2], jnp.float32),
        **{name: per_token for name in names},
    }


def _logps(model, batch, config, entropy=False):
    """TokenLogps (P, G, T) of the completions, the prompt of a group processed once (or once per row if asked)."""
    path = grouped_token_logps if config.rl.group_packed else ungrouped_token_logps
    tokens = (batch["prompts"], batch["prompt_lengths"], batch["completions"])
    return path(model, *tokens, config.rl.temperature, entropy, batch["mask"])


def ungrouped_token_logps(
    model,
    prompts_PxS,
    prompt_lengths_P,
    completions_PxGxT,
    temperature=1.0,
    entropy=False,
    wanted_PxGxT=None,
):
    """The same numbers as `grouped_token_logps` by the plain path: one row per completion, each with its own prompt."""
    P, S = prompts_PxS.shape
    _, G, T = completions_PxGxT.shape
    tokens = jnp.concatenate(
        [jnp.repeat(prompts_PxS, G, axis=0), completions_PxGxT.reshape(P * G, T)], axis=1
    )  # (P * G, S + T), prompts left-padded
    real_PxS = jnp.arange(S) >= (S - prompt_lengths_P)[:, None]
    segments = jnp.concatenate(
        [jnp.repeat(real_PxS, G, axis=0), jnp.ones((P * G, T), bool)], axis=1
    )
    if wanted_PxGxT is None:
        wanted_PxGxT = jnp.ones(completions_PxGxT.shape, bool)
    wanted = jnp.pad(
        wanted_PxGxT.reshape(P * G, T), ((0, 0), (S, 0))
    )  # The prompt's own log-probs are not read.
    out = token_logps(model, tokens, None, segments.astype(jnp.int32), temperature, entropy, wanted)
    return jax.tree.map(lambda x: x[:, S:].reshape(P, G, T), out)


def build_logps(config, mesh, model_abstract=None, dtype=None, name="reference_logps"):
    """Log-probs of a rollout batch: (params, batch) -> logps (P, G, T), 0 off the mask.

    `dtype` is that of the parameters at rest: the reference may rest in bfloat16 and needs no second float32 copy.
    """
    cfg = model_config(config)
    graphdef, params = model_abstract or states.abstract_model(cfg, mesh)
    if dtype is not None:
        params = states.with_shardings(
            jax.eval_shape(lambda p: states.compute_params(p, dtype), params),
            states.shardings(params, mesh),
        )
    batch = states.abstract_batch(rollout_shapes(config), mesh)
    micros = optim.micro_batch_count(config.rl, config.rl.prompts, mesh)

    def one(params, micro):
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        return _logps(model, micro, config).logps * micro["mask"]

    def fn(params, batch):
        if micros == 1:
            return one(params, batch)
        logps_MxPxGxT = jax.lax.map(
            lambda micro: one(params, micro), optim.split_batch(batch, micros)
        )
        # split_batch dealt the rows out in turn; this is its inverse.
        return logps_MxPxGxT.swapaxes(0, 1).reshape(batch["mask"].shape)

    places = (states.shardings(params, mesh), states.batch_shardings(batch, mesh))
    out = states.batch_shardings(jax.ShapeDtypeStruct((1, 1, 1), jnp.float32), mesh)
    return Program(name, jax.jit(fn, in_shardings=places, out_shardings=out), (params, batch))


def build_grpo_step(config, mesh, model_abstract=None):
    """One update of `config.rl`: (state, batch) -> (state, metrics), batch as in `grpo_batch_shapes`.

    Metrics beside those of the loss: `entropy` in nats per token, `gap_mean` and `gap_max`, the absolute difference between the
    sampler's log-probs and the trainer's, which on the first update of a rollout batch are the same policy's.
    """
    cfg, rl = model_config(config), config.rl
    graphdef, params = model_abstract or states.abstract_model(cfg, mesh)
    rows = rl.prompts * rl.group_size

    def loss_of(params, micro, tokens):
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        out = _logps(model, micro, config, entropy=True)
        flat = {name: x.reshape(-1, x.shape[-1]) for name, x in micro.items() if x.ndim == 3}
        logps, mask = out.logps.reshape(flat["mask"].shape), flat["mask"]
        loss, metrics = losses.grpo_loss(
            logps,
            flat["ref_logps"],
            mask,
            micro["advantages"].reshape(-1),
            beta=rl.beta,
            # One update per rollout batch is on-policy by construction, and needs no old log-probs.
            old_logps_RxT=flat["old_logps"] if rl.updates_per_rollout > 1 else None,
            clip=rl.clip,
            kl_estimator=rl.kl_estimator,
            rows=rows,
        )
        gap = jnp.where(mask > 0, jnp.abs(logps - flat["sampler_logps"]), 0.0)
        extra = {
            "entropy": (out.entropy.reshape(mask.shape) * mask).sum() / tokens,
            "gap_mean": gap.sum() / tokens,
            "gap_max": gap.max(),
        }
        return loss, jax.lax.stop_gradient({**metrics, **extra})

    tx = optim.make_optimizer(rl, "rl")
    shapes = grpo_batch_shapes(config)
    return build_update(
        "grpo_update",
        loss_of,
        tx,
        rl,
        params,
        mesh,
        shapes,
        lambda b: jnp.maximum(b["mask"].sum(), 1),
    )


# ----------------------------------------------------------------------------- meta reward model


def meta_rm_batch_shapes(batch_size, seq_len):
    """One judged critique per row: its tokens, segment 0 for padding, where the critique starts, and whether it was right (1) or not (0)."""
    shape, rows = (batch_size, seq_len), (batch_size,)
    tokens = {"tokens": (shape, jnp.int32), "segment_ids": (shape, jnp.int32)}
    return {**tokens, "starts": (rows, jnp.int32), "labels": (rows, jnp.float32)}


def build_meta_rm_step(config, mesh, model_abstract=None):
    """One step of `config.meta_rm`: (state, batch) -> (state, metrics); binary cross-entropy on `critique_rewards`.

    `meta_rm.likelihood` is the weight of the critique's own log-probability in the reward, 0 for the scalar head alone.
    `meta_rm.token_loss`, where above 0, is the weight of the same cross-entropy at every token of the critique, added to that at the
    last one. The metrics are of the last token, which is what judges.
    """
    cfg, section = model_config(config, scalar_head=True), config.meta_rm
    graphdef, params = model_abstract or states.abstract_model(cfg, mesh)

    def loss_of(params, micro, rows):
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        labels_B, segments_BxL = micro["labels"], micro["segment_ids"]
        x_BxLxD = model.hidden(micro["tokens"], None, segments_BxL)
        scores_B = critique_rewards(
            model, x_BxLxD, micro["tokens"], segments_BxL, micro["starts"], section.likelihood
        )
        loss = last = losses.bce_loss(scores_B, labels_B)
        if section.token_loss:
            of_critique = (segments_BxL > 0) & (
                jnp.arange(segments_BxL.shape[1]) >= micro["starts"][:, None]
            )
            scores_BxL = model.rewards_of(x_BxLxD)
            loss += section.token_loss * losses.token_bce_loss(
                scores_BxL, labels_B, of_critique.astype(jnp.float32)
            )
        share = labels_B.shape[0] / rows
        right = jnp.mean((scores_B > 0) == (labels_B > 0.5))
        return loss * share, {"accuracy": right * share, "last_loss": last * share}

    shapes = meta_rm_batch_shapes(section.batch_size, section.seq_len)
    tx = optim.make_optimizer(section, "meta_rm")
    return build_update(
        "meta_rm_update", loss_of, tx, section, params, mesh, shapes, lambda b: b["labels"].shape[0]
    )


def build_meta_rm_scores(config, mesh, rows, model_abstract=None):
    """Scalar rewards of critiques: (params, tokens (B, L), segment_ids (B, L), starts (B,)) -> float32 (B,)."""
    cfg, likelihood = model_config(config, scalar_head=True), config.meta_rm.likelihood
    graphdef, params = model_abstract or states.abstract_model(cfg, mesh)
    shapes = meta_rm_batch_shapes(rows, config.meta_rm.seq_len)
    batch = states.abstract_batch(
        {name: shapes[name] for name in ("tokens", "segment_ids", "starts")}, mesh
    )

    def fn(params, tokens, segment_ids, starts):
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        return critique_rewards(
            model, model.hidden(tokens, None, segment_ids), tokens, segment_ids, starts, likelihood
        )

    scores = jax.jit(fn, out_shardings=states.replicated(mesh))
    return Program(
        "meta_rm_scores", scores, (params, batch["tokens"], batch["segment_ids"], batch["starts"])
    )
