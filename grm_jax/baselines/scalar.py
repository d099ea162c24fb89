"""Bradley-Terry training of a scalar head: the best response's text gets the higher reward.

loss = -log sigmoid(r_best - r_other), the mean over pairs (arXiv 2204.05862). Axes: B pairs, L
tokens; the two texts of a pair are adjacent, so that micro-batches do not separate them.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax.baselines.bench import Bench, Params
from grm_jax.data.packing import shuffled_index
from grm_jax.judging.scalar_head import ScalarHead
from grm_jax.models import abstract_model
from grm_jax.storage import PathLike
from grm_jax.training import checkpoint, loop, meta_rm, optim, state as states
from grm_jax.training.programs import Metrics, Program, build_update, model_config

log = logging.getLogger(__name__)
# Tokenised (best, other) texts: "tokens" and "segment_ids" int32 (B, 2, L), best first.
Pairs = dict[str, np.ndarray]
TokenPair = tuple[list[int], list[int]]  # (best, other)
Reward = Callable[[Sequence[list[int]]], list[float]]  # token lists -> a reward each
# The scalars take the optimizer and batch fields of `config.meta_rm`, and these from `config.rft`.
_FROM_RFT = ("comparisons", "steps", "lr", "warmup_steps", "save_every")
# Fields of `config.meta_rm` that scalars do not use.
UNUSED = tuple(
    f"meta_rm.{name}"
    for name in (
        *_FROM_RFT,
        "start",
        "samples",
        "temperature",
        "rft_trials",
        "first_item",
        "held_out",
        "token_loss",
        "likelihood",
    )
)


def section_of(config: ConfigDict) -> ConfigDict:
    """Returns the training settings of the scalars.

    Batches and optimizer are those of the meta reward model; comparisons, steps and learning rate
    are RFT's, because like RFT the scalars start where the experiment starts, at random weights if
    it does, and must learn the task itself.
    """
    section = config.meta_rm.copy_and_resolve_references()
    section.update({name: config.rft[name] for name in _FROM_RFT})
    return section


# ---------------------------------------------------------------- texts


def best_and_others(encoded: Sequence[list[int]], best: int) -> Iterator[TokenPair]:
    """Yields the (best, other) pairs of one comparison's responses."""
    return ((encoded[best], other) for i, other in enumerate(encoded) if i != best)


def pair_up(texts: Sequence[TokenPair], seq_len: int) -> Pairs:
    """Pads pairs to the longest text, in steps of 16.

    Skips pairs with a text longer than seq_len, with a warning. Raises ValueError if none is left.
    """
    fitting = [pair for pair in texts if max(map(len, pair)) <= seq_len]
    if skipped := len(texts) - len(fitting):
        log.warning("%d of %d pairs exceed %d tokens: skipped", skipped, len(texts), seq_len)
    if not fitting:
        raise ValueError(f"none of {len(texts)} pairs fits {seq_len} tokens: raise meta_rm.seq_len")
    longest = max(len(ids) for pair in fitting for ids in pair)
    shape = (len(fitting), 2, min(seq_len, -(-longest // 16) * 16))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for b, pair in enumerate(fitting):
        for side, ids in enumerate(pair):
            tokens[b, side, : len(ids)], segments[b, side, : len(ids)] = ids, 1
    return {"tokens": tokens, "segment_ids": segments}


# ---------------------------------------------------------------- training


def bradley_terry_loss(rewards_Bx2: jax.Array) -> jax.Array:
    """Computes -log sigmoid(best - other) of each pair, float32 (B,)."""
    rewards_Bx2 = rewards_Bx2.astype(jnp.float32)
    return jax.nn.softplus(rewards_Bx2[:, 1] - rewards_Bx2[:, 0])


def build_step(config: ConfigDict, section: ConfigDict, mesh: Mesh) -> Program:
    """Builds one update as `build_update`, with a batch as `Pairs`."""
    cfg = model_config(config, scalar_head=True)
    graphdef, params = abstract_model(cfg, mesh)

    def loss_fn(params: Params, micro: Any, pairs: Any) -> tuple[jax.Array, Metrics]:
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        B, _, L = micro["tokens"].shape
        texts = (micro[name].reshape(2 * B, L) for name in ("tokens", "segment_ids"))
        rewards_Bx2 = model.rewards(*texts).reshape(B, 2)
        right = (rewards_Bx2[:, 0] > rewards_Bx2[:, 1]).astype(jnp.float32)
        return bradley_terry_loss(rewards_Bx2).sum() / pairs, {"accuracy": right.sum() / pairs}

    shape = ((section.batch_size, 2, section.seq_len), jnp.int32)
    shapes = dict.fromkeys(("tokens", "segment_ids"), shape)
    return build_update(
        "bt_update", loss_fn, section, mesh, params, shapes, lambda b: b["tokens"].shape[0]
    )


def train(
    run: loop.Run,
    section: ConfigDict,
    start: Callable[[], Params],
    pairs: Pairs,
    folder: PathLike,
    name: str = "bt",
) -> Params:
    """Trains a scalar head and its trunk; returns the parameters.

    start: () -> parameters of the language model that becomes the trunk.
    """
    config, mesh = run.config, run.mesh
    section = section.copy_and_resolve_references()
    count, _, section.seq_len = pairs["tokens"].shape
    update = build_step(config, section, mesh)

    def init() -> states.State:
        params = meta_rm.add_head(config, mesh, start(), config.seed)
        return states.init_state(params, optim.make_optimizer(section), mesh, config.seed)

    def step(state: states.State, i: int, seed: int) -> tuple[states.State, Metrics, str]:
        places = range(i * section.batch_size, (i + 1) * section.batch_size)
        index = [shuffled_index(place, count, config.seed) for place in places]
        batch = {name: array[index] for name, array in pairs.items()}
        state, metrics = update.fn(state, states.put_batch(batch, mesh), run.frozen)
        return state, metrics, f"{i} of seed {config.seed}"

    stage = loop.Stage(
        name,
        section,
        folder,
        init=init,
        abstract_state=update.args[0],
        step=step,
        identity={
            "data": f"{count} pairs",
            "seed": config.seed,
            "start": checkpoint.fingerprint(start()),
            **run.base,
        },
        shown=("loss", "accuracy"),
        tensorboard=config.tensorboard,
    )
    return loop.train(stage, run.stop)["params"]


def trained(
    bench: Bench,
    folder: Path,
    name: str,
    start: Callable[[], Params],
    training_pairs: Callable[[Bench], Sequence[TokenPair]],
) -> Reward:
    """Trains the scalar of a baseline in `folder`, or loads it; returns its rewards."""
    graphdef, abstract = abstract_model(model_config(bench.config, scalar_head=True), bench.mesh)
    if loop.is_done(folder):
        params = loop.load_params(folder, states.split(abstract)[0])
    else:
        section = section_of(bench.config)
        pairs = pair_up(training_pairs(bench), section.seq_len)
        params = train(bench.run, section, start, pairs, folder, name)
    model = nnx.merge(graphdef, states.join(params, bench.run.frozen))
    return ScalarHead(model, bench.tokenizer.pad_id, bench.mesh, batch=16).score_tokens
