"""Installs grm_jax in a Colab runtime: the versions of requirements.lock, but Colab's own NumPy."""

import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path

_PIN = re.compile(r"([\w.-]+)==(\S+)")


class RestartRequired(RuntimeError):
    """A package that this session has imported was replaced by another version."""


def install(root: Path) -> None:
    """Installs the clone `root` with pip, in seconds where it is installed already.

    Raises:
      CalledProcessError: pip failed; its message is printed above.
      RestartRequired: this session still has the old version of a package.
    """
    before = versions()
    file = root / "runs" / "colab_constraints.txt"
    file.parent.mkdir(exist_ok=True)
    lock = (root / "requirements.lock").read_text()
    file.write_text(constraints(lock, before["numpy"], loaded(sys.modules)))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(file)]
    subprocess.run([*pip, "-e", f"{root}{extra()}"], check=True)
    after = versions()
    replaced = {name for name in before if after.get(name) != before[name]}
    if stale := sorted(replaced & loaded(sys.modules)):
        raise RestartRequired(
            f"{', '.join(stale)} changed after this session had imported the old version: choose "
            "Runtime > Restart session, then run all cells again"
        )


def constraints(lock: str, numpy: str, keep: Collection[str]) -> str:
    """Returns the pins of a lock file for pip's -c, without the packages `keep`.

    The versions that Colab has imported stay, unless a requirement excludes them. numpy: its
    version there; everything that Colab installed was built for it.
    """
    lines = []
    for line in lock.splitlines():
        pin = _PIN.match(line)
        if pin and pin[1] != "numpy" and canonical(pin[1]) not in keep:
            lines.append(line)
    return "\n".join([f"numpy=={numpy}", *lines, ""])


def extra() -> str:
    """Returns the extra for this runtime's accelerator: "[tpu]", "[cuda]" or nothing."""
    if os.environ.get("COLAB_TPU_ADDR") or Path("/dev/vfio").exists():
        return "[tpu]"
    return "[cuda]" if Path("/dev/nvidia0").exists() else ""


def versions() -> dict[str, str]:
    """Returns the version of every installed distribution, by canonical name."""
    return {canonical(one.metadata["Name"]): one.version for one in metadata.distributions()}


def loaded(modules: Mapping[str, object]) -> set[str]:
    """Returns the distributions that have a module among those imported."""
    providers = metadata.packages_distributions()
    names = {name.partition(".")[0] for name in modules}
    return {canonical(one) for name in names for one in providers.get(name, ())}


def canonical(name: str) -> str:
    """Returns the name of a distribution as package indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
