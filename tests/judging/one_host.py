"""One host for test_several_hosts.py: python one_host.py FAULT ARGUMENTS-OF-GRM.

The judge is fake: it needs no weights, and all processes call it in lockstep. FAULT is "", or
"crash" (this process is killed), "error" (it raises) at the fourth completion.
"""

import os
import random
import signal
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

from fake_judge import fake_judge, well_formed  # noqa: E402

from grm_jax import cli  # noqa: E402
from grm_jax.evals import cli as evaluation  # noqa: E402
from grm_jax.judging import arguments  # noqa: E402


def main(fault: str, argv: list[str]) -> int:
    calls = 0

    def write(responses, key):
        nonlocal calls
        calls += 1
        if fault == "crash" and calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "error" and calls == 4:
            raise ValueError("the model's file was removed")
        rng = random.Random(str((key, responses)))
        return well_formed([rng.randint(1, 10) for _ in responses])

    def sampler_in_lockstep(judge):
        sample = judge.sampler

        def run(requests):
            from grm_jax.hosts import distributed

            for completion in sample(requests):
                distributed.from_first(lambda: 0)  # like a collective: waits for all processes
                yield completion

        judge.sampler = run
        return judge

    arguments.judge_from = lambda args: sampler_in_lockstep(fake_judge(write, name="toy@1"))
    evaluation.num_parameters = lambda path: 1000
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
