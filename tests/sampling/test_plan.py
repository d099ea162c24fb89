"""Tests plan.fit: the number of batch rows, and the memory estimate in its error."""

import jax
import numpy as np
import pytest

from grm_jax.models import get_config
from grm_jax.sampling import Request, buckets, cache, plan
from grm_jax.sampling.plan import fit, state_bytes
from grm_jax.sharding import make_mesh

CFG = get_config("tiny_gemma2")


def requests(n, k, prompt=40, new=60):
    return [Request([5] * prompt, k, new, item=i) for i in range(n)]


def test_the_memory_estimate_equals_the_size_of_the_state():
    P, R, S, T = 2, 4, 48, 32
    state = jax.eval_shape(lambda: cache.empty_state(CFG, P, R, S, T))
    estimate = state_bytes(CFG, P, R, S, T)
    for name in ("prefix", "suffix"):
        arrays = jax.tree.leaves(getattr(state, name))
        assert estimate[name] == sum(a.size * a.dtype.itemsize for a in arrays)


def test_more_memory_never_fits_fewer_rows():
    batch = requests(64, 16)
    rows = []
    for memory in (2**i for i in range(17, 34)):
        try:
            P, R = fit(CFG, batch, memory=memory)
            rows.append(P * R)
        except MemoryError:
            rows.append(0)
    assert rows == sorted(rows) and rows[0] == 0 and rows[-1] == 128
    assert len(set(rows)) > 3


def test_the_planned_state_fits_the_memory():
    weights = CFG.num_params * 4
    for memory in (2**23, 2**25):
        P, R = fit(CFG, requests(64, 16), memory=memory)
        assert sum(state_bytes(CFG, P, R, 48, 224).values()) + weights < memory


def test_too_little_memory_for_one_row_is_an_error_with_the_memory_estimate():
    estimate = r"prompt 48 and 224 new tokens needs .* GiB per device beside .* GiB of weights"
    with pytest.raises(MemoryError, match=estimate + ".*tensor"):
        fit(CFG, requests(4, 8), memory=2 * 10**5)


def test_few_prompts_run_all_samples_at_once_and_many_prompts_get_more_slots():
    assert fit(CFG, requests(1, 32), memory=2**34) == (1, 32)
    assert fit(CFG, requests(8, 5), memory=2**34) == (8, 5)
    assert fit(CFG, requests(1000, 32), memory=2**34) == (64, 4)
    assert fit(CFG, requests(1000, 1), memory=2**34) == (64, 1)
    assert fit(CFG, requests(3, 4), prompt_slots=1, rows=2, memory=2**34) == (1, 2)
    assert fit(CFG, requests(100, 1), prompt_slots=12, rows=8, memory=2**34) == (12, 1)
    assert fit(CFG, requests(3, 4), prompt_slots=64, memory=2**34) == (4, 4)
    assert fit(CFG, [Request([], 4, 10)]) == (1, 1)  # the scheduler reports the error


def test_prompts_of_mostly_one_sample_get_one_row_each():
    mixed = requests(99, 1) + requests(1, 32)
    P, R = fit(CFG, mixed, memory=2**34)
    assert (P, R) == (64, 1)  # more rows per prompt would be idle


def test_a_mesh_fits_more_rows():
    small = 3 * 2**20
    with pytest.raises(MemoryError):
        fit(CFG, requests(8, 8, new=200), memory=2**17)
    one_device = fit(CFG, requests(8, 8), memory=small)
    with jax.set_mesh(make_mesh(1, 2, 4)):
        P, R = fit(CFG, requests(8, 8), memory=small)
    assert P * R > one_device[0] * one_device[1]


def test_memory_of_other_arrays_is_subtracted(monkeypatch):
    batch, memory = requests(64, 16), 2**23
    free = np.prod(fit(CFG, batch, memory=memory))
    assert np.prod(fit(CFG, batch, memory=memory, taken=2**22)) < free
    # By default the device's memory in use, less the weights.
    weights = CFG.num_params * 4
    monkeypatch.setattr(plan, "device_memory", lambda: (memory, weights + 2**22))
    assert fit(CFG, batch) == fit(CFG, batch, memory=memory, taken=2**22)
    with pytest.raises(MemoryError, match=r"GiB of other arrays.*use more devices on `tensor`"):
        fit(CFG, batch, memory=memory, taken=2**23)


def test_an_accelerator_gets_more_rows():
    batch = requests(128, 4)  # a rollout batch: few samples of many prompts
    assert fit(CFG, batch, 128, memory=2**34, platform="cpu") == (128, 1)
    assert fit(CFG, batch, 128, memory=2**34, platform="tpu") == (128, 2)
    with jax.set_mesh(make_mesh(1, 2, 4)):
        assert fit(CFG, batch, 128, memory=2**34, platform="tpu") == (128, 4)
    assert fit(CFG, requests(64, 32), memory=2**34, platform="tpu") == (64, 4)


def test_a_prefill_batch_has_prompts_for_every_shard():
    assert [buckets.prefill_batch(2048, n) for n in (1, 3, 64)] == [1, 2, 4]
    assert buckets.prefill_batch(2048, 64, shards=16) == 64  # 4 on each shard
    assert buckets.prefill_batch(16384, 5, shards=8) == 4


def test_a_fixed_batch_depends_on_the_samples_per_prompt_and_not_on_the_number_of_prompts():
    for k, batch in {1: (64, 1), 4: (32, 2), 8: (32, 2), 16: (8, 8), 32: (8, 8)}.items():
        assert {plan.fixed(CFG, requests(n, k)) for n in (1, 3, 100, 1000)} == {batch}
    assert plan.fixed(CFG, [Request([], 4, 10)]) == (1, 1)  # the scheduler reports the error


def test_a_fixed_batch_shrinks_to_the_memory(monkeypatch):
    whole = np.prod(plan.fixed(CFG, requests(9, 4)))
    monkeypatch.setattr(plan, "device_memory", lambda: (2**21, 0))
    assert 0 < np.prod(plan.fixed(CFG, requests(9, 4))) < whole
    monkeypatch.setattr(plan, "device_memory", lambda: (2**17, 0))
    with pytest.raises(MemoryError):
        plan.fixed(CFG, requests(9, 4))
