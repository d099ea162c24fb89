"""`grm` with a judge that needs no weights and sleeps: python slow_command.py SECONDS ARGUMENT ...

Its critiques depend on the prompt alone, so runs that are killed and resumed can be compared.
"""

import sys
import time

import fake_judge

from grm_jax import cli
from grm_jax.judging.judge import Judge


def main(pause, *argv):
    def write(responses, key):
        time.sleep(float(pause))
        return fake_judge.well_formed([(key[0] >> i) % 10 + 1 for i in range(len(responses))])

    Judge.load = lambda path, **options: fake_judge.fake_judge(write, template=options["template"])
    return cli.main(list(argv))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
