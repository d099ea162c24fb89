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
from grm_jax.judging.blocks import design
from grm_jax.judging.metadata import JudgeMetadata
from grm_jax.models import TransformerConfig, abstract_model, get_config, token_logps
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
from launch.compile import flops
from launch.compile.compile_only import Task, compile_tasks
from launch.compile.slices import get_slice, slice_devices


def make_slice_mesh(config: Any, slice_name: str, num_slices: int = 1) -> Any:
    """Makes the mesh of `config.mesh` on compile-only devices of the slices.

    Raises ValueError if its sizes do not multiply to the number of chips or do not divide the
    model, with sizes that do.
    """
    mesh = make_mesh(**dict(config.mesh), devices=slice_devices(slice_name, num_slices))
    check_fits(model_config(config), mesh)
    return mesh


# A stage's programs, whose memory depends on its `remat` and `micro_rows`.
UPDATES = {
    "rft": "sft_update",
    "rl": "grpo_update",
    "meta_rm": "meta_rm_update",
    "sft": "policy_sft_update",
    "policy": "policy_grpo_update",
}
OF_RL = ("reference_logps", "policy_logps", "grpo_update", "rollout_prefill", "rollout_decode")
PROGRAMS = {
    "rft": ("forward", "sft_update"),
    "rl": OF_RL,
    "meta_rm": ("meta_rm_update",),
    "sft": ("policy_sft_update",),
    "policy": (*(f"policy_{name}" for name in OF_RL), "judge_prefill", "judge_decode"),
}
SECTIONS = {"sft": "rft", "policy": "rl"}  # whose programs the stages use (`policy.with_section`)
Settle = Callable[[Any, str], Any]


def tasks(
    config: Any,
    mesh: Any,
    names: Sequence[str] | None = None,
    hbm: int = 0,
    settle: Settle = lambda config, stage: config,
) -> list[Task]:
    """Returns the programs of the config's stages: forward, updates, log-probs, rollouts.

    Args:
      config: model, model_overrides, batch_size, seq_len; rft, rl and meta_rm of those stages.
      names: only these programs.
      hbm: bytes per chip, which bound the rollouts' batch; 0 skips rollouts.
      settle: (config, stage) -> the config with the stage's open fields set; see
        `settle_by_compiling`.

    Raises ValueError for a program that the config does not have.
    """
    stages = [stage for stage in PROGRAMS if stage in config.get("stages", ())]
    known = [name for stage in stages for name in _names(config[stage], stage, hbm)]
    known = known if "rft" in stages else ["forward", *known]
    if names is not None and (unknown := [name for name in names if name not in known]):
        raise ValueError(f"unknown program {unknown[0]!r}: use one of {', '.join(known)}")
    chosen = known if names is None else names
    model = abstract_model(model_config(config), mesh)
    tasks = [] if "rft" in stages else [_forward_task(config, mesh, model)]
    for stage in stages:
        used = [name for name in PROGRAMS[stage] if name in chosen]
        if used:
            own = SECTIONS.get(stage)
            view = policy.with_section(config, own, stage) if own else config
            has_backward = not all(name.endswith(("_prefill", "_decode")) for name in used)
            tasks += _stage_tasks(settle(view, stage) if has_backward else view, stage, mesh, hbm)
    return [task for task in tasks if task.name in chosen]


def _names(section: Any, stage: str, hbm: int) -> list[str]:
    """The programs of a stage."""
    skipped = [] if hbm else ["_prefill", "_decode"]
    skipped += [] if section.get("updates_per_rollout", 1) > 1 else ["policy_logps"]
    return [name for name in PROGRAMS[stage] if not name.endswith(tuple(skipped))]


def _stage_tasks(config: Any, stage: str, mesh: Any, hbm: int) -> list[Task]:
    if stage == "meta_rm":
        return [_meta_rm_task(config, mesh)]
    model = abstract_model(model_config(config), mesh)
    if stage == "rft":
        return [_forward_task(config, mesh, model), _sft_task(config, mesh, model)]
    if stage == "sft":
        return [replace(_sft_task(config, mesh, model), name="policy_sft_update")]
    if stage == "policy":
        return policy_tasks(config, mesh, hbm)
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
            stage_tasks = {task.name: task for task in _stage_tasks(candidate, stage, mesh, 0)}
            update = stage_tasks[UPDATES[stage]]
            (result,) = compile_tasks([update], slice_name, num_slices, report, store)
            return (result.peak if result.fits else max(result.peak, hbm + 1)) - judge

        section = SECTIONS.get(stage, stage)
        judge = sum(judge_bytes(config, mesh)) if stage == "policy" else 0
        hbm = get_slice(slice_name).generation.hbm_bytes
        named = lambda line: report(stage + line.removeprefix(section))
        return memory.choose(config, section, mesh, hbm, peak, named, judge)

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
        model_flops=flops.model_flops(cfg, sequences, config.seq_len, training=False),
        tokens=sequences * config.seq_len,
    )


def _sft_task(config: Any, mesh: Any, model: Any) -> Task:
    sequences, length = config.batch_size, config.seq_len
    return _task(
        rft.build_sft_update(config, mesh, model),
        mesh,
        model_flops=flops.model_flops(model_config(config), sequences, length, training=True),
        tokens=sequences * length,
    )


