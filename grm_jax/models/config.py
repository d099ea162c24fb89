"""Model configurations: one dataclass, and the registry of the models that it describes.

To add a size, register it below. The CLI, the experiments' `config.model`, checkpoint detection and
`launch/` read the registry.

A family is one function here (`gemma2`, `gemma3`, `llama3`, `qwen2`, `qwen3`) and one table of
tensor names in `checkpoints/tensor_map.py`.

Sources: the Gemma 2 (arXiv 2408.00118), Gemma 3 (arXiv 2503.19786), Llama 3 (arXiv 2407.21783),
Qwen 2.5 (arXiv 2412.15115) and Qwen 3 (arXiv 2505.09388) reports for sizes; the released Hugging
Face config.json files for query scales, windows and RoPE.
"""

import dataclasses
from typing import Any, NamedTuple

from grm_jax.models.lora import LoraConfig
from grm_jax.registry import Registry

# What a unit's backward pass recomputes, from the least to the most. Each policy but the first and
# "dots" names the tensors that it saves (`checkpoint_name` in `transformer.py`).
REMAT: dict[str, tuple[str, ...]] = {
    "none": (),
    "products": ("qkv", "attended", "attn_out", "gate_up", "mlp_out"),
    "dots": (),
    "mlp": ("gate_up", "mlp_out"),
    "outputs": ("attn_out", "mlp_out"),
    "full": (),
}


class Llama3Rope(NamedTuple):
    """Llama 3's scaling of RoPE frequencies, by wavelength in tokens.

    Frequencies with wavelengths below original_length / high stay, those above
    original_length / low are divided by factor, and those between are interpolated.
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """Attention of one layer of the repeating pattern.

    Attributes:
      window: number of tokens a query attends to, itself included (q - window < kv <= q); None
        attends to the whole past.
      rope_theta: RoPE base.
      rope_scale: positions are divided by it (linear scaling, Gemma 3 global layers).
      llama3_rope: scaling of frequencies by wavelength; None disables it.
    """

    window: int | None
    rope_theta: float = 10_000.0
    rope_scale: float = 1.0
    llama3_rope: Llama3Rope | None = None

    @property
    def rope(self) -> tuple[Any, ...]:
        """What the rotation depends on; layers that share it share the angles."""
        return self.rope_theta, self.rope_scale, self.llama3_rope


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and arithmetic of one model.

    Attributes:
      query_pre_attn_scalar: queries are multiplied by its -1/2 power. It differs from the head
        width in Gemma-2-27B (144) and Gemma-3-27B (168).
      pattern: layers repeat it; num_layers need not be a multiple (26 = 4 x 6 + 2).
      attn_cap, final_cap: soft caps of attention logits and output logits; None disables them.
      qk_norm: RMSNorm of queries and keys over the head width, before RoPE.
      qkv_bias: biases on queries, keys and values.
      post_norms: norms after attention and after the MLP, before the residual sum.
      norm_offset: norms multiply by norm_offset + scale: 1 in Gemma, 0 elsewhere.
      activation: of the MLP's gate: "gelu" (tanh approximation) or "silu".
      scale_embedding: embeddings are multiplied by sqrt(d_model).
      tied: the embedding table is also the output head.
      vocab_pad: table rows past the vocabulary (128 in DeepMind's Gemma 2 checkpoints), never
        sampled.
      scalar_head: adds a reward head that maps an activation to one number.
      dtype: of activations, and of weights in use.
      param_dtype: of stored weights.
      remat: what the backward pass recomputes, from the least to the most: "none"; "products"
        (norms, RoPE and the MLP's gate); "dots" (all but products without a batch axis, so
        attention too); "mlp" (all but the MLP's products); "outputs" (all but the outputs of
        attention and MLP, which are summed over `tensor`); "full" (all but the residual stream
        between units).
      attention: "xla" (chunked over queries) or "splash" (JAX's kernel for TPUs, in prefill and
        training, for rows of a multiple of 128 tokens; other rows and devices use "xla").
      query_chunk: queries per chunk of attention.
      logits_chunk: positions per chunk of the output logits.
      unroll: units per iteration of the scan over layers.
      cpu_products: on CPUs, float32 attention and logits in forms without transposed copies. They
        round differently; False repeats results that were recorded without them.
      quantize: "int8" or "int4" for weights as in `models.quantize`, which are not trained; None
        without.
      lora: adapters beside frozen weights (`models.lora`); None without.
      kv_cache_dtype: "int8" for the sampler's keys and values, with one scale per token and KV
        head; None for `dtype`.
    """

    name: str
    vocab_size: int
    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_pre_attn_scalar: float
    pattern: tuple[LayerSpec, ...]
    attn_cap: float | None = None
    final_cap: float | None = None
    qk_norm: bool = False
    qkv_bias: bool = False
    post_norms: bool = True
    norm_offset: int = 1
    activation: str = "gelu"
    scale_embedding: bool = True
    tied: bool = True
    norm_eps: float = 1e-6
    max_length: int = 8192
    vocab_pad: int = 0
    scalar_head: bool = False
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "xla"
    query_chunk: int = 512
    logits_chunk: int = 512
    unroll: int = 1
    cpu_products: bool = True
    quantize: str | None = None
    lora: LoraConfig | None = None
    kv_cache_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.name}: num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        choices = {
            "remat": tuple(REMAT),
            "attention": ("xla", "splash"),
            "activation": ("gelu", "silu"),
            "norm_offset": (0, 1),
            "quantize": (None, "int8", "int4"),
            "kv_cache_dtype": (None, "int8"),
        }
        for field, allowed in choices.items():
            if (value := getattr(self, field)) not in allowed:
                names = ", ".join(map(str, allowed))
                raise ValueError(f"{self.name}: {field}={value!r} is unknown: use one of {names}")

    @property
    def num_units(self) -> int:
        """How often the whole pattern repeats; these layers are stacked and scanned."""
        return self.num_layers // len(self.pattern)

    @property
    def tail(self) -> tuple[LayerSpec, ...]:
        """The layers after the last whole unit."""
        return self.pattern[: self.num_layers % len(self.pattern)]

    @property
    def num_params(self) -> int:
        """Number of parameters; a tied embedding counts once, table padding does not count."""
        attn = self.d_model * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        if self.qkv_bias:
            attn += self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
        norms = (4 if self.post_norms else 2) * self.d_model
        norms += 2 * self.head_dim if self.qk_norm else 0
        layer = attn + 3 * self.d_model * self.d_ff + norms
        heads = self.d_model * (2 if self.scalar_head else 1)
        tables = 1 if self.tied else 2
        return tables * self.vocab_size * self.d_model + self.num_layers * layer + heads

    def replace(self, **changes: Any) -> "TransformerConfig":
        return dataclasses.replace(self, **changes)


