"""Writes goldens/*.npz: results of transformers and DeepMind's `gemma` for parity_cases.py.

    PEERS_PYTHON tests/models/make_goldens.py [FOLDER [FILE]]       about a minute

PEERS_PYTHON is an interpreter with the `bench` extra. If `gemma` and another peer require different
protobufs, put the newer one on PYTHONPATH.

Arrays per case: CASE/logits (float32), CASE/grad/NAME (a sample of the gradient of the mean
log-prob), CASE/logits_bf16 and CASE/embedded_bf16 (the scaled embeddings), CASE/generated (greedy
text). rewards.npz has, for each sequence classifier, CASE/rewards and CASE/grad/NAME (of the sum of
the rewards). DeepMind's parameters are arranged here by hand, independently of the package's tensor
map.
"""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"

import numpy as np  # noqa: E402
import parity_cases as cases  # noqa: E402
from parity_cases import CASES, PEERS, SCALARS, Case, batch, positions, sample, weights  # noqa: E402


def transformers_model(case: Case, dtype):
    import torch
    import transformers

    fields = dict(case.config)
    model_class = getattr(transformers, fields.pop("architectures")[0])
    if fields.pop("model_type").startswith("gemma"):
        fields.pop("hidden_act")
    model = model_class(model_class.config_class(**fields, attn_implementation="eager"))
    state = {name: torch.tensor(value) for name, value in weights(case).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype).eval()


def from_transformers(case: Case) -> dict[str, np.ndarray]:
    import torch

    tokens, mask = (torch.tensor(a, dtype=torch.long) for a in batch(case))
    position_ids = torch.tensor(positions(case), dtype=torch.long)
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": position_ids}
    model = transformers_model(case, torch.float32)
    logits = model(**inputs).logits
    out = {"logits": logits.detach().numpy()}
    if case.gradients:
        logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, tokens[:, 1:, None])[..., 0]
        logps.mean().backward()
        for name, parameter in model.named_parameters():
            out[f"grad/{name}"] = sample(parameter.grad.numpy())
    if case.bf16:
        with torch.no_grad():
            result = transformers_model(case, torch.bfloat16)(**inputs, output_hidden_states=True)
        out["logits_bf16"] = result.logits.float().numpy()
        out["embedded_bf16"] = result.hidden_states[0].float().numpy()
    if case == CASES[cases.STOP_CASE]:
        stops = {"eos_token_id": [*cases.STOPS], "pad_token_id": 0}
        prompt = tokens[:1, : cases.PROMPT]
        new = model.generate(prompt, do_sample=False, max_new_tokens=cases.NEW, **stops)
        out["generated"] = new[0, cases.PROMPT :].numpy()
    return out


def rewards_from_transformers(case: Case) -> dict[str, np.ndarray]:
    """Rewards of a sequence classifier, and a sample of the gradients of their sum."""
    import torch

    model = transformers_model(case, torch.float32)
    tokens, mask = (torch.tensor(a, dtype=torch.long) for a in batch(case))
    position_ids = torch.tensor(positions(case), dtype=torch.long)
    rewards = model(tokens, attention_mask=mask, position_ids=position_ids).logits[:, 0]
    rewards.sum().backward()
    gradients = {
        f"grad/{name}": sample(parameter.grad.numpy(), 24)
        for name, parameter in model.named_parameters()
    }
    return {"rewards": rewards.detach().numpy(), **gradients}


def deepmind_params(case: Case) -> dict:
    c, w = case.config, weights(case)
    d, h, n, k = c["hidden_size"], c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]
    params = {
        "embedder": {"input_embedding": w["model.embed_tokens.weight"]},
        "final_norm": {"scale": w["model.norm.weight"]},
    }
    for i in range(c["num_hidden_layers"]):

        def at(name, i=i):
            return w[f"model.layers.{i}.{name}.weight"]

        def heads(name, count, at=at):
            return at(name).reshape(count, h, d).transpose(0, 2, 1)

        attn = {
            "q_einsum": {"w": heads("self_attn.q_proj", n)},
            "kv_einsum": {
                "w": np.stack([heads("self_attn.k_proj", k), heads("self_attn.v_proj", k)])
            },
            "attn_vec_einsum": {"w": at("self_attn.o_proj").T.reshape(n, h, d)},
        }
        if case.family == "gemma3":
            attn |= {
                "_query_norm": {"scale": at("self_attn.q_norm")},
                "_key_norm": {"scale": at("self_attn.k_norm")},
            }
        params[f"layer_{i}"] = {
            "attn": attn,
            "mlp": {
                "gating_einsum": np.stack([at("mlp.gate_proj"), at("mlp.up_proj")]),
                "linear": at("mlp.down_proj").T.copy(),
            },
            "pre_attention_norm": {"scale": at("input_layernorm")},
            "post_attention_norm": {"scale": at("post_attention_layernorm")},
            "pre_ffw_norm": {"scale": at("pre_feedforward_layernorm")},
            "post_ffw_norm": {"scale": at("post_feedforward_layernorm")},
        }
    return params


