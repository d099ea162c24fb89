"""Samplers of critiques for rejective fine-tuning: scripted teacher, models, endpoint, file.

`config.rft.sampler` names one of `SAMPLERS`, `config.rft.sampling` holds its settings. To add a
sampler, register a dataclass of settings with a method `build`. A sampler is a function from
requests to replies, see `replies.Sampler`; `stored` makes it resumable.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grm_jax.data import splits
from grm_jax.data.comparisons import simplified
from grm_jax.data.records import read_records
from grm_jax.data.world import teacher as world_teacher
from grm_jax.judging.orders import item_of
from grm_jax.registry import Registry
from grm_jax.run_store import RunStore, StoreMismatch
from grm_jax.storage import fetch
from grm_jax.training.endpoint_sampler import FETCHING, Endpoint
from grm_jax.training.errors import SamplingError, TooManyFailed, TrainingError
from grm_jax.training.replies import (
    CritiqueReply,
    CritiqueRequest,
    Sampler,
    Writer,
    is_usable,
    on_reply,
    reply_from_json,
    report_reply,
)
from grm_jax.training.rft_data import best_index
from grm_jax.types import FAILED, Comparison

log = logging.getLogger(__name__)

LOCAL = ("self", "model")  # samplers that run on all processes together
SLOW = (*LOCAL, "endpoint")  # samplers whose replies are stored as they come
# Requests over which `stored` computes the share of failures, once it has them.
FAILURE_WINDOW = 200


# ---------------------------------------------------------------- settings


# name -> a frozen dataclass of settings with `build(config, tokenizer, mesh) -> Sampler`. Fields
# without a default must be set.
SAMPLERS: Registry[Any] = Registry("rft.sampler")


@SAMPLERS.register("teacher")
@dataclasses.dataclass(frozen=True)
class Teacher:
    """The scripted critic of the judging world; rates as of `data.world.teacher.critique`."""

    accuracy: float = 0.75
    shortcut: float = 0.25

    def build(self, config: Any, tokenizer: Any, mesh: Any) -> Sampler:
        return teacher(self.accuracy, self.shortcut, config.principles, config.seed)


@SAMPLERS.register("file")
@dataclasses.dataclass(frozen=True)
class File:
    """Critiques sampled elsewhere. path: a JSONL file, see `file`."""

    path: str

    def build(self, config: Any, tokenizer: Any, mesh: Any) -> Sampler:
        return file(fetch(self.path))


SAMPLERS.add("endpoint", Endpoint)


@SAMPLERS.register("model")
@dataclasses.dataclass(frozen=True)
class Model:
    """A model loaded here, on all processes, and freed with the sampler.

    path: its checkpoint, a hub name for example. Its own tokenizer is used if it has one.
    """

    path: str
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def build(self, config: Any, tokenizer: Any, mesh: Any) -> Sampler:
        from grm_jax import checkpoints
        from grm_jax.judging import loading
        from grm_jax.judging.sampler import EngineSampler

        path = fetch(self.path)  # outside: a failed download must not select another tokenizer
        with contextlib.suppress(FileNotFoundError):
            tokenizer = loading.load_tokenizer(path)
        engine = EngineSampler(checkpoints.load(path, mesh=mesh), mesh)
        sampling = (self.max_new_tokens, self.temperature, self.top_p, self.top_k)
        return model(engine, tokenizer, *sampling, seed=config.seed)


@SAMPLERS.register("self")
@dataclasses.dataclass(frozen=True)
class Self:
    """The model that is trained, `config.init`, on all processes.

    It is loaded for the first request, and freed with the sampler.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def build(self, config: Any, tokenizer: Any, mesh: Any) -> Sampler:
        from grm_jax import checkpoints
        from grm_jax.judging.sampler import EngineSampler
        from grm_jax.training.programs import model_config

        if not config.init:
            raise ValueError(
                "config.init is empty, and random weights write no critiques: name a model, or "
                "another config.rft.sampler"
            )
        cfg = model_config(config).replace(lora=None)

        @functools.cache
        def engine() -> Any:
            return EngineSampler(
                checkpoints.load(fetch(config.init), mesh=mesh, dtype=cfg.dtype, cfg=cfg), mesh
            )

        sampling = (self.max_new_tokens, self.temperature, self.top_p, self.top_k)
        return model(lambda requests: engine()(requests), tokenizer, *sampling, seed=config.seed)


def settings_of(name: str) -> dict[str, Any]:
    """Returns {setting: default} of a sampler; None for one that must be set.

    Raises ValueError for an unknown sampler.
    """
    fields, missing = dataclasses.fields(SAMPLERS[name]), dataclasses.MISSING
    return {f.name: None if f.default is missing else f.default for f in fields}


