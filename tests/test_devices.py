"""Tests the choice of platform on a machine without a TPU."""

import os
import subprocess
import sys

import pytest

from grm_jax.devices import has_chips

SCRIPT = """
{first_line}
from grm_jax import devices
devices.choose_platform()
import jax
print(jax.default_backend(), jax.config.jax_platforms)
"""


@pytest.mark.parametrize(
    "first_line", ["", "import jax"], ids=["jax not imported", "jax imported before"]
)
def test_choose_platform_selects_the_cpu_without_tpu_chips(first_line):
    if has_chips():
        pytest.skip("this machine has TPU chips")
    environment = dict(os.environ)
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        environment.pop(name, None)
    command = [sys.executable, "-c", SCRIPT.format(first_line=first_line)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "cpu" in process.stdout and "TPU" not in process.stderr
