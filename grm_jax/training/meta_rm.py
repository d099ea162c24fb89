"""The meta reward model (SPCT section 4): a scalar for each critique, trained on whether the critique is right.

Its data: the non-hinted samples of the RFT stage, right and wrong, and samples of the trained policy itself (N = 3), so that it has
seen what it will judge. A share of the comparisons is held out for AUC and calibration.
"""

import dataclasses
import logging

import jax
import numpy as np
from flax import nnx

from grm_jax.data.packing import shuffled_index
from grm_jax.evals.classification import quality
from grm_jax.judging.meta import MetaRM
from grm_jax.judging.metadata import meta_template
from grm_jax.storage import as_path
from grm_jax.training import checkpoint, loop, optim, rft_data, rft_samplers, sources, steps
from grm_jax.training import state as states

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Tokenised critiques with their labels: tokens and segment_ids (N, L), starts of the critique and labels (N,), and whose comparison
    each is of."""

    tokens: np.ndarray
    segment_ids: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    comparisons: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index) -> dict[str, np.ndarray]:
        names = ("tokens", "segment_ids", "starts", "labels")
        return {name: getattr(self, name)[index] for name in names}


def add_head(config, mesh, params, seed: int):
    """Parameters of a scalar-head model: the trunk of `params`, a fresh head."""
    cfg = steps.model_config(config, scalar_head=True)
    fresh = states.init_params(cfg, mesh, seed)
    trunk = checkpoint.flatten(params)
    names = checkpoint.flatten(fresh)
    leaves = [trunk[name].copy() if name in trunk else leaf for name, leaf in names.items()]
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def scorer(config, mesh, params, tokenizer, batch: int = 4, name: str = "meta_rm") -> MetaRM:
    """The meta reward model of `config` over trained (or abstract) parameters."""
    graphdef, _ = states.abstract_model(steps.model_config(config, scalar_head=True), mesh)
    likelihood = config.meta_rm.likelihood
    template = meta_template(config.template, likelihood)
    return MetaRM(nnx.merge(graphdef, params), tokenizer, template, mesh, batch, name, likelihood)


def policy_trials(config, model, tokenizer, mesh, folder, fingerprint: str) -> list[rft_data.Trial]:
    """The trained policy's own critiques, `meta_rm.samples` of each of `meta_rm.comparisons` comparisons, not hinted.

    folder: keeps them, so that a resumed stage does not sample again.  fingerprint: of the policy's parameters.
    """
    from grm_jax.judging.sampler import engine_sampler

    meta = config.meta_rm
    comparisons = sources.judging(config).take(meta.first_item, meta.comparisons)
    sampler = rft_samplers.model(
        engine_sampler(model, mesh),
        tokenizer,
        config.rl.max_new_tokens,
        meta.temperature,
        seed=config.seed + 1,
    )
    salt = f"{fingerprint}/{config.rl.max_new_tokens}/{meta.temperature}/{config.seed}"
    options = rft_data.RftOptions(
        config.template, meta.samples, hinted=0, reject=True, seed=config.seed + 1
    )
    with rft_samplers.open_replies(folder, shared=True) as store:
        stored = rft_samplers.stored(sampler, store, salt)
        return rft_data.build(comparisons, stored, options).trials


def label(trials, meta: MetaRM, seq_len: int) -> Labelled:
    """Tokenises the readable non-hinted trials as `meta` reads them; longer ones are left out and counted in the log."""
    readable = [
        t for t in trials if not t.hinted and t.outcome in ("kept", "wrong", "tie", "too_easy")
    ]
    judged = [(t.comparison, t.order, t.text) for t in readable]
    ids = [meta.encode(one) for one in judged]
    fitting = [i for i, tokens in enumerate(ids) if len(tokens) <= seq_len]
    if len(fitting) < len(ids):
        log.warning(
            "meta RM: %d of %d critiques are longer than %d tokens",
            len(ids) - len(fitting),
            len(ids),
            seq_len,
        )
    tokens = np.zeros((len(fitting), seq_len), np.int32)
    segments = np.zeros((len(fitting), seq_len), np.int32)
    for row, i in enumerate(fitting):
        tokens[row, : len(ids[i])], segments[row, : len(ids[i])] = ids[i], 1
    return Labelled(
        tokens,
        segments,
        np.array([meta.critique_start(judged[i], ids[i]) for i in fitting], np.int32),
        np.array([float(readable[i].right) for i in fitting], np.float32),
        np.array([str(readable[i].comparison.id) for i in fitting]),
    )


def split(data: Labelled, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, held-out) row indices; the rows of one comparison are all on one side."""
    names = np.unique(data.comparisons)
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = set(names[order[: min(max(1, int(held_out * len(names))), len(names) - 1)]])
    is_held = np.array([name in chosen for name in data.comparisons])
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def score(config, mesh, params, data: Labelled, index: np.ndarray) -> np.ndarray:
    """Scalar rewards of rows, in batches of one shape."""
    rows = config.meta_rm.batch_size
    program = steps.build_meta_rm_scores(config, mesh, rows)
    found = []
    for start in range(0, len(index), rows):
        part = index[start : start + rows]
        padded = np.resize(part, rows)  # The last batch repeats its own rows.
        batch = states.put_batch(
            {name: data.rows(padded)[name] for name in ("tokens", "segment_ids", "starts")}, mesh
        )
        found.append(
            np.asarray(program.fn(params, batch["tokens"], batch["segment_ids"], batch["starts"]))[
                : len(part)
            ]
        )
    return np.concatenate(found)


