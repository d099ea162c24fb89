"""Runs one system of the sampling benchmark in one process, for sampling.py.

    PYTHON benchmarks/sampling_systems.py SYSTEM WORK.json

Prints one line of JSON: seconds, CPU seconds, peak memory. Every system gets the same weights,
prompts and number of new tokens, samples at temperature 1 from the whole distribution, and never
stops early. It warms up once and then samples under the clock with the programs it compiled. Each
peer is imported in its own function, because each lives in its own environment.
WORK.json: {"folder", "prompts": [[id, ...]], "k", "new", "cores"}.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Work = dict[str, Any]
Config = dict[str, Any]
Run = Callable[[int], int]  # seed -> number of sampled tokens


def ours(work: Work, config: Config) -> Run:
    from grm_jax.checkpoints import load
    from grm_jax.sampling import Engine, Request

    model = load(work["folder"], dtype="float32")
    engine = Engine(model, len(work["prompts"]), work["k"])

    def run(seed: int) -> int:
        requests = [
            Request(prompt, work["k"], work["new"], seed=seed, item=i)
            for i, prompt in enumerate(work["prompts"])
        ]
        return sum(len(completion.tokens) for completion in engine.run(requests))

    return run


class DecimalTokenizer:
    """A tokenizer for peers that insist on one: a text is its ids in decimal."""

    @staticmethod
    def encode(text: str, **_: Any) -> list[int]:
        return [int(i) for i in text.split()]

    @staticmethod
    def decode(ids: Any, **_: Any) -> str:
        return " ".join(str(int(i)) for i in np.asarray(ids).reshape(-1))


def texts(work: Work) -> list[str]:
    """Each prompt k times, as a text of ids."""
    return [" ".join(map(str, p)) for p in work["prompts"] for _ in range(work["k"])]


class Weights:
    """The shared weights in the layout that Tunix and DeepMind's gemma use."""

    def __init__(self, work: Work, config: Config):
        from safetensors.numpy import load_file

        self.tensors = load_file(Path(work["folder"]) / "model.safetensors")
        self.width, self.head = config["hidden_size"], config["head_dim"]
        self.N, self.K = config["num_attention_heads"], config["num_key_value_heads"]
        self.embedding = self.tensors["model.embed_tokens.weight"]
        self.final_norm = self.tensors["model.norm.weight"]

    def layer(self, i: int) -> dict[str, np.ndarray]:
        """Returns q (N, D, H), kv (2, K, D, H), o (N, H, D), gate, up and down (out, in), norms."""

        def weight(name: str) -> np.ndarray:
            return self.tensors[f"model.layers.{i}.{name}.weight"]

        def heads(name: str, n: int) -> np.ndarray:
            projection = weight(f"self_attn.{name}_proj")
            return projection.reshape(n, self.head, self.width).transpose(0, 2, 1)

        return {
            "q": heads("q", self.N),
            "kv": np.stack([heads("k", self.K), heads("v", self.K)]),
            "o": weight("self_attn.o_proj").T.reshape(self.N, self.head, self.width),
            "gate": weight("mlp.gate_proj"),
            "up": weight("mlp.up_proj"),
            "down": weight("mlp.down_proj"),
            "pre_attention": weight("input_layernorm"),
            "post_attention": weight("post_attention_layernorm"),
            "pre_ffw": weight("pre_feedforward_layernorm"),
            "post_ffw": weight("post_feedforward_layernorm"),
        }