def deepmind_model(case: Case):
    import jax.numpy as jnp
    from gemma.gm.nn import _config, _modules, _transformer

    c, kinds = case.config, _modules.AttentionType
    gemma3 = case.family == "gemma3"
    pattern = (kinds.LOCAL_SLIDING,) * (5 if gemma3 else 1) + (kinds.GLOBAL,)
    attention_types = _config.make_attention_layers_types(
        pattern, num_layers=c["num_hidden_layers"]
    )
    scales = _config.QueryPreAttentionNormalisation
    config = _config.TransformerConfig(
        num_embed=c["vocab_size"],
        embed_dim=c["hidden_size"],
        hidden_dim=c["intermediate_size"],
        num_heads=c["num_attention_heads"],
        head_dim=c["head_dim"],
        num_kv_heads=c["num_key_value_heads"],
        final_logit_softcap=c.get("final_logit_softcapping"),
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        use_qk_norm=gemma3,
        transpose_gating_einsum=True,
        attention_types=attention_types,
        # d_model // heads = 11, as in the 27B models.
        query_pre_attn_norm=scales.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS,
        attn_logits_soft_cap=c.get("attn_logit_softcapping"),
        sliding_window_size=c["sliding_window"],
        local_base_frequency=10_000,
        global_base_frequency=1_000_000 if gemma3 else 10_000,
        global_scale_factor=8.0 if gemma3 else 1.0,
    )
    return _transformer.Transformer(config=config, dtype=jnp.float32)


def from_deepmind(case: Case) -> dict[str, np.ndarray]:
    import jax
    import jax.numpy as jnp

    tokens, mask = batch(case)
    causal = np.tril(np.ones((tokens.shape[1],) * 2, bool)) & mask[:, None, :].astype(bool)
    model, params = deepmind_model(case), jax.tree.map(jnp.asarray, deepmind_params(case))

    def logits_of(params):
        return model.apply(
            {"params": params},
            jnp.asarray(tokens),
            positions=jnp.asarray(positions(case)),
            attention_mask=jnp.asarray(causal),
        ).logits

    def mean_logp(params):
        logps = jax.nn.log_softmax(logits_of(params)[:, :-1])
        return jnp.take_along_axis(logps, jnp.asarray(tokens)[:, 1:, None], axis=-1).mean()

    out = {"logits": np.asarray(logits_of(params), np.float32)}
    if case.gradients:
        for path, value in jax.tree_util.tree_leaves_with_path(jax.grad(mean_logp)(params)):
            name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/w")
            shared = name.endswith(("kv_einsum", "gating_einsum"))  # two arrays in one
            if shared:
                out |= {f"grad/{name}#{i}": sample(value[i]) for i in range(2)}
            else:
                out[f"grad/{name}"] = sample(value)
    return out


def main(folder: str | None = None, only: str | None = None) -> None:
    out = Path(folder) if folder else Path(__file__).parent / "goldens"
    out.mkdir(exist_ok=True)
    files: dict[str, tuple] = {
        "transformers": (from_transformers, {name: CASES[name] for name in PEERS["transformers"]}),
        "rewards": (rewards_from_transformers, SCALARS),
        "deepmind": (from_deepmind, {name: CASES[name] for name in PEERS["deepmind"]}),
    }
    for name, (compute, chosen) in files.items():
        if only not in (None, name):
            continue
        values = {
            f"{case_name}/{key}": v
            for case_name, case in chosen.items()
            for key, v in compute(case).items()
        }
        file = out / f"{name}.npz"
        np.savez_compressed(file, **values)
        print(f"{file}: {len(values)} arrays, {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
