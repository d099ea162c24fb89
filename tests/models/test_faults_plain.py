"""Injects the known faults of a Llama or Qwen implementation; every one must fail a parity check.

The faults come from other codebases and their issue threads: biases, norms, RoPE, heads, GGUF's
permutation, the activation.
"""

import dataclasses
import json

import faults
import gguf_toys
import jax
import jax.numpy as jnp
import pytest
import tokenizers
from faults import changed, config_of, registry, with_layers, with_parameters
from parity_cases import CASES, NEW, PROMPT, STOP_CASE, STOPS, VOCAB, batch, weights
from parity_ours import LOGITS, golden, model_of, parity
from safetensors.numpy import save_file

from grm_jax.checkpoints import gguf_file, load
from grm_jax.models import Llama3Rope, rope, transformer
from grm_jax.sampling import sample
from grm_jax.text.tokenizer import load as load_tokenizer

FAULTS, fault = registry()
fault("qwen3")(faults.queries_and_keys_not_normed)
fault("llama3", "qwen2")(faults.rope_on_neighbouring_pairs)
fault("qwen2")(faults.heads_tiled_instead_of_grouped)
fault("qwen2_left")(faults.padding_attended_to)
fault("qwen2")(faults.gate_and_up_exchanged)


# ---------------------------------------------------------------- biases, norms, activation


def without(*names: str):
    """Returns a function that sets these biases of a block to zero."""

    def change(block):
        for name in names:
            bias = getattr(block.attn, name)
            bias[...] = jnp.zeros_like(bias[...])

    return change


@fault("qwen2")
def biases_dropped(_, case):
    return with_parameters(case, without("q_bias_NxH", "k_bias_KxH", "v_bias_KxH"))


@fault("qwen2")
def bias_of_the_keys_dropped(_, case):
    return with_parameters(case, without("k_bias_KxH"))


@fault("qwen2")
def bias_of_the_values_dropped(_, case):
    return with_parameters(case, without("v_bias_KxH"))


@fault("qwen2")
def biases_after_rope(monkeypatch, case):
    """The biases of queries and keys are added to rotated vectors."""
    biases, original = [], transformer.rotate

    def split(self, *args):
        biases.extend([self.q_bias_NxH[...], self.k_bias_KxH[...]])
        self.q_bias_NxH[...] = jnp.zeros_like(biases[-2])
        self.k_bias_KxH[...] = jnp.zeros_like(biases[-1])
        return call(self, *args)

    call = transformer.Attention.__call__
    monkeypatch.setattr(transformer.Attention, "__call__", split)
    monkeypatch.setattr(transformer, "rotate", lambda x, a: original(x, a) + biases.pop(0))


@fault("qwen3")
def norms_of_queries_and_keys_after_rope(monkeypatch, case):
    """A layer norms queries and keys, then rotates both: here it only queues the norms."""
    norm, rotate, width = transformer.RMSNorm.__call__, transformer.rotate, 8
    assert CASES[case].config["head_dim"] == width
    queue = []

    def later(self, x):
        if x.shape[-1] != width:
            return norm(self, x)
        queue.append(self)
        return x

    monkeypatch.setattr(transformer.RMSNorm, "__call__", later)
    monkeypatch.setattr(
        transformer, "rotate", lambda x, angles: norm(queue.pop(0), rotate(x, angles))
    )


@fault("qwen3")
def norms_of_queries_and_keys_over_all_heads(monkeypatch, case):
    norm, width = transformer.RMSNorm.__call__, CASES[case].config["head_dim"]

    def joint(self, x):
        if x.shape[-1] != width:
            return norm(self, x)
        mean = jnp.mean(x * x, axis=(-2, -1), keepdims=True)
        return x * jax.lax.rsqrt(mean + self.eps) * self.scale[...]

    monkeypatch.setattr(transformer.RMSNorm, "__call__", joint)


@fault("llama3", "qwen3")
def one_plus_the_norms_weight(_, case):
    return changed(case, norm_offset=1)


@fault("llama3_small", "qwen3_small")
def epsilon_of_another_family(_, case):
    """1e-5 in Llama, 1e-6 in Qwen."""
    return changed(case, norm_eps=1.1e-5 - config_of(case).norm_eps)


@fault("llama3")
def gelu_for_silu(_, case):
    return changed(case, activation="gelu")


# ---------------------------------------------------------------- embedding and output head


@fault("qwen2")
def embeddings_scaled_as_in_gemma(_, case):
    return changed(case, scale_embedding=True)


@fault("llama3")
def embedding_table_for_an_untied_head(_, case):
    model = model_of(case)
    model.embedder.head_VxD[...] = model.embedder.table_VxD[...]
    return model


# ---------------------------------------------------------------- RoPE and heads


@fault("llama3", "qwen2", "qwen3")
def rope_base_of_another_family(_, case):
    return with_layers(case, lambda spec: dataclasses.replace(spec, rope_theta=10_000.0))


@fault("llama3")
def llama3_scaling_dropped(_, case):
    return with_layers(case, lambda spec: dataclasses.replace(spec, llama3_rope=None))


@fault("llama3")
def llama3_scaling_taken_for_linear(_, case):
    return with_layers(
        case, lambda spec: dataclasses.replace(spec, llama3_rope=None, rope_scale=8.0)
    )


