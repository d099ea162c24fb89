"""What transformers makes of the real Gemma 3 270M weights. Runs in the peers' environment, apart from ours.

    python real_weights_peer.py GGUF IN.json OUT.npz

IN.json: {"prompts": [[ids]], "paragraph": [ids], "new_tokens": n}. OUT.npz, for every prompt i: `logits_i` (its last four positions x
vocabulary, float32) and `greedy_i` (n ids); and `paragraph_logps` (log-probability of every token of the paragraph but the first, float64).
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

LAST = 4  # positions whose whole rows of logits are kept


@torch.no_grad()
def main(gguf: str, inputs: str, output: str) -> None:
    torch.set_num_threads(2)
    asked = json.loads(Path(inputs).read_text())
    path, start = Path(gguf), time.time()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    print(f"loaded in {time.time() - start:.0f} s: {model.config}", file=sys.stderr)
    out: dict[str, np.ndarray] = {}
    for i, prompt in enumerate(asked["prompts"]):
        ids = torch.tensor([prompt])
        out[f"logits_{i}"] = model(ids).logits[0, -LAST:].numpy()
        tokens, cache, greedy = ids, None, []
        for _ in range(
            asked["new_tokens"]
        ):  # written out, so that no generation config can change it
            step = model(tokens, past_key_values=cache, use_cache=True)
            cache, tokens = step.past_key_values, step.logits[:, -1:].argmax(-1)
            greedy.append(int(tokens))
        out[f"greedy_{i}"] = np.array(greedy, np.int32)
    ids = torch.tensor([asked["paragraph"]])
    logps = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
    out["paragraph_logps"] = logps.gather(-1, ids[0, 1:, None])[:, 0].numpy()
    np.savez(output, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
