"""Time and memory of loading a checkpoint, beside `cat` of the same file in the same run.

    python benchmarks/load_speed.py [--gb 4] [--folder DIR] [--out benchmarks/results/load_speed.json]

Writes a random bfloat16 checkpoint of about that size (the widths of Gemma-2-2B, fewer or more layers), loads it in a fresh process, and removes
it. Cold: the file's pages are dropped before each turn, so both read from the disk. Warm: both read from the page cache. Turns alternate,
and the median is told. Memory is the highest resident size of the loading process less what it held before, over the bytes of parameters.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def make_checkpoint(folder: Path, gb: float) -> Path:
    import ml_dtypes
    import numpy as np

    from grm_jax.checkpoints.hf_config import to_hf
    from grm_jax.checkpoints.names import axis_sizes, disk_shape, places
    from grm_jax.checkpoints.safetensors_file import write_safetensors
    from grm_jax.models import get_config

    cfg = get_config("gemma2_2b", vocab_size=64_000)
    per_layer = (
        get_config("gemma2_2b", num_layers=2).num_params
        - get_config("gemma2_2b", num_layers=1).num_params
    ) * 2
    cfg = cfg.replace(
        num_layers=max(2, round((gb * 1e9 - cfg.vocab_size * cfg.d_model * 2) / per_layer))
    )
    dtype, sizes, rng = np.dtype(ml_dtypes.bfloat16), axis_sizes(cfg), np.random.default_rng(0)

    def random(shape):
        return rng.integers(0, 1 << 14, size=shape, dtype=np.uint16).view(
            dtype
        )  # small positive bfloat16s

    parts = [part for place in places(cfg, "hf").values() for part in place.parts]
    shapes = [(part.name, disk_shape(part, sizes)) for part in parts]
    write_safetensors(
        folder / "model.safetensors",
        [(n, s, dtype, lambda s=s: random(s)) for n, s in sorted(shapes)],
    )
    (folder / "config.json").write_text(json.dumps(to_hf(cfg, "bfloat16")))
    return folder


class Peak:
    """Highest resident size while it is open, sampled every 2 ms, in bytes; `before` is what was resident at the start."""

    def __enter__(self):
        self.before = self.top = self._resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.top = max(self.top, self._resident())

    def _watch(self):
        while not self._stop.wait(0.002):
            self.top = max(self.top, self._resident())

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load_here(folder: str) -> dict:
    """One load in this process, as JSON for the parent."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from grm_jax.checkpoints import load
    from grm_jax.checkpoints.loading import parameter_bytes

    jax.numpy.zeros(1).block_until_ready()  # the backend is up before the clock starts
    with Peak() as peak:
        start = time.perf_counter()
        model = load(folder)
        jax.block_until_ready(
            jax.tree.leaves(jax.tree.map(lambda p: p, model.embedder.table_VxD[...]))
        )
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": parameter_bytes(model), "peak": peak.top - peak.before}


def drop_pages(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def cat(path: Path) -> float:
    start = time.perf_counter()
    subprocess.run(f"cat '{path}' > /dev/null", shell=True, check=True)
    return time.perf_counter() - start


def measure(folder: Path, cold: bool, turns: int) -> dict:
    file = folder / "model.safetensors"
    cats, loads = [], []
    for _ in range(turns):
        for times, run in ((cats, lambda: cat(file)), (loads, lambda: load_apart(folder))):
            if cold:
                drop_pages(file)
            else:
                cat(file)
            times.append(run())
    size, load = file.stat().st_size, statistics.median(one["seconds"] for one in loads)
    return {
        "cat_gb_per_s": round(size / statistics.median(cats) / 1e9, 3),
        "load_gb_per_s": round(size / load / 1e9, 3),
        "load_over_cat": round(statistics.median(cats) / load, 3),
        "cat_seconds": [round(t, 3) for t in cats],
        "load_seconds": [round(one["seconds"], 3) for one in loads],
        "peak_over_parameter_bytes": round(max(one["peak"] / one["bytes"] for one in loads), 3),
        "parameter_gb": round(loads[0]["bytes"] / 1e9, 3),
    }


def load_apart(folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, "--load", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=4.0, help="size of the checkpoint (4)")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each kind (5)")
    parser.add_argument(
        "--folder", help="where to put the checkpoint: a disk with room for it (a temporary folder)"
    )
    parser.add_argument("--out", help="result file")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load_here(args.load)))
        return
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="load_speed", dir=args.folder))
    try:
        make_checkpoint(folder, args.gb)
        result = {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
            "date": time.strftime("%Y-%m-%d"),
            "command": f"python benchmarks/load_speed.py --gb {args.gb:g} --turns {args.turns}",
            "cold": measure(folder, True, args.turns),
            "warm": measure(folder, False, args.turns),
        }
    finally:
        shutil.rmtree(folder)
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
