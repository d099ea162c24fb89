"""The programs of an experiment as abstract tasks for a slice; nothing is allocated.

Axes: L sequence length.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from grm_jax import sampling
from grm_jax.models import abstract_model, get_config, token_logps
from grm_jax.run_store import RunStore
from grm_jax.sampling import buckets, plan, programs, scheduler, weights
from grm_jax.sharding import (
    batch_shards,
    check_fits,
    make_mesh,
    state_shardings,
    widen_tensor,
    with_shardings,
)
from grm_jax.training import grpo, memory, meta_rm, policy, reward_sources, rft, state as states
from grm_jax.training.machines import argument_bytes
from grm_jax.training.programs import model_config
from launch.compile.compile_only import Task, compile_tasks
from launch.compile.slices import get_slice, slice_devices


def attention_flops(cfg: Any, length: int) -> float:
    """Forward FLOPs of the attention products of one sequence of `length` tokens.

    4 x heads x head_dim for each visible (query, key) pair: causal, and in the layer's window.
    """
    pairs = 0
    for layer in range(cfg.num_layers):
        inside = min(cfg.pattern[layer % len(cfg.pattern)].window or length, length)
        pairs += inside * (inside + 1) // 2 + (length - inside) * inside
    return float(4 * cfg.num_heads * cfg.head_dim * pairs)


def model_flops(
    cfg: Any, sequences: int, length: int, training: bool, logits: bool = True
) -> float:
    """FLOPs of a forward pass (2 x parameters x tokens + attention); three times that in training.

    The tied token table counts once, as the output head; without logits it does not count.
    """
    params = cfg.num_params - (0 if logits else cfg.vocab_size * cfg.d_model)
    forward = 2.0 * params * sequences * length + sequences * attention_flops(cfg, length)
    return 3 * forward if training else forward


def rl_flops(cfg: Any, rl: Any) -> float:
    """Forward FLOPs of a rollout batch's log-probs: each prompt once, logits of completions."""
    length = rl.prompt_len + rl.max_new_tokens
    prompt_attention = attention_flops(cfg, rl.prompt_len)
    completion_attention = attention_flops(cfg, length) - prompt_attention
    head = 2.0 * cfg.vocab_size * cfg.d_model
    layers = 2.0 * cfg.num_params - head
    completions = rl.group_size * (rl.max_new_tokens * (layers + head) + completion_attention)
    return rl.prompts * (rl.prompt_len * layers + prompt_attention + completions)


def make_slice_mesh(config: Any, slice_name: str, num_slices: int = 1) -> Any:
    """Makes the mesh of `config.mesh` on compile-only devices of the slices.

    Raises ValueError if its sizes do not multiply to the number of chips or do not divide the
    model, with sizes that do.
    """
    mesh = make_mesh(**dict(config.mesh), devices=slice_devices(slice_name, num_slices))
    check_fits(model_config(config), mesh)
    return mesh


# A stage's programs, whose memory depends on its `remat` and `micro_rows`.
UPDATES = {"rft": "sft_update", "rl": "grpo_update", "meta_rm": "meta_rm_update"}
OF_POLICY = ("reference_logps", "grpo_update", "rollout_prefill", "rollout_decode")
PROGRAMS = {
    "rft": ("forward", "sft_update"),
    "rl": ("reference_logps", "grpo_update", "rollout_prefill", "rollout_decode"),
    "meta_rm": ("meta_rm_update",),
    "policy": (*(f"policy_{name}" for name in OF_POLICY), "judge_prefill", "judge_decode"),
}
Settle = Callable[[Any, str], Any]


def tasks(
    config: Any,
    mesh: Any,
    names: Sequence[str] | None = None,
    hbm: int = 0,
    settle: Settle = lambda config, stage: config,
) -> list[Task]:
    """Returns the programs of the config's stages: forward, updates, reference log-probs, rollouts.

    Args:
      config: model, model_overrides, batch_size, seq_len; rft, rl and meta_rm of those stages.
      names: only these programs.
      hbm: bytes per chip, which bound the rollouts' batch; 0 skips rollouts.
      settle: (config, stage) -> the config with the stage's open fields set; see
        `settle_by_compiling`.

    Raises ValueError for a program that the config does not have.
    """
    stages = [stage for stage in PROGRAMS if stage in config.get("stages", ())]
    known = [name for stage in stages for name in PROGRAMS[stage]]
    known = [name for name in known if hbm or not name.endswith(("_prefill", "_decode"))]
    known = known if "rft" in stages else ["forward", *known]
    if names is not None and (unknown := [name for name in names if name not in known]):
        raise ValueError(f"unknown program {unknown[0]!r}: use one of {', '.join(known)}")
    chosen = known if names is None else names
    model = abstract_model(model_config(config), mesh)
    tasks = [] if "rft" in stages else [_forward_task(config, mesh, model)]
    for stage in stages:
        used = [name for name in PROGRAMS[stage] if name in chosen]
        if used and stage == "policy":
            view = policy.with_section(config, "rl", "policy")
            view.stages = ("rl",)
            tasks += policy_tasks(settle(view, "rl"), mesh, hbm)
        elif used:
            only_rollouts = all(name.startswith("rollout_") for name in used)  # without a backward
            settled = config if only_rollouts else settle(config, stage)
            tasks += _stage_tasks(settled, stage, mesh, hbm)
    return [task for task in tasks if task.name in chosen]


