"""The programs of an experiment, ready to be compiled for a slice: abstract all through, nothing is allocated.

Axes: L sequence length.
"""

from collections.abc import Sequence
from typing import Any

from launch.compile.compile_only import Task, argument_bytes
from launch.compile.slices import slice_devices


def attention_flops(cfg: Any, length: int) -> float:
    """FLOPs of the attention products of one sequence, forward: 4 N H per query and key that it may see, causal and windowed as the layer is."""
    total = 0
    for layer in range(cfg.num_layers):
        window = cfg.pattern[layer % len(cfg.pattern)].window or length
        inside = min(window, length)
        seen = inside * (inside + 1) // 2 + (length - inside) * inside
        total += 4 * cfg.num_heads * cfg.head_dim * seen
    return float(total)


def model_flops(
    cfg: Any, sequences: int, length: int, training: bool, logits: bool = True
) -> float:
    """(6 x parameters x tokens + 3 x attention) for a training step, a third of it forward.

    The tied table is counted once, for the logits that it makes, and not at all without logits.
    """
    params = cfg.num_params - (0 if logits else cfg.vocab_size * cfg.d_model)
    forward = 2.0 * params * sequences * length + sequences * attention_flops(cfg, length)
    return 3 * forward if training else forward


def rl_flops(cfg: Any, rl: Any) -> float:
    """Forward FLOPs of the log-probs of a rollout batch, each prompt once and logits for completions only."""
    length = rl.prompt_len + rl.max_new_tokens
    prompt_attention = attention_flops(cfg, rl.prompt_len)
    tail_attention = attention_flops(cfg, length) - prompt_attention
    table = 2.0 * cfg.vocab_size * cfg.d_model
    layers = 2.0 * cfg.num_params - table
    completions = rl.group_size * (rl.max_new_tokens * (layers + table) + tail_attention)
    return rl.prompts * (rl.prompt_len * layers + prompt_attention + completions)


def make_slice_mesh(config: Any, slice_name: str, num_slices: int = 1):
    """The mesh of `config.mesh` (data, fsdp, tensor; one of them may be -1) on the devices of a slice that need not be there.

    Raises ValueError if it does not make the slice's chips, or does not divide the model, naming what does.
    """
    from grm_jax.sharding import check_fits, make_mesh
    from grm_jax.training.steps import model_config

    mesh = make_mesh(**dict(config.mesh), devices=slice_devices(slice_name, num_slices))
    check_fits(model_config(config), mesh)
    return mesh


def tasks(config: Any, mesh, names: Sequence[str] | None = None, hbm: int = 0) -> list[Task]:
    """The programs that the config's stages run: a forward pass, each stage's update with what it reads, and the rollouts of `rl`.

    Fields: model, model_overrides, batch_size, seq_len, rft, and, where the experiment has them, rl and meta_rm. names: only these.
    hbm: bytes of a chip, by which rollouts are planned; 0 leaves them out.
    Raises ValueError for a name that the experiment does not have.
    """
    from grm_jax.training import state as states
    from grm_jax.training import steps

    cfg = steps.model_config(config)
    model = states.abstract_model(cfg, mesh)
    rows, length = config.batch_size, config.seq_len
    scored = forward_rows(config, mesh)
    found = [
        _task(
            build_forward(config, mesh, model),
            mesh,
            model_flops(cfg, scored, length, False),
            scored * length,
        ),
        _task(
            steps.build_sft_step(config, mesh, model),
            mesh,
            model_flops(cfg, rows, length, True),
            rows * length,
        ),
    ]
    stages = config.get("stages", ())
    if "rl" in stages:
        rl = config.rl
        forward = rl_flops(cfg, rl)
        tokens = rl.prompts * (rl.prompt_len + rl.group_size * rl.max_new_tokens)
        reference = steps.build_logps(config, mesh, model, dtype=rl.get("reference_dtype"))
        update = steps.build_grpo_step(config, mesh, model)
        # The first argument of each, the reference's weights and the training state, lies there while the other runs.
        found += [
            _task(reference, mesh, forward, tokens, argument_bytes(update.args[:1])),
            _task(update, mesh, 3 * forward, tokens, argument_bytes(reference.args[:1])),
        ]
        if hbm:
            found += rollout_tasks(config, mesh, cfg, hbm)
    if "meta_rm" in stages:
        rows, length = config.meta_rm.batch_size, config.meta_rm.seq_len
        flops = model_flops(cfg, rows, length, True, logits=False)
        found.append(_task(steps.build_meta_rm_step(config, mesh), mesh, flops, rows * length))
    if names is None:
        return found
    known = [task.name for task in found]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"program {unknown[0]!r} does not exist here: there are {', '.join(known)}"
        )
    return [task for task in found if task.name in names]


