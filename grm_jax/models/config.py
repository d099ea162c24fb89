"""Gemma configurations: one dataclass, the generations differ by values only.

Sources: the Gemma 2 report (arXiv 2408.00118) and the Gemma 3 report (arXiv 2503.19786) for sizes; the released Hugging Face `config.json` files
for the query scales (`query_pre_attn_scalar`), windows and RoPE bases.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """What distinguishes one layer of the repeating pattern from another.

    window: tokens that a query sees, itself included (q - window < kv <= q); None sees the whole past.
    rope_theta: RoPE base.  rope_scale: positions are divided by it (linear scaling, Gemma 3 global layers).
    """

    window: int | None
    rope_theta: float = 10_000.0
    rope_scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and arithmetic of one Gemma.

    query_pre_attn_scalar: queries are multiplied by its -1/2 power. Not always the head width: 144 for Gemma-2-27B, 168 for Gemma-3-27B.
    pattern: the layers repeat it; num_layers need not be a multiple (26 = 4 x 6 + 2).
    vocab_pad: rows of the embedding table past the vocabulary (128 in DeepMind's Gemma 2 checkpoints); never predicted.
    dtype: of activations and of weights at use.  param_dtype: of weights at rest.
    remat: "none", "dots" (matrix products without a batch axis are kept) or "full" (only the residual stream between units is kept).
    attention: "xla" (chunked over queries, runs anywhere) or "splash" (the TPU kernel that ships with JAX; prefill and training).
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

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.name}: num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        for field, allowed in (
            ("remat", ("none", "dots", "full")),
            ("attention", ("xla", "splash")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"{self.name}: {field}={getattr(self, field)!r} is unknown: use one of {', '.join(allowed)}"
                )

    @property
    def num_units(self) -> int:
        """How often the whole pattern repeats; these layers are stacked and scanned."""
        return self.num_layers // len(self.pattern)

    @property
    def tail(self) -> tuple[LayerSpec, ...]:
        """Layers past the last whole unit."""
        return self.pattern[: self.num_layers % len(self.pattern)]

    @property
    def num_params(self) -> int:
        """Parameters, the tied embedding counted once, padding rows left out."""
        attn = self.d_model * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        norms = 4 * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        layer = attn + 3 * self.d_model * self.d_ff + norms
        return (
            self.vocab_size * self.d_model
            + self.num_layers * layer
            + self.d_model * (2 if self.scalar_head else 1)
        )

    def replace(self, **changes) -> "TransformerConfig":
        return dataclasses.replace(self, **changes)


def _gemma2(
    name, num_layers, d_model, d_ff, heads, head_dim, scalar, window=4096, **kw
) -> TransformerConfig:
    kw = {"vocab_size": 256_000, "attn_cap": 50.0, "final_cap": 30.0, "max_length": 8192} | kw
    return TransformerConfig(
        name=name, num_layers=num_layers, d_model=d_model, d_ff=d_ff, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim,
        query_pre_attn_scalar=scalar, pattern=(LayerSpec(window), LayerSpec(None)), **kw,
    )  # fmt: skip


def _gemma3(
    name, num_layers, d_model, d_ff, heads, head_dim, scalar, window, rope_scale, **kw
) -> TransformerConfig:
    kw = {
        "vocab_size": 262_144,
        "qk_norm": True,
        "max_length": 131_072 if rope_scale > 1 else 32_768,
    } | kw
    pattern = (LayerSpec(window, 10_000.0),) * 5 + (LayerSpec(None, 1_000_000.0, rope_scale),)
    return TransformerConfig(
        name=name, num_layers=num_layers, d_model=d_model, d_ff=d_ff, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim,
        query_pre_attn_scalar=scalar, pattern=pattern, **kw,
    )  # fmt: skip


CONFIGS = {
    c.name: c
    for c in (
        _gemma2("gemma2_2b", 26, 2304, 9216, (8, 4), 256, 256),
        _gemma2("gemma2_9b", 42, 3584, 14336, (16, 8), 256, 256),
        _gemma2("gemma2_27b", 46, 4608, 36864, (32, 16), 128, 144),
        _gemma3("gemma3_270m", 18, 640, 2048, (4, 1), 256, 256, 512, 1.0),
        _gemma3("gemma3_1b", 26, 1152, 6912, (4, 1), 256, 256, 512, 1.0),
        _gemma3("gemma3_4b", 34, 2560, 10240, (8, 4), 256, 256, 1024, 8.0),
        _gemma3("gemma3_12b", 48, 3840, 15360, (16, 8), 256, 256, 1024, 8.0),
        _gemma3("gemma3_27b", 62, 5376, 21504, (32, 16), 128, 168, 1024, 8.0),
        # For tests: every feature of the generation at a size that a laptop compiles in a second. The query scale differs from the
        # head width and the windows are short, so that a wrong constant shows.
        _gemma2(
            "tiny_gemma2",
            5,
            32,
            64,
            (8, 4),
            8,
            12,
            window=6,
            vocab_size=128,
            max_length=256,
            dtype="float32",
        ),
        _gemma3(
            "tiny_gemma3",
            8,
            32,
            64,
            (8, 4),
            8,
            12,
            5,
            8.0,
            vocab_size=128,
            max_length=256,
            dtype="float32",
        ),
    )
}


def get_config(name: str, **changes) -> TransformerConfig:
    """The named configuration with fields replaced.

    Raises ValueError that lists the known names."""
    if name not in CONFIGS:
        raise ValueError(f"model {name!r} is unknown: use one of {', '.join(CONFIGS)}")
    return CONFIGS[name].replace(**changes)
