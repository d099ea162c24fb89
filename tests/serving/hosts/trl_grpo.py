"""Trains a tiny random model with TRL's GRPOTrainer on rewards of a running `grm serve`.

    PYTHONPATH=. PEERS_PYTHON tests/serving/hosts/trl_grpo.py URL [STEPS [BATCH]]

Prints one JSON object per logged step. Needs torch, trl, and the packages that the adapters
import (docs/serving.md); no JAX.
"""

import json
import sys
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from grm_jax.judging.rewards import RewardOptions
from grm_jax.serving.adapters import trl
from grm_jax.serving.client import Client

WORDS = (
    "<pad> <eos> <unk> name a moon planet bird io luna mars owl is the largest of all no".split()
)
GENERATIONS = 2


def tiny_policy(folder: str) -> PreTrainedTokenizerFast:
    """Writes a random model to a folder; returns its tokenizer."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    return tokenizer


def main(url: str, steps: int = 5, batch: int = 2 * GENERATIONS) -> None:
    judge = Client(url, RewardOptions(k=4, reward="mean"))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_policy(folder)
        trainer = GRPOTrainer(
            model=folder,
            reward_funcs=trl.reward_func(judge, num_generations=GENERATIONS),
            args=GRPOConfig(
                folder,
                num_generations=GENERATIONS,
                per_device_train_batch_size=batch,
                max_completion_length=8,
                max_steps=steps,
                learning_rate=1e-3,
                logging_steps=1,
                use_cpu=True,
                bf16=False,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["name a moon", "name a bird"] * 8}),
            processing_class=tokenizer,
        )
        trainer.train()
        for row in trainer.state.log_history:
            print(json.dumps(row))
        extra = trainer._logs["extra"]
        print(json.dumps({"statuses": list(extra["judge_status"])}))
        assert "jax" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