CONFIGS: Registry[TransformerConfig] = Registry("model")


def register(config: TransformerConfig) -> TransformerConfig:
    """Adds a configuration to the registry under its name."""
    return CONFIGS.add(config.name, config)


def get_config(name: str, **changes: Any) -> TransformerConfig:
    """Returns the registered configuration with fields replaced.

    Raises:
      ValueError: a name that is not registered.
    """
    return CONFIGS[name].replace(**changes)


def find_config(toys: bool = False, **sizes: Any) -> TransformerConfig | None:
    """Returns the first registered configuration with these field values, or None.

    toys: also searches the tiny_* configurations.
    """
    candidates = (c for c in CONFIGS.values() if toys or not c.name.startswith("tiny"))
    fits = lambda config: all(getattr(config, field) == n for field, n in sizes.items())
    return next(filter(fits, candidates), None)


def gemma2(name: str, *, window: int = 4096, **sizes: Any) -> TransformerConfig:
    """Returns a Gemma 2 configuration: local and global layers alternate, logits are capped."""
    family = {"vocab_size": 256_000, "attn_cap": 50.0, "final_cap": 30.0, "max_length": 8192}
    pattern = (LayerSpec(window), LayerSpec(None))
    return TransformerConfig(name=name, pattern=pattern, **family | sizes)


