"""Checks the files of finished stages at every start, and exports hf/.

final/         the trained parameters; result.json has their fingerprint
hf/            the same parameters as a Hugging Face folder, for `grm judge`
lora/          with LoRA, the adapters as a folder of peft, for `grm judge --lora`
export.json    written after both: the fingerprint of the exported parameters, and the files
"""

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from grm_jax import checkpoints, strict_json
from grm_jax.checkpoints.peft_state import save_adapters
from grm_jax.judging.metadata import JudgeMetadata, MetaRMMetadata, meta_template
from grm_jax.models import abstract_model, lora
from grm_jax.storage import replace_folder, write_atomic
from grm_jax.text import rendering
from grm_jax.training import checkpoint, loop, sources, state as states
from grm_jax.training.programs import critique_tokens, model_config

log = logging.getLogger(__name__)
TRAINED = ("rft", "rl", "meta_rm", "sft", "policy")  # stages that train parameters
JUDGES = ("rft", "rl", "meta_rm")  # those of them that the stage eval judges with
EXPORT = "export.json"
# The field of a stage's identity with the fingerprint of its initial parameters, and the stages
# that they may come from.
_MADE_FROM = {
    "rl": ("reference", ("rft",)),
    "meta_rm": ("policy", ("rl", "rft")),
    "policy": ("reference", ("sft",)),
}


def load(shared: loop.Run, stage: str, folder: epath.Path) -> Any:
    """Loads the parameters that a stage trained; with LoRA, the adapters."""
    cfg = model_config(shared.config, scalar_head=stage == "meta_rm")
    _, params = abstract_model(cfg, shared.mesh)
    return loop.load_params(folder, states.split(params)[0])


def damaged(shared: loop.Run, folders: Mapping[str, Any]) -> set[str]:
    """Returns the finished stages whose parameters are damaged; they resume from a checkpoint.

    Raises:
      CheckpointError: a stage has no checkpoint to resume from, or is not in the config's stages.
    """
    unusable = set()
    for stage in TRAINED:
        folder = folders[stage]
        if not loop.is_done(folder):
            continue
        try:
            load(shared, stage, folder)
        except checkpoint.CheckpointError as error:
            with checkpoint.Checkpoints(folder / "checkpoints") as store:
                steps = store.steps()
            if not steps or stage not in shared.config.stages:
                remedy = "add the stage to config.stages" if steps else "restore it from a backup"
                raise checkpoint.CheckpointError(
                    f"{error}. {remedy}, or remove {folder} and the folders of later stages to "
                    "train them again"
                ) from error
            log.warning(
                "%s; %s resumes from checkpoint %d to write it again", error, stage, steps[-1]
            )
            unusable.add(stage)
    return unusable


def judge_weights(folders: Mapping[str, Any]) -> dict[str, str]:
    """Returns the fingerprint of the parameters of each finished stage of JUDGES."""
    done = [stage for stage in JUDGES if loop.is_done(folders[stage])]
    return {stage: loop.saved_weights(folders[stage]) for stage in done}


def is_evaluated(folders: Mapping[str, Any]) -> bool:
    """Whether the stage eval is finished, with the current parameters of its judges."""
    if not loop.is_done(folders["eval"]):
        return False
    judged = loop.read_result(folders["eval"]).get(loop.WEIGHTS)
    if judged is None:  # of an earlier version
        return True
    changed = [name for name, value in judge_weights(folders).items() if judged.get(name) != value]
    if changed:
        log.warning("the evaluation used other weights of %s: it runs again", ", ".join(changed))
    return not changed


