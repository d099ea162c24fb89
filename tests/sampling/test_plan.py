"""How many rows fit: monotone in memory, and a refusal that names the bill."""

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


def test_the_bill_is_what_the_state_takes():
    P, R, S, T = 2, 4, 48, 32
    state = jax.eval_shape(lambda: cache.empty_state(CFG, P, R, S, T))
    parts = state_bytes(CFG, P, R, S, T)
    for name in ("prefix", "suffix"):
        assert parts[name] == sum(
            a.size * a.dtype.itemsize for a in jax.tree.leaves(getattr(state, name))
        )


def test_more_memory_never_fits_fewer_rows():
    asked = requests(64, 16)
    rows = []
    for memory in (2**i for i in range(17, 34)):
        try:
            P, R = fit(CFG, asked, memory=memory)
            rows.append(P * R)
        except MemoryError:
            rows.append(0)
    assert rows == sorted(rows) and rows[0] == 0 and rows[-1] == 128
    assert len(set(rows)) > 3


def test_what_fits_is_what_was_planned():
    weights = CFG.num_params * 4
    for memory in (2**23, 2**25):
        P, R = fit(CFG, requests(64, 16), memory=memory)
        assert sum(state_bytes(CFG, P, R, 48, 224).values()) + weights < memory


def test_no_room_for_one_row_names_the_bill():
    with pytest.raises(
        MemoryError,
        match=r"prompt 48 and 224 new tokens needs .* GiB per device beside .* GiB of weights.*tensor",
    ):
        fit(CFG, requests(4, 8), memory=2 * 10**5)


def test_few_prompts_run_all_their_samples_and_long_lists_are_spread():
    assert fit(CFG, requests(1, 32), memory=2**34) == (1, 32)
    assert fit(CFG, requests(8, 5), memory=2**34) == (8, 5)
    assert fit(CFG, requests(1000, 32), memory=2**34) == (64, 4)
    assert fit(CFG, requests(1000, 1), memory=2**34) == (64, 1)
    assert fit(CFG, requests(3, 4), prompt_slots=1, rows=2, memory=2**34) == (1, 2)
    assert fit(CFG, [Request([], 4, 10)]) == (1, 1)  # the scheduler says what is wrong with it


def test_requests_of_one_and_of_many_samples():
    mixed = requests(99, 1) + requests(1, 32)
    P, R = fit(CFG, mixed, memory=2**34)
    assert (P, R) == (64, 1)  # rows for 32 samples of each prompt would stand idle


def test_a_mesh_has_more_room():
    small = 3 * 2**20
    with pytest.raises(MemoryError):
        fit(CFG, requests(8, 8, new=200), memory=2**17)
    alone = fit(CFG, requests(8, 8), memory=small)
    with jax.set_mesh(make_mesh(1, 2, 4)):
        P, R = fit(CFG, requests(8, 8), memory=small)
    assert P * R > alone[0] * alone[1]


def test_what_others_hold_is_not_planned_with(monkeypatch):
    asked, memory = requests(64, 16), 2**23
    free = np.prod(fit(CFG, asked, memory=memory))
    assert np.prod(fit(CFG, asked, memory=memory, taken=2**22)) < free
    # By default what the device says: its weights are in use already, the rest is a training state's.
    weights = CFG.num_params * 4
    monkeypatch.setattr(plan, "device_memory", lambda: (memory, weights + 2**22))
    assert fit(CFG, asked) == fit(CFG, asked, memory=memory, taken=2**22)
    with pytest.raises(MemoryError, match=r"GiB of other arrays.*use more devices on `tensor`"):
        fit(CFG, asked, memory=memory, taken=2**23)


def test_an_accelerator_gets_enough_rows_to_be_busy():
    asked = requests(128, 4)  # a rollout batch: few samples of many prompts
    assert fit(CFG, asked, 128, memory=2**34, platform="cpu") == (128, 1)
    assert fit(CFG, asked, 128, memory=2**34, platform="tpu") == (128, 2)
    with jax.set_mesh(make_mesh(1, 2, 4)):
        assert fit(CFG, asked, 128, memory=2**34, platform="tpu") == (128, 4)
    assert fit(CFG, requests(64, 32), memory=2**34, platform="tpu") == (64, 4)


def test_prompts_fill_every_part_of_the_mesh_in_one_prefill():
    assert [buckets.prefill_batch(2048, n) for n in (1, 3, 64)] == [1, 2, 4]
    assert buckets.prefill_batch(2048, 64, shards=16) == 64  # 4 on each
    assert buckets.prefill_batch(16384, 5, shards=8) == 4