def train(config, mesh, tokenizer, start_params, policy_params, rft_folder, folder):
    """Trains the meta RM.

    Args:
      start_params: the language model whose trunk it starts from.
      policy_params: the trained policy, which writes the second half of the data. Given as functions that make them, neither of the two
        stays in memory through the stage.
      rft_folder: of the RFT stage; its data/trials.jsonl is the first half.

    Returns:
      Parameters of a model with a scalar head.
    """
    meta, folder = config.meta_rm, as_path(folder)
    graphdef, _ = states.abstract_model(steps.model_config(config), mesh)
    scalar = states.abstract_model(steps.model_config(config, scalar_head=True), mesh)
    update = steps.build_meta_rm_step(config, mesh, scalar)
    tx = optim.make_optimizer(meta, "meta_rm")

    trials = rft_data.read_trials(as_path(rft_folder) / "data" / "trials.jsonl")[: meta.rft_trials]
    policy_params = states.given(policy_params)
    policy = checkpoint.fingerprint(policy_params)
    own = policy_trials(
        config, nnx.merge(graphdef, policy_params), tokenizer, mesh, folder / "samples", policy
    )
    del policy_params
    data = label([*trials, *own], scorer(config, mesh, scalar[1], tokenizer), meta.seq_len)
    if len(np.unique(data.comparisons)) < 2:
        raise ValueError(
            f"the meta reward model has {len(data)} critiques of {len(np.unique(data.comparisons))} comparisons to learn from, and holds some "
            f"out: raise config.meta_rm.comparisons, or config.meta_rm.seq_len={meta.seq_len} if they are longer"
        )
    train_rows, held_rows = split(data, meta.held_out, config.seed)
    log.info(
        "meta RM: %d critiques to train on, %d held out, %.0f%% right",
        len(train_rows),
        len(held_rows),
        100 * data.labels.mean(),
    )

    def fresh():
        return states.init_state(
            add_head(config, mesh, states.given(start_params), config.seed), tx, mesh, config.seed
        )

    def step(state, i, seed):
        places = range(i * meta.batch_size, (i + 1) * meta.batch_size)
        index = train_rows[
            [shuffled_index(place, len(train_rows), config.seed) for place in places]
        ]
        state, metrics = update.fn(state, states.put_batch(data.rows(index), mesh))
        return state, metrics, f"{i} of seed {config.seed}"

    state = loop.train(
        "meta_rm",
        meta,
        folder,
        fresh=fresh,
        abstract=update.args[0],
        step=step,
        programs=(update,),
        identity={
            "data": f"{len(data)} critiques",
            "seed": config.seed,
            "policy": policy,
            "meta_rm.start": meta.start,
            "meta_rm.batch_size": meta.batch_size,
            "meta_rm.seq_len": meta.seq_len,
            "meta_rm.token_loss": meta.token_loss,
            "meta_rm.likelihood": meta.likelihood,
        },
        settings={"template": config.template},
        shown=("loss", "accuracy"),
        tensorboard=config.tensorboard,
        finish=lambda state: {
            "held_out": quality(
                score(config, mesh, state["params"], data, held_rows),
                data.labels[held_rows],
                data.comparisons[held_rows],
            ),
            "trained_on": len(train_rows),
        },
    )
    return state["params"]
