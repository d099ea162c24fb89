"""A judge from files: model, tokenizer, meta reward model, and fingerprints of what was loaded."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from grm_jax.text import rendering
from grm_jax.text import tokenizer as tokenizers

WEIGHTS = (".safetensors", ".gguf", ".bin", ".msgpack", ".npz")
HEAD_BYTES = 1 << 20
JUDGE_METADATA = "judge.json"  # beside a judge's weights: how it was trained to be asked
META_RM_METADATA = (
    "meta_rm.json"  # beside a meta reward model's: what it reads, and what its score is
)
LONGEST = 1024


def load_judge(
    cls,
    path,
    meta_rm=None,
    mesh=None,
    template=None,
    dtype: str = "bfloat16",
    tokenizer=None,
    meta_template: str | None = None,
    prompt_slots: int | None = None,
    rows: int | None = None,
):
    """What `Judge.load` does. tokenizer: a folder or file, where the model's folder has none."""
    from grm_jax import models
    from grm_jax.judging.expected import ExpectedScores, model_log_probs
    from grm_jax.judging.sampler import engine_sampler

    model = models.load(path, mesh=mesh, dtype=dtype)
    words = load_tokenizer(path, tokenizer)
    check_vocabulary(words, model.cfg)
    note = read_judge_metadata(path)
    family = str(template or note["template"])
    meta = load_meta_rm(meta_rm, mesh, meta_template, dtype, family=family) if meta_rm else None
    return cls(
        tokenizer=words,
        sampler=engine_sampler(model, mesh, prompt_slots, rows),
        template=family,
        meta_rm=meta,
        expected=ExpectedScores(model_log_probs(model, mesh), words),
        context=model.cfg.max_length,
        name=named(path),
        max_new_tokens=note["max_new_tokens"],
    )


def read_judge_metadata(path) -> dict:
    """{"template", "max_new_tokens"} that a judge was trained with, from the judge.json in its folder; "grm" and 1,024 where there is none.

    Raises ValueError for a file that is no such note.
    """
    file = Path(path).expanduser() / JUDGE_METADATA
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return {
            "template": str(found.get("template", "grm")),
            "max_new_tokens": int(found.get("max_new_tokens", LONGEST)),
        }
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f'{file} should hold {{"template": NAME, "max_new_tokens": N}}: mend or remove it'
        ) from None


def write_judge_metadata(folder, template: str, max_new_tokens: int) -> None:
    """Writes the judge.json that `noted` reads."""
    (Path(folder) / JUDGE_METADATA).write_text(
        json.dumps({"template": template, "max_new_tokens": max_new_tokens}) + "\n"
    )


def read_meta_rm_metadata(path) -> dict:
    """{"template" (None where it is not said), "likelihood"} of a meta reward model, from the meta_rm.json in its folder.

    Without one the model is a plain sequence classifier: likelihood 0. Raises ValueError for a file that is no such note.
    """
    file = Path(path).expanduser() / META_RM_METADATA
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        template = found.get("template")
        return {
            "template": template and str(template),
            "likelihood": float(found.get("likelihood", 0.0)),
        }
    except (ValueError, AttributeError, TypeError):
        raise ValueError(
            f'{file} should hold {{"template": NAME, "likelihood": WEIGHT}}: mend or remove it'
        ) from None


def write_meta_rm_metadata(folder, template: str, likelihood: float) -> None:
    """Writes the meta_rm.json that `read_meta_rm_metadata` reads."""
    (Path(folder) / META_RM_METADATA).write_text(
        json.dumps({"template": template, "likelihood": likelihood}) + "\n"
    )


def meta_template_of(family: str, likelihood: float = 0.0) -> str:
    """What a meta reward model reads beside a judge of this family of templates: one whose score has the likelihood of the critique in it
    reads what the judge read."""
    if likelihood:
        return family
    return rendering.role_template(family, "meta_rm")


def load_meta_rm(
    path,
    mesh=None,
    template: str | None = None,
    dtype: str = "bfloat16",
    tokenizer=None,
    family: str = "grm",
):
    """A meta reward model from a sequence classifier's folder.

    template: what it reads; None for what its meta_rm.json names, and without one, what goes with the judge's `family`.
    """
    from grm_jax import models
    from grm_jax.judging.meta import MetaRM

    found = read_meta_rm_metadata(path)
    model = models.load(path, mesh=mesh, dtype=dtype)
    words = load_tokenizer(path, tokenizer)
    check_vocabulary(words, model.cfg)
    template = template or found["template"] or meta_template_of(family, found["likelihood"])
    return MetaRM(model, words, template, mesh, name=named(path), likelihood=found["likelihood"])


def load_tokenizer(path, tokenizer=None) -> tokenizers.Tokenizer:
    """The tokenizer beside a checkpoint, or the one named; a GGUF file carries its own.

    Raises FileNotFoundError that says where one was looked for.
    """
    if tokenizer is not None:
        return tokenizers.load(tokenizer)
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    try:
        return tokenizers.load(folder)
    except FileNotFoundError:
        gguf = [path] if path.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
        if len(gguf) != 1:
            raise
    from grm_jax.checkpoints import open_checkpoint

    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(open_checkpoint(gguf[0]).sentencepiece_model())
        file.flush()
        return tokenizers.load(file.name)


def check_vocabulary(words: tokenizers.Tokenizer, cfg) -> None:
    """Raises ValueError where a tokenizer can write ids that the model has no row for (places of images aside)."""
    used = words.vocab_size - sum(i >= cfg.vocab_size for i in words.controls.values())
    if used > cfg.vocab_size:
        raise ValueError(
            f"the tokenizer has {words.vocab_size:,} ids and {cfg.name} has {cfg.vocab_size:,} rows: "
            "this is another model's tokenizer"
        )


def named(path) -> str:
    """ "folder@fingerprint": the last part of a path with a fingerprint of what stands there."""
    path = Path(path).expanduser().resolve()
    return f"{path.name}@{fingerprint(path)}"


def fingerprint(path) -> str:
    """12 hex digits over a checkpoint: its settings whole, of each weight file the name, the size and the first MiB.

    Reading the weights whole would take longer than loading them; a changed file of equal size and equal first MiB is not
    noticed.
    """
    path = Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        weights = file.suffix in WEIGHTS or file.stat().st_size > 64 * HEAD_BYTES
        with open(file, "rb") as stream:
            content = stream.read(HEAD_BYTES if weights else -1)
        digest.update(f"{file.name}\x00{file.stat().st_size}\x00".encode() + content)
    return digest.hexdigest()[:12]