def gemma3(name: str, *, window: int, rope_scale: float = 1.0, **sizes: Any) -> TransformerConfig:
    """Returns a Gemma 3 configuration: five local layers per global one, QK norm, no caps."""
    max_length = 131_072 if rope_scale > 1 else 32_768
    family = {"vocab_size": 262_144, "qk_norm": True, "max_length": max_length}
    pattern = (LayerSpec(window, 10_000.0),) * 5 + (LayerSpec(None, 1_000_000.0, rope_scale),)
    return TransformerConfig(name=name, pattern=pattern, **family | sizes)


# What Llama and Qwen have in common, apart from Gemma.
PLAIN: dict[str, Any] = {
    "post_norms": False, "norm_offset": 0, "activation": "silu", "scale_embedding": False,
}  # fmt: skip


def llama3(
    name: str, *, theta: float = 500_000.0, rope: Llama3Rope | None = None, **sizes: Any
) -> TransformerConfig:
    """Returns a Llama 3 configuration: global layers, RoPE frequencies scaled by `rope`."""
    family = {"vocab_size": 128_256, "norm_eps": 1e-5, "max_length": 131_072, "tied": False}
    pattern = (LayerSpec(None, theta, llama3_rope=rope),)
    return _plain(name, pattern, **family | sizes)


def qwen2(name: str, *, theta: float = 1_000_000.0, **sizes: Any) -> TransformerConfig:
    """Returns a Qwen 2.5 configuration: global layers, biases on queries, keys and values."""
    family = {"vocab_size": 152_064, "max_length": 32_768, "qkv_bias": True, "tied": False}
    return _plain(name, (LayerSpec(None, theta),), **family | sizes)


def qwen3(name: str, *, theta: float = 1_000_000.0, **sizes: Any) -> TransformerConfig:
    """Returns a Qwen 3 configuration (dense): global layers, QK norm, heads 128 wide."""
    family = {"vocab_size": 151_936, "max_length": 40_960, "qk_norm": True, "tied": False}
    return _plain(name, (LayerSpec(None, theta),), **{"head_dim": 128} | family | sizes)


