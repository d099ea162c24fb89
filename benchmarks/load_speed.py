"""Measures time and memory of loading a checkpoint beside `cat` of the same file.

    python benchmarks/load_speed.py [--gb 4] [--folder DIR] [--out FILE.json]

Writes a random bfloat16 checkpoint of about that size (the widths of Gemma-2-2B, fewer or more
layers), loads it in a new process, and removes it. Cold: the file's pages are dropped before each
turn, so both read from the disk. Warm: both read from the page cache. Turns alternate; the result
is the median. Memory is the peak resident size of the loading process minus its size before
loading, over the bytes of the parameters.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402


def write_checkpoint(folder: Path, gb: float) -> None:
    """Writes a Hugging Face folder of about `gb` gigabytes."""
    import ml_dtypes
    import numpy as np

    from grm_jax.checkpoints.hf_config import to_hf
    from grm_jax.checkpoints.safetensors_file import Entry, write_safetensors
    from grm_jax.checkpoints.tensor_map import axis_sizes, disk_shape, tensor_map
    from grm_jax.models import get_config

    cfg = get_config("gemma2_2b", vocab_size=64_000)
    per_layer = 2 * (cfg.replace(num_layers=2).num_params - cfg.replace(num_layers=1).num_params)
    layers = round((gb * 1e9 - 2 * cfg.vocab_size * cfg.d_model) / per_layer)
    cfg = cfg.replace(num_layers=max(2, layers))
    dtype, sizes, rng = np.dtype(ml_dtypes.bfloat16), axis_sizes(cfg), np.random.default_rng(0)

    def random(shape: tuple[int, ...]) -> np.ndarray:
        """Small positive bfloat16 values."""
        return rng.integers(0, 1 << 14, size=shape, dtype=np.uint16).view(dtype)

    tensors = [t for source in tensor_map(cfg, "hf").values() for t in source.tensors]
    shapes = sorted((tensor.name, disk_shape(tensor, sizes)) for tensor in tensors)
    entries = [Entry(name, shape, dtype, lambda s=shape: random(s)) for name, shape in shapes]
    write_safetensors(folder / "model.safetensors", entries)
    (folder / "config.json").write_text(json.dumps(to_hf(cfg, "bfloat16")))


def resident_bytes() -> int:
    """Returns the resident size of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def peak_growth() -> Iterator[list[int]]:
    """Yields a list; on exit it holds how far the resident size grew at most, sampled at 2 ms."""
    before, growth, stop = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            growth[0] = max(growth[0], resident_bytes() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield growth
    stop.set()
    thread.join()
    growth[0] = max(growth[0], resident_bytes() - before)


def load_here(folder: str) -> dict[str, Any]:
    """Loads once in this process."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    from flax import nnx

    from grm_jax.checkpoints import load

    jax.numpy.zeros(1).block_until_ready()  # starts the backend before the clock
    with peak_growth() as growth:
        start = time.perf_counter()
        model = load(folder)
        jax.block_until_ready(model.embedder.table_VxD[...])
        seconds = time.perf_counter() - start
    size = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))
        for shard in leaf.addressable_shards
    )
    return {"seconds": seconds, "bytes": size, "peak": growth[0]}


def drop_pages(path: Path) -> None:
    """Removes a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def cat_seconds(path: Path) -> float:
    start = time.perf_counter()
    with open(os.devnull, "wb") as null:
        subprocess.run(["cat", str(path)], stdout=null, check=True)
    return time.perf_counter() - start


def measure(folder: Path, cold: bool, turns: int) -> dict[str, Any]:
    """Alternates `cat` and loading."""
    file = folder / "model.safetensors"
    prepare = drop_pages if cold else cat_seconds
    cats, loads = [], []
    for _ in range(turns):
        prepare(file)
        cats.append(cat_seconds(file))
        prepare(file)
        loads.append(common.run_apart(__file__, "--load", folder))
    size, cat = file.stat().st_size, statistics.median(cats)
    load = statistics.median(turn["seconds"] for turn in loads)
    peak = max(turn["peak"] / turn["bytes"] for turn in loads)
    return {
        "cat_gb_per_s": round(size / cat / 1e9, 3),
        "load_gb_per_s": round(size / load / 1e9, 3),
        "load_over_cat": round(cat / load, 3),
        "cat_seconds": [round(seconds, 3) for seconds in cats],
        "load_seconds": [round(turn["seconds"], 3) for turn in loads],
        "peak_over_parameter_bytes": round(peak, 3),
        "parameter_gb": round(loads[0]["bytes"] / 1e9, 3),
    }


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--gb", type=float, default=4.0, help="size of the checkpoint (4)")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each kind (5)")
    parser.add_argument("--folder", help="where to write the checkpoint (a temporary folder)")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--load", help="internal: load this folder once and print the result")
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load_here(args.load)))
        return
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="load_speed", dir=args.folder))
    try:
        write_checkpoint(folder, args.gb)
        result = {
            "machine": common.machine(),
            "command": f"python benchmarks/load_speed.py --gb {args.gb:g} --turns {args.turns}",
            "cold": measure(folder, True, args.turns),
            "warm": measure(folder, False, args.turns),
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=1))
    if args.out:
        common.write_json(args.out, result)


if __name__ == "__main__":
    main()
