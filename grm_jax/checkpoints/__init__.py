"""Checkpoints on disk <-> our state: Hugging Face folders (both ways), DeepMind's Flax checkpoints and GGUF files (reading).

`names.py` holds the one table of names and axis orders; a reader of each format offers its tensors; `loading.py` puts them where they belong.
"""

from pathlib import Path

from grm_jax.checkpoints.saving import copy_tokenizer, save

__all__ = ["check", "copy_tokenizer", "load", "open_checkpoint", "save"]


def open_checkpoint(path):
    """The reader of a checkpoint, by what stands at `path`: a folder with config.json, a DeepMind Flax checkpoint, or a .gguf file.

    Raises FileNotFoundError or ValueError that says what was looked for."""
    path = Path(path).expanduser()
    if path.is_dir() and (path / "config.json").exists():
        from grm_jax.checkpoints.hf_folder import HfFolder

        return HfFolder(path)
    from grm_jax.checkpoints.deepmind import MARKS, DeepMindCheckpoint

    if path.is_dir() and any(
        (inner / mark).exists()
        for mark in MARKS
        for inner in (path, path / "default", path / "state")
    ):
        return DeepMindCheckpoint(path)
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    if len(files) == 1 and files[0].suffix == ".gguf" and files[0].exists():
        from grm_jax.checkpoints.gguf_file import GgufFile

        return GgufFile(files[0])
    kinds = "a Hugging Face folder (config.json, *.safetensors), a DeepMind Flax checkpoint (_METADATA) or a .gguf file"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give {kinds}")
    raise ValueError(f"{path} is no checkpoint that can be read here: give {kinds}")


def check(path, cfg) -> None:
    """Raises what `load(path, cfg=cfg)` would say of a checkpoint that does not hold that model; only headers are read."""
    from grm_jax.checkpoints.loading import check_names
    from grm_jax.checkpoints.names import places

    reader = open_checkpoint(path)
    cfg = reader.fit(cfg) if hasattr(reader, "fit") else cfg
    check_names(reader, cfg, places(cfg, reader.form))


def load(
    path,
    mesh=None,
    dtype: str | None = "bfloat16",
    *,
    param_dtype: str | None = None,
    cfg=None,
    progress=None,
    **changes,
):
    """A `Transformer` with the weights at `path`, sharded over `mesh` (None: the first device).

    dtype: what the model computes in, and what its parameters are kept in unless `param_dtype` says otherwise; None keeps each tensor as on
    disk.  cfg: the TransformerConfig, where the checkpoint does not describe a released model.  changes: other config fields (remat="full",
    scalar_head=True for a fresh reward head of zeros on a language model, or False to drop one).
    progress: called with (bytes read, bytes in all).
    Raises ValueError listing every missing, unexpected and misshapen tensor, or the mesh sizes that fit.
    """
    from grm_jax.checkpoints.loading import load_model

    if "float16" in (dtype, param_dtype):
        raise ValueError(
            f"{path}: float16 overflows in Gemma's activations: use bfloat16 or float32"
        )
    reader = open_checkpoint(path)
    if cfg is None:
        cfg = reader.gemma_config()
    elif hasattr(reader, "fit"):
        cfg = reader.fit(cfg)
    has_head = cfg.scalar_head
    cfg = cfg.replace(**changes)
    if dtype is not None:
        cfg = cfg.replace(dtype=str(dtype), param_dtype=str(param_dtype or dtype))
    fresh = frozenset({"score_D"} if cfg.scalar_head and not has_head else ())
    if has_head and not cfg.scalar_head:
        reader.tensors.pop("score.weight", None)
    return load_model(reader, cfg, mesh, param_dtype or dtype, fresh, progress)
