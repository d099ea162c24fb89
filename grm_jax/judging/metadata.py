"""The metadata files beside a model's weights: judge.json and meta_rm.json.

    JudgeMetadata(template="compact", max_new_tokens=40).save(folder)
    JudgeMetadata.load(folder).template    # "compact"; the defaults if there is no file

Training writes them when it exports a model. They fill in what a command does not set.
"""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar, Self

from grm_jax.storage import fetch
from grm_jax.text import rendering


@dataclasses.dataclass(frozen=True)
class _Metadata:
    FILE: ClassVar[str]
    EXAMPLE: ClassVar[str]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads the file in a model folder; the defaults if there is none, also for a GGUF file.

        folder: see `storage.fetch`. Raises ValueError for a file that does not hold these fields.
        """
        file = fetch(folder, weights=False) / cls.FILE
        if not file.is_file():
            return cls()
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            names = {field.name for field in dataclasses.fields(cls)}
            return cls(**{name: fields[name] for name in names & fields.keys()})
        except (ValueError, AttributeError, TypeError):
            raise ValueError(f"{file} should hold {cls.EXAMPLE}: fix or remove it") from None

    def save(self, folder: str | Path) -> None:
        """Writes the file into a model folder."""
        fields = dataclasses.asdict(self)
        (Path(folder) / self.FILE).write_text(json.dumps(fields) + "\n")


@dataclasses.dataclass(frozen=True)
class JudgeMetadata(_Metadata):
    """judge.json: the prompt templates of a judge's training, and its longest critique in tokens.

    single: the template for comparisons with one response, such as "compact/single_binary"; None,
    as in files without the field, for the one that `template` chooses.
    """

    FILE = "judge.json"
    EXAMPLE = '{"template": NAME, "max_new_tokens": N}'
    template: str = "grm"
    max_new_tokens: int = 1024
    single: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", str(self.template))
        object.__setattr__(self, "max_new_tokens", int(self.max_new_tokens))
        object.__setattr__(self, "single", self.single and str(self.single))


@dataclasses.dataclass(frozen=True)
class MetaRMMetadata(_Metadata):
    """meta_rm.json: the prompt template of a meta reward model, and how it scores.

    likelihood: weight of the critique's mean log-probability in the score; 0 without the file, for
    a plain sequence classifier.
    """

    FILE = "meta_rm.json"
    EXAMPLE = '{"template": NAME, "likelihood": WEIGHT}'
    template: str | None = None
    likelihood: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", self.template and str(self.template))
        object.__setattr__(self, "likelihood", float(self.likelihood))


def meta_template(family: str, likelihood: float = 0.0) -> str:
    """Returns the default template of a meta reward model, given the judge's template family.

    With the likelihood of the critique in its score, the model reads the judge's own prompt.
    """
    return family if likelihood else rendering.role_template(family, "meta_rm")
