"""SPCT from end to end: `run(config, workdir)` does the stages of an experiment in order, each skipped where its result is there.

workdir/rft      rejective fine-tuning        workdir/meta_rm  the meta reward model
workdir/rl       GRPO on rule-based rewards   workdir/eval     the table, the plots, the page
"""

import json
import logging

import jax
import jax.numpy as jnp
from flax import nnx

from grm_jax import checkpoints
from grm_jax.judging.metadata import JudgeMetadata, MetaRMMetadata, meta_template
from grm_jax.models import get_config
from grm_jax.sharding import make_mesh
from grm_jax.storage import as_path, fetch, write_atomic, writing
from grm_jax.training import (
    eval_stage,
    grpo,
    loop,
    losses,
    meta_rm,
    optim,
    rft,
    rft_data,
    sources,
    steps,
)
from grm_jax.training import state as states

log = logging.getLogger(__name__)
STAGES = ("rft", "rl", "meta_rm", "eval")
META_RM_STARTS = ("base", "rft", "rl")


def run(config, workdir) -> dict:
    """Runs `config.stages`, a subset of STAGES in their order.

    Args:
      config: an experiment (`experiments/*.py`).
      workdir: where everything goes. A run that was interrupted is gone on from there.

    Returns:
      The result.json of each stage that was asked for.

    Raises:
      ValueError: a stage that does not exist, a mesh or batch that does not fit. loop.Stopped, loop.NonFiniteLoss: after saving.
    """
    if unknown := set(config.stages) - set(STAGES):
        raise ValueError(f"stages {sorted(unknown)} do not exist: use {', '.join(STAGES)}")
    if "meta_rm" in config.stages and config.meta_rm.start not in META_RM_STARTS:
        raise ValueError(
            f"meta_rm.start {config.meta_rm.start!r}: use one of {', '.join(META_RM_STARTS)}"
        )
    workdir = as_path(workdir)
    folders = {stage: workdir / stage for stage in STAGES}

    ###########################################################################
    #                        Mesh, tokenizer, model                           #
    ###########################################################################

    mesh = make_mesh(**config.mesh)
    cfg = steps.model_config(config)
    graphdef, abstract = states.abstract_model(cfg, mesh)
    tokenizer = sources.load_tokenizer(config)
    if tokenizer.vocab_size > cfg.vocab_size + cfg.vocab_pad:
        raise ValueError(
            f"the tokenizer writes {tokenizer.vocab_size} ids and {cfg.name} has {cfg.vocab_size} rows: use the model's own tokenizer"
        )
    _note_config(config, cfg, workdir)
    log.info("%s: %.2fM parameters on %s", config.name, cfg.num_params / 1e6, dict(mesh.shape))

    to_do = [stage for stage in config.stages if not loop.is_done(folders[stage])]
    sources.check(config, to_do)
    _check_settings(config, to_do)

    def final_params(stage):
        scalar = states.abstract_model(steps.model_config(config, scalar_head=True), mesh)[1]
        return loop.load_params(folders[stage], scalar if stage == "meta_rm" else abstract)

    def export(stage, params):
        """A Hugging Face folder, for `grm judge` and for other programs."""
        if config.export:
            model_def = states.abstract_model(
                steps.model_config(config, scalar_head=stage == "meta_rm"), mesh
            )[0]
            like = sources.tokenizer_path(config)
            model = nnx.merge(model_def, params)
            with writing(folders[stage] / "hf") as local:
                if stage == "meta_rm":
                    likelihood = config.meta_rm.likelihood
                    template = meta_template(config.template, likelihood)
                    MetaRMMetadata(template, likelihood).save(local)
                else:
                    JudgeMetadata(config.template, config.rl.max_new_tokens).save(local)
                checkpoints.save(model, local, like=like, dtype="bfloat16", overwrite=True)

    def wanted(stage):
        if stage not in config.stages:
            return False
        if not loop.is_done(folders[stage]):
            loop.raise_if_stopped(stage)
            return True
        log.info("%s is done: %s", stage, folders[stage])
        if config.export and stage != "eval" and not _is_exported(folders[stage] / "hf"):
            export(stage, final_params(stage))  # what ended the last start came between the two
        return False

    with jax.set_mesh(mesh):
        # Stages are given functions that make the parameters they start from: nobody else keeps these while a stage runs.
        def first():
            return sources.first_params(config, cfg, mesh)

        def final(stage):
            return lambda: final_params(stage)

        #######################################################################
        #                     Rejective fine-tuning                           #
        #######################################################################

        if wanted("rft"):
            export("rft", rft.train(config, mesh, tokenizer, first, folders["rft"]))

        #######################################################################
        #                     Reinforcement learning                          #
        #######################################################################

        if wanted("rl"):
            trials = config.rl.get("easy_trials", "")
            easy = rft_data.easy_ids(rft_data.read_trials(fetch(trials))) if trials else ()
            judging = sources.judging(config, without=easy)
            # Without RFT (the ablation "no cold start") the policy begins, and its reference stays, at the first parameters.
            start = final("rft") if loop.is_done(folders["rft"]) else first
            at = lambda place: judging.at(config.rl.first_item + place)  # noqa: E731
            export(
                "rl",
                grpo.train(config, mesh, tokenizer, start, at, folders["rl"], judging.identity),
            )

        #######################################################################
        #                       Meta reward model                             #
        #######################################################################

        if wanted("meta_rm"):
            policy = final("rl" if loop.is_done(folders["rl"]) else "rft")
            start = {"base": first, "rft": final("rft"), "rl": policy}[config.meta_rm.start]
            export(
                "meta_rm",
                meta_rm.train(
                    config, mesh, tokenizer, start, policy, folders["rft"], folders["meta_rm"]
                ),
            )

        #######################################################################
        #                           Evaluation                                #
        #######################################################################

        if wanted("eval"):
            eval_stage.run(config, mesh, tokenizer, graphdef, abstract, folders)
    return {
        stage: loop.read_result(folders[stage])
        for stage in config.stages
        if loop.is_done(folders[stage])
    }


