"""Saves LoRA adapters of parity_cases.py with `peft`, and their results; computes with ours.

    PEERS_PYTHON tests/models/make_adapters.py write [FOLDER]            half a minute
    PEERS_PYTHON tests/models/make_adapters.py serve BASE ADAPTER OUT    logits of a folder of ours

PEERS_PYTHON is an interpreter with torch, transformers and peft. FOLDER (goldens/adapters) gets a
folder CASE for each adapter, and results.npz: CASE/logits (of a classifier, its rewards) at every
FOURTH position, and CASE/gradients of the mean log-prob (of the sum of the rewards): SAMPLES of
each tensor of the adapter file, in the order of their names.
"""

import sys
from pathlib import Path

import numpy as np
from parity_cases import CASES, SCALARS, Case, _uniform, batch, sample

FOURTH, SAMPLES = slice(3, None, 4), 16
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
# CASE -> (model, arguments of peft.LoraConfig). Each has another way to name modules and scales.
ADAPTERS: dict[str, tuple[Case, dict]] = {
    "gemma2": (
        CASES["gemma2"],
        {"r": 2, "lora_alpha": 6, "target_modules": "all-linear", "use_rslora": True},
    ),
    "gemma3": (
        CASES["gemma3"],
        {
            "r": 2, "lora_alpha": 9, "target_modules": ["q_proj", "o_proj", "down_proj"],
            "layers_to_transform": [1, 5, 7], "layers_pattern": "layers",
        },
    ),
    "llama3": (
        CASES["llama3"],
        {
            "r": 2, "lora_alpha": 4,
            "target_modules": r".*\.layers\.\d+\.(self_attn\.[qkv]_proj|mlp\.up_proj)",
            "rank_pattern": {"q_proj": 3, r"layers\.2\.mlp\.up_proj": 1},
            "alpha_pattern": {r"layers\.1\..*": 12},
        },
    ),
    "qwen2": (CASES["qwen2"], {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}),
    "qwen3": (
        CASES["qwen3"],
        {
            "r": 2, "lora_alpha": 5, "target_modules": [*ATTENTION, *MLP],
            "exclude_modules": ["k_proj", "model.layers.1.mlp.up_proj"],
        },
    ),
    "llama3_scalar": (
        SCALARS["llama3_right"],
        {"r": 2, "lora_alpha": 4, "target_modules": MLP, "task_type": "SEQ_CLS"},
    ),
}  # fmt: skip


def adapted(name: str):
    """Returns the peft model of a case; its adapter has weights of raw bits."""
    import torch
    from make_goldens import transformers_model
    from peft import LoraConfig, get_peft_model

    case, fields = ADAPTERS[name]
    model = transformers_model(case, torch.float32)
    model = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM"} | fields)).eval()
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    for seed, (_, parameter) in enumerate(sorted(trained)):
        values = _uniform(1000 + seed, tuple(parameter.shape))
        values *= (1.5 / parameter.shape[1]) ** 0.5
        parameter.data = torch.tensor(values, dtype=torch.float32)
        if name == "qwen2":  # an adapter on disk in bfloat16
            parameter.data = parameter.data.to(torch.bfloat16).float()
    return model, trained


def results(name: str) -> dict[str, np.ndarray]:
    import torch

    case, _ = ADAPTERS[name]
    model, trained = adapted(name)
    tokens, mask = (torch.tensor(a, dtype=torch.long) for a in batch(case))
    logits = model(input_ids=tokens, attention_mask=mask).logits
    if case.scalar:
        logits.sum().backward()
    else:
        logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, tokens[:, 1:, None])[..., 0]
        logps.mean().backward()
    gradients = {
        parameter_name.replace(".default", "").replace(".modules_to_save", ""): parameter.grad
        for parameter_name, parameter in trained
    }
    samples = [sample(gradients[tensor].numpy(), SAMPLES) for tensor in sorted(gradients)]
    logits = logits.detach().numpy()[:, slice(None) if case.scalar else FOURTH]
    return {f"{name}/logits": logits, f"{name}/gradients": np.concatenate(samples)}


def write(folder: str | None = None) -> None:
    import torch

    root = Path(folder) if folder else Path(__file__).parent / "goldens" / "adapters"
    root.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for name in ADAPTERS:
        arrays |= results(name)
        model, _ = adapted(name)
        if name == "qwen2":
            model = model.to(torch.bfloat16)
        model.save_pretrained(root / name)
        (root / name / "README.md").unlink()
    np.savez_compressed(root / "results.npz", **arrays)
    print(f"{root}: {sum(f.stat().st_size for f in root.rglob('*') if f.is_file()) / 1e3:.0f} kB")


def serve(base: str, adapter: str, output: str) -> None:
    """Loads a base and an adapter that we saved; checks that peft finds and uses every tensor."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    is_classifier = "SEQ_CLS" in (Path(adapter) / "adapter_config.json").read_text()
    auto = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    config = AutoConfig.from_pretrained(base)
    if is_classifier:
        config.num_labels = 1
        config.pad_token_id = 0
    model = auto.from_pretrained(
        base, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    model = PeftModel.from_pretrained(model, adapter).eval()
    loaded = model.load_adapter(adapter, "again")
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    assert not [key for key in loaded.missing_keys if "again" in key], loaded.missing_keys
    tokens, mask = (torch.tensor(a, dtype=torch.long) for a in batch(CASES["llama3_right"]))
    with torch.no_grad():
        unmerged = model(input_ids=tokens, attention_mask=mask).logits.numpy()
        merged = model.merge_and_unload()(input_ids=tokens, attention_mask=mask).logits.numpy()
    np.savez(output, logits=unmerged, merged=merged)


if __name__ == "__main__":
    {"write": write, "serve": serve}[sys.argv[1]](*sys.argv[2:])
