"""Loads our folders with transformers, and saves toys with DeepMind's `gemma`, for our loader.

Runs in the peers' environment:

    python peer_folders.py serve FOLDER IN.npz OUT.npz     logits or scores of `tokens` and `mask`
    python peer_folders.py write CASE LAYOUT FOLDER        parameters of a case of parity_cases.py
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np


def serve(folder: str, inputs: str, output: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    batch = {k: torch.tensor(v, dtype=torch.long) for k, v in np.load(inputs).items()}
    architecture = AutoConfig.from_pretrained(folder).architectures[0]
    is_classifier = architecture.endswith("SequenceClassification")
    auto_class = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    model, info = auto_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], info
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["tokens"], attention_mask=batch["mask"]).logits
    np.savez(output, logits=logits.float().numpy())


def write(case: str, layout: str, folder: str) -> None:
    """Saves as gm.ckpts.save_params does. `gemma`'s own functions make older layouts."""
    import importlib.util
    from pathlib import Path

    import gemma
    import jax
    import orbax.checkpoint as ocp
    from make_goldens import deepmind_params
    from parity_cases import CASES

    # Imported as a single file, because its package requires a certain kauldron.
    file = Path(gemma.__file__).parent / "gm/ckpts/_compat.py"
    spec = importlib.util.spec_from_file_location("compat", file)
    compat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    tree = jax.tree.map(jax.numpy.asarray, deepmind_params(CASES[case]))
    if layout != "nested":
        tree = {f"transformer/{k}": v for k, v in compat.flatten_and_remap_params(tree).items()}
    if layout == "stacked":
        tree = compat.stack_params(tree, 2 if CASES[case].family == "gemma2" else 6)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(folder, tree)
    checkpointer.wait_until_finished()


if __name__ == "__main__":
    {"serve": serve, "write": write}[sys.argv[1]](*sys.argv[2:])
