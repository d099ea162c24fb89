"""A machine without a TPU does not ask libtpu for one."""

import os
import subprocess
import sys

import pytest

ASK = """
{before}
from grm_jax import devices
devices.choose_platform()
import jax
print(jax.default_backend(), jax.config.jax_platforms)
"""


@pytest.mark.parametrize(
    "before", ["", "import jax"], ids=["jax not imported", "jax imported before"]
)
def test_without_chips_the_cpu_is_chosen(before):
    from grm_jax.devices import has_chips

    if has_chips():
        pytest.skip("this machine has TPU chips")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_PLATFORMS", "XLA_FLAGS")
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(before=before)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stdout and "TPU" not in done.stderr
