"""Compares the ids of chat prompts with those of transformers.

    GRM_PEERS=PYTHON GRM_TOKENIZERS=FOLDER pytest --run peers tests/text

GRM_PEERS is a Python interpreter with the `bench` extra. GRM_TOKENIZERS is a folder with gemma3/,
which contains tokenizer.json and its chat template.
"""

import json
import os
import subprocess

import pytest

from grm_jax.text import templates, tokenizer
from grm_jax.types import Comparison

pytestmark = pytest.mark.peers

CHATS = [
    [
        {"role": "user", "content": "  hi there\n"},
        {"role": "assistant", "content": "ok\n\n1. x"},
        {"role": "user", "content": "10 * 3"},
    ],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\tb  c\n\n```\ncode\n```"},
    ],
    templates.render(
        "grm", Comparison("What is 2 + 2?", ("It is 4. 日本語", "It is 5.\n\n\n\tIndeed."))
    ),
]
TRANSFORMERS_SCRIPT = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
for chat in json.load(sys.stdin):
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    print(json.dumps(list(ids["input_ids"] if hasattr(ids, "keys") else ids)))
"""


def test_chat_prompts_have_the_same_ids_as_in_transformers():
    python = os.environ.get("GRM_PEERS")
    folder = os.path.join(os.environ.get("GRM_TOKENIZERS", ""), "gemma3")
    if not python or not os.path.exists(os.path.join(folder, "tokenizer.json")):
        pytest.skip("set GRM_PEERS to a Python with transformers, GRM_TOKENIZERS to a folder")
    process = subprocess.run(
        [python, "-c", TRANSFORMERS_SCRIPT, folder],
        input=json.dumps(CHATS),
        capture_output=True,
        text=True,
        check=True,
    )
    ours = tokenizer.load(folder)
    for chat, line in zip(CHATS, process.stdout.strip().splitlines()[-len(CHATS) :], strict=True):
        assert ours.encode_chat(chat) == json.loads(line)
