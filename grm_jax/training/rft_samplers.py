"""Where the critiques of rejective fine-tuning come from: the scripted teacher, a model, an endpoint, or a file.

Each function returns a sampler: a function from what is wanted to replies (see `rft_data.Sampler`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import inspect
import json
import logging
import os
import random
import time
import urllib.error
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from grm_jax.data.records import Record, read_records
from grm_jax.data.world import teacher as world_teacher
from grm_jax.storage import as_path, read_lines, write_atomic
from grm_jax.training.rft_data import CritiqueReply, CritiqueRequest, Sampler, best_index

log = logging.getLogger(__name__)

SAMPLERS = ("teacher", "file", "endpoint", "model")
_RETRIED = (408, 409, 429, 500, 502, 503, 504)
JUDGED = 200  # requests over which a journal judges the share of failures, where it has so many


class SamplingError(RuntimeError):
    """Samples cannot be had, or not by all processes alike."""


class TooManyFailed(SamplingError):
    """More than the share `max_failed` of the requests of one call failed for good. replies: of that call, None where it failed."""

    def __init__(
        self,
        replies: list[CritiqueReply | None],
        asked: int,
        failed: int,
        max_failed: float,
        reason: str,
    ):
        super().__init__(
            f"{failed} of {asked} requests failed, more than the share of {max_failed:g}; {reason}"
        )
        self.replies, self.max_failed = replies, max_failed


def teacher(
    accuracy: float = 0.75, shortcut: float = 0.25, principles: bool = True, seed: int = 0
) -> Sampler:
    """The scripted critic of the judging world. Arguments as in `data.teacher.critique`."""

    def sample(wanted: Sequence[CritiqueRequest]) -> list[CritiqueReply]:
        replies = []
        for one in wanted:
            rng = random.Random(f"teacher/{seed}/{one.comparison.id}/{one.sample}")
            text = world_teacher.critique(
                one.comparison,
                one.order,
                rng,
                accuracy,
                shortcut=shortcut,
                hint=_best(one) if one.hinted else None,
                principles=principles,
            )
            replies.append(CritiqueReply(text, "stop"))
        return replies

    return sample


def settings_of(name: str) -> dict[str, object]:
    """{setting: its default} of the sampler `name`, None for one that has to be given. Raises ValueError for a sampler that does not exist."""
    made_here = {"seed", "principles", "runner", "tokenizer"}
    functions: dict[str, Callable] = {
        "teacher": teacher,
        "file": file,
        "endpoint": endpoint,
        "model": model,
    }
    if name not in functions:
        *others, last = functions
        raise ValueError(f"rft.sampler {name!r} is not known: use {', '.join(others)} or {last}")
    found: dict[str, object] = {"path": None} if name == "model" else {}
    for key, parameter in inspect.signature(functions[name]).parameters.items():
        if key not in made_here:
            found[key] = None if parameter.default is parameter.empty else parameter.default
    return found


def chosen_settings(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """What of `rft.sampling` is for the sampler `name`; what is for another one is left out, as an experiment may name it too.

    Raises ValueError for a setting that no sampler has, or one that is missing.
    """
    own = settings_of(name)
    known = {key for other in SAMPLERS for key in settings_of(other)}
    if unknown := set(given) - known:
        raise ValueError(
            f"config.rft.sampling.{min(unknown)} does not exist: the sampler {name!r} takes {', '.join(own)}"
        )
    if missing := [key for key, default in own.items() if default is None and not given.get(key)]:
        raise ValueError(
            f"config.rft.sampling.{missing[0]} is empty: the sampler {name!r} needs it"
        )
    return {key: value for key, value in given.items() if key in own}


def _best(one: CritiqueRequest) -> int:
    return 0 if one.comparison.n == 1 else best_index(one.comparison)


def model(
    runner,
    tokenizer,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
) -> Sampler:
    """A model of ours. runner: `judging.sampler.engine_sampler(model)`, or anything that takes its requests."""
    from grm_jax.judging.orders import item_of
    from grm_jax.sampling import Request

    def sample(wanted: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        requests = []
        for one in wanted:
            prompt = tokenizer.encode_chat(one.messages)
            # The sample's number is part of the item: two samples of one prompt must not be the same text.
            item = item_of([*prompt, one.sample])
            settings = (
                max_new_tokens,
                temperature,
                top_p,
                top_k,
                tuple(tokenizer.stop_ids),
                seed,
                item,
            )
            requests.append(Request(prompt, 1, *settings))
        replies: list[CritiqueReply | None] = [None] * len(requests)
        for row in runner(requests):
            if row.finish == "error":
                log.warning("request %d was not sampled: %s", row.request_index, row.error)
                continue
            ids = [int(i) for i in row.tokens]
            ids = ids[:-1] if ids and ids[-1] in tokenizer.stop_ids else ids
            replies[row.request_index] = CritiqueReply(tokenizer.decode(ids), row.finish)
        return replies

    return sample


def endpoint(
    url: str,
    model: str,
    max_new_tokens: int,
    temperature: float = 1.0,
    key_variable: str = "OPENAI_API_KEY",
    parallel: int = 16,
    retries: int = 5,
    timeout: float = 120.0,
    max_failed: float = 0.05,
    pause: float = 1.0,
) -> Sampler:
    """An OpenAI-compatible server.

    Args:
      url: Base address; "/chat/completions" is added.
      model: Name of the model there.
      key_variable: Environment variable that holds the key; sent as a bearer token if it is set.
      parallel: Requests in flight.
      retries: Further tries after a time-out, a refused connection, or a status that may pass (429, 5xx).
      timeout: Seconds for one try.
      max_failed: Share of requests that may fail for good; above it TooManyFailed is raised, with the last reason.
        With a journal, a call of a few requests is judged together with what was asked before it.
      pause: Seconds before the first retry, doubled each time.
    """
    address = url.rstrip("/") + "/chat/completions"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(key_variable):
        headers["Authorization"] = f"Bearer {key}"

    def ask(one: CritiqueRequest) -> CritiqueReply | str:
        body = {
            "model": model,
            "messages": one.messages,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
        }
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        reason = ""
        for attempt in range(retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=timeout) as response:
                    choice = json.load(response)["choices"][0]
                return CritiqueReply(
                    choice["message"]["content"] or "", choice.get("finish_reason")
                )
            except urllib.error.HTTPError as error:
                reason = f"{address} answered {error.code}: {error.read()[:200].decode(errors='replace')}"
                if error.code not in _RETRIED:
                    return reason
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                reason = f"{address}: {type(error).__name__}: {error}"
            if attempt < retries:
                time.sleep(pause * 2**attempt)
        return reason

    def sample(wanted: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
            results = list(pool.map(ask, wanted))
        reasons = [result for result in results if isinstance(result, str)]
        if reasons:
            log.warning(
                "%d of %d requests failed, the last with: %s",
                len(reasons),
                len(results),
                reasons[-1],
            )
        replies = [None if isinstance(result, str) else result for result in results]
        if len(reasons) > max_failed * len(results):
            raise TooManyFailed(replies, len(results), len(reasons), max_failed, reasons[-1])
        return replies

    return sample


def journaled(sampler: Sampler, folder, salt: str = "", together: bool = False) -> Sampler:
    """The same sampler with a memory: each call's replies become a file in `folder`, local or a bucket's, and are never asked for again.

    Hours of sampling survive an interruption. A reply belongs to one comparison, order, sample number and kind of prompt, and to
    `salt` (what else it depends on: the policy's fingerprint, say). A request that failed for good is a row without text and not made
    again either (remove the row to have it made), so that a run that goes on builds the same set. Where too many of a call
    failed, what did come is kept, the failed ones will be asked again, and TooManyFailed is raised.

    Args:
      together: every process calls the sampler and gets all replies, as with a model on several hosts; process 0 writes. Raises
        SamplingError, on all of them, where the processes do not see the same files.
    """
    folder = as_path(folder)
    parts = sorted(folder.glob("*.jsonl")) if folder.exists() else []
    known: dict[str, CritiqueReply | None] = {}
    for row in (json.loads(line) for part in parts for line in read_lines(part)):
        known[row["key"]] = None if row["text"] is None else _reply_of(row)
    if together and jax.process_count() > 1:
        seen = multihost_utils.process_allgather(
            np.array([zlib.crc32("\n".join(sorted(known)).encode())])
        )
        if len(np.unique(seen)) > 1:
            raise SamplingError(
                f"the processes see different files in {folder}: give a workdir that all of them share"
            )
    if known:
        log.info("%d replies of an earlier start in %s", len(known), folder)

    def sample(wanted: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        keys = [_key(one, salt) for one in wanted]
        missing = [i for i, key in enumerate(keys) if key not in known]
        if missing:
            too_many = None
            try:
                replies = sampler([wanted[i] for i in missing])
            except TooManyFailed as error:
                replies = error.replies
                # Of a handful of requests one is already a great share: what was asked before counts with them.
                asked = max(len(replies), min(len(known) + len(replies), JUDGED))
                too_many = error if replies.count(None) > error.max_failed * asked else None
            new = {
                keys[i]: reply
                for i, reply in zip(missing, replies, strict=True)
                if reply is not None or not too_many
            }
            known.update(new)
            number = int(parts[-1].stem) + 1 if parts else 0
            parts.append(folder / f"{number:06d}.jsonl")
            if new and (not together or jax.process_index() == 0):
                rows = [
                    {"key": key, **(dataclasses.asdict(reply) if reply else {"text": None})}
                    for key, reply in new.items()
                ]
                write_atomic(parts[-1], "".join(json.dumps(row) + "\n" for row in rows))
            if too_many:
                raise too_many
        return [known.get(key) for key in keys]

    return sample


def _reply_of(row: dict) -> CritiqueReply:
    return CritiqueReply(
        row["text"], row["finish"], None if row["order"] is None else tuple(row["order"])
    )


def _key(one: CritiqueRequest, salt: str) -> str:
    """What a reply is an answer to: a hash of the prompt, the sample's number and the salt."""
    prompt = json.dumps([one.messages, one.order, one.hinted, one.sample, salt], ensure_ascii=False)
    return f"{one.comparison.id}/{hashlib.sha256(prompt.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def file(path: str | Path) -> Sampler:
    """Samples made elsewhere, as JSON lines, matched to comparisons by id and used in the file's order.

    A line is {"id", "text", "order", "hinted"} (order: the given one if absent, hinted: false if absent), or an output
    row of `grm judge`, whose critiques are all taken. Raises ValueError with file and line for anything else.
    """
    replies: dict[tuple[str, bool], list[CritiqueReply]] = defaultdict(list)
    for record in read_records(path):
        for identity, hinted, reply in _samples_of(record, f"{path}:{record.line}"):
            replies[identity, hinted].append(reply)
    taken: dict[tuple[str, bool], int] = defaultdict(int)

    def sample(wanted: Sequence[CritiqueRequest]) -> list[CritiqueReply | None]:
        found: list[CritiqueReply | None] = []
        for one in wanted:
            key = (str(one.comparison.id), one.hinted)
            number, taken[key] = taken[key], taken[key] + 1
            reply = replies[key][number] if number < len(replies[key]) else None
            if reply is not None:
                order = tuple(range(one.comparison.n)) if reply.order is None else reply.order
                if sorted(order) != list(range(one.comparison.n)):
                    raise ValueError(
                        f"{path}: a sample of {one.comparison.id!r} has order {order}, not a permutation"
                    )
                reply = CritiqueReply(reply.text, reply.finish, order)
            found.append(reply)
        return found

    return sample


def _samples_of(line: Record, where: str) -> list[tuple[str, bool, CritiqueReply]]:
    if line.problem:
        raise ValueError(f"{where}: {line.problem}")
    record = line.fields
    rows = record.get("critiques", [record])
    if "id" not in record or not all(
        isinstance(row, dict) and isinstance(row.get("text"), str) for row in rows
    ):
        raise ValueError(f"{where}: a sample needs an 'id' and a 'text'")
    found = []
    for row in rows:
        order = tuple(row["order"]) if row.get("order") is not None else None
        reply = CritiqueReply(row["text"], row.get("finish"), order)
        found.append((str(record["id"]), bool(row.get("hinted", False)), reply))
    return found