def gemma_shape(config: Config, kinds: tuple[Any, Any]) -> dict[str, Any]:
    """Returns what the model configs of Tunix and of DeepMind's gemma call by the same names."""
    return {
        "num_embed": config["vocab_size"],
        "embed_dim": config["hidden_size"],
        "hidden_dim": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "head_dim": config["head_dim"],
        "num_kv_heads": config["num_key_value_heads"],
        "final_logit_softcap": config["final_logit_softcapping"],
        "use_post_attn_norm": True,
        "use_post_ffw_norm": True,
        "attention_types": kinds * (config["num_hidden_layers"] // 2),
        "attn_logits_soft_cap": config["attn_logit_softcapping"],
        "sliding_window_size": config["sliding_window"],
    }


def tunix_tokenizer(tokenizer_adapter: Any) -> Any:
    class Tokenizer(DecimalTokenizer, tokenizer_adapter.TokenizerAdapter):
        def __init__(self) -> None:
            pass

        def encode(self, text: str, **_: Any) -> list[int]:
            # Tunix adds BOS, and would pad a prompt one token too long to the next power of two.
            return DecimalTokenizer.encode(text)[1:]

        def bos_id(self) -> int:
            return 2

        def eos_id(self) -> int:
            return 1

        def pad_id(self) -> int:
            return 0

        def dedup_bos_ids(self, ids: list[int]) -> list[int]:
            return ids

    return Tokenizer()


def tunix(work: Work, config: Config) -> Run:
    import jax.numpy as jnp
    from flax import nnx
    from tunix.generate import sampler, tokenizer_adapter
    from tunix.models.gemma import model as gemma

    kinds = (gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL)
    shape = gemma.ModelConfig(num_layers=config["num_hidden_layers"], **gemma_shape(config, kinds))
    model = gemma.Gemma(shape, rngs=nnx.Rngs(0))
    weights = Weights(work, config)

    def put(param: Any, value: np.ndarray) -> None:
        assert param[...].shape == value.shape, (param[...].shape, value.shape)
        param.value = jnp.asarray(value)

    put(model.embedder.input_embedding, weights.embedding)
    put(model.final_norm.scale, weights.final_norm)
    for i, layer in enumerate(model.layers):
        w = weights.layer(i)
        put(layer.attn.q_einsum.w, w["q"])
        put(layer.attn.kv_einsum.w, w["kv"])
        put(layer.attn.attn_vec_einsum.w, w["o"])
        for name in ("gate", "up", "down"):
            put(getattr(layer.mlp, f"{name}_proj").kernel, w[name].T)
        put(layer.pre_attention_norm.scale, w["pre_attention"])
        put(layer.post_attn_norm.scale, w["post_attention"])
        put(layer.pre_ffw_norm.scale, w["pre_ffw"])
        put(layer.post_ffw_norm.scale, w["post_ffw"])
    length = len(work["prompts"][0])
    cache = sampler.CacheConfig(
        length + work["new"], shape.num_layers, shape.num_kv_heads, shape.head_dim
    )
    sample = sampler.Sampler(model, tunix_tokenizer(tokenizer_adapter), cache)

    def run(seed: int) -> int:
        # Without top_p it decodes greedily at any temperature.
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


def deepmind(work: Work, config: Config) -> Run:
    import jax
    import jax.numpy as jnp
    from gemma.gm.nn import _config, _modules, _transformer
    from gemma.gm.text import _sampler, _sampling, _tokenizer

    kinds = (_modules.AttentionType.LOCAL_SLIDING, _modules.AttentionType.GLOBAL)
    shape = _config.TransformerConfig(
        **gemma_shape(config, kinds),
        transpose_gating_einsum=True,
        query_pre_attn_norm=_config.QueryPreAttentionNormalisation.BY_ONE_OVER_SQRT_HEAD_DIM,
    )
    weights = Weights(work, config)
    params: dict[str, Any] = {
        "embedder": {"input_embedding": weights.embedding},
        "final_norm": {"scale": weights.final_norm},
    }
    for i in range(config["num_hidden_layers"]):
        w = weights.layer(i)
        params[f"layer_{i}"] = {
            "attn": {
                "q_einsum": {"w": w["q"]},
                "kv_einsum": {"w": w["kv"]},
                "attn_vec_einsum": {"w": w["o"]},
            },
            "mlp": {"gating_einsum": np.stack([w["gate"], w["up"]]), "linear": w["down"].T.copy()},
        } | {
            f"{name}_norm": {"scale": w[name]}
            for name in ("pre_attention", "post_attention", "pre_ffw", "post_ffw")
        }

    class Tokenizer(_tokenizer.Tokenizer):
        VERSION = 0
        special_tokens = _tokenizer.Gemma2Tokenizer.special_tokens

        def encode(self, text: str, *, add_bos: bool = False, add_eos: bool = False) -> list[int]:
            return DecimalTokenizer.encode(text)

        def decode(self, ids: Any) -> str:
            return DecimalTokenizer.decode(ids)

    length = len(work["prompts"][0])
    special = Tokenizer.special_tokens
    sampler = _sampler.Sampler(
        model=_transformer.Transformer(config=shape, dtype=jnp.float32),
        params=jax.tree.map(jnp.asarray, params),
        tokenizer=Tokenizer(path=""),
        forbidden_tokens=(int(special.EOS), int(special.END_OF_TURN)),
        cache_length=length + work["new"],
        max_out_length=work["new"],
        pad_length=length,
        sampling=_sampling.RandomSampling(temperature=1.0),
    )

    def run(seed: int) -> int:
        out = sampler.sample(texts(work), max_new_tokens=work["new"], rng=seed, return_state=True)
        return int(np.asarray(out.state.predicted_tokens).size)

    return run


def transformers(work: Work, config: Config) -> Run:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(work["cores"])
    model = AutoModelForCausalLM.from_pretrained(
        work["folder"], dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = torch.tensor([p for p in work["prompts"] for _ in range(work["k"])])
    generation = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=work["new"],
        min_new_tokens=work["new"],
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=2,
    )
    model.generation_config = generation

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), generation_config=generation
            )
        return out.shape[0] * (out.shape[1] - tokens.shape[1])

    return run


SYSTEMS = {"grm_jax": ours, "tunix": tunix, "gemma": deepmind, "transformers": transformers}


def main(system: str, work_path: str) -> None:
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