def rollout_tasks(config: Any, mesh, cfg: Any, hbm: int) -> list[Task]:
    """Prefill of a batch of prompts, and one decode step of all rows, under the sampler's own layout of the weights.

    As many prompts and rows at once as fit beside the training state (float32 weights and two moments) and the reference's weights, which stay
    on the chips meanwhile.
    """
    import jax
    import jax.numpy as jnp

    from grm_jax import sampling
    from grm_jax.models import abstract_model
    from grm_jax.sampling import buckets, plan, programs, scheduler, weights

    rl = config.rl
    cfg = cfg.replace(param_dtype=cfg.dtype, remat="none")
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    beside = cfg.num_params * (12 + jnp.dtype(rl.reference_dtype).itemsize) // split
    graphdef, params = abstract_model(cfg, mesh, weights.SAMPLING_AXES)
    request = sampling.Request([0] * rl.prompt_len, rl.group_size, rl.max_new_tokens)
    with jax.set_mesh(mesh):
        P, R = plan.fit(
            cfg,
            [request] * rl.prompts,
            rl.prompt_slots or rl.prompts,
            memory=hbm,
            taken=beside,
            platform="tpu",
        )
        T = buckets.ring_bucket(rl.max_new_tokens - 1)
        shape = programs.Shape(P, R, buckets.prompt_bucket(rl.prompt_len), T)
        ways = mesh.shape["data"] * mesh.shape["fsdp"]
        batch = buckets.prefill_batch(shape.S, P, ways)
        built = programs.abstract_programs(
            graphdef, params, cfg, shape, scheduler.SEGMENT, mesh, prompts=batch
        )
    flops = {
        "prefill": model_flops(cfg, batch, shape.S, False, logits=False),
        "decode": P
        * R
        * (
            2.0 * cfg.num_params
            + attention_flops(cfg, shape.S + T)
            - attention_flops(cfg, shape.S + T - 1)
        ),
    }
    tokens = {"prefill": batch * shape.S, "decode": P * R}
    return [
        Task(
            f"rollout_{name}",
            fn,
            args,
            mesh,
            flops[name],
            tokens[name],
            beside=beside,
            one_trip=name == "decode",
        )
        for name, fn, args in built
    ]


def forward_rows(config: Any, mesh) -> int:
    """Rows of a forward pass: a micro-batch of RFT, or the whole batch where that is not cut."""
    at_once = config.rft.get("micro_rows", 0) * mesh.shape["data"] * mesh.shape["fsdp"]
    return min(config.batch_size, at_once or config.batch_size)


def build_forward(config: Any, mesh, model_abstract):
    """Log-probabilities of a micro-batch under bfloat16 weights."""
    import jax
    from flax import nnx

    from grm_jax.models import token_logps
    from grm_jax.training import state as states
    from grm_jax.training import steps

    cfg = steps.model_config(config)
    graphdef, params = model_abstract
    params = states.with_shardings(
        jax.eval_shape(lambda p: states.compute_params(p, cfg.dtype), params),
        states.shardings(params, mesh),
    )
    shapes = steps.sft_batch_shapes(forward_rows(config, mesh), config.seq_len)
    batch = states.abstract_batch(
        {name: shapes[name] for name in ("tokens", "positions", "segment_ids")}, mesh
    )

    def forward(params, batch):
        model = nnx.merge(graphdef, params)
        return token_logps(model, batch["tokens"], batch["positions"], batch["segment_ids"]).logps

    places = (states.shardings(params, mesh), states.batch_shardings(batch, mesh))
    out = states.batch_shardings(batch["tokens"], mesh)
    return steps.Program(
        "forward", jax.jit(forward, in_shardings=places, out_shardings=out), (params, batch)
    )


def _task(program, mesh, flops: float, tokens: int, beside: int = 0) -> Task:
    return Task(program.name, program.fn, program.args, mesh, flops, tokens, beside=beside)
