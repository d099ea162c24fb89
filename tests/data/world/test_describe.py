"""The printed statistics; imports of the data modules."""

import subprocess
import sys

from grm_jax.data import world
from grm_jax.data.world import describe


def test_every_statistic_is_printed(capsys):
    describe.main(60)
    printed = capsys.readouterr().out
    for text in (
        "2 responses",
        "position of the best response",
        "longest",
        "chance",
        "0.75 0.25 ->",
    ):
        assert text in printed


def test_rates_of_a_perfect_teacher():
    assert describe.teacher_rates(world.make_items("train", 0, 50), 1.0, 0.0) == (1.0, 0.0)


def test_only_the_seqio_module_imports_tensorflow():
    code = (
        "import sys\n"
        "from grm_jax.data import batches, layouts, packing, records, sft, world\n"
        "from grm_jax.data.world import controls, describe, teacher, vocabulary\n"
        "from grm_jax.training import rft_data\n"
        "print([m for m in ('tensorflow', 'seqio', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
