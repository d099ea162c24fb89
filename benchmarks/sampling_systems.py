"""One system of the sampling benchmark in one process: reads the shared weights, warms up once, samples once more under the clock.

    PYTHON benchmarks/sampling_systems.py SYSTEM WORK.json      prints one line of JSON with seconds, CPU seconds and peak memory

Every system gets the same weights, prompts and number of new tokens, draws at temperature 1 from the whole distribution, and never stops early.
Each keeps its compiled programs from the warm-up, as it would in a long run. Peers are imported in their own functions: each lives in its own
environment. WORK.json: {"folder", "prompts": [[id, ...]], "k", "new", "cores"}.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np


def ours(work, config):
    from grm_jax.checkpoints import load
    from grm_jax.sampling import Engine, Request

    model = load(work["folder"], dtype="float32")
    engine = Engine(model, len(work["prompts"]), work["k"])

    def run(seed):
        requests = [
            Request(p, work["k"], work["new"], seed=seed, item=i)
            for i, p in enumerate(work["prompts"])
        ]
        return sum(len(row.tokens) for row in engine.run(requests))

    return run


class Numbers:
    """A tokenizer for peers that insist on one: a text is its ids in decimal."""

    @staticmethod
    def encode(text, **_):
        return [int(i) for i in text.split()]

    @staticmethod
    def decode(ids, **_):
        return " ".join(str(int(i)) for i in np.asarray(ids).reshape(-1))


def texts(work):
    return [" ".join(map(str, p)) for p in work["prompts"] for _ in range(work["k"])]


def tensors(work):
    from safetensors.numpy import load_file

    return load_file(Path(work["folder"]) / "model.safetensors")


def tunix_tokenizer(tokenizer_adapter):
    class Tokenizer(Numbers, tokenizer_adapter.TokenizerAdapter):
        def __init__(self):
            pass

        def encode(self, text, **_):
            return Numbers.encode(
                text
            )[
                1:
            ]  # BOS comes in front, and a prompt one token too long would be padded to a power of two

        def bos_id(self):
            return 2

        def eos_id(self):
            return 1

        def pad_id(self):
            return 0

        def dedup_bos_ids(self, ids):
            return ids

    return Tokenizer()


def tunix(work, config):
    import jax.numpy as jnp
    from flax import nnx
    from tunix.generate import sampler, tokenizer_adapter
    from tunix.models.gemma import model as gemma

    kinds = (gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL)
    shape = gemma.ModelConfig(
        num_layers=config["num_hidden_layers"], num_embed=config["vocab_size"], embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"], num_heads=config["num_attention_heads"], head_dim=config["head_dim"],
        num_kv_heads=config["num_key_value_heads"], final_logit_softcap=config["final_logit_softcapping"], use_post_attn_norm=True,
        use_post_ffw_norm=True, attention_types=kinds * (config["num_hidden_layers"] // 2),
        attn_logits_soft_cap=config["attn_logit_softcapping"], sliding_window_size=config["sliding_window"],
    )  # fmt: skip
    model = gemma.Gemma(shape, rngs=nnx.Rngs(0))
    w, width, head, N, K = (
        tensors(work),
        config["hidden_size"],
        config["head_dim"],
        shape.num_heads,
        shape.num_kv_heads,
    )

    def put(param, value):
        assert param[...].shape == value.shape, (param[...].shape, value.shape)
        param.value = jnp.asarray(value)

    put(model.embedder.input_embedding, w["model.embed_tokens.weight"])
    put(model.final_norm.scale, w["model.norm.weight"])
    for i, layer in enumerate(model.layers):

        def at(name, i=i):
            return w[f"model.layers.{i}.{name}.weight"]

        def heads(name, n, at=at):
            return at(name).reshape(n, head, width).transpose(0, 2, 1)

        put(layer.attn.q_einsum.w, heads("self_attn.q_proj", N))
        put(
            layer.attn.kv_einsum.w,
            np.stack([heads("self_attn.k_proj", K), heads("self_attn.v_proj", K)]),
        )
        put(layer.attn.attn_vec_einsum.w, at("self_attn.o_proj").T.reshape(N, head, width))
        for name in ("gate_proj", "up_proj", "down_proj"):
            put(getattr(layer.mlp, name).kernel, at(f"mlp.{name}").T)
        norms = {
            "pre_attention_norm": "input_layernorm",
            "post_attn_norm": "post_attention_layernorm",
            "pre_ffw_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
        for ours_name, name in norms.items():
            put(getattr(layer, ours_name).scale, at(name))
    length = len(work["prompts"][0])
    cache = sampler.CacheConfig(
        length + work["new"], shape.num_layers, shape.num_kv_heads, shape.head_dim
    )
    sample = sampler.Sampler(model, tunix_tokenizer(tokenizer_adapter), cache)

    def run(seed):
        # top_p = 1 is how it is asked to sample; without it, it is greedy whatever the temperature.
        out = sample(
            texts(work),
            work["new"],
            max_prompt_length=length,
            temperature=1.0,
            top_p=1.0,
            seed=seed,
            eos_tokens=[-1],
        )
        return sum(len(np.asarray(t)) for t in out.tokens)

    return run


def deepmind(work, config):
    import jax.numpy as jnp
    from gemma.gm.nn import _config, _modules, _transformer
    from gemma.gm.text import _sampler, _sampling, _tokenizer

    w, width, head = tensors(work), config["hidden_size"], config["head_dim"]
    N, K = config["num_attention_heads"], config["num_key_value_heads"]
    kinds = (_modules.AttentionType.LOCAL_SLIDING, _modules.AttentionType.GLOBAL)
    shape = _config.TransformerConfig(
        num_embed=config["vocab_size"], embed_dim=width, hidden_dim=config["intermediate_size"], num_heads=N, head_dim=head,
        num_kv_heads=K, final_logit_softcap=config["final_logit_softcapping"], use_post_attn_norm=True, use_post_ffw_norm=True,
        transpose_gating_einsum=True, attention_types=kinds * (config["num_hidden_layers"] // 2),
        query_pre_attn_norm=_config.QueryPreAttentionNormalisation.BY_ONE_OVER_SQRT_HEAD_DIM,
        attn_logits_soft_cap=config["attn_logit_softcapping"], sliding_window_size=config["sliding_window"],
    )  # fmt: skip
    params = {
        "embedder": {"input_embedding": w["model.embed_tokens.weight"]},
        "final_norm": {"scale": w["model.norm.weight"]},
    }
    for i in range(config["num_hidden_layers"]):

        def at(name, i=i):
            return w[f"model.layers.{i}.{name}.weight"]

        def heads(name, n, at=at):
            return at(name).reshape(n, head, width).transpose(0, 2, 1)

        params[f"layer_{i}"] = {
            "attn": {
                "q_einsum": {"w": heads("self_attn.q_proj", N)},
                "kv_einsum": {
                    "w": np.stack([heads("self_attn.k_proj", K), heads("self_attn.v_proj", K)])
                },
                "attn_vec_einsum": {"w": at("self_attn.o_proj").T.reshape(N, head, width)},
            },
            "mlp": {
                "gating_einsum": np.stack([at("mlp.gate_proj"), at("mlp.up_proj")]),
                "linear": at("mlp.down_proj").T.copy(),
            },
            "pre_attention_norm": {"scale": at("input_layernorm")},
            "post_attention_norm": {"scale": at("post_attention_layernorm")},
            "pre_ffw_norm": {"scale": at("pre_feedforward_layernorm")},
            "post_ffw_norm": {"scale": at("post_feedforward_layernorm")},
        }
    params = {name: _device(value, jnp) for name, value in params.items()}

    class Tokenizer(_tokenizer.Tokenizer):
        VERSION = 0
        special_tokens = _tokenizer.Gemma2Tokenizer.special_tokens

        def encode(self, text, *, add_bos=False, add_eos=False):
            return Numbers.encode(text)

        def decode(self, ids):
            return Numbers.decode(ids)

    length = len(work["prompts"][0])
    special = Tokenizer.special_tokens
    sampler = _sampler.Sampler(
        model=_transformer.Transformer(config=shape, dtype=jnp.float32), params=params, tokenizer=Tokenizer(path=""),
        forbidden_tokens=(int(special.EOS), int(special.END_OF_TURN)), cache_length=length + work["new"], max_out_length=work["new"],
        pad_length=length, sampling=_sampling.RandomSampling(temperature=1.0),
    )  # fmt: skip

    def run(seed):
        out = sampler.sample(texts(work), max_new_tokens=work["new"], rng=seed, return_state=True)
        return int(np.asarray(out.state.predicted_tokens).size)

    return run


def _device(tree, jnp):
    if isinstance(tree, dict):
        return {name: _device(value, jnp) for name, value in tree.items()}
    return jnp.asarray(tree)


def transformers(work, config):
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(work["cores"])
    model = AutoModelForCausalLM.from_pretrained(
        work["folder"], dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.tensor([p for p in work["prompts"] for _ in range(work["k"])])
    how = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=work["new"], min_new_tokens=work["new"], use_cache=True,
        pad_token_id=0, eos_token_id=None, bos_token_id=2,
    )  # fmt: skip
    model.generation_config = how

    def run(seed):
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), generation_config=how
            )
        return out.shape[0] * (out.shape[1] - tokens.shape[1])

    return run


SYSTEMS = {"grm_jax": ours, "tunix": tunix, "gemma": deepmind, "transformers": transformers}


def main(system: str, work_path: str) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    work = json.loads(Path(work_path).read_text())
    config = json.loads((Path(work["folder"]) / "config.json").read_text())
    run = SYSTEMS[system](work, config)
    start = time.perf_counter()
    run(0)
    warm_up = time.perf_counter() - start
    start, cpu = time.perf_counter(), time.process_time()
    tokens = run(1)
    result = {
        "system": system,
        "tokens": tokens,
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "warm_up_seconds": warm_up,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
