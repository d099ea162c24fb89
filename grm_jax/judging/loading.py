"""Loads a judge from files: model, tokenizer and meta reward model."""

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from jax.sharding import Mesh

from grm_jax import checkpoints, hub, model_files, storage
from grm_jax.checkpoints.gguf_file import GgufFile
from grm_jax.checkpoints.peft_config import read_config
from grm_jax.judging.expected import ExpectedScores, model_log_probs
from grm_jax.judging.meta import MetaRM
from grm_jax.judging.metadata import JudgeMetadata, MetaRMMetadata, meta_template
from grm_jax.judging.options import POSITIVE
from grm_jax.judging.sampler import EngineSampler
from grm_jax.judging.scalar_head import ScalarHead
from grm_jax.models.config import TransformerConfig
from grm_jax.models.quantize import CACHE_KINDS, check_kind
from grm_jax.models.transformer import Transformer
from grm_jax.text import tokenizer as tokenizers

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".msgpack", ".npz")
HEAD_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How a judge is loaded and run.

    Attributes:
      dtype: of parameters and computation.
      quantize: "int8" or "int4" for weights of one byte or half of one, of the meta reward model
        too.
      lora: a folder or hub name with a LoRA adapter of `peft`, merged into the judge's weights.
      kv_cache_dtype: "int8" for the sampler's keys and values.
      tokenizer: a folder, file or hub name, if the model's folder has none.
      meta_template: template of the meta reward model, if not the one of its training.
      prompt_slots, rows: bounds of the sampler's batch (`plan.fit`).
    """

    dtype: str = "bfloat16"
    quantize: str | None = None
    lora: str | Path | None = None
    kv_cache_dtype: str | None = None
    tokenizer: str | Path | None = None
    meta_template: str | None = None
    prompt_slots: int | None = None
    rows: int | None = None

    # No verdict depends on the batch. The identity has tokenizer and template by their content, and
    # the adapter in the judge's name.
    FREE: ClassVar[tuple[str, ...]] = ("prompt_slots", "rows", "tokenizer", "meta_template", "lora")

    def settings(self) -> dict[str, Any]:
        """Returns the options on which verdicts depend, for the identity of a run."""
        fields = dataclasses.asdict(self).items()
        return {k: v if v is None else str(v) for k, v in fields if k not in self.FREE}

    def __post_init__(self) -> None:
        check_kind(self.quantize)
        check_kind(self.kv_cache_dtype, "kv_cache_dtype", CACHE_KINDS)
        for name in ("prompt_slots", "rows"):
            if (value := getattr(self, name)) is not None:
                POSITIVE.check(f"{name} = ", value)


def judge_arguments(
    path: str | Path,
    meta_rm: str | Path | None = None,
    mesh: Mesh | None = None,
    template: str | Path | None = None,
    options: LoadOptions | None = None,
) -> dict[str, Any]:
    """Loads the arguments of `Judge`; see `Judge.load`."""
    options = options or LoadOptions()
    with _unchanged(path, options.lora):  # a training run may export into it again
        name = _checked_name(path, judge=True, lora=options.lora)
        path = storage.fetch(path)
        _refuse_meta_rm(path, options.lora)
        metadata = JudgeMetadata.of(path, options.lora)
        model, tokenizer = _load_model(path, mesh, options)
    family = str(template or metadata.template)
    return {
        "tokenizer": tokenizer,
        "sampler": EngineSampler(model, mesh, options.prompt_slots, options.rows, few_shapes=True),
        "template": family,
        "single": metadata.single if template is None else None,
        "meta_rm": None
        if meta_rm is None
        else load_meta_rm(
            meta_rm, mesh, options.meta_template, options.dtype, family, options.quantize
        ),
        "expected": ExpectedScores(model_log_probs(model, mesh), tokenizer),
        "context": model.cfg.max_length,
        "name": name,
        "max_new_tokens": metadata.max_new_tokens,
        "settings": options.settings(),
    }


def scalar_arguments(path: str | Path, mesh: Mesh | None, options: LoadOptions) -> dict[str, Any]:
    """Loads the arguments of `scalar.ScalarJudge`; see `Judge.load`."""
    with _unchanged(path, options.lora):
        name = _checked_name(path, lora=options.lora)
        path = storage.fetch(path)
        model, tokenizer = _load_model(path, mesh, options)
        padding_id = checkpoints.padding_id(path)
    return {
        "tokenizer": tokenizer,
        "head": ScalarHead(model, tokenizer.pad_id, mesh),
        "padding_id": padding_id,
        "context": model.cfg.max_length,
        "name": name,
        "max_batch": options.prompt_slots,
        "settings": options.settings(),
    }


def load_meta_rm(
    path: str | Path,
    mesh: Mesh | None = None,
    template: str | None = None,
    dtype: str = "bfloat16",
    family: str = "grm",
    quantize: str | None = None,
) -> MetaRM:
    """Loads a meta reward model from the folder of a sequence classifier.

    template: by default the one in its meta_rm.json, else the one for judges of `family`.
    """
    name = _checked_name(path)
    path = storage.fetch(path)
    metadata = MetaRMMetadata.load(path)
    model, tokenizer = _load_model(path, mesh, LoadOptions(dtype, quantize))
    template = template or metadata.template or meta_template(family, metadata.likelihood)
    return MetaRM(model, tokenizer, template, mesh, name=name, likelihood=metadata.likelihood)


def _refuse_meta_rm(path: Path, lora: str | Path | None) -> None:
    """Raises ValueError for a sequence classifier of critiques, before its weights are read."""
    if (path / "config.json").is_file():
        cfg = checkpoints.open_checkpoint(path).model_config()
        if cfg.scalar_head:
            raise ValueError(
                f"{path} is a meta reward model, which reads critiques, and not a judge: give it "
                "as --meta_rm (meta_rm= in Python)"
            )
        if lora is not None and read_config(storage.fetch_adapter(lora)).is_classifier:
            raise ValueError(
                f"{lora} is the adapter of a meta reward model, and not of a judge: merge it "
                f"(grm convert {path} OUT --lora {lora}) and give OUT as --meta_rm"
            )


@contextlib.contextmanager
def _unchanged(path: str | Path, lora: str | Path | None) -> Iterator[None]:
    """Raises OSError if a folder of the model or its adapter is replaced while it is read."""
    with storage.unchanged(Path(path).expanduser()):
        with storage.unchanged(Path(path if lora is None else lora).expanduser()):
            yield


def _load_model(
    path: str | Path, mesh: Mesh | None, options: LoadOptions
) -> tuple[Transformer, tokenizers.Tokenizer]:
    model = checkpoints.load(
        path,
        mesh=mesh,
        dtype=options.dtype,
        adapter=options.lora,
        quantize=options.quantize,
        kv_cache_dtype=options.kv_cache_dtype,
    )
    loaded = load_tokenizer(path, options.tokenizer)
    check_vocabulary(loaded, model.cfg)
    return model, loaded


def load_tokenizer(path: str | Path, tokenizer: str | Path | None = None) -> tokenizers.Tokenizer:
    """Loads `tokenizer`, or the tokenizer beside or inside (GGUF) a checkpoint.

    Raises FileNotFoundError that names the missing files.
    """
    if tokenizer is not None and not str(tokenizer).endswith(".gguf"):
        return tokenizers.load(tokenizer)
    path = storage.fetch(path if tokenizer is None else tokenizer)
    folder = path if path.is_dir() else path.parent
    gguf = [path] if path.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    if tokenizer is None:
        try:
            return tokenizers.load(folder)
        except FileNotFoundError:
            if len(gguf) != 1:
                raise
    with tempfile.TemporaryDirectory() as scratch:
        GgufFile(gguf[0]).write_tokenizer(Path(scratch))
        return tokenizers.load(scratch)


def check_vocabulary(tokenizer: tokenizers.Tokenizer, cfg: TransformerConfig) -> None:
    """Raises ValueError if a tokenizer has ids that the model has no embedding for.

    Control tokens past the embedding that no prompt has, such as image placeholders, are allowed.
    """
    rows = cfg.vocab_size
    controls = sum(i >= rows for i in tokenizer.controls.values())
    if tokenizer.vocab_size - controls > rows:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids and {cfg.name} has "
            f"{rows:,} rows in its embedding: use the model's own tokenizer"
        )
    named = {f"{name}_token": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    for name, i in (named | {f"stop id {i}": i for i in tokenizer.stop_ids}).items():
        if i is not None and i >= rows:
            raise ValueError(
                f"the {name} of the tokenizer has the id {i:,} and {cfg.name} has {rows:,} rows: "
                "name a token of the model in tokenizer_config.json"
            )


def model_name(path: str | Path, judge: bool = False) -> str:
    """Returns the name of a model in output rows.

    "FOLDER@FINGERPRINT", or "ORG/MODEL@COMMIT" on the Hugging Face Hub: a name that can be loaded
    again, and always means the same weights. The folder RUN/STAGE/hf is called RUN/STAGE.

    judge: see `checkpoints.refuse_run_folder`.
    """
    if name := storage.hub_name(path):
        return hub.pinned(name)
    local = storage.fetch(path).resolve()
    checkpoints.refuse_run_folder(local, judge)
    return f"{folder_name(path)}@{fingerprint(local)}"


def _checked_name(path: str | Path, judge: bool = False, lora: str | Path | None = None) -> str:
    """Returns `model_name` of a checkpoint, followed by "+" and that of its adapter.

    Other folders and devices are refused, because reading them may never end.
    """
    if not storage.hub_name(path) and (local := storage.fetch(path).resolve()).exists():
        checkpoints.refuse_run_folder(local, judge)
        with model_files.damage_of(local):
            checkpoints.reader_of(local)
    name = model_name(path, judge)
    if lora is None:
        return name
    read_config(storage.fetch_adapter(lora))
    return f"{name}+{model_name(lora)}"


def folder_name(path: str | Path) -> str:
    """Returns the name of a model's folder or file; RUN/STAGE for RUN/STAGE/hf."""
    path = Path(path).expanduser().resolve()
    exported = path.name in ("hf", "lora") and len(path.parts) > 3
    return "/".join(path.parts[-3:-1]) if exported else path.name


def _is_own_file(file: Path) -> bool:
    """Returns whether `check_file` accepts a file; the loaders refuse the others."""
    try:
        return bool(model_files.check_file(file))
    except (ValueError, OSError):
        return False


def fingerprint(path: str | Path) -> str:
    """Returns 12 hex digits over a checkpoint: small files whole, weights by their first MiB.

    File names and sizes count as well. Reading all weights would take longer than loading them; a
    weight file that changes after its first MiB without changing its size is not noticed. Raises
    FileNotFoundError if there is nothing at the path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give {checkpoints.FORMATS}")
    files = sorted(filter(_is_own_file, path.rglob("*"))) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        is_weights = file.suffix in WEIGHT_SUFFIXES or size > 64 * HEAD_BYTES
        with open(file, "rb") as stream:
            content = stream.read(HEAD_BYTES if is_weights else -1)
        digest.update(f"{file.name}\x00{size}\x00".encode() + content)
    return digest.hexdigest()[:12]
