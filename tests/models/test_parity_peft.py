"""Adapters of `peft` (make_adapters.py): logits and gradients are its own, and it loads ours."""

import numpy as np
import pytest
from make_adapters import ADAPTERS, FOURTH
from parity_cases import batch
from parity_ours import GOLDENS, LOGITS, distance, folder, golden, logits_of

from grm_jax.checkpoints import load

RESULTS = dict(np.load(GOLDENS / "adapters" / "results.npz"))
LANGUAGE_MODELS = [name for name, (case, _) in ADAPTERS.items() if not case.scalar]


def adapter(name):
    return GOLDENS / "adapters" / name


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_merged_adapter_has_the_logits_of_peft(name):
    case, _ = ADAPTERS[name]
    tokens, mask = batch(case)
    model = load(folder(case), dtype="float32", adapter=adapter(name))
    theirs = RESULTS[f"{name}/logits"]
    assert distance(logits_of(model, tokens, mask)[:, FOURTH], theirs) <= LOGITS
    assert distance(golden("transformers")[f"{name}/logits"][:, FOURTH], theirs) > 0.05