def _plain(name: str, pattern: tuple[LayerSpec, ...], **fields: Any) -> TransformerConfig:
    width = fields.setdefault("head_dim", fields["d_model"] // fields["num_heads"])
    fields.setdefault("query_pre_attn_scalar", width)
    return TransformerConfig(name=name, pattern=pattern, **PLAIN | fields)


# fmt: off
register(gemma2("gemma2_2b", num_layers=26, d_model=2304, d_ff=9216, num_heads=8, num_kv_heads=4,
                head_dim=256, query_pre_attn_scalar=256))
register(gemma2("gemma2_9b", num_layers=42, d_model=3584, d_ff=14336, num_heads=16, num_kv_heads=8,
                head_dim=256, query_pre_attn_scalar=256))
register(gemma2("gemma2_27b", num_layers=46, d_model=4608, d_ff=36864, num_heads=32,
                num_kv_heads=16, head_dim=128, query_pre_attn_scalar=144))
register(gemma3("gemma3_270m", num_layers=18, d_model=640, d_ff=2048, num_heads=4, num_kv_heads=1,
                head_dim=256, query_pre_attn_scalar=256, window=512))
register(gemma3("gemma3_1b", num_layers=26, d_model=1152, d_ff=6912, num_heads=4, num_kv_heads=1,
                head_dim=256, query_pre_attn_scalar=256, window=512))
register(gemma3("gemma3_4b", num_layers=34, d_model=2560, d_ff=10240, num_heads=8, num_kv_heads=4,
                head_dim=256, query_pre_attn_scalar=256, window=1024, rope_scale=8.0))
register(gemma3("gemma3_12b", num_layers=48, d_model=3840, d_ff=15360, num_heads=16,
                num_kv_heads=8, head_dim=256, query_pre_attn_scalar=256, window=1024,
                rope_scale=8.0))
register(gemma3("gemma3_27b", num_layers=62, d_model=5376, d_ff=21504, num_heads=32,
                num_kv_heads=16, head_dim=128, query_pre_attn_scalar=168, window=1024,
                rope_scale=8.0))
LLAMA_3_1, LLAMA_3_2 = Llama3Rope(8.0), Llama3Rope(32.0)
register(llama3("llama3_1b", num_layers=16, d_model=2048, d_ff=8192, num_heads=32, num_kv_heads=8,
                rope=LLAMA_3_2, tied=True))
register(llama3("llama3_3b", num_layers=28, d_model=3072, d_ff=8192, num_heads=24, num_kv_heads=8,
                rope=LLAMA_3_2, tied=True))
register(llama3("llama3_8b", num_layers=32, d_model=4096, d_ff=14336, num_heads=32, num_kv_heads=8,
                rope=LLAMA_3_1))
register(llama3("llama3_70b", num_layers=80, d_model=8192, d_ff=28672, num_heads=64,
                num_kv_heads=8, rope=LLAMA_3_1))
register(llama3("smollm2_135m", num_layers=30, d_model=576, d_ff=1536, num_heads=9, num_kv_heads=3,
                theta=100_000.0, vocab_size=49_152, max_length=8192, tied=True))
register(qwen2("qwen2_0.5b", num_layers=24, d_model=896, d_ff=4864, num_heads=14, num_kv_heads=2,
               vocab_size=151_936, tied=True))
register(qwen2("qwen2_1.5b", num_layers=28, d_model=1536, d_ff=8960, num_heads=12, num_kv_heads=2,
               vocab_size=151_936, tied=True))
register(qwen2("qwen2_3b", num_layers=36, d_model=2048, d_ff=11008, num_heads=16, num_kv_heads=2,
               vocab_size=151_936, tied=True))
register(qwen2("qwen2_7b", num_layers=28, d_model=3584, d_ff=18944, num_heads=28, num_kv_heads=4))
register(qwen2("qwen2_14b", num_layers=48, d_model=5120, d_ff=13824, num_heads=40, num_kv_heads=8))
register(qwen2("qwen2_32b", num_layers=64, d_model=5120, d_ff=27648, num_heads=40, num_kv_heads=8))
register(qwen2("qwen2_72b", num_layers=80, d_model=8192, d_ff=29568, num_heads=64, num_kv_heads=8))
register(qwen3("qwen3_0.6b", num_layers=28, d_model=1024, d_ff=3072, num_heads=16, num_kv_heads=8,
               tied=True))
register(qwen3("qwen3_1.7b", num_layers=28, d_model=2048, d_ff=6144, num_heads=16, num_kv_heads=8,
               tied=True))
register(qwen3("qwen3_4b", num_layers=36, d_model=2560, d_ff=9728, num_heads=32, num_kv_heads=8,
               tied=True))
register(qwen3("qwen3_8b", num_layers=36, d_model=4096, d_ff=12288, num_heads=32, num_kv_heads=8))
register(qwen3("qwen3_14b", num_layers=40, d_model=5120, d_ff=17408, num_heads=40, num_kv_heads=8))
register(qwen3("qwen3_32b", num_layers=64, d_model=5120, d_ff=25600, num_heads=64, num_kv_heads=8))
# Toys for tests, which compile in a second. The query scale differs from the head width and windows
# are short, so that a wrong constant changes the output.
register(gemma2("tiny_gemma2", num_layers=5, d_model=32, d_ff=64, num_heads=8, num_kv_heads=4,
                head_dim=8, query_pre_attn_scalar=12, window=6,
                vocab_size=128, max_length=256, dtype="float32"))
register(gemma3("tiny_gemma3", num_layers=8, d_model=32, d_ff=64, num_heads=8, num_kv_heads=4,
                head_dim=8, query_pre_attn_scalar=12, window=5, rope_scale=8.0,
                vocab_size=128, max_length=256, dtype="float32"))
register(llama3("tiny_llama3", num_layers=3, d_model=32, d_ff=64, num_heads=8, num_kv_heads=4,
                head_dim=8, rope=Llama3Rope(8.0, original_length=64),
                vocab_size=128, max_length=256, dtype="float32"))
register(qwen2("tiny_qwen2", num_layers=3, d_model=32, d_ff=64, num_heads=8, num_kv_heads=4,
               head_dim=8, vocab_size=128, max_length=256, dtype="float32", tied=True))
register(qwen3("tiny_qwen3", num_layers=3, d_model=32, d_ff=64, num_heads=8, num_kv_heads=4,
               head_dim=8, vocab_size=128, max_length=256, dtype="float32"))
# fmt: on
