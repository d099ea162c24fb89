"""Lets verl load a custom reward function and call it by its naive reward manager.

    PYTHONPATH=. PEERS_PYTHON tests/serving/hosts/verl_rewards.py URL

Prints a JSON object per way to collect the samples of a prompt: by the server, in this process.
"""

import asyncio
import json
import sys
import tempfile

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn

ANSWERS = ("io is a moon", "luna")
FILE = """
from grm_jax.judging.rewards import RewardOptions
from grm_jax.serving.adapters import verl
from grm_jax.serving.client import Client

client = Client("{url}", RewardOptions(k=8))
by_server = verl.compute_score_by_server(client, 2)
in_process = verl.compute_score(client.score_async, 2)
"""


class Letters:
    """A tokenizer of letters: all that the reward manager uses."""

    def decode(self, ids, skip_special_tokens=True):
        return "".join(map(chr, ids))


def batch(answer: str, name: str) -> DataProto:
    """One sample, as verl's agent loop passes it to a reward worker."""
    ids = torch.tensor([[ord(letter) for letter in answer]])
    question = np.array([{"role": "user", "content": "name a moon"}], dtype=object)
    info = {"split": "train", "index": 7, "uid": name, "question": question}
    return DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
        non_tensors={
            "data_source": np.array(["moons"], dtype=object),
            "reward_model": np.array([{"ground_truth": "io"}], dtype=object),
            "extra_info": np.array([info], dtype=object),
        },
    )


async def main(url: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(FILE.format(url=url))
        file.flush()
        for name in ("by_server", "in_process"):
            function = {"path": file.name, "name": name, "reward_kwargs": {}}
            config = OmegaConf.create({"reward": {"custom_reward_function": function}})
            manager = NaiveRewardManager(config, Letters(), get_custom_reward_fn(config))
            assert manager.is_async_reward_score, "verl would call it in a thread"
            samples = [batch(answer, name) for answer in ANSWERS]
            results = await asyncio.gather(*map(manager.run_single, samples))
            print(json.dumps({"by": name, "results": results}))
    assert "jax" not in sys.modules


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
