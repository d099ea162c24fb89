"""Tests samples: log-probs of a full forward pass, greedy decoding, and reproducibility."""

import jax
import numpy as np
import pytest
from flax import nnx

from grm_jax.models import cpu, get_config
from grm_jax.sampling import Engine, Request, sample, weights
from grm_jax.sharding import make_mesh

MODELS = (
    "tiny_gemma2", "tiny_gemma3", "tiny_llama3",
    pytest.param("tiny_qwen2", marks=pytest.mark.slow),
    pytest.param("tiny_qwen3", marks=pytest.mark.slow),
)  # fmt: skip


def log_softmax(x):
    x = x.astype(np.float64)
    top = x.max(axis=-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_equal_those_of_a_full_forward_pass(lab, runs, name):
    requests, completions = runs(name)
    window = max(s.window or 0 for s in get_config(name).pattern)
    checked, wrapped = 0, 0
    for (i, _), completion in completions.items():
        if completion.finish == "error":
            continue
        request = requests[i]
        n = len(request.prompt)
        logits = lab.logits(name, [*request.prompt, *completion.tokens])[n - 1 : -1]
        index = np.arange(len(completion.tokens)), completion.tokens
        assert np.abs(log_softmax(logits)[index] - completion.logprobs_1).max() < 1e-4
        assert (
            np.abs(
                log_softmax(logits / (request.temperature or 1.0))[index] - completion.logprobs
            ).max()
            < 1e-4
        )
        checked += 1
        wrapped += n > window and len(completion.tokens) > window
    assert checked == 11 and wrapped >= 3


@pytest.mark.parametrize("name", MODELS)
def test_greedy_decoding_equals_the_argmax_of_full_forward_passes(lab, runs, name):
    requests, completions = runs(name)
    tokens, completion = list(requests[1].prompt), completions[1, 0]
    assert len(completion.tokens) == 200 and completion.finish == "length"
    for token in completion.tokens:
        assert token == lab.logits(name, tokens)[-1].argmax()
        tokens.append(int(token))


@pytest.mark.parametrize("name", MODELS)
def test_samples_finish_at_a_stop_token_or_the_limit(runs, name):
    requests, completions = runs(name)
    for (i, _), completion in completions.items():
        if completion.finish == "error":
            continue
        stopped = completion.tokens[-1] in requests[i].stop
        assert completion.finish == ("stop" if stopped else "length")
        assert stopped or len(completion.tokens) == requests[i].max_new_tokens
        assert not set(completion.tokens[:-1].tolist()) & set(requests[i].stop)


def tokens_by_index(completions, request_index=0):
    """Returns {sample index: tokens} of a request."""
    return {
        c.sample_index: c.tokens.tolist() for c in completions if c.request_index == request_index
    }


@pytest.fixture(scope="module")
def expected(lab, prompts):
    """(request, tokens by sample index) of an engine with one prompt slot of one batch row."""
    request = Request(prompts[3], 2, 30, temperature=0.9, seed=11, item=9)
    engine = Engine(lab.model("tiny_gemma2"), 1, 1, segment=32)
    return request, tokens_by_index(engine.run([request]))


def other_requests(prompts):
    return [Request(p, 8, 30, temperature=1.1, seed=5, item=20 + i) for i, p in enumerate(prompts)]


def test_tokens_do_not_depend_on_the_batch_or_the_slot(lab, prompts, expected):
    request, tokens = expected
    engine = Engine(lab.model("tiny_gemma2"), 4, 8, segment=32)
    # The shortest prompts run first, so among equal lengths the index is the slot.
    for slot in (0, 3):
        batch = [Request(prompts[3][::-1], 8, 30, seed=1, item=30 + i) for i in range(3)]
        batch.insert(slot, request)
        assert tokens_by_index(engine.run(batch), slot) == tokens


def test_tokens_do_not_depend_on_the_previous_sample_in_the_batch_row(lab, prompts, expected):
    request, tokens = expected
    completions = lab.engine("tiny_gemma2").run([*other_requests(prompts), request])
    assert tokens_by_index(completions, 4) == tokens


SLOW_MESHES = [("tiny_llama3", (2, 2, 2)), ("tiny_qwen2", (2, 1, 4)), ("tiny_qwen3", (1, 2, 4))]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("tiny_gemma2", (1, 1, 1)), ("tiny_gemma2", (1, 2, 4))]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_MESHES],
)
def test_tokens_do_not_depend_on_the_mesh(lab, prompts, expected, name, shape):
    request, tokens = expected
    if name != "tiny_gemma2":
        tokens = tokens_by_index(Engine(lab.model(name), 1, 1, segment=32).run([request]))
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    graphdef, state = nnx.split(lab.model(name))
    with jax.set_mesh(mesh):
        model = nnx.merge(graphdef, weights.for_sampling(state, mesh, "float32"))
        completions = list(
            Engine(model, 4, 2, segment=32).run([*other_requests(prompts)[2:], request])
        )
    assert tokens_by_index(completions, 2) == tokens


def test_seed_item_and_sample_index_determine_the_tokens(lab, prompts):
    def tokens(**changes):
        request = Request(
            **({"prompt": prompts[0], "k": 2, "max_new_tokens": 12, "seed": 1, "item": 1} | changes)
        )
        return tokens_by_index(lab.engine("tiny_gemma2").run([request]))

    first = tokens()
    assert first == tokens() and first[0] != first[1]
    assert tokens(seed=2)[0] != first[0] and tokens(item=2)[0] != first[0]
    assert tokens(max_new_tokens=20)[0][:12] == first[0]


def test_unstacked_layers_give_the_same_tokens(lab, prompts):
    request = Request(prompts[2], 1, 12, seed=3)
    model = cpu.unstack(lab.model("tiny_gemma3"))
    assert model.cfg.num_units == 1 and len(model.cfg.pattern) == 8
    completions = [
        next(iter(Engine(m, 1, 1, segment=16).run([request])))
        for m in (model, lab.model("tiny_gemma3"))
    ]
    assert completions[0].tokens.tolist() == completions[1].tokens.tolist()


def test_sample_pads_results_and_reports_errors(lab, prompts):
    out = sample(
        lab.model("tiny_gemma2"),
        [prompts[0], [], prompts[1], prompts[0]],
        2,
        12,
        stop=(9, 10, 11),
        prompt_slots=4,
        rows=2,
    )
    assert out.tokens.shape == out.logprobs.shape == out.logprobs_1.shape == (4, 2, 12)
    for p, k in np.ndindex(4, 2):
        n = out.lengths[p, k]
        assert (out.tokens[p, k, n:] == 0).all() and (out.logprobs[p, k, n:] == 0).all()
        assert (out.logprobs[p, k, :n] < 0).all()
    assert set(out.errors) == {1} and (out.finish[1] == "error").all()
    assert (out.finish[[0, 2, 3]] != "error").all()
    with pytest.raises(ValueError, match="k = 0"):
        sample(lab.model("tiny_gemma2"), prompts, 0, 12)
