"""Model configurations: one dataclass, and the registry of the models that it describes.

To add a size, register it below. The CLI, the experiments' `config.model`, checkpoint detection and
`launch/` read the registry.

Sources: the Gemma 2 (arXiv 2408.00118) and Gemma 3 (arXiv 2503.19786) reports for sizes; the
released Hugging Face config.json files for query scales, windows and RoPE bases.
"""

import dataclasses
from typing import Any

from grm_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """Attention of one layer of the repeating pattern.

    Attributes:
      window: number of tokens a query attends to, itself included (q - window < kv <= q); None
        attends to the whole past.
      rope_theta: RoPE base.
      rope_scale: positions are divided by it (linear scaling, Gemma 3 global layers).
    """

    window: int | None
    rope_theta: float = 10_000.0
    rope_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and arithmetic of one model.

    Attributes:
      query_pre_attn_scalar: queries are multiplied by its -1/2 power. It differs from the head
        width in Gemma-2-27B (144) and Gemma-3-27B (168).
      pattern: layers repeat it; num_layers need not be a multiple (26 = 4 x 6 + 2).
      attn_cap, final_cap: soft caps of attention logits and output logits; None disables them.
      vocab_pad: table rows past the vocabulary (128 in DeepMind's Gemma 2 checkpoints), never
        sampled.
      scalar_head: adds a reward head that maps an activation to one number.
      dtype: of activations, and of weights in use.
      param_dtype: of stored weights.
      remat: "none", "dots" (saves matrix products without a batch axis) or "full" (saves only the
        residual stream between units).
      attention: "xla" (chunked over queries, any platform) or "splash" (JAX's TPU kernel, for
        prefill and training).
      query_chunk: queries per chunk of attention.
      logits_chunk: positions per chunk of the output logits.
      unroll: units per iteration of the scan over layers.
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

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.name}: num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        choices = {"remat": ("none", "dots", "full"), "attention": ("xla", "splash")}
        for field, allowed in choices.items():
            if (value := getattr(self, field)) not in allowed:
                raise ValueError(
                    f"{self.name}: {field}={value!r} is unknown: use one of {', '.join(allowed)}"
                )

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
        """Number of parameters; the tied embedding counts once, table padding does not count."""
        attn = self.d_model * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        norms = 4 * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        layer = attn + 3 * self.d_model * self.d_ff + norms
        heads = self.d_model * (2 if self.scalar_head else 1)
        return self.vocab_size * self.d_model + self.num_layers * layer + heads

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
# Toys for tests, which compile in a second. The query scale differs from the head width and windows
# are short, so that a wrong constant changes the output.
register(gemma2("tiny_gemma2", num_layers=5, d_model=32, d_ff=64, num_heads=8, num_kv_heads=4,
                head_dim=8, query_pre_attn_scalar=12, window=6,
                vocab_size=128, max_length=256, dtype="float32"))
register(gemma3("tiny_gemma3", num_layers=8, d_model=32, d_ff=64, num_heads=8, num_kv_heads=4,
                head_dim=8, query_pre_attn_scalar=12, window=5, rope_scale=8.0,
                vocab_size=128, max_length=256, dtype="float32"))
# fmt: on
