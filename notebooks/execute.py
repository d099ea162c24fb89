"""Executes the notebooks in their small setting and stores their outputs: `make notebooks`.

tests/test_notebooks.py executes the notebooks by the same function.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
# judge and spct_2b_lora run what spct_world has trained.
NAMES = ("spct_world", "judge", "spct_2b_lora", "emulate_a_pod")


def execute(
    name: str, scratch: Path, variables: Mapping[str, str] | None = None
) -> nbformat.NotebookNode:
    """Runs a notebook as Jupyter does, from its own folder, and returns it with its outputs.

    Args:
      scratch: folder for what the notebooks write; of `judge` and `spct_2b_lora`, the one that
        spct_world ran in.
      variables: more environment variables.
    """
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    environment = {
        **os.environ,
        "GRM_NOTEBOOK_SMALL": "1",
        "GRM_WORKDIR": str(scratch / "spct_small"),
        "GRM_MODEL": str(scratch / "spct_small/rl/hf"),
        "TMPDIR": str(scratch),
        "IPYTHONDIR": str(scratch / "ipython"),
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        **(variables or {}),
    }
    environment.pop("XLA_FLAGS", None)  # one device, unless the notebook sets more
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(
        book, timeout=900, kernel_name="python3", resources=resources, record_timing=False
    )
    client.execute(env=environment)
    return book


def store(book: nbformat.NotebookNode, name: str, scratch: Path) -> None:
    """Writes an executed notebook, without paths of this machine, with a digest of its sources."""
    text = nbformat.writes(book)
    programs = f"{Path(sys.executable).parent}/"
    for path, replacement in ((scratch, "runs"), (programs, ""), (f"{ROOT}/", ""), (ROOT, ".")):
        text = text.replace(str(path), replacement)
    book = nbformat.reads(text, as_version=4)
    book.metadata["outputs_of"] = digest(book)
    book.metadata["language_info"] = {"name": "python"}
    nbformat.write(book, FOLDER / f"{name}.ipynb")


def digest(book: nbformat.NotebookNode) -> str:
    """Returns a hash of a notebook's code: stored outputs are of the code with this hash."""
    sources = "\0".join(cell.source for cell in book.cells if cell.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()[:12]


def kinds(book: nbformat.NotebookNode) -> list[list[str]]:
    """Returns for each code cell the kinds of its outputs: "stdout", "text/html", ..."""
    return [
        [
            one.get("name") or max(one.data, key=lambda kind: kind != "text/plain")
            for one in cell.outputs
        ]
        for cell in book.cells
        if cell.cell_type == "code"
    ]


def main() -> None:
    """Executes all notebooks and stores their outputs."""
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            store(execute(name, Path(folder)), name, Path(folder))
            print(f"notebooks/{name}.ipynb: {(FOLDER / f'{name}.ipynb').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
