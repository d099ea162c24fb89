"""The small SentencePiece vocabulary of the judging world, trained on the world's own text.

The committed file is `assets/world.model`; `train_vocabulary()` reproduces it byte for byte. Fixed
phrases (openings, principles, lines of the prompt templates) are single pieces, so prompts are
short. List items (letters, digits, words) are one piece each and never merge, so that a small model
can learn the tasks.
"""

import io
import pathlib
import re
import string

from grm_jax.data.world.families import FAMILIES, LETTERS, WORDS
from grm_jax.data.world.responses import NO_ANSWERS, OPENINGS
from grm_jax.data.world.teacher import DESCRIPTIONS, NAMES, PHRASES, WEIGHTS

SIZE = 800
MOST_RESPONSES = 6  # responses whose markers are single pieces
TURN_SYMBOLS = ("<start_of_turn>", "<end_of_turn>", "\n", "\n\n")
# First lines of the training prompts: one piece each.
HEADS = (
    "Score 1-10: principles, analysis, \\boxed{scores}.",
    "Score 1-10: principles, analysis, \\boxed{score}.",
    "Correct 0 or 1: principles, analysis, \\boxed{score}.",
)
# Other fixed lines of the `compact` templates and the chat format. Other text takes more pieces.
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
_REPEATS = 20  # occurrences of a phrase: merges inside phrases come first


def vocabulary_path() -> pathlib.Path:
    """Returns the committed vocabulary file."""
    return pathlib.Path(__file__).parent / "assets" / "world.model"


def train_vocabulary() -> bytes:
    """Trains the vocabulary and returns the serialised SentencePiece model.

    Ids are Gemma's: pad 0, eos 1, bos 2, unk 3; then the turn symbols, the newline, and digits
    after a space. Without normalisation or dummy prefix and with byte fallback, any text
    round-trips. One thread and a fixed corpus make the result reproducible.
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
    """Returns the training sentences: phrases and items `_REPEATS` times, each character once."""
    phrases = [
        *(opening.rstrip() for openings in OPENINGS.values() for opening in openings),
        *(f" {text}" for text in NO_ANSWERS),
        *NAMES,
        *PHRASES,
        *_query_phrases(),
        *TEMPLATE_PHRASES,
    ]
    items = [f" {item}" for item in ("or", *LETTERS, *WORDS, *(w.upper() for w in WORDS))]
    characters = [c for c in string.printable if c.isprintable()]
    return [*(phrases * _REPEATS), *(items * _REPEATS), *characters]


def _query_phrases() -> list[str]:
    """The fixed words of every family's query, without the arguments."""
    marks = tuple(f"{i:04d}" for i in range(4))
    pieces = [re.split(r" ?\d{4}", family.ask(marks)) for family in FAMILIES.values()]
    return [phrase for phrases in pieces for phrase in phrases if phrase]


def _fixed_symbols() -> list[str]:
    """Pieces with digits or line breaks, which training would split; and the principles."""
    numbers = range(1, MOST_RESPONSES + 1)
    symbols = ["\n[Query]\n", "\n[/Query]", "\n[Reference]\n", "\n[/Reference]", "\n\n\\boxed{"]
    symbols += [f"\n[Response▁{i}]\n" for i in numbers] + [f"\n[/Response▁{i}]" for i in numbers]
    symbols += [f"\n{i}:" for i in numbers] + [f"▁({weight}%):" for weight in WEIGHTS]
    return symbols + [
        text.replace(" ", "▁") for text in (*HEADS, *(f" {text}" for text in DESCRIPTIONS))
    ]
