"""A Bradley-Terry reward model: a scalar per response, trained on (best, other) pairs."""

from pathlib import Path

from grm_jax.baselines import scalar
from grm_jax.baselines.bench import BASELINES, Baseline, Bench
from grm_jax.baselines.results import Measured
from grm_jax.evals.judged import JudgedComparison
from grm_jax.judging.scalar_head import encode_response
from grm_jax.training.rft_data import best_index
from grm_jax.types import Comparison


def measure(bench: Bench, folder: Path) -> list[Measured]:
    """Trains the scalar and scores every response with it."""
    reward = scalar.trained(bench, folder / "train", "bt", bench.first_params, training_pairs)
    encoded = [encode(bench, comparison) for comparison in bench.comparisons]
    rewards = iter(reward([tokens for responses in encoded for tokens in responses]))
    judged = [
        JudgedComparison(comparison, tuple(next(rewards) for _ in comparison.responses))
        for comparison in bench.comparisons
    ]
    return [bench.measured(judged, "bt")]


BASELINES.add("bt", Baseline(measure, unused=("rl", *scalar.UNUSED)))


def encode(bench: Bench, comparison: Comparison) -> list[list[int]]:
    """Tokenises the conversation with each response."""
    return [
        encode_response(bench.tokenizer, comparison, response) for response in comparison.responses
    ]


def training_pairs(bench: Bench) -> list[scalar.TokenPair]:
    """Tokenises the (best, other) pairs of SPCT's training comparisons."""
    return [
        pair
        for comparison in bench.training_comparisons(bench.config.rft.comparisons)
        for pair in scalar.best_and_others(encode(bench, comparison), best_index(comparison))
    ]
