"""Tests the choice of recomputation and micro-batches by the memory of a device."""

import itertools
import math

import jax
import pytest

from experiments import spct_tiny
from grm_jax.models import get_config
from grm_jax.models.config import REMAT
from grm_jax.sharding import make_mesh
from grm_jax.training import memory
from grm_jax.training.memory import Candidate
from grm_jax.training.programs import Program

GIB = 2**30


@pytest.fixture
def config():
    config = spct_tiny.get_config()
    config.model_overrides = dict(remat="auto", num_layers=2, windows=(64, None))
    config.mesh = dict(data=1, fsdp=2, tensor=1)
    for stage in ("rft", "rl", "meta_rm"):
        config[stage].micro_rows = -1
    return config


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(fsdp=2, devices=jax.devices()[:2])


def candidates(*estimates):
    return {Candidate("full", n): float(e) for n, e in enumerate(estimates)}


@pytest.mark.parametrize("limit", [12, 22, 32, 42, 52])
@pytest.mark.parametrize("error", [-10, -2, 0, 2, 20])
def test_the_search_ends_at_the_best_candidate_that_fits_after_few_compilations(limit, error):
    """Peaks are the estimates, all off by the same bytes."""
    sizes = [50, 40, 30, 20, 10]
    measured = []

    def measure(candidate):
        measured.append(candidate)
        peak = sizes[candidate.micro_rows] + error
        return peak if peak <= 1.5 * limit else math.inf  # the compiler gives no figure

    peaks = memory.search(candidates(*sizes), measure, limit)
    assert len(measured) == len(set(measured)) <= memory.MOST_COMPILED + 1
    fitting = [c for c in candidates(*sizes) if sizes[c.micro_rows] + error <= limit]
    measured_fitting = sorted(c for c, peak in peaks.items() if peak <= limit)
    assert measured_fitting[:1] == fitting[:1]


def test_candidates_recompute_least_first_and_then_take_most_sequences(config, mesh):
    choices = memory.open_candidates(config, "rl", mesh)
    rows = [c.micro_rows for c in choices if c.remat == "full"]
    assert rows == sorted(rows, reverse=True) and rows[-1] == 1
    assert rows[0] * 2 == config.rl.prompts  # two shards
    assert [name for name, _ in itertools.groupby(c.remat for c in choices)] == list(
        memory.POLICIES
    )
    assert [name for name in REMAT if name in memory.POLICIES] == list(memory.POLICIES)


def test_fixed_fields_stay_and_nothing_is_compiled(config, mesh):
    with config.unlocked(), config.ignore_type():
        config.model_overrides.remat = "outputs"
    config.rl.micro_rows = 2
    assert memory.choose(config, "rl", mesh, measure=pytest.fail) is config
    config.rl.micro_rows = -1
    chosen = memory.choose(config, "rl", mesh, GIB, measure=lambda config: 0.0)
    assert (chosen.model_overrides.remat, config.rl.micro_rows) == ("outputs", -1)
    assert chosen.rl.micro_rows == config.rl.prompts // 2


def test_less_memory_recomputes_more(config, mesh):
    """The estimates decide here; they are far from the compiler's at this size."""
    picked = []
    estimates = memory.estimate_peaks(
        config, "rft", mesh, memory.open_candidates(config, "rft", mesh)
    )
    for limit in sorted(set(estimates.values()), reverse=True):
        measure = lambda c: estimates[Candidate(c.model_overrides.remat, c.rft.micro_rows)]
        lines = []
        size = math.ceil(limit / (1 - memory.HEADROOM))
        chosen = memory.choose(config, "rft", mesh, size, measure, lines.append)
        picked.append(memory.POLICIES.index(chosen.model_overrides.remat))
        assert lines[0].startswith(f"rft: remat={chosen.model_overrides.remat}, micro_rows=")
    assert picked == sorted(picked) and (picked[0], picked[-1]) == (0, len(memory.POLICIES) - 1)


def test_a_choice_that_does_not_fit_says_so(config, mesh):
    lines = []
    chosen = memory.choose(config, "rft", mesh, GIB, lambda config: 1.0 * GIB, lines.append)
    assert (chosen.model_overrides.remat, chosen.rft.micro_rows) == ("full", 1)
    assert "peak 1.0 of 1.0 GiB per device: less than 10% free, and nothing needs less" in lines[0]


def test_the_compiler_measures_the_update_beside_the_reference(config, mesh, monkeypatch):
    programs, lines = [], []
    config.rl.reference_dtype = "bfloat16"
    monkeypatch.setattr(memory, "compiled_peak", lambda *args: programs.append(args) or GIB)
    memory.choose(config, "rl", mesh, 64 * GIB, report=lines.append)
    ((program, resident),) = programs
    assert program.name == "grpo_update"
    params = get_config("tiny_gemma2", num_layers=2).num_params
    assert 2 * params / 2 <= resident < 1.1 * 2 * params / 2  # over two devices
    chosen = "rl: remat=products, micro_rows=16, peak 1.0 of 64.0 GiB per device"
    assert lines == [f"{chosen}; compiled 1 of 20 choices"]


def test_the_peak_of_a_program_includes_what_is_resident():
    x = jax.ShapeDtypeStruct((1024,), "float32")
    peak = memory.compiled_peak(Program("double", jax.jit(lambda x: 2 * x), (x,)), 100)
    assert 100 + 2 * 4096 <= peak < 100 + 4 * 4096
