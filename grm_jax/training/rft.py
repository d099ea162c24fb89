"""Rejective fine-tuning (SPCT section 3.2): sample critiques, keep the correct ones, fine-tune."""

import contextlib
import gc
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax import checksums, strict_json
from grm_jax.data import packing, sft
from grm_jax.data.splits import overlap_key
from grm_jax.models import abstract_model, token_logps
from grm_jax.storage import PathLike, as_path, local_copy, replace_folder, write_atomic
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.training import (
    checkpoint,
    loop,
    losses,
    optim,
    own_config,
    rft_data,
    rft_samplers,
    sources,
    state as states,
)
from grm_jax.training.errors import TrainingError
from grm_jax.training.programs import Metrics, Program, Shapes, build_update, model_config
from grm_jax.training.rft_samplers import make_sampler, open_replies, stored

log = logging.getLogger(__name__)
READY = "ready.json"  # written last
MADE_FROM = "made_from"  # its field with the settings
# Fields of config.data that may change. `held_out` counts by the comparisons that it removes.
_FREE = ("folder", "held_out", "max_skipped")

_WAYS_ON = (
    "Rejective fine-tuning learns from parsed critiques: use an instruction-tuned model as "
    "config.init, let one write the critiques (--config.rft.sampler=model "
    "--config.rft.sampling.path=MODEL, or --config.rft.sampler=endpoint "
    "--config.rft.sampling.url=URL), or set config.rft.min_parsed=0 to continue"
)


def train(run: loop.Run, start: Callable[[], Any], folder: PathLike) -> Any:
    """Builds the training set in `<folder>/data` if it is missing, and fine-tunes on it.

    Args:
      run: config, mesh, tokenizer and stop signal.
      start: () -> the first float32 parameters, new arrays on each call: one set is fingerprinted
        for the run's identity, and without a checkpoint training starts from another.
      folder: of the stage; it resumes from the newest checkpoint there.

    Returns:
      The trained parameters.
    """
    config, rft, folder = run.config, run.config.rft, as_path(folder)
    encoded = prepare(config, run.tokenizer, run.mesh, folder / "data", run.workdir)
    digest = checksums.digest(folder / "data" / "tokens")

    def summary() -> dict[str, Any]:
        return {"set": strict_json.read(folder / "data" / READY)}

    if not rft.steps and rft.get("epochs"):
        batches = packing.PackedBatches(encoded, config.batch_size, config.seq_len, config.seed)
        own_config.set_rft_steps(config, len(batches.rows), run.workdir)
    return fine_tune(run, Examples("rft", encoded, digest, summary), start, folder)


class Examples(NamedTuple):
    """The training set of a supervised stage.

    stage: name of the stage.  tokens: the examples.  digest: of their content; it must be equal on
    resume.  summary: () -> further entries for result.json.
    """

    stage: str
    tokens: sft.Encoded
    digest: str
    summary: Callable[[], dict[str, Any]] = dict


def fine_tune(run: loop.Run, examples: Examples, start: Callable[[], Any], folder: PathLike) -> Any:
    """Fine-tunes on examples, packed into sequences; `config.rft` has the settings.

    Args, returns: as `train`.
    """
    config, mesh, rft, encoded = run.config, run.mesh, run.config.rft, examples.tokens
    batches = packing.PackedBatches(encoded, config.batch_size, config.seq_len, config.seed)
    update = build_sft_update(config, mesh)

    def step(state: states.State, i: int, seed: int) -> tuple[states.State, Metrics, str]:
        batch = batches.batch(i)
        state, metrics = update.fn(state, states.put_batch(batch, mesh), run.frozen)
        metrics["tokens"] = int((batch["segment_ids"] > 0).sum())
        return state, metrics, f"{i} of seed {config.seed}"

    def summary(state: states.State) -> dict[str, Any]:
        epochs = rft.steps * config.batch_size / len(batches.rows)
        return {**examples.summary(), "epochs": epochs, "fill": batches.fill}

    stage = loop.Stage(
        examples.stage,
        rft,
        folder,
        init=lambda: states.init_state(start(), optim.make_optimizer(rft), mesh, config.seed),
        abstract_state=update.args[0],
        step=step,
        identity={
            "data": f"{len(encoded)} examples/{len(encoded.tokens)} tokens",
            "tokens": examples.digest,
            "seed": config.seed,
            "start": checkpoint.fingerprint(start()),
            **run.base,
            "batch_size": config.batch_size,
            "seq_len": config.seq_len,
        },
        settings={"template": config.template},
        programs=[update],
        shown=("loss", "grad_norm"),
        tensorboard=config.tensorboard,
        summary=summary,
    )
    return loop.train(stage, run.stop)["params"]