def _meta_rm_task(config: Any, mesh: Any) -> Task:
    sequences, length = config.meta_rm.batch_size, config.meta_rm.seq_len
    cfg, logits = model_config(config), config.meta_rm.likelihood > 0
    return _task(
        meta_rm.build_meta_rm_update(config, mesh),
        mesh,
        model_flops=flops.model_flops(cfg, sequences, length, training=True, logits=logits),
        tokens=sequences * length,
    )


def _rl_tasks(config: Any, mesh: Any, model: Any) -> list[Task]:
    """The log-probs and the GRPO update; the weights of each stay during the others.

    The policy's log-probs are computed for several updates per rollout only.
    """
    rl, cfg = config.rl, model_config(config)
    forward = flops.rl_flops(cfg, rl)
    tokens = rl.prompts * (rl.prompt_len + rl.group_size * rl.max_new_tokens)
    reference = grpo.build_logps(config, mesh, model, dtype=rl.get("reference_dtype"))
    update = grpo.build_grpo_update(config, mesh, model)
    reference_bytes, state_bytes = (argument_bytes(p.args[:1]) for p in (reference, update))
    tasks = [_task(reference, mesh, model_flops=forward, tokens=tokens, resident=state_bytes)]
    if rl.updates_per_rollout > 1:
        logps = grpo.build_logps(config, mesh, model, name="policy_logps")
        resident = reference_bytes + state_bytes - argument_bytes(logps.args[:1])
        tasks.append(_task(logps, mesh, model_flops=forward, tokens=tokens, resident=resident))
    training = flops.rl_flops(cfg, rl, training=True)
    figures = {"model_flops": training, "tokens": tokens, "resident": reference_bytes}
    return [*tasks, _task(update, mesh, **figures)]


def policy_tasks(config: Any, mesh: Any, hbm: int) -> list[Task]:
    """The programs of the stage policy, with the weights of a colocated judge beside them.

    Without `policy.judge.model`, as for a served judge, there are only the policy's programs.

    config: with the section `policy` as `rl` (`policy.with_section`).

    Raises ValueError if a critique fills the judge's context.
    """
    cfg, (stored, decoding) = _judge_config(config), judge_bytes(config, mesh)
    tasks = _rl_tasks(config, mesh, abstract_model(model_config(config), mesh))
    tasks = [replace(task, resident=task.resident + stored + decoding) for task in tasks]
    if hbm:
        tasks += rollout_tasks(config, mesh, hbm, stored + decoding)
    tasks = [replace(task, name=f"policy_{task.name}") for task in tasks]
    if cfg is None or not hbm:
        return tasks
    resident = stored + _resident_in_rollouts(config, model_config(config), mesh)
    slots = config.policy.judge.get("prompt_slots", 0)
    judging = sampler_tasks(cfg, mesh, judge_requests(config, cfg), hbm, slots, resident)
    return tasks + [replace(task, name=f"judge_{task.name}") for task in judging]


def _judge_config(config: Any) -> TransformerConfig | None:
    """The architecture of a colocated judge, None without `policy.judge.model`."""
    settings = reward_sources.JudgeSettings.of(config.policy.judge)
    if settings.source != "colocated" or not settings.model:
        return None
    return reward_sources.in_use(get_config(settings.model), settings)


def judge_bytes(config: Any, mesh: Any) -> tuple[int, int]:
    """Returns the bytes per chip of a policy's judge and meta RM, and of the copy for decoding.

    The meta RM counts as one of the judge's architecture.
    """
    if (cfg := _judge_config(config)) is None:
        return 0, 0
    stored, decoding = reward_sources.held_bytes(cfg, mesh)
    if config.policy.judge.get("meta_rm"):
        stored += reward_sources.held_bytes(cfg.replace(scalar_head=True), mesh)[0]
    return stored, decoding


def judge_requests(config: Any, cfg: TransformerConfig) -> list[sampling.Request]:
    """Returns the judge's requests of a step: one for each block of answers of each question.

    A prompt is a quarter longer than the longest question with the answers of its block, but leaves
    room for the critique: longer prompts are not judged.

    Raises ValueError if a critique fills the judge's context.
    """
    settings, rl = reward_sources.JudgeSettings.of(config.policy.judge), config.rl
    blocks = design(rl.group_size, settings.block_size)
    length = 5 * (rl.prompt_len + max(map(len, blocks)) * rl.max_new_tokens) // 4
    critique = settings.max_new_tokens or min(JudgeMetadata.max_new_tokens, cfg.max_length // 2)
    if critique >= cfg.max_length:
        raise ValueError(
            f"config.policy.judge.max_new_tokens={critique:,} fills the context of {cfg.name}, "
            f"{cfg.max_length:,}: lower it"
        )
    length = min(length, cfg.max_length - critique)
    new_tokens = settings.max_new_tokens or cfg.max_length - length
    return [sampling.Request([0] * length, settings.k, new_tokens)] * (rl.prompts * len(blocks))


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
    return [
        Task(
            "prefill",
            prefill,
            prefill_args,
            mesh,
            model_flops=flops.model_flops(cfg, batch, S, training=False, logits=False),
            tokens=batch * S,
            resident=resident,
        ),
        Task(
            "decode",
            decode,
            decode_args,
            mesh,
            model_flops=flops.decode_flops(cfg, P * R, S + T),
            tokens=P * R,
            resident=resident,
            one_iteration=True,
            cheapest_branches=True,  # rollouts use no top-p and top-k; a judge may
        ),
    ]
