"""Rejective fine-tuning (SPCT section 3.2): build the set, then supervised fine-tuning on its completions."""

import json
import logging

import jax

from grm_jax.data import packing, sft
from grm_jax.storage import as_path, reading, write_atomic, writing
from grm_jax.training import checkpoint, loop, optim, rft_data, sources, steps
from grm_jax.training import state as states
from grm_jax.training.rft_samplers import make_sampler, open_replies, stored

log = logging.getLogger(__name__)


def prepare(config, tokenizer, mesh, folder) -> sft.Encoded:
    """The tokenised training set; built once, then read back from `folder`.

    Beside the tokens it keeps examples.jsonl, trials.jsonl (every sample with its outcome, for the meta RM) and outcomes.json.
    """
    folder = as_path(folder)
    # Every process takes part in sampling from a model of ours; the other samplers are asked by one.
    if not (folder / "ready.json").exists() and (
        config.rft.sampler == "model" or jax.process_index() == 0
    ):
        _build(config, tokenizer, mesh, folder)
    checkpoint.wait_for_all(f"data in {folder}")
    return sft.Encoded.load(reading(folder / "tokens"))


def _build(config, tokenizer, mesh, folder) -> None:
    rft = config.rft
    source = sources.judging(config)
    count = min(rft.comparisons, source.size or rft.comparisons)
    if count < rft.comparisons:
        log.warning(
            "the sources hold %d comparisons, fewer than the rft.comparisons=%d",
            count,
            rft.comparisons,
        )
    comparisons = source.take(0, count)
    options = rft_data.RftOptions(
        template=config.template,
        samples=rft.samples,
        hinted=rft.hinted,
        reject=rft.reject,
        seed=config.seed,
    )
    sampler = make_sampler(config, tokenizer, mesh)
    if rft.sampler in ("model", "endpoint"):  # the two that take hours
        with open_replies(folder / "samples", shared=rft.sampler == "model") as store:
            built = rft_data.build(comparisons, stored(sampler, store, _sampled_by(rft)), options)
    else:
        built = rft_data.build(comparisons, sampler, options)
    if jax.process_index() != 0:
        return
    mixed = rft_data.mix(built.examples, sources.general(config), config.seed)
    if not mixed:
        raise ValueError(
            f"the RFT set is empty: nothing is left of config.rft.samples={rft.samples} and config.rft.hinted={rft.hinted} of each of "
            f"config.rft.comparisons={rft.comparisons} ({json.dumps(built.summary())}), and config.data.general_items="
            f"{config.data.general_items} gave none: raise one of them"
        )
    encoded = sft.encode_all(mixed, tokenizer)
    with writing(folder) as local:
        built.save(local)
        encoded.save(local / "tokens")
    counts = {**built.summary(), "examples": len(encoded), "tokens": len(encoded.tokens)}
    write_atomic(folder / "ready.json", json.dumps(counts, indent=2) + "\n")
    log.info("RFT set: %s", json.dumps(counts))


def _sampled_by(rft) -> str:
    return json.dumps([rft.sampler, dict(rft.sampling)], sort_keys=True, default=str)


def train(config, mesh, tokenizer, first_params, folder):
    """Fine-tunes from `first_params` on the set in `<folder>/data`; returns the trained parameters.

    Given as a function that makes them, the first parameters are made once the set is there, and do not stay through the training.
    """
    folder, rft = as_path(folder), config.rft
    encoded = prepare(config, tokenizer, mesh, folder / "data")
    held = [states.given(first_params)]  # in a list, to be taken out
    del first_params
    packed = packing.PackedBatches(encoded, config.batch_size, config.seq_len, config.seed)
    abstract = states.abstract_model(steps.model_config(config), mesh)
    update = steps.build_sft_step(config, mesh, abstract)
    tx = optim.make_optimizer(rft, "rft")

    def step(state, i, seed):
        held.clear()  # where a checkpoint was gone on from, nobody has taken it
        batch = packed.batch(i)
        state, metrics = update.fn(state, states.put_batch(batch, mesh))
        return (
            state,
            {**metrics, "tokens": int((batch["segment_ids"] > 0).sum())},
            f"{i} of seed {config.seed}",
        )

    def fresh():
        return states.init_state(
            jax.tree.map(lambda x: x.copy(), held.pop()), tx, mesh, config.seed
        )

    state = loop.train(
        "rft",
        rft,
        folder,
        fresh=fresh,
        abstract=update.args[0],
        step=step,
        programs=(update,),
        identity={
            "data": f"{len(encoded)} examples/{len(encoded.tokens)} tokens",
            "seed": config.seed,
            "start": checkpoint.fingerprint(held[0]),
            "batch_size": config.batch_size,
            "seq_len": config.seq_len,
        },
        settings={"template": config.template},
        shown=("loss", "grad_norm"),
        tensorboard=config.tensorboard,
        summary={
            "set": json.loads((folder / "data" / "ready.json").read_text()),
            "epochs": rft.steps * config.batch_size / packed.rows_per_epoch,
            "fill": packed.fill,
        },
    )
    return state["params"]
