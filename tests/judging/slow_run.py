"""A slow run for tests that kill it: python slow_run.py IN OUT SECONDS_PER_ROW [I/N]."""

import sys
import time

import fake_judge

from grm_jax.judging.options import Options
from grm_jax.judging.run import RunConfig, judge_file
from grm_jax.judging.shards import Shard


def main(source, output, pause, shard=None):
    def write(responses, key):
        time.sleep(float(pause) / 2)
        return fake_judge.well_formed([(key[0] >> i) % 10 + 1 for i in range(len(responses))])

    result = judge_file(
        fake_judge.fake_judge(write),
        source,
        output,
        Options(k=2),
        RunConfig("resume", chunk=64, progress=False, shard=shard and Shard.parse(shard)),
    )
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
