"""Files on the Hugging Face Hub by name: ORG/MODEL, ORG/MODEL@REVISION, ORG/MODEL@REVISION/FILE.

huggingface_hub does the work, so its settings apply: the cache (HF_HOME), the token (HF_TOKEN or
`hf auth login`), offline mode (HF_HUB_OFFLINE) and the address (HF_ENDPOINT). Only the files that
are needed are downloaded, and none of a format that runs code (.bin, .pt, .pkl, .msgpack, .py).
"""

import dataclasses
import functools
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grm_jax.model_files import INDEX, read_json, refuse_adapter, weight_files

log = logging.getLogger(__name__)

# Tokenizer files of a model folder: vocabulary, chat format, generation settings.
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
# What every use of a model reads, beside its weights.
METADATA_FILES = ("judge.json", "meta_rm.json")  # see `judging.metadata`
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # of peft
# Prompt templates that judge.json may name, and files that they include.
OWN_TEMPLATE = re.compile(
    r"(?!chat_template\.)[^/]+\.(?:jinja2?|j2)"
    r"|prompt_(?![^/]*\.(?:bin|pt|pth|pkl|pickle|msgpack|h5|py|so)$)[^/]+"
)
SMALL_FILES = (*TOKENIZER_FILES, "config.json", *METADATA_FILES, INDEX)

_PART = r"[\w][\w.-]*"
_FILES = (".csv", ".gguf", ".gz", ".json", ".jsonl", ".model", ".parquet", ".safetensors", ".txt")
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([\w.+-][\w.+/-]*?))?(?:/(\S+\.gguf))?")


@dataclasses.dataclass(frozen=True)
class HubName:
    """A repository at a revision (branch, tag or commit), or one file of it.

    kind: "model" or "dataset".
    """

    repo: str
    revision: str = "main"
    file: str = ""
    kind: str = "model"

    @property
    def page(self) -> str:
        """The address at which a person accepts the terms of a gated repository."""
        folder = "datasets/" if self.kind == "dataset" else ""
        return f"https://huggingface.co/{folder}{self.repo}"


@dataclasses.dataclass(frozen=True)
class Listing:
    """The commit of a revision, and its files.

    sizes: file -> bytes.  ids: file -> hash of its content (SHA-256 of large files, else Git's).
    offline: why these are only the files of the cache, "" if they are all files.
    gated: whether a token is needed.
    """

    commit: str
    sizes: dict[str, int]
    ids: dict[str, str]
    offline: str = ""
    gated: bool = False


def parse(text: str) -> HubName | None:
    """Returns the hub name of "ORG/MODEL[@REVISION][/FILE.gguf]", None for another text."""
    match = None if ".." in text else _NAME.fullmatch(text)
    if not match or match[1].endswith(_FILES):  # FOLDER/FILE
        return None
    return HubName(match[1], match[2] or "main", match[3] or "")


def pinned(name: HubName) -> str:
    """Returns the name with the commit in place of the revision: it always means these files."""
    file = f"/{name.file}" if name.file else ""
    return f"{name.repo}@{listing(name).commit}{file}"


def download_model(name: HubName, weights: bool = True, quiet: bool = False) -> Path:
    """Returns the local folder of a model, or its file if the name has one.

    weights: False downloads only the small files: tokenizer, config, metadata.  quiet: no bar.
    Raises FileNotFoundError, in one line, for what is missing, gated or not reachable.
    """
    folder = download(name, model_files(name, weights), quiet or not weights)
    return folder / name.file if name.file else folder


def download_adapter(name: HubName) -> Path:
    """Returns the local folder of a LoRA adapter, with its metadata.

    Raises FileNotFoundError as `download_model`.
    """
    files = listing(name).sizes
    own = [file for file in files if file in METADATA_FILES or OWN_TEMPLATE.fullmatch(file)]
    return download(name, [*ADAPTER_FILES, *own[:8]], quiet=True)


def model_files(name: HubName, weights: bool = True) -> list[str]:
    """Returns the files of a model that this package reads; downloads the small ones.

    Raises FileNotFoundError as `download_model`.
    """
    repo = listing(name)
    if name.file:
        return [name.file]
    small = [file for file in SMALL_FILES if file in repo.sizes]
    small += [file for file in repo.sizes if OWN_TEMPLATE.fullmatch(file)][:8]
    folder = download(name, small, quiet=True)
    return [*small, *_weight_files(name, folder, repo)] if weights else small


