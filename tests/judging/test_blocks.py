"""Blocks of large groups: their design, and the fit that makes their values comparable."""

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
from fake_judge import by_number, digest_of, fake_judge, group, well_formed

from grm_jax.judging import blocks
from grm_jax.judging.rewards import score
from grm_jax.text import rendering


@pytest.mark.parametrize("n", [1, 2, 5, 32, 33, 100])
def test_groups_of_any_size_are_scored_in_balanced_orders_of_bounded_prompts(n):
    prompts = []
    scores = [round(1 + i * 0.09, 2) for i in range(n)]
    judge = fake_judge(by_number, prompts=prompts)
    (result,) = score([group(*scores)], judge, k=1, critiques=True)
    assert result.values == pytest.approx(scores)
    shown = [prompt.count("[Response ") for prompt in prompts]
    assert max(shown) <= 32 and len(shown) == len(result.critiques) == (
        1 if n <= 32 else len(shown)
    )
    if n > 1:
        assert score([group(*scores)], judge, k=1, reward="rank")[0].values == pytest.approx(
            [i / (n - 1) for i in range(n)]
        )
    for critique in result.critiques:  # the j-th score belongs to the j-th smallest index
        own = [scores[i] for i in sorted(critique.order)]
        assert critique.scores == pytest.approx(own)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 31, 32])
def test_every_response_is_in_as_many_blocks_and_all_blocks_are_connected(most):
    for n in (*range(1, 40), 64, 65, 100, 1000):
        design = blocks.design(n, most)
        counts = Counter(i for block in design for i in block)
        assert set(counts) == set(range(n)) and max(map(len, design)) <= most
        assert set(counts.values()) == ({1} if n <= most or most == 1 else {2})
        assert all(len(set(block)) == len(block) for block in design)
        if most > 1:
            assert min(map(len, design)) >= min(2, n)
            reached = set(design[0])
            for block in design:  # each has a response of an earlier one
                assert reached & set(block)
                reached |= set(block)
    assert blocks.design(5, 4) == [(0, 1, 2), (1, 2, 3, 4), (3, 4, 0)]


def with_offset(responses, key, digits=2) -> str:
    """Scores by number, up to 2 points too high or too low for all responses of a prompt."""
    offset = digest_of(responses)[0] / 255 * 4 - 2
    scores = [float(text.split()[-1]) + offset for text in responses]
    return well_formed([round(x, digits) if digits else round(x) for x in scores])


def test_an_offset_of_each_block_changes_no_difference():
    true = np.round(random.Random(0).sample([3 + i * 0.05 for i in range(100)], 100), 2)
    (result,) = score([group(*true)], fake_judge(with_offset), k=1)
    values = np.array(result.values)
    np.testing.assert_allclose(values - values.mean(), true - true.mean(), atol=0.02)
    # Of whole scores with such offsets, the order is nearly the true one.
    whole = fake_judge(lambda responses, key: with_offset(responses, key, digits=0))
    values = np.array(score([group(*true)], whole, k=1)[0].values)
    agreement = np.corrcoef(values.argsort().argsort(), true.argsort().argsort())[0, 1]
    assert agreement > 0.97


def test_the_fit_of_two_blocks_by_hand():
    # Response 1 is in both: the second block scores 2 points higher, 1 above and 1 below the mean.
    assert blocks.combine([{0: 4.0, 1: 6.0}, {1: 8.0, 2: 5.0}], [1, 1]) == pytest.approx(
        {0: 5, 1: 7, 2: 4}
    )
    # Differences 1 and 3 of the shared responses give offsets -1 and 1, 4.25 = (5 + 3 * 4) / 4.
    assert blocks.combine([{0: 4.0, 1: 6.0}, {0: 5.0, 1: 9.0}], [1, 3]) == pytest.approx(
        {0: 4.25, 1: 7.75}
    )
    # Blocks without a shared response are not compared, and one block is not changed.
    assert blocks.combine([{0: 4.0}, {1: 8.0}], [1, 3]) == pytest.approx({0: 4, 1: 8})
    assert blocks.combine([{0: 0.1, 1: 0.3}], [3]) == {0: 0.1, 1: 0.3}


def test_a_block_weighs_as_much_as_it_has_parsed_critiques():
    def noisy(responses, key):
        digest = hashlib.sha256(repr((responses, key)).encode()).digest()
        return (
            "none"
            if digest[-1] < 100
            else well_formed([b % 10 + 1 for b in digest[: len(responses)]])
        )

    (result,) = score([group(*range(9))], fake_judge(noisy), k=5, block_size=4, critiques=True)
    scores: dict[frozenset, list] = {}
    for critique in result.critiques:
        if critique.scores:
            scores.setdefault(frozenset(critique.order), []).append(critique.scores)
    assert len({len(of_block) for of_block in scores.values()}) > 1
    values = [dict(zip(sorted(b), np.mean(of_b, axis=0))) for b, of_b in scores.items()]
    expected = blocks.combine(values, [len(of_block) for of_block in scores.values()])
    assert result.values == pytest.approx([expected.get(i) for i in range(9)])


def test_the_only_scored_response_has_no_rank():
    judge = fake_judge(lambda r, key: by_number(r, key) if r[0].endswith("5") else "none")
    (result,) = score([group(5, 3, 4)], judge, k=1, block_size=1, reward="rank")
    assert [reward.status for reward in result.rewards] == ["failed", "unparsed", "unparsed"]
    assert result.rewards[0].reason == "no other response of the group has scores"


def test_the_order_of_the_texts_is_drawn_from_the_seed():
    orders = {
        score([group(1, 2, 3, 4)], fake_judge(by_number), k=1, seed=seed, critiques=True)[0]
        .critiques[0]
        .order
        for seed in range(20)
    }
    assert len(orders) > 4  # more than the rotations of one order


def test_block_size_1_judges_every_response_alone():
    prompts = []
    judge = fake_judge(by_number, prompts=prompts)
    (result,) = score([group(3, 8, 5)], judge, k=2, block_size=1, reward="rank")
    assert result.values == [0, 1, 0.5] and len(prompts) == 3
    assert all("Score 1-10: principles" in prompt for prompt in prompts)
    with pytest.raises(ValueError, match=r"block_size = 1.* 'win_rate'"):
        score([group(3, 8)], judge, reward="win_rate", block_size=1)


def test_a_template_for_few_responses_makes_smaller_blocks(tmp_path):
    source = (rendering.FOLDER / "compact/judge.jinja").read_text()
    (tmp_path / "four.jinja").write_text("{% set n_max = 4 %}" + source)
    judge = fake_judge(by_number, template=tmp_path / "four.jinja")
    (result,) = score([group(*range(1, 10))], judge, k=1, critiques=True)
    assert result.values == pytest.approx(list(range(1, 10)))
    assert {len(critique.order) for critique in result.critiques} <= {2, 3, 4}