def _stage_tasks(config: Any, stage: str, mesh: Any, hbm: int) -> list[Task]:
    if stage == "meta_rm":
        return [_meta_rm_task(config, mesh)]
    model = abstract_model(model_config(config), mesh)
    if stage == "rft":
        return [_forward_task(config, mesh, model), _sft_task(config, mesh, model)]
    return _rl_tasks(config, mesh, model) + (rollout_tasks(config, mesh, hbm) if hbm else [])


def settle_by_compiling(
    mesh: Any,
    slice_name: str,
    num_slices: int = 1,
    report: Callable[..., None] = print,
    store: RunStore | None = None,
) -> Settle:
    """Returns the `settle` of `tasks` that compiles a stage's update for the slice (`memory`).

    The results are added to the store, so that the chosen program is compiled once.
    """

    def settle(config: Any, stage: str) -> Any:
        def peak(candidate: Any) -> float:
            (task,) = tasks(candidate, mesh, [UPDATES[stage]])
            (result,) = compile_tasks([task], slice_name, num_slices, report, store)
            return result.peak if result.fits else max(result.peak, hbm + 1)

        hbm = get_slice(slice_name).generation.hbm_bytes
        return memory.choose(config, stage, mesh, hbm, peak, report)

    return settle


def _task(program: Any, mesh: Any, **figures: Any) -> Task:
    return Task(program.name, program.fn, program.args, mesh, **figures)


def _forward_task(config: Any, mesh: Any, model: Any) -> Task:
    """Token log-probs of a micro-batch of RFT (the batch if it has none), bfloat16 weights."""
    cfg = model_config(config)
    micro_batch = max(0, config.get("rft", {}).get("micro_rows", 0)) * batch_shards(mesh)
    sequences = min(config.batch_size, micro_batch or config.batch_size)
    graphdef, params = model
    param_shardings = state_shardings(params, mesh)
    params = jax.eval_shape(lambda p: states.compute_params(p, cfg.dtype), params)
    params = with_shardings(params, param_shardings)
    shapes = rft.sft_batch_shapes(sequences, config.seq_len)
    inputs = {name: shapes[name] for name in ("tokens", "positions", "segment_ids")}
    batch = states.abstract_batch(inputs, mesh)

    def forward(params: Any, batch: Any) -> Any:
        model = nnx.merge(graphdef, params)
        return token_logps(model, batch["tokens"], batch["positions"], batch["segment_ids"]).logps

    shardings = (param_shardings, states.batch_shardings(batch, mesh))
    out = states.batch_shardings(batch["tokens"], mesh)
    return Task(
        "forward",
        jax.jit(forward, in_shardings=shardings, out_shardings=out),
        (params, batch),
        mesh,
        model_flops=model_flops(cfg, sequences, config.seq_len, training=False),
        tokens=sequences * config.seq_len,
    )


def _sft_task(config: Any, mesh: Any, model: Any) -> Task:
    sequences, length = config.batch_size, config.seq_len
    return _task(
        rft.build_sft_update(config, mesh, model),
        mesh,
        model_flops=model_flops(model_config(config), sequences, length, training=True),
        tokens=sequences * length,
    )


def _meta_rm_task(config: Any, mesh: Any) -> Task:
    sequences, length = config.meta_rm.batch_size, config.meta_rm.seq_len
    cfg = model_config(config)
    return _task(
        meta_rm.build_meta_rm_update(config, mesh),
        mesh,
        model_flops=model_flops(cfg, sequences, length, training=True, logits=False),
        tokens=sequences * length,
    )


def _rl_tasks(config: Any, mesh: Any, model: Any) -> list[Task]:
    """The reference's log-probs and the GRPO update; each one's weights stay during the other."""
    rl = config.rl
    forward = rl_flops(model_config(config), rl)
    tokens = rl.prompts * (rl.prompt_len + rl.group_size * rl.max_new_tokens)
    reference = grpo.build_logps(config, mesh, model, dtype=rl.get("reference_dtype"))
    update = grpo.build_grpo_update(config, mesh, model)
    reference_bytes, state_bytes = (argument_bytes(p.args[:1]) for p in (reference, update))
    return [
        _task(reference, mesh, model_flops=forward, tokens=tokens, resident=state_bytes),
        _task(update, mesh, model_flops=3 * forward, tokens=tokens, resident=reference_bytes),
    ]


