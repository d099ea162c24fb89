"""Runs transformers on the weights of a GGUF file, in the peers' environment.

    python real_weights_peer.py GGUF FOLDER IN.json OUT.npz

FOLDER has the tokenizer. IN.json: {"prompts": [[ids]], "chats"?: [[messages]], "paragraph": [ids],
"new_tokens": n}. OUT.npz holds, for every prompt i, `logits_i` (its last four positions x
vocabulary, float32) and `greedy_i` (n ids); `paragraph_logps` (log-probability of every token of
the paragraph but the first, float64); `prompt_ids_identical`, whether the chat template gives the
ids of `prompts` here; and the version of transformers.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

LAST = 4  # positions whose logits are saved


@torch.no_grad()
def main(gguf: str, folder: str, inputs: str, output: str) -> None:
    torch.set_num_threads(2)
    work = json.loads(Path(inputs).read_text())
    path, start = Path(gguf), time.time()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    print(f"loaded in {time.time() - start:.0f} s: {model.config}", file=sys.stderr)
    out: dict[str, np.ndarray] = {"transformers": np.array(transformers.__version__)}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        for chat in work.get("chats", ())
    ]
    out["prompt_ids_identical"] = np.array("chats" not in work or rendered == work["prompts"])
    for i, prompt in enumerate(work["prompts"]):
        ids = torch.tensor([prompt])
        out[f"logits_{i}"] = model(ids).logits[0, -LAST:].numpy()
        tokens, cache, greedy = ids, None, []
        # Written out, so that no generation config changes it.
        for _ in range(work["new_tokens"]):
            step = model(tokens, past_key_values=cache, use_cache=True)
            cache, tokens = step.past_key_values, step.logits[:, -1:].argmax(-1)
            greedy.append(int(tokens))
        out[f"greedy_{i}"] = np.array(greedy, np.int32)
    ids = torch.tensor([work["paragraph"]])
    logps = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
    out["paragraph_logps"] = logps.gather(-1, ids[0, 1:, None])[:, 0].numpy()
    np.savez(output, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
