"""FLOPs of a model by formula: two for each weight and token, and the attention products.

The input embedding is a lookup and does not count. Training takes three times the FLOPs of a
forward pass: the gradients of activations and of weights each take as many again. A frozen weight
takes two times, because it has no gradient.
"""

from typing import Any

from grm_jax.models import TransformerConfig


def attention_flops(cfg: TransformerConfig, length: int) -> float:
    """Forward FLOPs of the attention products of one sequence of `length` tokens.

    4 x heads x head_dim for each visible (query, key) pair: causal, and in the layer's window.
    """
    pairs = 0
    for layer in range(cfg.num_layers):
        inside = min(cfg.pattern[layer % len(cfg.pattern)].window or length, length)
        pairs += inside * (inside + 1) // 2 + (length - inside) * inside
    return float(4 * cfg.num_heads * cfg.head_dim * pairs)


def weight_flops(cfg: TransformerConfig, logits: bool = True) -> float:
    """Forward FLOPs of a token's products with the weights, adapters excluded."""
    table = cfg.vocab_size * cfg.d_model
    layers = cfg.num_params - table * (1 if cfg.tied else 2)
    return 2.0 * (layers + (table if logits else 0))


def adapter_flops(cfg: TransformerConfig) -> float:
    """Forward FLOPs of a token's products with LoRA's adapters; 0 without."""
    if cfg.lora is None:
        return 0.0
    D, F, Q = cfg.d_model, cfg.d_ff, cfg.num_heads * cfg.head_dim
    K = cfg.num_kv_heads * cfg.head_dim
    sizes = {"q_proj": D + Q, "k_proj": D + K, "v_proj": D + K, "o_proj": Q + D}
    sizes |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), D + F)
    return 2.0 * cfg.num_layers * cfg.lora.rank * sum(sizes[name] for name in cfg.lora.targets)


def model_flops(
    cfg: TransformerConfig, sequences: int, length: int, training: bool, logits: bool = True
) -> float:
    """FLOPs of a forward pass, or of training, on sequences of `length` tokens."""
    tokens = sequences * length
    others = adapter_flops(cfg) * tokens + sequences * attention_flops(cfg, length)
    return _total(cfg, weight_flops(cfg, logits) * tokens, others, training)


def rl_flops(cfg: TransformerConfig, rl: Any, training: bool = False) -> float:
    """FLOPs of a rollout batch's log-probs: each prompt once, logits of completions."""
    prompt_attention = attention_flops(cfg, rl.prompt_len)
    attention = attention_flops(cfg, rl.prompt_len + rl.max_new_tokens) - prompt_attention
    completions = rl.group_size * rl.max_new_tokens
    weights = rl.prompt_len * weight_flops(cfg, logits=False) + completions * weight_flops(cfg)
    others = (rl.prompt_len + completions) * adapter_flops(cfg)
    others += prompt_attention + rl.group_size * attention
    return _total(cfg, rl.prompts * weights, rl.prompts * others, training)


def decode_flops(cfg: TransformerConfig, sequences: int, length: int) -> float:
    """FLOPs of one decode step, in which the new token is the last of `length`."""
    attention = attention_flops(cfg, length) - attention_flops(cfg, length - 1)
    return sequences * (weight_flops(cfg) + adapter_flops(cfg) + attention)


def _total(cfg: TransformerConfig, weights: float, others: float, training: bool) -> float:
    if not training:
        return weights + others
    return (3 if cfg.lora is None else 2) * weights + 3 * others