@fault("llama3")
def llama3_scaling_without_interpolation(_, case):
    """Frequencies between the two wavelengths stay instead of being interpolated."""
    rope = Llama3Rope(8.0, low=1.0, high=1.0 + 1e-6, original_length=16)
    return with_layers(case, lambda spec: dataclasses.replace(spec, llama3_rope=rope))


@fault("llama3")
def factor_of_llama_3_2(_, case):
    rope = Llama3Rope(32.0, original_length=16)
    return with_layers(case, lambda spec: dataclasses.replace(spec, llama3_rope=rope))


@fault("qwen3")
def query_scale_of_width_over_heads(_, case):
    config = CASES[case].config
    width = config["hidden_size"] // config["num_attention_heads"]
    assert width != config["head_dim"]
    return changed(case, query_pre_attn_scalar=width)


@fault("llama3")
def rope_frequencies_of_width_over_heads(monkeypatch, case):
    original, config = rope.rope_frequencies, CASES[case].config
    width = config["hidden_size"] // config["num_attention_heads"]
    monkeypatch.setattr(
        rope, "rope_frequencies", lambda spec, head: original(spec, width)[: head // 2]
    )


# ---------------------------------------------------------------- GGUF


def from_gguf(case: str, tmp_path, values=None):
    """The case's model, loaded from a GGUF file written as the converter writes it."""
    config = CASES[case].config
    path = gguf_toys.write(tmp_path / "toy.gguf", config, values or weights(CASES[case]))
    return load(path, dtype="float32", cfg=config_of(case))


def rotated(values, config, change):
    """The weights with `change(w, heads)` applied to those of queries and keys."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    out = dict(values)
    for name, w in values.items():
        for proj, field in heads.items():
            if name.endswith(f"{proj}.weight"):
                out[name] = change(w, config[field])
    return out


def halves_joined(w, heads):
    """Undoes `gguf_toys.interleaved`."""
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


@pytest.mark.parametrize("case", ["llama3", "qwen2", "qwen3"])
def test_parity_of_a_gguf_file(tmp_path, case):
    assert parity(case, from_gguf(case, tmp_path)) <= LOGITS


@pytest.mark.parametrize("change", [halves_joined, gguf_toys.interleaved], ids=["twice", "never"])
def test_parity_fails_where_the_permutation_is_undone_twice_or_never(tmp_path, change):
    """Undone twice in the file's place: the loader undoes it once more."""
    values = rotated(weights(CASES["llama3"]), CASES["llama3"].config, change)
    check_fails("permutation", parity("llama3", from_gguf("llama3", tmp_path, values)))


def test_parity_fails_where_qwens_heads_are_permuted_as_llamas(tmp_path, monkeypatch):
    original = gguf_file.GgufTensor.__init__
    monkeypatch.setattr(
        gguf_file.GgufTensor,
        "__init__",
        lambda self, tensor, architecture: original(self, tensor, "llama"),
    )
    check_fails("permutation", parity("qwen3", from_gguf("qwen3", tmp_path)))


# ---------------------------------------------------------------- stop set


def generated(tmp_path, stops_of_generation_config) -> list[int]:
    """Greedy text of the case's folder, which ends at the stop ids of its tokenizer."""
    case, words = CASES[STOP_CASE], {f"w{i}": i for i in range(VOCAB)}
    save_file(weights(case), tmp_path / "model.safetensors")
    toy = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w3"))
    toy.save(str(tmp_path / "tokenizer.json"))
    for name, content in {
        "config": case.config,
        "tokenizer_config": {"eos_token": "w1", "pad_token": "w0"},
        "generation_config": {"eos_token_id": stops_of_generation_config},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    model, stops = load(tmp_path, dtype="float32"), load_tokenizer(tmp_path).stop_ids
    prompt = batch(case)[0][0, :PROMPT].tolist()
    samples = sample(model, [prompt], 1, NEW, temperature=0.0, stop=stops)
    return samples.tokens[0, 0, : samples.lengths[0, 0]].tolist()


@pytest.mark.parametrize("stops", [STOPS, STOPS[:1], STOPS[-1], STOPS[0]], ids=str)
def test_greedy_text_ends_where_that_of_transformers_does_with_all_stop_ids_alone(tmp_path, stops):
    """config.json has one of the three ids that generation_config.json lists."""
    theirs = golden("transformers")[f"{STOP_CASE}/generated"].tolist()
    ours = generated(tmp_path, stops)
    assert ours[: len(theirs)] == theirs
    assert (ours == theirs) == (stops == STOPS)


# ---------------------------------------------------------------- the checks


def check_fails(name: str, difference: float) -> None:
    print(f"{name}: {difference:.1e} of the largest logit, {difference / LOGITS:,.0f} x the bound")
    assert difference > LOGITS


@pytest.mark.parametrize("case", sorted({case for _, case, _ in FAULTS.values()}))
def test_parity_without_a_fault(case):
    assert parity(case) <= LOGITS


@pytest.mark.parametrize("name", FAULTS)
def test_parity_fails_with_the_fault(monkeypatch, name):
    inject, case, _ = FAULTS[name]
    check_fails(name, parity(case, inject(monkeypatch, case)))


def test_at_least_12_faults_are_registered():
    assert len({function for function, _, _ in FAULTS.values()}) >= 12