def prepare(
    config: ConfigDict,
    tokenizer: Tokenizer,
    mesh: Mesh | None,
    folder: PathLike,
    workdir: PathLike | None = None,
) -> sft.Encoded:
    """Returns the tokenised training set, built on the first call and loaded from `folder` after.

    A set with a damaged file is built again, from the stored samples. So is one of other settings,
    unless training on it has begun. Data sources are indexed in `workdir`, if it
    is given. Also writes examples.jsonl, trials.jsonl (every sample with its outcome, for the meta
    RM) and outcomes.json. Raises ValueError if the set is empty.
    """
    folder = as_path(folder)
    # Every process takes part in sampling from our own model; one process runs the other samplers.
    samples_here = config.rft.sampler in rft_samplers.LOCAL or jax.process_index() == 0
    source = sources.judging(config, workdir=workdir)
    made_from = _made_from(config, tokenizer, source.identity)
    reason = problem(folder) or _outdated(folder, made_from)
    if checkpoint.agree(bool(reason)) and samples_here:
        if (folder / READY).exists():
            if config.rft.sampler in rft_samplers.SLOW and not (folder / "samples").exists():
                raise TrainingError(
                    f"{folder}: {reason}, and the samples that it was built from are missing: "
                    f"restore the folder from a backup, or remove {folder.parent} to start the "
                    "stage again"
                )
            log.warning("%s: %s; the RFT set is built again", folder, reason or "damaged")
        _build(config, tokenizer, mesh, folder, source, workdir)
        gc.collect()  # frees the sampling model, whose engine is part of a reference cycle
    checkpoint.wait_for_all(f"data in {folder}")
    return sft.Encoded.load(local_copy(folder / "tokens"))


def repair(run: loop.Run, folder: PathLike) -> None:
    """Builds the finished RFT set in a folder again if one of its files is damaged."""
    if (as_path(folder) / READY).exists():
        prepare(run.config, run.tokenizer, run.mesh, folder, run.workdir)


def problem(folder: PathLike) -> str:
    """Returns why the RFT set in a folder cannot be used, or ""; reads all of its files."""
    folder = as_path(folder)
    if not (folder / READY).exists():
        return f"{READY} is missing"
    return checksums.problem(folder) or checksums.problem(folder / "tokens")


def trained_queries(folder: PathLike, held_out: str) -> set[str]:
    """Returns the `overlap_key`s of an RFT set's queries, if it was built for another `held_out`.

    folder: of the stage. held_out: `config.data.held_out`, whose queries a set built for it lacks.
    """
    data = as_path(folder) / "data"
    if not (data / READY).exists() or _held_out(data) in (held_out, None):
        return set()
    trials = rft_data.read_trials(data / "trials.jsonl")
    return {overlap_key(trial.comparison.turns) for trial in trials}


def _held_out(data: epath.Path) -> str | None:
    """Returns the `held_out` that a set was built for; None for one of an earlier version."""
    held_out: str | None = strict_json.read(data / READY).get("held_out")
    return held_out


def _made_from(
    config: ConfigDict, tokenizer: Tokenizer, comparisons: str | None = None
) -> dict[str, Any]:
    """Returns what the RFT set depends on, as JSON. comparisons: identity of their source."""
    names = ("comparisons", "samples", "hinted", "reject", "sampler")
    data = {f"data.{name}": value for name, value in config.data.items() if name not in _FREE}
    fields = {
        "template": config.template,
        "seed": config.seed,
        "tokenizer": tokenizer.fingerprint,
        **{f"rft.{name}": config.rft[name] for name in names},
        "rft.sampling": rft_samplers.salts(config)[0],
    }
    fields |= {} if comparisons is None else {"training comparisons": comparisons}
    return json.loads(json.dumps(fields | data, default=str))


def _outdated(folder: epath.Path, now: Mapping[str, Any]) -> str:
    """Returns how a set differs from one with the settings `now`; "" once training has begun."""
    saved = strict_json.read(folder / READY).get(MADE_FROM, {})
    changed = checkpoint.differences(saved, now)
    if changed and ((folder.parent / "checkpoints").exists() or loop.is_done(folder.parent)):
        log.warning(
            "%s: %s; the RFT set is used as it is, because training on it has begun. Remove %s to "
            "start the stage again",
            *(folder, changed, folder.parent),
        )
        return ""
    return changed


