"""The peers read what we write, and write what we read. Runs in the peers' environment.

python peer_folders.py serve FOLDER IN.npz OUT.npz      transformers opens a folder: logits (or a classifier's scores) of `tokens`, `mask`
python peer_folders.py write CASE FOLDER                DeepMind's own saver writes the parameters of a case of parity_cases.py
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np


def serve(folder: str, inputs: str, output: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    batch = {k: torch.tensor(v, dtype=torch.long) for k, v in np.load(inputs).items()}
    classifier = (
        AutoConfig.from_pretrained(folder).architectures[0].endswith("SequenceClassification")
    )
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    model, info = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {
        k: v
        for k, v in info.items()
        if v and k in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    assert not problems, problems
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["tokens"], attention_mask=batch["mask"]).logits
    np.savez(output, logits=logits.float().numpy())


def write(case: str, layout: str, folder: str) -> None:
    """As gm.ckpts.save_params does it: Orbax on the tree. The older layouts are made by the package's own functions."""
    import importlib.util
    from pathlib import Path

    import gemma
    import jax
    import orbax.checkpoint as ocp
    from make_goldens import deepmind_params
    from parity_cases import CASES

    file = (
        Path(gemma.__file__).parent / "gm/ckpts/_compat.py"
    )  # on its own: its package wants a certain kauldron
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
