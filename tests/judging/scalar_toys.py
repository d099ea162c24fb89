"""Toy folders of scalar reward models, and the rewards that transformers gives.

`goldens/scalar.json` holds the rewards. To write it again, with the peers' Python:

    PYTHON tests/judging/scalar_toys.py tests/judging/goldens/scalar.json
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from parity_cases import CONFIGS, Case, weights  # noqa: E402

ALPHABET = 256  # single bytes, then the control tokens
CHATML = """{% if first_system and messages[0].role != 'system' %}{{ '<|im_start|>system
You answer questions.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if thinks and loop.last and m.role == 'assistant' %}
{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HEADERS = """{{- bos_token }}
{%- if messages[0].role != 'system' %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Date: ' + date_string | default('26 Jul 2024') + '<|eot_id|>' }}{% endif %}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{{- m.content | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>")
_LLAMA = (
    *("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|finetune_right_pad_id|>", "<|eom_id|>", "<|python_tag|>", "<|end_of_text|>"),
)
_GEMMA = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>"),
    *("<start_of_turn>", "<end_of_turn>"),
)


@dataclasses.dataclass(frozen=True)
class Toy(Case):
    """A toy sequence classifier.

    controls: control tokens; the ids follow the single bytes.  padding: its `pad_token`.
    """

    architecture: str = ""
    controls: tuple[str, ...] = ()
    padding: str = ""
    bos: str | None = None
    eos: str = ""
    template: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The toy's config.json."""
        changes: dict[str, Any] = {
            "architectures": [self.architecture],
            "vocab_size": ALPHABET + len(self.controls),
            "pad_token_id": self.id_of(self.padding),
            "eos_token_id": self.id_of(self.eos),
            "bos_token_id": None if self.bos is None else self.id_of(self.bos),
            "max_position_embeddings": 512,
            "num_labels": 1,
        }
        return CONFIGS[self.family] | changes

    def id_of(self, token: str) -> int:
        """The id of a control token."""
        return ALPHABET + self.controls.index(token)

    def write(self, folder: Path) -> Path:
        """Writes the folder with the formats' own libraries: config, weights, tokenizer."""
        from safetensors.numpy import save_file
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights(self), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config))
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        built = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        built.decoder = decoders.ByteLevel()
        built.add_special_tokens([AddedToken(token, special=True) for token in self.controls])
        built.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.eos,
            "pad_token": self.padding,
            "add_bos_token": self.bos is not None,
            "chat_template": self.template,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder


def _qwen(family: str, name: str, template: str) -> Toy:
    return Toy(
        *(family, "none", 1.5),
        architecture=f"{name}ForSequenceClassification",
        controls=_QWEN,
        padding="<|endoftext|>",
        eos="<|im_end|>",
        template=template,
    )


def _llama(padding: str) -> Toy:
    return Toy(
        *("llama3", "none", 1.5),
        architecture="LlamaForSequenceClassification",
        controls=_LLAMA,
        padding=padding,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        template=HEADERS,
    )


TOYS = {
    "gemma2": Toy(
        *("gemma2", "none", 3.6),  # the soft caps of the attention are active
        architecture="Gemma2ForSequenceClassification",
        controls=_GEMMA,
        padding="<pad>",
        bos="<bos>",
        eos="<eos>",
        template=GEMMA,
    ),
    "llama3": _llama("<|finetune_right_pad_id|>"),
    # The template ends with the padding token: transformers takes the reward before it.
    "llama3_pad_is_eos": _llama("<|eot_id|>"),
    "qwen2": _qwen("qwen2", "Qwen2", "{% set first_system = true %}" + CHATML),
    "qwen3": _qwen("qwen3", "Qwen3", "{% set thinks = true %}" + CHATML),
}
_TURNS = [
    {"role": "user", "content": "Name a prime."},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "No, a prime é!"},
]
COMPARISONS: list[dict[str, Any]] = [
    {"query": "What is 2 + 2?", "responses": ["It is 4.", "It is 5, because 2 + 2 = 5.\n"]},
    {"query": _TURNS, "responses": ["7", "8", "Sorry: 7 is a prime, 4 is not."]},
    {"query": " Say hi. ", "responses": ["hi " * 40]},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hi."}]


def conversations() -> list[list[dict[str, str]]]:
    """The conversation with each response."""
    return [
        [
            *([{"role": "user", "content": q}] if isinstance(q := c["query"], str) else q),
            {"role": "assistant", "content": response},
        ]
        for c in COMPARISONS
        for response in c["responses"]
    ]


def peers_rewards(folder: Path, chats: list[list[dict[str, str]]]) -> dict[str, Any]:
    """Returns token ids, and rewards one by one, and of all together with padding on each side."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def rewards(ids: list[list[int]], side: str) -> list[float]:
        batch = tokenizer.pad(
            {"input_ids": ids}, padding=True, padding_side=side, return_tensors="pt"
        )
        with torch.no_grad():
            return model.eval()(**batch).logits[:, 0].tolist()

    return {
        "ids": encoded,
        "alone": [rewards([ids], "right")[0] for ids in encoded],
        "right": rewards(encoded, "right"),
        "left": rewards(encoded, "left"),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        folders = {name: toy.write(Path(root) / name) for name, toy in TOYS.items()}
        results = {name: peers_rewards(folder, conversations()) for name, folder in folders.items()}
    Path(sys.argv[1]).write_text(json.dumps(results) + "\n")