def _check_settings(config, stages) -> None:
    """Refuses what would stop a stage, before hours are spent on those before it. Raises ValueError naming the field."""
    for stage in set(stages) & {"rft", "rl", "meta_rm"}:
        optim.make_optimizer(config[stage], stage)
    if "meta_rm" in stages and config.meta_rm.likelihood < 0:
        raise ValueError(
            f"config.meta_rm.likelihood={config.meta_rm.likelihood}: the weight of a log-probability, give 0 (the scalar head alone) or more"
        )
    if "rl" in stages:
        rl = config.rl
        losses.kl_per_token(0.0, 0.0, rl.kl_estimator)
        if rl.temperature <= 0:
            raise ValueError(
                f"config.rl.temperature={rl.temperature}: a policy that learns has to sample, give one above 0"
            )
        if rl.group_size < 2:
            raise ValueError(
                f"config.rl.group_size={rl.group_size}: advantages compare the critiques of one group, give at least 2"
            )
        try:
            jnp.dtype(rl.reference_dtype)
        except TypeError as error:
            raise ValueError(
                f"config.rl.reference_dtype={rl.reference_dtype!r}: give float32 or bfloat16"
            ) from error


def _is_exported(folder) -> bool:
    """Whether a folder was written to its end: the config comes last, in a bucket the tokenizer."""
    return (folder / "config.json").exists() and any(folder.glob("tokenizer*"))


# What the shapes of the parameters come from.
SIZES = ("vocab_size", "num_layers", "d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim")


def _note_config(config, cfg, workdir) -> None:
    """The config beside its results; a workdir of another experiment, or with checkpoints of another model, is refused."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if path.exists():
        before = json.loads(path.read_text())
        if before["name"] != config.name:
            raise ValueError(
                f"{workdir} holds the experiment {before['name']!r}, this is {config.name!r}: give another workdir"
            )
        sizes = {name: n for name, n in before.get("model_overrides", {}).items() if name in SIZES}
        theirs = get_config(before["model"], **sizes)
        if other := [n for n in SIZES if getattr(theirs, n) != getattr(cfg, n)]:
            told = ", ".join(f"{n}={getattr(theirs, n)} (here {getattr(cfg, n)})" for n in other)
            raise ValueError(
                f"{workdir} holds checkpoints of another model, with {told}: give another workdir"
            )
    fields = json.loads(config.to_json_best_effort())
    if path.exists():
        # What is done stays as it was made, and so does what the file says of it.
        for stage in (
            stage for stage in STAGES if loop.is_done(workdir / stage) and stage in before
        ):
            if told := _changed(before[stage], fields.get(stage, {})):
                log.warning(
                    "%s is done, with other values than this config's (%s): remove %s, and what came after it, to run it again",
                    *(stage, told, workdir / stage),
                )
                fields[stage] = before[stage]
    if jax.process_index() == 0:
        # Whole: another host, or a run that goes on, may read it at this moment.
        write_atomic(path, json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _changed(before: dict, now: dict) -> str:
    """The fields that differ: "beta=0.08 (here 0)"."""
    names = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    return ", ".join(f"{name}={before.get(name)} (here {now.get(name)})" for name in sorted(names))
