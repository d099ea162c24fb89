"""Lets OpenRLHF's SingleTurnAgentExecutor fetch rewards: by /get_reward, and by a file.

    PYTHONPATH=. PEERS_PYTHON tests/serving/hosts/openrlhf_rewards.py URL

Prints a JSON object per sample. OpenRLHF's other modules need GPUs: its agent is loaded alone.
"""

import asyncio
import importlib.util
import json
import logging
import sys
import tempfile
import types
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PROMPT = "<|im_start|>user\nname a moon<|im_end|>\n<|im_start|>assistant\n"
ANSWERS = ("io is a moon", "luna")
FILE = """
from grm_jax.judging.rewards import RewardOptions
from grm_jax.serving.adapters import openrlhf
from grm_jax.serving.client import Client

reward_func = openrlhf.reward_func(Client("{url}", RewardOptions(k=8)))
"""


def load_agent() -> types.ModuleType:
    """Returns openrlhf.utils.agent of the installed package."""
    folder = importlib.util.find_spec("openrlhf").submodule_search_locations[0]
    quiet = types.SimpleNamespace(init_logger=logging.getLogger)
    sys.modules["openrlhf.utils.logging_utils"] = quiet
    file = Path(folder) / "utils" / "agent.py"
    spec = importlib.util.spec_from_file_location("openrlhf_agent", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with ChatML's control tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return fast


class Engine:
    """Generates the given answers, as vLLM returns them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer, self.answers = tokenizer, iter(ANSWERS * 2)

    async def generate(self, token_ids, params, **_):
        text = f"{next(self.answers)}<|im_end|>"
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        output = types.SimpleNamespace(
            token_ids=ids, text=text, finish_reason="stop", logprobs=None
        )
        return types.SimpleNamespace(outputs=[output])


async def main(url: str) -> None:
    agent, tokenizer = load_agent(), byte_tokenizer()
    engine = Engine(tokenizer)
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(FILE.format(url=url))
        file.flush()
        for place in (f"{url}/get_reward", file.name):
            executor = agent.SingleTurnAgentExecutor(place)
            for _ in ANSWERS:
                params = types.SimpleNamespace(max_tokens=64, logprobs=None)
                result = await executor.execute(PROMPT, "io", params, 512, tokenizer, engine)
                kept = {name: result[name] for name in ("reward", "scores", "extra_logs")}
                print(json.dumps({"by": "http" if "http" in place else "file", **kept}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(sys.argv[1]))