def _weight_files(name: HubName, folder: Path, repo: Listing) -> list[str]:
    """The safetensors of the index, else one safetensors file, else one GGUF file."""
    files = repo.sizes
    if INDEX in files:
        return weight_files(name.repo, read_json(folder / INDEX), list(files))
    refuse_adapter(name.repo, files)
    for suffix in (".safetensors", ".gguf"):
        names = sorted(file for file in files if file.endswith(suffix) and "/" not in file)
        if "model.safetensors" in names or len(names) == 1:
            return ["model.safetensors" if len(names) > 1 else names[0]]
        if names:
            raise FileNotFoundError(
                f"{name.repo} has {len(names)} {suffix} files: name one, such as "
                f"{name.repo}/{names[0]}"
            )
    if repo.offline:
        raise FileNotFoundError(repo.offline)
    others = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".msgpack", ".h5"))]
    pickles = f"; {others[0]} and the like are not opened" if others else ""
    raise FileNotFoundError(
        f"{name.repo} has neither safetensors nor a .gguf file{pickles}: use a repository that does"
    )


def download(name: HubName, files: Sequence[str], quiet: bool = False) -> Path:
    """Downloads files of a repository that the cache lacks, and returns their folder.

    A connection that is cut is resumed; a file that is complete is not downloaded again.
    Raises FileNotFoundError as `download_model`, OSError where the disk is too small.
    """
    from huggingface_hub import snapshot_download

    repo, cache = listing(name), _cache_folder(name)
    if missing := missing_files(name, files):
        check_space(sum(missing.values()), name.repo)
        if not quiet:
            counts = name.repo, repo.commit[:12], len(missing), sum(missing.values()) / 1e9, cache
            log.info("downloading %s@%s: %d files, %.2f GB, to %s", *counts)
        with _one_line(name):
            snapshot_download(
                name.repo,
                repo_type=name.kind,
                revision=repo.commit,
                allow_patterns=[re.sub(r"([*?\[])", r"[\1]", file) for file in missing],
                tqdm_class=_bar(quiet),
            )
    if name.revision != repo.commit and not repo.offline:
        _write_ref(cache / "refs" / name.revision, repo.commit)
    return cache / "snapshots" / repo.commit


def _write_ref(file: Path, commit: str) -> None:
    """Stores the commit of a revision, for offline use; not in a cache that is read-only."""
    with suppress(OSError):
        if not file.exists() or file.read_text() != commit:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.{os.getpid()}")
            partial.write_text(commit)
            partial.replace(file)


def missing_files(name: HubName, files: Sequence[str]) -> dict[str, int]:
    """Returns {file: bytes} of the files that the cache lacks.

    Raises FileNotFoundError for a file that the repository does not have.
    """
    repo = listing(name)
    if unknown := [file for file in files if file not in repo.sizes]:
        reason = f"{name.repo} has no file {unknown[0]} at {name.revision}"
        raise FileNotFoundError(repo.offline or reason)
    folder = _cache_folder(name) / "snapshots" / repo.commit
    return {file: repo.sizes[file] for file in files if not (folder / file).exists()}


def check_access(name: HubName, files: Sequence[str]) -> int:
    """Returns the bytes of `files` that are not in the cache, after a request for one of them.

    Raises FileNotFoundError as `download_model`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    missing = missing_files(name, files)
    if missing:
        first, commit = next(iter(missing)), listing(name).commit
        with _one_line(name):
            get_hf_file_metadata(hf_hub_url(name.repo, first, repo_type=name.kind, revision=commit))
    return sum(missing.values())


def _cache_folder(name: HubName) -> Path:
    """The repository's folder in the cache, as huggingface_hub lays it out."""
    from huggingface_hub import constants

    folder = f"{name.kind}s--{name.repo.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE).expanduser() / folder