def chosen_settings(name: str, sampling: Mapping[str, Any]) -> Any:
    """Returns the settings of the sampler `name` from `rft.sampling`.

    Settings of another sampler are ignored: an experiment may name them too. Raises ValueError for
    an unknown sampler, a setting that no sampler has, or one that must be set and is not.
    """
    own = settings_of(name)
    if unknown := set(sampling).difference(*map(settings_of, SAMPLERS)):
        raise ValueError(
            f"config.rft.sampling.{min(unknown)} does not exist: the sampler {name!r} takes "
            f"{', '.join(own)}"
        )
    if missing := [
        key for key, default in own.items() if default is None and not sampling.get(key)
    ]:
        raise ValueError(
            f"config.rft.sampling.{missing[0]} is empty: the sampler {name!r} needs it"
        )
    try:
        return SAMPLERS[name](**{key: value for key, value in sampling.items() if key in own})
    except ValueError as error:
        raise ValueError(f"config.rft.sampling.{error}") from None


def make_sampler(config: Any, tokenizer: Any, mesh: Any) -> Sampler:
    """Returns the sampler that `config.rft` names. Raises ValueError as `chosen_settings`."""
    chosen = chosen_settings(config.rft.sampler, config.rft.sampling)
    return chosen.build(config, tokenizer, mesh)


# ---------------------------------------------------------------- samplers


def teacher(
    accuracy: float = 0.75, shortcut: float = 0.25, principles: bool = True, seed: int = 0
) -> Sampler:
    """Samples from the scripted critic of the judging world."""

    def write(request: CritiqueRequest) -> str:
        comparison = request.comparison
        best = 0 if comparison.n == 1 else best_index(comparison)
        return world_teacher.critique(
            comparison,
            request.order,
            random.Random(f"teacher/{seed}/{comparison.id}/{request.sample}"),
            accuracy,
            shortcut=shortcut,
            hint=best if request.hinted else None,
            principles=principles,
        )

    return lambda requests: [CritiqueReply(write(request), "stop") for request in requests]


