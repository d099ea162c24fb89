"""Tests the data of the meta reward model."""

import numpy as np

from grm_jax.training import meta_rm


def test_the_split_puts_all_critiques_of_a_comparison_on_one_side():
    names = np.array([f"c{i // 3}" for i in range(90)])
    tokens = np.zeros((90, 4), np.int32)
    data = meta_rm.Labelled(tokens, tokens, tokens[:, 0], np.zeros(90), names)
    train, held_out = meta_rm.split(data, 0.2, 0)
    assert len(held_out) == 18 and not set(names[train]) & set(names[held_out])
