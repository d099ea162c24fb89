"""Tests the count of matrix products, and the tables of the GRPO step."""

import sys

import jax
import jax.numpy as jnp

from benchmarks import grpo_step, products


def test_products_are_counted_through_scans_loops_conditions_and_gradients():
    w = jnp.ones((8, 4))

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c + (x @ w).sum(), None), 0.0, None, length=5)[0]

    def looped(x):
        return jax.lax.while_loop(lambda c: c < 9, lambda c: c + (x @ w).sum(), 0.0)

    def chosen(x):
        return jax.lax.cond(x.sum() > 0, lambda: (x @ w).sum(), lambda: x.sum())

    x = jnp.ones((2, 8))
    for function, count in ((scanned, 5), (looped, 1), (chosen, 1)):
        (product,) = (counts := products.products_of(function, x))
        assert product.flops == 2 * 2 * 8 * 4 and counts[product] == count
    gradients = products.products_of(jax.grad(lambda w: ((x @ w) ** 2).sum()), w)
    assert sum(gradients.values()) == 2  # forward, and the gradient of w
    assert products.total_flops(gradients) == 2 * (2 * 2 * 8 * 4)


def test_products_are_computed_on_operands_of_their_own():
    counts = products.products_of(lambda x: x @ x.T, jnp.ones((3, 5)))
    ((call, weight),) = products.compile_products(counts)
    (result,) = call()
    assert weight == 1 and result.shape == (3, 3)
    assert (products.limit_seconds([(call, weight)], repeats=1) >= 0).all()


def test_a_time_out_of_a_peer_is_reported_as_such(tmp_path):
    hang = tmp_path / "hang"  # an interpreter that ignores the script and never exits
    hang.write_text(f"#!{sys.executable}\nimport threading\nthreading.Event().wait()\n")
    hang.chmod(0o755)
    flags = ["--system", "trl", "--shape", "8x4, 128+64", "--steps", "1"]
    result = grpo_step.run_system(flags, str(hang), timeout=1)
    assert result == {"timed_out_after": 1}
    ours = {"seconds": 1.0, "cpu_seconds": 2.0}
    text = grpo_step.table(
        {"8x4, 128+64": {"ours": ours, "trl": grpo_step.summary([result])}}, "trl"
    )
    assert "timed out after 1 s" in text
    assert grpo_step.ratios([result], [{"steps": [[1.0, 2.0]]}], 0) == []


def test_ratios_are_taken_round_by_round():
    ours = [{"steps": [[1.0, 2.0], [1.0, 2.0]]}, {"steps": [[2.0, 4.0]]}]
    peer = [{"steps": [[8.0, 8.0]]}, {"steps": [[8.0, 16.0]]}]
    assert grpo_step.ratios(peer, ours, 0) == [8.0, 4.0]
    assert grpo_step.ratios(peer, ours, 1) == [4.0, 4.0]
