"""The small SentencePiece vocabulary of the judging world, trained from the world's own text.

The committed file is `assets/world.model`; `train_vocabulary()` makes it again, byte for byte. Fixed phrases (openings,
principles, lines of the prompt templates) become single pieces, so prompts stay short; items of lists (letters,
digits, words) stay one piece each and never merge with their neighbours, so the tasks stay readable to a small model.
"""

from __future__ import annotations

import io
import pathlib
import re
import string

from grm_jax.data.world.families import FAMILIES, LETTERS, WORDS
from grm_jax.data.world.responses import NO_ANSWERS, OPENINGS
from grm_jax.data.world.teacher import DESCRIPTIONS, NAMES, PHRASES, WEIGHTS

SIZE = 800
MOST_RESPONSES = 6  # numbers with a marker of their own
TURN_SYMBOLS = ("<start_of_turn>", "<end_of_turn>", "\n", "\n\n")
# The first lines of the prompts that training renders: one piece each.
HEADS = (
    "Score 1-10: principles, analysis, \\boxed{scores}.",
    "Score 1-10: principles, analysis, \\boxed{score}.",
    "Correct 0 or 1: principles, analysis, \\boxed{score}.",
)
# Other fixed lines of the `compact` prompt templates and words of the chat format. Other wordings still encode, in more pieces.
TEMPLATE_PHRASES = (
    "user",
    "model",
    "system",
    "assistant",
    "Score 1-10 by the reference: principles, analysis, \\boxed{scores}.",
    "Score 1-10 by these principles: principles, analysis, \\boxed{scores}.",
    "Score 1-10: analysis, \\boxed{scores}.",
    "Best response: analysis, \\boxed{number}.",
    "Better response: \\boxed{number}.",
    "Principles to judge by.",
    "Score.",
    "Hint: the best response is Response",
    "Hint: the correct score is",
)
_REPEATS = 20  # how often a phrase is seen: merges inside phrases come before any other


def vocabulary_path() -> pathlib.Path:
    """The committed vocabulary file."""
    return pathlib.Path(__file__).parent / "assets" / "world.model"


def train_vocabulary() -> bytes:
    """Trains the vocabulary and returns the serialised SentencePiece model.

    Ids are Gemma's: pad 0, eos 1, bos 2, unk 3; then the turn symbols, the newline, and a digit after a space. The text
    is taken as it is (no normalisation, no dummy prefix), bytes stand in for unknown characters, so any text
    round-trips. One thread and a fixed corpus: the same bytes every time.
    """
    import sentencepiece as spm

    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=out,
        model_type="bpe",
        vocab_size=SIZE,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=[
            *TURN_SYMBOLS,
            *_fixed_symbols(),
            *(f"▁{digit}" for digit in string.digits),
        ],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        byte_fallback=True,
        split_digits=True,
        split_by_whitespace=False,
        max_sentencepiece_length=64,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def corpus() -> list[str]:
    """The sentences that the vocabulary is trained on: fixed phrases often, single items as often, each character once."""
    phrases = [
        *_opening_phrases(),
        *(f" {text}" for text in NO_ANSWERS),
        *NAMES,
        *PHRASES,
        *_query_phrases(),
        *TEMPLATE_PHRASES,
    ]
    items = [f" {item}" for item in ("or", *LETTERS, *WORDS, *(w.upper() for w in WORDS))]
    characters = [c for c in string.printable if c.isprintable()]
    return [*(phrases * _REPEATS), *(items * _REPEATS), *characters]


def _opening_phrases() -> list[str]:
    return [opening.rstrip() for openings in OPENINGS.values() for opening in openings]


def _query_phrases() -> list[str]:
    """The fixed words of every family's query, with the arguments taken out."""
    phrases = []
    for family in FAMILIES.values():
        marks = [f"{i:04d}" for i in range(4)]
        phrases += re.split(r" ?\d{4}", family.ask(tuple(marks)))
    return [phrase for phrase in phrases if phrase]


def _fixed_symbols() -> list[str]:
    """Pieces that hold digits or line breaks, which training would otherwise cut apart: heads, markers, weights; and principles."""
    numbers = range(1, MOST_RESPONSES + 1)
    symbols = ["\n[Query]\n", "\n[/Query]", "\n[Reference]\n", "\n[/Reference]", "\n\n\\boxed{"]
    symbols += [f"\n[Response▁{i}]\n" for i in numbers] + [f"\n[/Response▁{i}]" for i in numbers]
    symbols += [f"\n{i}:" for i in numbers] + [f"▁({weight}%):" for weight in WEIGHTS]
    return symbols + [
        text.replace(" ", "▁") for text in (*HEADS, *(f" {text}" for text in DESCRIPTIONS))
    ]
