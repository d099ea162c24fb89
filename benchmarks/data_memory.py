"""Measures the memory of a seqio mixture of 1 GB of JSONL while it is indexed and read.

python benchmarks/data_memory.py --gigabytes 1
"""

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402
from experiments import spct_27b  # noqa: E402


def write_pairs(path: Path, size: int) -> int:
    """Writes about `size` bytes of preference pairs, 4 KB each; returns their number."""
    rng, count = random.Random(0), 0
    words = [f"word{i}" for i in range(5000)]
    with path.open("w") as out:
        while out.tell() < size:
            texts = [" ".join(rng.choices(words, k=200)) for _ in range(3)]
            row = dict(zip(("instruction", "output_1", "output_2"), texts), label=1)
            out.write(json.dumps(row) + "\n")
            count += 1
    return count


def resident_mb() -> float:
    """Returns the resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def report(stage: str, start: float) -> None:
    """Prints resident memory now and its peak so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = time.time() - start
    print(f"{stage:<28} {resident_mb():7.0f} MB now  {peak:7.0f} MB peak  {seconds:6.1f} s")


def main() -> None:
    """Writes the data, indexes them, and reads 20,000 places."""
    parser = common.argument_parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    size = parser.parse_args().gigabytes * 1e9
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        print(f"{write_pairs(path, int(size))} pairs, {path.stat().st_size / 1e9:.2f} GB")
        start = time.time()
        from grm_jax.data import mixtures
        from grm_jax.training import sources

        report("TensorFlow imported", start)
        mixtures.add_comparisons("pairs", {"train": str(path)}, layout="offsetbias")
        config = spct_27b.get_config("data.judging=pairs")
        source = sources.judging(config, workdir=folder)
        report("indexed", start)
        for place in range(20_000):
            source.at(place)
        report("20,000 places read", start)
        sources.judging(config, workdir=folder)
        report("opened again", start)


if __name__ == "__main__":
    main()
