"""One host of a tiny GRPO run for test_hosts.py: `python hosts_child.py LAUNCHER-ARGUMENTS`.

An untrained model writes no parseable critique, so all rewards are -1 and gradients are rounding
noise. The reward here depends on the text alone: whether its length is even.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

if __name__ == "__main__":
    from grm_jax.training import grpo
    from launch import tpu

    grpo.reward = lambda comparison, critique: (
        grpo.CORRECT if len(critique.text) % 2 == 0 else grpo.INCORRECT
    )
    sys.exit(tpu.main(sys.argv[1:]))