def warn_if_outdated(stage: str, folders: Mapping[str, Any]) -> None:
    """Warns if an earlier stage now has other parameters than a finished stage was trained from."""
    if stage not in _MADE_FROM:
        return
    field, earlier = _MADE_FROM[stage]
    source = next((name for name in earlier if loop.is_done(folders[name])), None)
    made_from = loop.read_result(folders[stage]).get("identity", {}).get(field)
    if source and made_from not in (None, loop.saved_weights(folders[source])):
        log.warning(
            "%s was trained from other weights than %s has now. "
            "Remove %s and the folders of later stages to run it again",
            *(stage, source, folders[stage]),
        )


# ---------------------------------------------------------------- the exported folder


def export(shared: loop.Run, stage: str, folder: epath.Path, params: Any = None) -> None:
    """Writes the Hugging Face folder `<folder>/hf`, for `grm judge`, unless it is up to date.

    With LoRA, it has the adapters merged into the base, and `<folder>/lora` the adapters alone.

    params: of the stage, if the caller has them. Nothing is written with `export=False`.
    """
    config, marker, hf = shared.config, folder / EXPORT, folder / "hf"
    if not config.export:
        return
    metadata = _metadata(config, stage)
    fields = dataclasses.asdict(metadata) if metadata else {}
    identity = {loop.WEIGHTS: loop.saved_weights(folder), "metadata": fields}
    if checkpoint.agree(_is_exported(marker, folder, identity), all_of=True):
        return
    if marker.exists():
        log.warning(
            "%s is damaged, or of other weights than %s/final: it is exported again", hf, folder
        )
    params = load(shared, stage, folder) if params is None else params
    params = states.join(params, shared.frozen)
    cfg = model_config(config, scalar_head=stage == "meta_rm")
    graphdef, _ = abstract_model(cfg, shared.mesh)
    is_writer = jax.process_index() == 0
    if is_writer:
        marker.unlink(missing_ok=True)
    with replace_folder(hf) if is_writer else tempfile.TemporaryDirectory() as local:
        if metadata is not None:
            metadata.save(local)
        model, like = nnx.merge(graphdef, params), sources.tokenizer_path(config)
        model = lora.merge_weights(model) if cfg.lora else model
        checkpoints.save(model, local, like=like, dtype="bfloat16", overwrite=True)
    if cfg.lora:
        adapters = folder / "lora"
        with replace_folder(adapters) if is_writer else tempfile.TemporaryDirectory() as local:
            if metadata is not None:
                metadata.save(local)
            save_adapters(params, cfg, local, base=str(config.init))
    if is_writer:
        files = strict_json.dumps({**identity, "files": _sizes(folder)}, indent=2)
        write_atomic(marker, files + "\n")
    checkpoint.wait_for_all(f"export of {stage}")


def _metadata(config: ConfigDict, stage: str) -> JudgeMetadata | MetaRMMetadata | None:
    """Returns the metadata of a judge or a meta reward model, None for a policy that answers."""
    if stage in ("sft", "policy"):
        return None
    if stage == "meta_rm":
        likelihood = config.meta_rm.likelihood
        return MetaRMMetadata(meta_template(config.template, likelihood), likelihood)
    single = rendering.single_binary(config.template)
    own = single if single != config.template else None
    return JudgeMetadata(config.template, critique_tokens(config), own)


def _is_exported(marker: epath.Path, folder: epath.Path, identity: Mapping[str, Any]) -> bool:
    """Whether hf/ and lora/ are of these parameters and settings, with all their files in full."""
    try:
        saved = strict_json.read(marker)
        files = saved.pop("files")
        return saved == identity and bool(files) and files.items() <= _sizes(folder).items()
    except (FileNotFoundError, ValueError, AttributeError, KeyError):
        return False


def _sizes(folder: epath.Path) -> dict[str, int]:
    """Returns the bytes of each file in a stage's hf/, by its name, and in its lora/."""
    sizes: dict[str, int] = {}
    for name, prefix in (("hf", ""), ("lora", "lora/")):
        files = (folder / name).iterdir() if (folder / name).exists() else ()
        sizes |= {prefix + file.name: file.stat().length for file in files if not file.is_dir()}
    return sizes