def _build(
    config: ConfigDict,
    tokenizer: Tokenizer,
    mesh: Mesh | None,
    folder: epath.Path,
    source: sources.Source,
    workdir: PathLike | None,
) -> None:
    rft = config.rft
    count = source.at_most(rft.comparisons, "rft")
    options = rft_data.RftOptions(
        config.template,
        rft.samples,
        rft.hinted,
        rft.reject,
        seed=config.seed,
        min_parsed=rft.get("min_parsed", 0.0),
    )
    comparisons, sampler = source.take(0, count), make_sampler(config, tokenizer, mesh)
    if again := count - len({comparison.id for comparison in comparisons}):
        log.warning(
            "%d of the first %d comparisons repeat others, because the mixture's rates ask for more"
            " of a task than it has: their samples are the same and count again",
            *(again, count),
        )
    with contextlib.ExitStack() as stack:
        if rft.sampler in rft_samplers.SLOW:
            shared = rft.sampler in rft_samplers.LOCAL
            store = stack.enter_context(open_replies(folder / "samples", shared))
            sampler = stored(sampler, store, *rft_samplers.salts(config))
        try:
            built = rft_data.build(comparisons, sampler, options)
        except rft_data.TooFewParsed as error:
            raise TrainingError(f"{_sampled_model(config)}: {error}. {_WAYS_ON}") from error
    if jax.process_index() == 0:
        save_set(built, config, tokenizer, folder, workdir, source.identity)


def _sampled_model(config: ConfigDict) -> str:
    """Names the model that wrote the critiques, for errors."""
    rft = config.rft
    names = {"self": config.init, "model": rft.sampling.get("path")}
    return str(names.get(rft.sampler) or rft.sampling.get("model") or f"sampler {rft.sampler}")


def save_set(
    built: rft_data.RftSet,
    config: ConfigDict,
    tokenizer: Tokenizer,
    folder: PathLike,
    workdir: PathLike | None = None,
    comparisons: str | None = None,
) -> None:
    """Mixes the kept critiques with general instructions, tokenises them and writes the set.

    comparisons: identity of their source, which a later call must have.

    Raises:
      TrainingError: the set is empty.
    """
    rft, folder = config.rft, as_path(folder)
    mixed = rft_data.mix(built.examples, sources.general(config, workdir), config.seed)
    if not mixed:
        raise TrainingError(
            f"the RFT set is empty: config.rft.samples={rft.samples} and config.rft.hinted="
            f"{rft.hinted} of each of config.rft.comparisons={rft.comparisons} left no critique "
            f"({json.dumps(built.summary())}), and config.data.general_items="
            f"{config.data.general_items} gave no instruction: raise one of them. Hinted samples, "
            "whose prompt names the best response, are right more often: config.rft.hinted"
        )
    encoded = sft.encode_all(mixed, tokenizer)
    counts = {**built.summary(), "examples": len(encoded), "tokens": len(encoded.tokens)}
    record = counts | {"held_out": config.data.get("held_out", "")}
    record |= {MADE_FROM: _made_from(config, tokenizer, comparisons)}
    ready = strict_json.dumps(record, indent=2) + "\n"
    (folder / READY).unlink(missing_ok=True)  # the set is not whole until this is written again
    leftovers = folder.glob(".*.tmp") if folder.exists() else ()  # of a process that was killed
    for leftover in leftovers:
        leftover.unlink()
    built.save(folder)
    with replace_folder(folder / "tokens") as local:
        encoded.save(local)
        checksums.write(local)
    checksums.write(folder, {READY: ready})
    write_atomic(folder / READY, ready)
    log.info("RFT set: %s examples, %s tokens", f"{len(encoded):,}", f"{len(encoded.tokens):,}")


def sft_batch_shapes(batch_size: int, seq_len: int) -> Shapes:
    """Returns the arrays of packed sequences.

    Segment 0 is padding; weights are 1 on the tokens to learn (completions), at their own position.
    """
    shape = (batch_size, seq_len)
    return {
        "tokens": (shape, jnp.int32),
        "positions": (shape, jnp.int32),
        "segment_ids": (shape, jnp.int32),
        "weights": (shape, jnp.float32),
    }


def build_sft_update(
    config: ConfigDict, mesh: Mesh, model: tuple[nnx.GraphDef, Any] | None = None
) -> Program:
    """Builds one update as `build_update`, with a batch as in `sft_batch_shapes`."""
    cfg = model_config(config)
    graphdef, params = model or abstract_model(cfg, mesh)

    def loss_fn(params: Any, micro: Any, tokens: jax.Array) -> tuple[jax.Array, Metrics]:
        model = nnx.merge(graphdef, states.compute_params(params, cfg.dtype))
        inputs = (micro["tokens"], micro["positions"], micro["segment_ids"])
        out = token_logps(model, *inputs, mask_BxL=micro["weights"])
        return losses.sft_loss(out.logps, micro["weights"], tokens), {}

    return build_update(
        "sft_update",
        loss_fn,
        config.rft,
        mesh,
        params,
        sft_batch_shapes(config.batch_size, config.seq_len),
        denominator=lambda batch: jnp.maximum(batch["weights"].sum(), 1),
    )


def check(config: ConfigDict) -> None:
    """Raises ValueError, naming the field, for settings that would fail during training."""
    optim.make_optimizer(config.rft, "rft")
