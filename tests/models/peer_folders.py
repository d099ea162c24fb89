"""Loads our folders with transformers, and saves toys with DeepMind's `gemma`, for our loader.

Runs in the peers' environment:

    python peer_folders.py serve FOLDER IN.npz OUT.npz     logits or scores of `tokens` and `mask`
    python peer_folders.py write CASE LAYOUT FOLDER        parameters of a case of parity_cases.py
    python peer_folders.py export BYTES FOLDER             every family, as transformers saves it
    python peer_folders.py fields THEIRS OURS              compares the configs of all cases
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
    # A reward model keeps the output head of its own that its likelihood term reads.
    allowed = {"unexpected_keys": {"lm_head.weight"}} if is_classifier else {}
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not set(info[problem]) - allowed.get(problem, set()), info
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


def export(max_bytes: str, folder: str) -> None:
    """Saves FOLDER/CASE of every family and sequence classifier in files of at most max_bytes."""
    from make_goldens import transformers_model
    from parity_cases import CASES, SCALARS
    from torch import float32
    from transformers import GenerationConfig

    cases = {name: case for name, case in CASES.items() if name == case.family} | {
        f"{case.family}_scalar": case for case in SCALARS.values()
    }
    for name, case in cases.items():
        model = transformers_model(case, float32)
        model.generation_config = GenerationConfig(eos_token_id=[1, 27, 53], pad_token_id=0)
        model.save_pretrained(f"{folder}/{name}", max_shard_size=int(max_bytes))
        if case.scalar:
            model.generation_config.save_pretrained(f"{folder}/{name}")


def fields(theirs: str, ours: str) -> None:
    """Compares the configs of FOLDER/CASE but for the version, labels' names and derived keys."""
    from pathlib import Path

    from transformers import AutoConfig

    ignored = {"transformers_version", "_name_or_path", "id2label", "label2id", "problem_type"}
    ignored.add("sliding_window_pattern")  # of Gemma 3: layer_types has the same
    for folder in Path(theirs).iterdir():
        pair = [AutoConfig.from_pretrained(p).to_dict() for p in (folder, Path(ours, folder.name))]
        # Without an output head, a classifier of an untied model is saved as tied.
        headless = {"tie_word_embeddings"} if folder.name.endswith("_scalar") else set()
        keys = set().union(*pair) - ignored - headless
        values = {key: [config.get(key) for config in pair] for key in keys}
        differ = {key: (a, b) for key, (a, b) in values.items() if a != b}
        assert not differ, (folder.name, differ)


if __name__ == "__main__":
    commands = {"serve": serve, "write": write, "export": export, "fields": fields}
    commands[sys.argv[1]](*sys.argv[2:])
