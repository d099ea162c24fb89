"""Compares LoRA adapters with `peft` on toy models of every family, in float32.

    python benchmarks/peft_parity.py --peers PYTHON [--out benchmarks/results/peft_parity.json]

PYTHON is an interpreter with torch, transformers and peft; it regenerates the adapters and their
outputs (tests/models/make_adapters.py). A distance is the largest absolute difference divided by
the largest absolute value. The adapters of peft are merged while the base loads, and loaded beside
the base as in training, where gradients are compared too. Then peft loads the adapters that
`save_adapters` writes, unmerged and merged. About 4 minutes on 2 cores.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models"), str(ROOT / "tests" / "checkpoints")]

import numpy as np  # noqa: E402
import test_parity_peft as parity  # noqa: E402
from flax import nnx  # noqa: E402
from make_adapters import ADAPTERS, FOURTH  # noqa: E402
from parity_cases import CASES, batch  # noqa: E402
from parity_ours import distance, folder, logits_of  # noqa: E402

from benchmarks import common  # noqa: E402
from grm_jax.checkpoints.peft_state import save_adapters  # noqa: E402


def outputs(model, case, inputs) -> np.ndarray:
    """Returns the rewards of a scalar model, else the logits. inputs: (tokens, mask)."""
    tokens, mask = inputs
    if case.scalar:
        return np.asarray(model.rewards(tokens, mask))[:, None]
    return logits_of(model, tokens, mask)


def compare(name: str, results: dict[str, np.ndarray], scratch: Path) -> dict[str, float]:
    """Returns the distances of one adapter. results: what make_adapters.py wrote."""
    (case, _), model = ADAPTERS[name], parity.unmerged(name)
    theirs = results[f"{name}/logits"]
    merged = outputs(parity.merged(name), case, batch(case))
    merged = merged if case.scalar else merged[:, FOURTH]
    in_training, gradients = parity.in_training(name, scratch / "gradients", results)
    save_adapters(nnx.state(model), model.cfg, scratch / "adapter")
    parity.peer("make_adapters.py", "serve", folder(case), scratch / "adapter", scratch / "out.npz")
    inputs, served = batch(CASES["llama3_right"]), np.load(scratch / "out.npz")
    ours, mask = outputs(model, case, inputs), None if case.scalar else inputs[1]
    row = {
        "merged_on_load": distance(merged, theirs),
        "beside_the_base": distance(np.asarray(in_training), theirs),
        "gradients": max(np.abs(a - b).max() / np.abs(b).max() for _, a, b in gradients),
        "ours_in_peft": distance(ours, served["logits"], mask),
        "ours_merged_by_peft": distance(ours, served["merged"], mask),
    }
    return {key: float(value) for key, value in row.items()}


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["GRM_PEERS"] = args.peers
    entry: dict = {"command": "python benchmarks/peft_parity.py --peers PYTHON"}
    entry |= {**common.machine(), "adapters": {}}
    with tempfile.TemporaryDirectory() as root:
        parity.peer("make_adapters.py", "write", root)
        results = dict(np.load(Path(root) / "results.npz"))
        for name in ADAPTERS:
            entry["adapters"][name] = compare(name, results, Path(root) / f"of_{name}")
            print(name, {k: f"{v:.1e}" for k, v in entry["adapters"][name].items()}, flush=True)
    if args.out:
        common.write_json(args.out, entry)


if __name__ == "__main__":
    main()
