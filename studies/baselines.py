"""Trains the baselines of an experiment, measures them, and writes one table over seeds.

    python studies/baselines.py --config experiments/spct_tiny.py --workdir runs/baselines \\
        --seeds 0,1,2 --spct runs/study/main-{seed}

--spct is the folder of the SPCT run of each seed. Its RFT model writes CLoud's critiques, and the
run itself is measured beside the baselines; without it both are skipped. An experiment on the
judging world is measured on its own held-out comparisons unless --benchmark names another.
Finished stages are not trained again, so the same command resumes a stopped run.

Writes WORKDIR/NAME-SEED/JUDGE/results.json for `grm table runs`, and table.md, table.json and
table.html over all seeds to --out. OUT/judges stores what each judge predicted: judges that it
holds for the same config are not run again, so seeds can be added on another machine.
"""

import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from grm_jax.baselines import BASELINES, Bench, report, results  # noqa: E402
from grm_jax.baselines.results import Measured  # noqa: E402
from grm_jax.evals.cli import write_reports  # noqa: E402

log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config", required=True, help="file of the experiment")
    p.add_argument("--set", default="", help="argument of get_config: name=value,...")
    p.add_argument("--workdir", required=True)
    p.add_argument("--seeds", default="0", help="comma separated")
    p.add_argument("--spct", help="folder of the SPCT run, with {seed}")
    p.add_argument("--baselines", default=",".join(BASELINES), help="names, comma separated")
    p.add_argument("--benchmark", default="world")
    p.add_argument("--data", default=".", help="folder of the benchmark's files")
    p.add_argument("--limit", type=int, help="comparisons to judge, picked by a hash of their ids")
    p.add_argument(
        "--as_it_stands", action="store_true", help="run nothing: tabulate the judges in --out"
    )
    p.add_argument("--out", help="folder of the table and of judges/ (default: the workdir)")
    return p


def load_config(path: str, arg: str) -> ConfigDict:
    """Loads the config of an experiment's file."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def measure(name: str, bench: Bench, folder: Path) -> list[Measured]:
    """Trains and measures one baseline; writes a results file for each of its judges."""
    folder.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(bench.mesh):
        judges = BASELINES[name].measure(bench, folder)
    for judge in judges:
        reports = folder / judge.label.replace(", ", "_").replace(" ", "_").replace("=", "")
        reports.mkdir(exist_ok=True)
        write_reports([judge.entry], reports)
    return judges


def judges_of(name: str, bench: Bench, args: argparse.Namespace) -> list[Measured]:
    """Returns a baseline's judges of one seed: stored ones, or measured now and stored."""
    folder = f"{name}-{bench.config.seed}"
    path = Path(args.out or args.workdir) / "judges" / f"{folder}.jsonl"
    identity = bench.identity(name)
    judges = results.load(path, identity, bench.comparisons)
    if judges is None and args.as_it_stands:
        log.warning("%s of seed %d is skipped: not in %s", name, bench.config.seed, path)
    elif judges is None:
        judges = measure(name, bench, Path(args.workdir) / folder)
        if judges:
            results.save(path, identity, judges)
    return judges or []


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns the exit status: 1 if nothing was measured, 2 for a wrong name."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs every step of every save
    names, out = args.baselines.split(","), Path(args.out or args.workdir)
    if unknown := [name for name in names if name not in BASELINES]:
        print(f"unknown baseline {unknown[0]!r}: use {', '.join(BASELINES)}", file=sys.stderr)
        return 2
    table: dict[str, dict[int, Measured]] = {}
    for seed in map(int, args.seeds.split(",")):
        config = load_config(args.config, ",".join(filter(None, (f"seed={seed}", args.set))))
        spct = Path(args.spct.format(seed=seed)) if args.spct else None
        bench = Bench(config, spct, args.benchmark, args.data, args.limit)
        for name in names:
            for judge in judges_of(name, bench, args):
                table.setdefault(judge.label, {})[seed] = judge
    if not table:
        print(
            "nothing was measured: cloud and spct need --spct, and --as_it_stands needs the "
            "judges of an earlier run in --out",
            file=sys.stderr,
        )
        return 1
    print(report.write(report.summary(bench.benchmark, table), out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
