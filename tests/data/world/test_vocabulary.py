"""The world's vocabulary: reproducible, Gemma's ids, lossless, short prompts."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from grm_jax.data import world
from grm_jax.data.world import families, teacher, vocabulary
from grm_jax.text import rendering, tokenizer


@pytest.fixture(scope="module")
def tok():
    return tokenizer.load(vocabulary.vocabulary_path())


def test_training_reproduces_the_committed_file():
    assert vocabulary.train_vocabulary() == vocabulary.vocabulary_path().read_bytes()


def test_special_ids_are_those_of_gemma(tok):
    assert (tok.pad_id, tok.eos_id, tok.bos_id, tok.id_of("<unk>")) == (0, 1, 2, 3)
    assert tok.id_of("<end_of_turn>") in tok.stop_ids
    assert tok.vocab_size == vocabulary.SIZE


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_round_trips(text):
    tok = tokenizer.load(vocabulary.vocabulary_path())
    assert tok.decode(tok.encode(text)) == text


def test_items_of_lists_are_one_piece_each(tok):
    for item in (
        *families.LETTERS,
        *"0123456789",
        *families.WORDS,
        *(w.upper() for w in families.WORDS),
    ):
        assert len(tok.encode(f" {item}")) == 1
    assert len(tok.encode(" b a d 3 9 cat")) == 6
    assert len(tok.encode(" 42")) == 2


def test_prompts_and_critiques_are_short(tok):
    prompts, texts = [], []
    for i, c in enumerate(world.make_items("train", 0, 400)):
        template = "compact/single_binary" if c.n == 1 else "compact"
        messages = rendering.render(template, c)
        prompts.append(len(tok.encode_chat(messages)))
        texts.append(len(tok.encode(teacher.critique(c, range(c.n), i))) + 1)
    # Fails if fixed lines of a template are no longer single pieces.
    assert np.percentile(prompts, 50) <= 34 and max(prompts) <= 100
    assert np.percentile(texts, 50) <= 28 and max(texts) <= 80
