"""The meta reward model (SPCT section 4): predicts whether a critique is correct.

Its data are the non-hinted samples of the RFT stage, correct and wrong, and samples of the trained
policy itself (3 per comparison in the paper), because the policy's critiques are what it will
score. A share of the comparisons is held out for AUC and calibration.

Axes: N critiques, B critiques of a batch, L tokens, D model width.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax.data.packing import shuffled_index
from grm_jax.evals.classification import quality
from grm_jax.judging.meta import MetaRM
from grm_jax.judging.metadata import meta_template
from grm_jax.models import abstract_model, critique_rewards, init_adapters
from grm_jax.sharding import named
from grm_jax.storage import PathLike, as_path
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.training import (
    checkpoint,
    loop,
    losses,
    optim,
    rft,
    rft_data,
    rft_samplers,
    sources,
    state as states,
)
from grm_jax.training.errors import TrainingError
from grm_jax.training.programs import (
    Metrics,
    Program,
    Shapes,
    build_update,
    critique_tokens,
    model_config,
)

log = logging.getLogger(__name__)
STARTS = ("base", "rft", "rl")
# Fields that must be equal on resume.
IDENTITY = ("start", "batch_size", "seq_len", "token_loss", "likelihood", "held_out")
SCORE_INPUTS = ("tokens", "segment_ids", "starts")


def train(
    run: loop.Run,
    start: Callable[[], Any],
    policy: Callable[[], Any],
    rft_folder: PathLike,
    folder: PathLike,
) -> Any:
    """Trains a scalar head and its trunk, and returns the parameters.

    Args:
      run: config, mesh, tokenizer and stop signal.
      start: () -> parameters of the language model that becomes the trunk.
      policy: () -> parameters of the trained policy, which writes a part of the data.
      rft_folder: of the RFT stage; its data/trials.jsonl is the other part.
      folder: of the stage; it resumes from the newest checkpoint there.

    Raises:
      TrainingError: there are critiques of fewer than two comparisons.
    """
    config, mesh, section = run.config, run.mesh, run.config.meta_rm
    data_folder = as_path(rft_folder) / "data"
    rft.repair(run, data_folder)
    trials = rft_data.read_trials(data_folder / "trials.jsonl")
    policy_trials, policy_fingerprint = sample_policy(run, policy(), as_path(folder) / "samples")
    data = encode_trials(run, [*trials[: section.rft_trials], *policy_trials])
    train_rows, held_out_rows = split(data, section.held_out, config.seed)
    counts = len(train_rows), len(held_out_rows), 100 * data.labels.mean()
    log.info("meta RM: %d critiques to train on, %d held out, %.0f%% correct", *counts)
    update = build_meta_rm_update(config, mesh)

    def init() -> states.State:
        params = add_head(config, mesh, start(), config.seed)
        return states.init_state(params, optim.make_optimizer(section), mesh, config.seed)

    def step(state: states.State, i: int, seed: int) -> tuple[states.State, Metrics, str]:
        places = range(i * section.batch_size, (i + 1) * section.batch_size)
        index = [shuffled_index(place, len(train_rows), config.seed) for place in places]
        state, metrics = update.fn(
            state, states.put_batch(data.rows(train_rows[index]), mesh), run.frozen
        )
        return state, metrics, f"{i} of seed {config.seed}"

    def summary(state: states.State) -> dict[str, Any]:
        scores = score(run, state["params"], data, held_out_rows)
        labels, comparisons = data.labels[held_out_rows], data.comparisons[held_out_rows]
        return {"held_out": quality(scores, labels, comparisons), "trained_on": len(train_rows)}

    stage = loop.Stage(
        "meta_rm",
        section,
        folder,
        init=init,
        abstract_state=update.args[0],
        step=step,
        identity={
            "data": f"{len(data)} critiques",
            "critiques": hashlib.sha256(data.tokens.tobytes() + data.labels.tobytes()).hexdigest(),
            "seed": config.seed,
            "policy": policy_fingerprint,
            **run.base,
            **{f"meta_rm.{name}": section[name] for name in IDENTITY},
        },
        settings={"template": config.template},
        programs=[update],
        shown=("loss", "accuracy"),
        tensorboard=config.tensorboard,
        summary=summary,
    )
    return loop.train(stage, run.stop)["params"]


def sample_policy(run: loop.Run, params: Any, folder: PathLike) -> tuple[list[rft_data.Trial], str]:
    """Samples `meta_rm.samples` non-hinted critiques of `meta_rm.comparisons` comparisons.

    Args:
      run: config, mesh and tokenizer.
      params: of the trained policy.
      folder: stores the samples, so that a resumed stage does not repeat them.

    Returns:
      (trials, fingerprint of the policy's parameters).
    """
    from grm_jax.judging.sampler import EngineSampler

    config, meta, seed = run.config, run.config.meta_rm, run.config.seed
    fingerprint, max_new_tokens = checkpoint.fingerprint(params), critique_tokens(config)
    graphdef, _ = abstract_model(model_config(config), run.mesh)
    engine = EngineSampler(nnx.merge(graphdef, states.join(params, run.frozen)), run.mesh)
    sampler = rft_samplers.model(
        engine, run.tokenizer, max_new_tokens, meta.temperature, seed=seed + 1
    )
    salt = f"{fingerprint}/{max_new_tokens}/{meta.temperature}/{seed}"
    salt += "".join(f"/{base}" for base in run.base.values())
    options = rft_data.RftOptions(
        config.template, meta.samples, hinted=0, reject=True, seed=seed + 1
    )
    source = sources.judging(config, workdir=run.workdir)
    comparisons = source.take(meta.first_item, source.at_most(meta.comparisons, "meta_rm"))
    with rft_samplers.open_replies(folder, shared=True) as store:
        stored = rft_samplers.stored(sampler, store, salt)
        return rft_data.build(comparisons, stored, options).trials, fingerprint


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Tokenised critiques with labels.

    Attributes:
      tokens, segment_ids: int32 (N, L); segment 0 is padding.
      starts: int32 (N,), position of the critique's first token.
      labels: float32 (N,), 1 for a correct critique.
      comparisons: (N,) id of each critique's comparison.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    comparisons: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        return {name: getattr(self, name)[index] for name in (*SCORE_INPUTS, "labels")}


def encode_trials(run: loop.Run, trials: Sequence[rft_data.Trial]) -> Labelled:
    """Tokenises the parsed non-hinted trials; longer ones than `meta_rm.seq_len` are skipped.

    Raises:
      TrainingError: the trials that remain are of fewer than two comparisons.
    """
    seq_len = run.config.meta_rm.seq_len
    _, abstract = abstract_model(model_config(run.config, scalar_head=True), run.mesh)
    meta = scorer(run.config, run.mesh, abstract, run.tokenizer)
    parsed = [t for t in trials if not t.hinted and t.outcome in rft_data.PARSED]
    encoded = [(t, meta.encode((t.comparison, t.order, t.text))) for t in parsed]
    fitting = [(t, ids) for t, ids in encoded if len(ids) <= seq_len]
    if len(fitting) < len(encoded):
        log.warning(
            "meta RM: skipped %d of %d critiques, which have more than %d tokens",
            *(len(encoded) - len(fitting), len(encoded), seq_len),
        )
    comparisons = np.array([str(t.comparison.id) for t, _ in fitting])
    if (count := len(np.unique(comparisons))) < 2:
        raise TrainingError(
            f"the meta reward model has {len(fitting)} critiques of {count} comparisons, too few "
            "to train and to hold out: raise config.meta_rm.comparisons, or "
            f"config.meta_rm.seq_len={seq_len} if critiques are longer"
        )
    tokens, segments = np.zeros((2, len(fitting), seq_len), np.int32)
    starts = np.zeros(len(fitting), np.int32)
    for n, (t, ids) in enumerate(fitting):
        tokens[n, : len(ids)], segments[n, : len(ids)] = ids, 1
        starts[n] = meta.critique_start((t.comparison, t.order, t.text), ids)
    labels = np.array([float(t.right) for t, _ in fitting], np.float32)
    return Labelled(tokens, segments, starts, labels, comparisons)


def split(data: Labelled, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (training, held-out) indices; a comparison's critiques are all on one side."""
    names = np.unique(data.comparisons)
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = names[order[: min(max(1, int(held_out * len(names))), len(names) - 1)]]
    is_held_out = np.isin(data.comparisons, chosen)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def add_head(config: ConfigDict, mesh: Mesh, params: Any, seed: int) -> Any:
    """Returns parameters of a scalar-head model: a copy of the trunk `params`, a random head.

    With LoRA both are without the base (`states.split`).
    """
    cfg = model_config(config, scalar_head=True)
    random = init_adapters(cfg, mesh, seed) if cfg.lora else states.init_params(cfg, mesh, seed)
    trunk = checkpoint.flatten(params)
    leaves = [
        trunk[name].copy() if name in trunk else leaf
        for name, leaf in checkpoint.flatten(random).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(random), leaves)


def scorer(
    config: ConfigDict,
    mesh: Mesh,
    params: Any,
    tokenizer: Tokenizer,
    batch: int = 4,
    name: str = "meta_rm",
) -> MetaRM:
    """Returns the meta reward model of `config` over trained (or abstract) parameters.

    params: all of them, with the base of LoRA.
    """
    graphdef, _ = abstract_model(model_config(config, scalar_head=True), mesh)
    likelihood = config.meta_rm.likelihood
    template = meta_template(config.template, likelihood)
    return MetaRM(nnx.merge(graphdef, params), tokenizer, template, mesh, batch, name, likelihood)


def score(run: loop.Run, params: Any, data: Labelled, index: np.ndarray) -> np.ndarray:
    """Computes the rewards of the critiques `data.rows(index)`, in batches of one shape."""
    batch_size = run.config.meta_rm.batch_size
    program = build_meta_rm_scores(run.config, run.mesh, batch_size)
    scores = []
    for first in range(0, len(index), batch_size):
        chunk = index[first : first + batch_size]
        # The last batch repeats its own critiques.
        batch = states.put_batch(data.rows(np.resize(chunk, batch_size)), run.mesh)
        rewards = program.fn(params, *(batch[name] for name in SCORE_INPUTS), run.frozen)
        scores.append(np.asarray(rewards)[: len(chunk)])
    return np.concatenate(scores)


def meta_rm_batch_shapes(batch_size: int, seq_len: int) -> Shapes:
    """Returns the arrays of a batch; see `Labelled`."""
    return {
        "tokens": ((batch_size, seq_len), jnp.int32),
        "segment_ids": ((batch_size, seq_len), jnp.int32),
        "starts": ((batch_size,), jnp.int32),
        "labels": ((batch_size,), jnp.float32),
    }


def build_meta_rm_update(
    config: ConfigDict, mesh: Mesh, model: tuple[nnx.GraphDef, Any] | None = None
) -> Program:
    """Builds one update as `build_update`.

    The loss is the binary cross-entropy of `critique_rewards`, in which `meta_rm.likelihood` weighs
    the critique's own mean log-probability (0: the scalar head alone). If `meta_rm.token_loss` is
    above 0, the same loss at every token of the critique is added with that weight. The metrics
    are of the last token, whose score is the reward.
    """
    cfg, section = model_config(config, scalar_head=True), config.meta_rm
    graphdef, params = model or abstract_model(cfg, mesh)

    def loss_fn(params: Any, micro: Any, critiques: int) -> tuple[jax.Array, Metrics]:
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        labels_B, segments_BxL = micro["labels"], micro["segment_ids"]
        x_BxLxD = model.hidden(micro["tokens"], None, segments_BxL)
        scores_B = critique_rewards(
            model, x_BxLxD, micro["tokens"], segments_BxL, micro["starts"], section.likelihood
        )
        loss = last = losses.bce_loss(scores_B, labels_B)
        if section.token_loss:
            is_critique_BxL = (segments_BxL > 0) & (
                jnp.arange(segments_BxL.shape[1]) >= micro["starts"][:, None]
            )
            scores_BxL = model.rewards_of(x_BxLxD)
            loss += section.token_loss * losses.token_bce_loss(
                scores_BxL, labels_B, is_critique_BxL.astype(jnp.float32)
            )
        share = labels_B.shape[0] / critiques
        correct = jnp.mean((scores_B > 0) == (labels_B > 0.5))
        return loss * share, {"accuracy": correct * share, "last_loss": last * share}

    return build_update(
        "meta_rm_update",
        loss_fn,
        section,
        mesh,
        params,
        meta_rm_batch_shapes(section.batch_size, section.seq_len),
        denominator=lambda batch: batch["labels"].shape[0],
    )


def build_meta_rm_scores(config: ConfigDict, mesh: Mesh, batch_size: int) -> Program:
    """Builds (params, tokens_BxL, segment_ids_BxL, starts_B, frozen) -> float32 rewards_B."""
    cfg, likelihood = model_config(config, scalar_head=True), config.meta_rm.likelihood
    graphdef, every_param = abstract_model(cfg, mesh)
    params, frozen = states.split(every_param)
    shapes = meta_rm_batch_shapes(batch_size, config.meta_rm.seq_len)
    batch = states.abstract_batch(shapes, mesh)

    def scores(
        params: Any, tokens: jax.Array, segment_ids: jax.Array, starts: jax.Array, frozen: Any
    ) -> jax.Array:
        every_param = states.join(params, frozen)
        model = nnx.merge(graphdef, states.compute_params(every_param, cfg.dtype))
        x_BxLxD = model.hidden(tokens, None, segment_ids)
        return critique_rewards(model, x_BxLxD, tokens, segment_ids, starts, likelihood)

    fn = jax.jit(scores, out_shardings=named(mesh))
    inputs = (batch[name] for name in SCORE_INPUTS)
    return Program("meta_rm_scores", fn, (params, *inputs, frozen))


def check(config: ConfigDict) -> None:
    """Raises ValueError, naming the field, for settings that would fail during training."""
    meta = config.meta_rm
    optim.make_optimizer(meta, "meta_rm")
    if meta.likelihood and meta.start == "base":
        raise ValueError(
            f"config.meta_rm.likelihood={meta.likelihood} needs config.meta_rm.start=rft or rl: "
            "the base model writes no critiques"
        )