def check_space(size: int, what: str) -> None:
    """Raises OSError if the disk of the cache has fewer than `size` bytes free."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise OSError(
            f"{what} needs {size / 1e9:.1f} GB in {cache}, and {free / 1e9:.1f} GB are free: "
            "set HF_HOME to a folder of a larger disk"
        )


def _bar(quiet: bool) -> type:
    """The progress bar of a download: on a slice, process 0 shows one."""
    from huggingface_hub.utils import tqdm

    jax = sys.modules.get("jax")  # importing it would start it before the platform is chosen
    others = jax and jax.distributed.is_initialized() and jax.process_index() != 0

    class Hidden(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))

    return Hidden if quiet or others else tqdm


# ---------------------------------------------------------------- the listing of a revision


def listing(name: HubName) -> Listing:
    """Looks up a revision, once per process; without a connection, in the cache.

    Raises FileNotFoundError, in one line.
    """
    return _listing(dataclasses.replace(name, file=""))


@functools.cache
def _listing(name: HubName) -> Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        info: Any = HfApi().repo_info(
            name.repo, repo_type=name.kind, revision=name.revision, files_metadata=True
        )
    except (HTTPError, OfflineModeIsEnabled) as error:
        answered = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
        reason = _reason(name, error)
        if not answered and (cached := _cached_listing(name)):
            return dataclasses.replace(cached, offline=reason)
        raise FileNotFoundError(reason) from error
    files = {file.rfilename: file for file in info.siblings or ()}
    return Listing(
        info.sha,
        {name: file.size or 0 for name, file in files.items()},
        {name: file.lfs.sha256 if file.lfs else file.blob_id for name, file in files.items()},
        gated=bool(info.gated or info.private),
    )


def _cached_listing(name: HubName) -> Listing | None:
    """The files of a revision that earlier downloads left in the cache."""
    repo = _cache_folder(name)
    ref = repo / "refs" / name.revision
    folder = repo / "snapshots" / (ref.read_text().strip() if ref.is_file() else name.revision)
    files = {
        file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()
    }
    sizes = {name: file.stat().st_size for name, file in files.items()}
    ids = {name: file.resolve().name for name, file in files.items()}  # of the blob it points to
    return Listing(folder.name, sizes, ids) if files else None


# ---------------------------------------------------------------- errors


@contextmanager
def _one_line(name: HubName) -> Iterator[None]:
    """Turns huggingface_hub's errors into one line that says what to do."""
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    try:
        yield
    except (HTTPError, OSError) as error:
        wrapped = isinstance(error, LocalEntryNotFoundError)
        cause = error.__cause__ if wrapped and error.__cause__ else error
        raise FileNotFoundError(_reason(name, cause, listed=True)) from error


def _reason(name: HubName, error: BaseException, listed: bool = False) -> str:
    """Returns what is wrong with a repository, and what to do, in one line.

    listed: whether the hub has answered before.
    """
    from huggingface_hub import constants, errors, get_token

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    at = f"{name.repo}@{name.revision}" if name.revision != "main" else name.repo
    login = "run `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        if get_token():
            return f"{name.repo} is gated and your token has no access: request it at {name.page}"
        return f"{name.repo} is gated: accept its terms at {name.page}, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repo} has no revision {name.revision!r}: see {name.page}/tree/main"
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and not get_token()):
        return (
            f"{name.repo} is neither a local path nor a {name.kind} on {constants.ENDPOINT}: "
            f"correct the name, or, if it is private, {login}"
        )
    cache = f"the cache {constants.HF_HUB_CACHE} does not have all of it"
    if isinstance(error, errors.OfflineModeIsEnabled):
        command = f"hf download {name.repo}"
        return f"{at}: HF_HUB_OFFLINE is set and {cache}: unset it, or run `{command}` first"
    if status in (401, 403):
        return f"{at}: {constants.ENDPOINT} refuses your token ({status}): {login} again"
    if status:
        return f"{at}: {constants.ENDPOINT} answered {status}: try again later"
    if isinstance(error, OSError) or listed:
        line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        return f"{at}: the download stopped ({line}): run the command again, which continues it"
    return (
        f"{at} is no local path, {constants.ENDPOINT} is not reachable "
        f"({type(error).__name__}) and {cache}: check the network, or give a local folder"
    )