def model(
    engine: Callable[[Sequence[Any]], Iterable[Any]],
    tokenizer: Any,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Sampler:
    """Samples from a model. engine: `judging.sampler.EngineSampler(model)`."""
    from grm_jax.sampling import Request

    stop = tuple(tokenizer.stop_ids)

    def sample(requests: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        prompts = [tokenizer.encode_chat(request.messages) for request in requests]
        # The sample's number is part of the item: two samples of one prompt must differ.
        items = [item_of([*prompt, one.sample]) for prompt, one in zip(prompts, requests)]
        replies: list[CritiqueReply | None] = [None] * len(requests)
        sampling = (max_new_tokens, temperature, top_p, top_k, stop, seed)
        for completion in engine([Request(p, 1, *sampling, i) for p, i in zip(prompts, items)]):
            i = completion.request_index
            if completion.finish == "error":
                log.warning("request %d was not sampled: %s", i, completion.error)
            else:
                ids = [int(id) for id in completion.tokens]
                ids = ids[:-1] if ids and ids[-1] in stop else ids
                replies[i] = CritiqueReply(tokenizer.decode(ids), completion.finish)
            report_reply(i, replies[i])
        return replies

    return sample


def file(path: str | Path) -> Sampler:
    """Returns critiques sampled elsewhere, in the file's order.

    A line is {"id", "text", "order", "hinted"}, with the id and the order of the training
    comparison (without an order: as it is; without "hinted": false), or an output row of `grm
    judge`, which is matched by the texts of query and responses: training places responses in
    another order than the file. All critiques of a row are taken, but those without a reply. Raises
    TrainingError with file and line for anything else.
    """
    queues: dict[tuple[str, bool], deque[CritiqueReply]] = defaultdict(deque)
    responses: dict[tuple[str, bool], Sequence[str]] = {}  # of a row, in its order
    for record in read_records(path):
        row, place = record.fields, f"{path}:{record.line}"
        if record.problem:
            raise TrainingError(f"{place}: {record.problem}")
        if row.get("error"):
            continue  # a comparison that was not judged
        samples = row.get("critiques", [row])
        texts = [one.get("text") if isinstance(one, dict) else None for one in samples]
        if "id" not in row or not all(isinstance(text, str) for text in texts):
            raise TrainingError(f"{place}: a sample needs an 'id' and a 'text'")
        key = str(row["id"])
        if "critiques" in row and "line" in row:
            try:
                judged = simplified(Comparison(row["query"], row["responses"]))
            except (KeyError, ValueError) as error:
                raise TrainingError(
                    f"{place}: a row of `grm judge` needs 'query' and 'responses': rows of private "
                    "benchmarks cannot be trained on"
                ) from error
            key = splits.content_digest(judged)
            responses[key, False] = judged.responses
        for one in samples:
            if one.get("status") != FAILED:
                queues[key, bool(one.get("hinted", False))].append(reply_from_json(one))

    def next_of(request: CritiqueRequest) -> CritiqueReply | None:
        comparison, n = request.comparison, request.comparison.n
        id, key = comparison.id, (splits.content_digest(comparison), request.hinted)
        if key not in queues:
            key = str(id), request.hinted
        if not (queue := queues.get(key)):
            return None
        reply = queue.popleft()
        order = tuple(range(n)) if reply.order is None else reply.order
        if shown := responses.get(key):
            places = _positions(shown, comparison.responses)
            order = tuple(places[i] if 0 <= i < n else i for i in order)
        if sorted(order) != list(range(n)):
            raise TrainingError(
                f"{path}: a sample of {id!r} has order {order}, which is not a permutation of "
                f"{n} responses"
            )
        return dataclasses.replace(reply, order=order)

    return lambda requests: [next_of(request) for request in requests]


def _positions(texts: Sequence[str], others: Sequence[str]) -> list[int]:
    """Returns the position of each text in `others`, which has the same; equal ones in turn."""
    positions: dict[str, deque[int]] = defaultdict(deque)
    for i, other in enumerate(others):
        positions[other].append(i)
    return [positions[text].popleft() for text in texts]


# ---------------------------------------------------------------- stored replies


def open_replies(folder: Any, shared: bool = False) -> RunStore:
    """Opens the store of a sampler's replies, a folder, local or a bucket's.

    shared: all processes sample, as with a model on several hosts. Raises SamplingError, on all of
    them, if they do not see the same files.
    """
    try:
        store = RunStore(folder, {"records": "critique replies"}, shared=shared)
    except StoreMismatch as error:
        raise SamplingError(str(error)) from error
    if store:
        log.info("%d replies of an earlier run in %s", len(store), folder)
    return store


def salts(config: Any) -> tuple[str, ...]:
    """Returns the salts of `stored` for `config.rft`: that of new replies, then those of old ones.

    A salt holds the settings that decide a reply. Earlier versions took all of `rft.sampling`.
    """
    rft, more = config.rft, [config.init] if config.rft.sampler == "self" else []
    own = settings_of(rft.sampler)
    deciding = {key: rft.sampling.get(key, own[key]) for key in own if key not in FETCHING}
    return tuple(
        json.dumps([rft.sampler, settings, *more], sort_keys=True, default=str)
        for settings in (deciding, dict(rft.sampling))
    )


def stored(sampler: Sampler, store: RunStore, salt: str = "", *old_salts: str) -> Sampler:
    """Returns the sampler with its replies kept in a store: hours of sampling survive a restart.

    A reply belongs to one prompt, order, sample number and `salt` (what else it depends on, such as
    a fingerprint of the policy). Replies under one of `old_salts` are found too. Replies that the
    sampler reports are stored every few seconds, whatever ends it. A request that failed for good
    is stored as {"text": null} and not repeated, so that a resumed run builds the same set; remove
    its line to repeat it. If too many requests of a call fail, the replies that came are stored and
    TooManyFailed is raised. A damaged reply is sampled again.
    """

    def sample(requests: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        count = len(store)
        keys = [_stored_key(request, store, (salt, *old_salts)) for request in requests]
        if damaged := count - len(store):
            log.warning("%s: %d damaged replies are sampled again", store.path, damaged)
        missing = {key: one for key, one in zip(keys, requests) if key not in store}
        if missing:
            writer, too_many = Writer(store, list(missing)), None
            try:
                with on_reply(writer.add):
                    replies = list(sampler(list(missing.values())))
            except TooManyFailed as error:
                replies = error.replies
                # A call may have few requests; earlier ones count with it, up to the window.
                window = max(len(replies), min(len(store) + len(replies), FAILURE_WINDOW))
                too_many = error if replies.count(None) > error.max_failed * window else None
            except BaseException:
                writer.flush()
                raise
            for i, (_, reply) in enumerate(zip(missing, replies, strict=True)):
                if reply or not too_many:
                    writer.set(i, reply)
            writer.flush()
            if too_many:
                raise too_many
        return [reply_from_json(record) for record in store.records(keys)]

    return sample


def _stored_key(request: CritiqueRequest, store: RunStore, salts: Sequence[str]) -> str:
    """The key under which the store holds a usable reply, else that of a new one."""
    keys = [_key(request, salt) for salt in salts]
    for key in keys:
        if key in store:
            if is_usable(store[key], request):
                return key
            store.discard(key)
    return keys[0]


def _key(request: CritiqueRequest, salt: str) -> str:
    """The key of a reply: the comparison's id, and a hash of all that the reply depends on."""
    fields = [request.messages, request.order, request.hinted, request.sample, salt]
    content = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return f"{request.comparison.id}/{hashlib.sha256(content).hexdigest()[:24]}"