def policy_tasks(config: Any, mesh: Any, hbm: int) -> list[Task]:
    """The programs of the stage policy, with the weights of a colocated judge beside them.

    The judge's prompt is a quarter longer than the longest question with its answers. Without
    `policy.judge.model`, as for a served judge, there are only the policy's programs.

    config: with the section `policy` as `rl` (`policy.with_section`).
    """
    settings, rl = reward_sources.JudgeSettings.of(config.policy.judge), config.rl
    cfg, stored, decoding = None, 0, 0
    if settings.source == "colocated" and settings.model:
        cfg = reward_sources.in_use(get_config(settings.model), settings)
        stored, decoding = reward_sources.held_bytes(cfg, mesh)
    tasks = _rl_tasks(config, mesh, abstract_model(model_config(config), mesh))
    tasks = [replace(task, resident=task.resident + stored + decoding) for task in tasks]
    if hbm:
        tasks += rollout_tasks(config, mesh, hbm, stored + decoding)
    tasks = [replace(task, name=f"policy_{task.name}") for task in tasks]
    if cfg is None or not hbm:
        return tasks
    length = 5 * (rl.prompt_len + rl.group_size * rl.max_new_tokens) // 4
    new_tokens = settings.max_new_tokens or cfg.max_length - length
    requests = [sampling.Request([0] * length, settings.k, new_tokens)] * rl.prompts
    resident = stored + _resident_in_rollouts(config, model_config(config), mesh)
    judging = sampler_tasks(cfg, mesh, requests, hbm, settings.prompt_slots, resident)
    return tasks + [replace(task, name=f"judge_{task.name}") for task in judging]


def rollout_tasks(config: Any, mesh: Any, hbm: int, beside: int = 0) -> list[Task]:
    """Prefill of a batch of prompts, and one decode step of the batch, in the sampler's sharding.

    The batch is the largest that fits beside the training state (float32 weights and two moments)
    and the reference's weights, which stay on the chips.

    beside: bytes per chip of other arrays that stay, such as a judge's weights.
    """
    rl, cfg = config.rl, model_config(config)
    resident = _resident_in_rollouts(config, cfg, mesh) + beside
    mesh = widen_tensor(mesh, cfg, rl.get("rollout_tensor", 0))
    request = sampling.Request([0] * rl.prompt_len, rl.group_size, rl.max_new_tokens)
    cfg = cfg.replace(quantize=rl.get("rollout_quantize") or cfg.quantize)
    tasks = sampler_tasks(cfg, mesh, [request] * rl.prompts, hbm, rl.prompt_slots, resident)
    names = ("rollout_prefill", "rollout_decode")
    return [replace(task, name=name) for task, name in zip(tasks, names, strict=True)]


def _resident_in_rollouts(config: Any, cfg: Any, mesh: Any) -> int:
    """Bytes per chip of the training state and the reference.

    With LoRA these are adapters; the base is the sampler's own, unless `fsdp` splits it.
    """
    if cfg.lora is None:
        bytes_per_param = 12 + jnp.dtype(config.rl.reference_dtype).itemsize
        return cfg.num_params * bytes_per_param // (mesh.shape["fsdp"] * mesh.shape["tensor"])
    update, reference = memory.build_update(config, "rl", mesh)
    state, _, base = update.args
    return reference + argument_bytes((state, base if mesh.shape["fsdp"] > 1 else ()))


def sampler_tasks(
    cfg: Any,
    mesh: Any,
    requests: Sequence[sampling.Request],
    hbm: int,
    prompt_slots: int = 0,
    resident: int = 0,
) -> list[Task]:
    """Returns prefill and one decode step of the sampler's batch for the requests (`plan.fit`).

    Args:
      requests: of the same lengths.
      hbm: bytes per chip.
      prompt_slots: most prompts in a batch; 0: all requests.
      resident: bytes per chip of other arrays.
    """
    cfg = cfg.replace(param_dtype=cfg.dtype, remat="none")
    graphdef, params = abstract_model(cfg, mesh, weights.SAMPLING_AXES)
    if cfg.lora is not None:  # adapters are stored in float32
        cast = jax.eval_shape(lambda p: states.compute_params(p, cfg.dtype), params)
        params = with_shardings(cast, state_shardings(params, mesh, weights.SAMPLING_AXES))
    with jax.set_mesh(mesh):
        P, R = plan.fit(
            cfg, requests, prompt_slots or len(requests), memory=hbm, taken=resident, platform="tpu"
        )
        T = buckets.ring_bucket(requests[0].max_new_tokens - 1)
        S = buckets.prompt_bucket(len(requests[0].prompt))
        batch = buckets.prefill_batch(S, P, batch_shards(mesh))
        built = programs.abstract_programs(
            graphdef,
            params,
            cfg,
            programs.Shape(P, R, S, T),
            scheduler.SEGMENT,
            mesh,
            prompts=batch,
        )
    (_, prefill, prefill_args), (_, decode, decode_args) = built
    last_attention = attention_flops(cfg, S + T) - attention_flops(cfg, S + T - 1)
    return [
        Task(
            "prefill",
            prefill,
            prefill_args,
            mesh,
            model_flops=model_flops(cfg, batch, S, training=False, logits=False),
            tokens=batch * S,
            resident=resident,
        ),
        Task(
            "decode",
            decode,
            decode_args,
            mesh,
            model_flops=P * R * (2.0 * cfg.num_params + last_attention),
            tokens=P * R,
            resident=resident,
            one_iteration=True,
            cheapest_branches=True,  # rollouts use no top-p and top-k; a judge may
        ),
    ]
