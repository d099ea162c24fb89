"""Packed batches and batches of comparisons, by step and process; encoding of SFT examples."""

import dataclasses
import json

import numpy as np
import pytest

from grm_jax.data import batches, packing, records, sft, world
from grm_jax.data.world import vocabulary
from grm_jax.text import tokenizer


def encoded(lengths, prompt=2):
    """Example i is token i + 1, `lengths[i]` times; its first `prompt` tokens are the prompt."""
    tokens = [np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)]
    return sft.Encoded(
        np.concatenate(tokens), np.cumsum(lengths), np.full(len(lengths), prompt, np.int32)
    )


LENGTHS = np.random.default_rng(0).integers(3, 17, size=101)


def test_packed_row():
    batch = packing.PackedBatches(encoded([5, 4]), batch_size=1, seq_len=12, seed=1).batch(0)
    first, second = (1, 2) if batch["tokens"][0, 0] == 1 else (2, 1)
    a, b = (5, 4) if first == 1 else (4, 5)
    pad = [0] * 3
    assert batch["tokens"][0].tolist() == [first] * a + [second] * b + pad
    assert batch["positions"][0].tolist() == [*range(a), *range(b)] + pad
    assert batch["segment_ids"][0].tolist() == [1] * a + [2] * b + pad
    assert batch["weights"][0].tolist() == [0, 0] + [1] * (a - 2) + [0, 0] + [1] * (b - 2) + pad


def test_every_example_occurs_whole_once_per_epoch():
    data = packing.PackedBatches(encoded(LENGTHS), batch_size=1, seq_len=32, seed=3)
    for epoch in range(2):
        counts = np.zeros(len(LENGTHS) + 1, int)
        for step in range(len(data.rows)):
            batch = data.batch(epoch * len(data.rows) + step)
            np.add.at(counts, batch["tokens"][0], 1)
            for segment in range(1, batch["segment_ids"].max() + 1):
                assert len(set(batch["tokens"][0][batch["segment_ids"][0] == segment])) == 1
        np.testing.assert_array_equal(counts[1:], LENGTHS)
    assert data.fill > 0.9


def test_batch_depends_on_step_and_seed_only():
    data = packing.PackedBatches(encoded(LENGTHS), batch_size=4, seq_len=32, seed=3)
    other = packing.PackedBatches(encoded(LENGTHS), batch_size=4, seq_len=32, seed=4)
    again = packing.PackedBatches(encoded(LENGTHS), batch_size=4, seq_len=32, seed=3)
    seventh = data.batch(7)
    for step in (0, 40, 7):
        np.testing.assert_array_equal(again.batch(step)["tokens"], data.batch(step)["tokens"])
    np.testing.assert_array_equal(data.batch(7)["tokens"], seventh["tokens"])
    assert (other.batch(7)["tokens"] != seventh["tokens"]).any()
    assert (data.batch(7 + len(data.rows))["tokens"] != seventh["tokens"]).any()


def test_too_long_examples_are_dropped_and_logged(caplog):
    data = packing.PackedBatches(encoded([5, 40, 6]), batch_size=1, seq_len=16)
    assert sorted(sum(data.rows, [])) == [0, 2]
    assert "1 of 3 examples are longer than 16 tokens" in caplog.text
    with pytest.raises(ValueError, match="none of 1 examples fits"):
        packing.PackedBatches(encoded([40]), 1, 16)


def test_encoded_completion_ends_with_end_of_turn_and_is_saved(tmp_path):
    tok = tokenizer.load(vocabulary.vocabulary_path())
    general = world.general_items("train", 0, 20)
    examples = [sft.from_instruction(g) for g in general]
    data = sft.encode_all(examples, tok)
    for i, example in enumerate(examples):
        tokens, prompt = data[i]
        assert tokens[-1] == tok.id_of("<end_of_turn>")
        assert tok.decode(tokens[prompt:]) == example.completion
        assert tokens[0] == tok.bos_id and (tokens == tok.bos_id).sum() == 1
    data.save(tmp_path / "cache")
    loaded = sft.Encoded.load(tmp_path / "cache")
    np.testing.assert_array_equal(loaded.tokens, data.tokens)
    np.testing.assert_array_equal(loaded[7][0], data[7][0])


def test_three_forms_of_example_records(tmp_path):
    path = tmp_path / "e.jsonl"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [
        {"query": "a", "answer": "b"},
        {"messages": chat},
        {"messages": chat[:1], "completion": "b", "kind": "hinted"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    examples = list(sft.read_examples(path))
    assert [(e.messages, e.completion) for e in examples] == [((chat[0],), "b")] * 3
    assert [e.kind for e in examples] == ["general", "general", "hinted"]
    path.write_text("".join(json.dumps(dataclasses.asdict(e)) + "\n" for e in examples))
    assert list(sft.read_examples(path)) == examples
    path.write_text('{"messages": []}\n')
    with pytest.raises(records.TooManyMalformed, match=r"e\.jsonl:1: no 'completion'"):
        list(sft.read_examples(path))


# ---------------------------------------------------------------- comparisons by place


def test_places_of_a_list_are_a_new_order_in_each_epoch():
    at = batches.from_list(world.make_items("train", 0, 10), seed=1)
    ids = [at(place).id for place in range(20)]
    assert sorted(ids[:10]) == sorted(ids[10:]) and len(set(ids[:10])) == 10
    assert ids[:10] != ids[10:]
    assert [at(place).id for place in (13, 2)] == [ids[13], ids[2]]
    with pytest.raises(ValueError, match="no comparisons"):
        batches.from_list([])


def test_places_of_the_world_never_repeat():
    at = batches.from_world("train")
    assert [at(place) for place in range(108, 112)] == world.make_items("train", 108, 4)


def test_mixtures_keep_their_rates_without_gaps():
    mixed = batches.from_mixture([lambda p: ("a", p), lambda p: ("b", p)], [3.0, 1.0], seed=5)
    drawn = [mixed(place) for place in range(3000)]
    a = [p for name, p in drawn if name == "a"]
    assert sorted(a) == list(range(2250))
    assert sorted(p for name, p in drawn if name == "b") == list(range(750))
    share = [sum(name == "a" for name, _ in drawn[i : i + 200]) / 200 for i in range(0, 3000, 200)]
    assert 0.6 < min(share) and max(share) < 0.9
    with pytest.raises(ValueError, match="one positive rate per source"):
        batches.from_mixture([lambda p: p], [1.0, 2.0])
