"""The programs that judging compiles: how many, when, and what the progress bar says meanwhile."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import weakref

import pytest
from flax import nnx

from grm_jax import Comparison, Judge, checkpoints
from grm_jax.data.world import make_items
from grm_jax.data.world.vocabulary import SIZE, vocabulary_path
from grm_jax.devices import watch_compilations
from grm_jax.judging.options import Options
from grm_jax.judging.progress import Progress
from grm_jax.judging.run import RunConfig
from grm_jax.judging.sampler import watch_sampling
from grm_jax.judging.scalar_head import padded_length
from grm_jax.models import build_model, get_config
from grm_jax.sampling import Request, plan
from grm_jax.sampling.programs import PROGRAMS

K, NEW = 8, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy judge of random weights, of a width that no other test compiles."""
    folder = tmp_path_factory.mktemp("judge") / "hf"
    config = get_config("tiny_gemma2", vocab_size=SIZE, d_ff=40, max_length=256)
    checkpoints.save(build_model(config, nnx.Rngs(0)), folder)
    shutil.copy(vocabulary_path(), folder / "tokenizer.model")
    (folder / "judge.json").write_text(json.dumps({"template": "compact", "max_new_tokens": NEW}))
    return folder


@pytest.fixture(scope="module")
def comparisons():
    return [Comparison(c.query, c.responses) for c in make_items("test", 0, 60)]


def write_rows(path, comparisons):
    rows = [{"query": c.query, "responses": list(c.responses)} for c in comparisons]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_programs_do_not_depend_on_the_number_of_comparisons(folder, comparisons):
    judge, options = Judge.load(folder), Options(k=K, max_new_tokens=NEW)
    programs, verdicts = [], []
    for chosen in (comparisons[:1], comparisons[:10], comparisons[10:], comparisons):
        with watch_compilations(lambda n, done: done and programs[-1].append(n)):
            programs.append([])
            verdicts.append(dict(judge.stream(chosen, options)))
    assert [len(numbers) for numbers in programs] == [PROGRAMS, 0, 0, 0]
    # Nor does a verdict: alone, among ten, and among sixty.
    assert verdicts[0][0] == verdicts[1][0] == verdicts[3][0]
    assert [verdicts[1][i] for i in range(10)] == [verdicts[3][i] for i in range(10)]


def test_a_second_process_compiles_nothing_and_the_bar_counts_programs(
    folder, comparisons, tmp_path
):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment.pop("XLA_FLAGS")  # one device
    bars = []
    for n in (1, 10):
        source = write_rows(tmp_path / f"{n}.jsonl", comparisons[:n])
        command = [sys.executable, "-m", "grm_jax.cli", "judge", source, tmp_path / f"{n}.out"]
        command += ["--model", folder, "--k", K]
        process = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        bars.append(process.stderr)
        assert len(list((tmp_path / "cache").glob("*-cache"))) == PROGRAMS
    assert all(re.search(rf"compiling \(1 of {PROGRAMS}\)", bar) for bar in bars)


def test_the_bar_names_the_program_that_compiles(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("in", 10, 0, RunConfig(), PROGRAMS) as progress:
        for n in range(1, PROGRAMS + 2):
            progress.compiling(n, done=False)
            progress.compiling(n, done=True)
    texts = re.findall(r"compiling \(\d of \d\)|judging", terminal.getvalue())
    assert texts[:4] == ["compiling (1 of 5)", "judging", "compiling (2 of 5)", "judging"]
    assert "compiling (5 of 5)" in texts and "compiling (6 of 6)" in texts  # a longer ring


def test_the_bar_shows_prompts_and_tokens_before_the_first_row(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("in", 10, 0, RunConfig(), PROGRAMS) as progress:
        progress.bar.mininterval = 0
        progress.sampled(3, 0)
        progress.sampled(2, 0)
        progress.sampled(0, 1200)
    texts = re.findall(r"\d+ prompts prefilled|[\d,]+ tokens", terminal.getvalue())
    assert texts == [
        "3 prompts prefilled",
        "5 prompts prefilled",
        *["1,200 tokens"] * 2,
    ]  # and at the end


def test_the_sampler_reports_every_prompt_and_token(folder, comparisons):
    judge, seen = Judge.load(folder), []
    with watch_sampling(judge.sampler, lambda *counts: seen.append(counts)):
        verdicts = list(judge.stream(comparisons[:3], k=K, max_new_tokens=NEW))
    list(judge.stream(comparisons[:1], k=K, max_new_tokens=NEW))  # reports nothing
    orders = {(i, c.order) for i, verdict in verdicts for c in verdict.critiques}
    prompts, tokens = map(sum, zip(*seen))
    assert prompts == len(orders)
    stops = sum(c.finish == "stop" for _, verdict in verdicts for c in verdict.critiques)
    assert tokens == sum(c.tokens for _, v in verdicts for c in v.critiques) + stops


def test_an_engine_does_not_keep_the_sampler_and_its_weights_alive(folder):
    sampler = Judge.load(folder).sampler
    engine, kept = sampler._engine([Request([5, 6], 8, NEW)]), weakref.ref(sampler)
    del sampler
    assert kept() is None and engine.P


def test_short_and_long_critiques_share_a_program():
    assert padded_length(20) == padded_length(100)


def test_a_small_model_on_a_cpu_updates_its_rows_less_often(folder):
    sampler, requests = Judge.load(folder).sampler, [Request([5, 6], 8, NEW)]
    assert sampler._engine(requests).idle == plan.SMALL_MODEL_IDLE > plan.IDLE
    assert dataclasses.replace(sampler, few_shapes=False)._engine(requests).idle == plan.IDLE
