"""The metadata files beside a model's weights: judge.json and meta_rm.json.

    JudgeMetadata(template="compact", max_new_tokens=40).save(folder)
    JudgeMetadata.load(folder).template    # "compact"; the defaults if there is no file

Training writes them when it exports a model. They fill in what a command does not set.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

from grm_jax import strict_json
from grm_jax.model_files import exists, one_line, read_json
from grm_jax.storage import fetch, fetch_adapter, write_atomic
from grm_jax.text import rendering

MAX_TOKENS = 1 << 25  # of a critique: as long as the longest context
MAX_LIKELIHOOD = 1e6


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
        if not exists(file):
            return cls()
        try:
            fields = read_json(file)
            names = {field.name for field in dataclasses.fields(cls)}
            metadata = cls(**{name: fields[name] for name in names & fields.keys()})
            return metadata._with_templates(rendering.in_folder, file.parent)
        except (ValueError, FileNotFoundError) as error:
            reason = one_line(error).removeprefix(f"{file} ")
            raise ValueError(
                f"{file} should hold {cls.EXAMPLE} ({reason}): fix or remove it"
            ) from None

    def save(self, folder: str | Path) -> None:
        """Writes the file into a model folder, with copies of the user's templates it names."""
        fields = dataclasses.asdict(self._with_templates(rendering.save, Path(folder)))
        write_atomic(Path(folder) / self.FILE, strict_json.dumps(fields) + "\n")

    def _with_templates(self, name_of: Callable[[str, Path], str], folder: Path) -> Self:
        """Replaces the names of templates by name_of(name, folder)."""
        named = {name: getattr(self, name, None) for name in ("template", "single")}
        return dataclasses.replace(
            self, **{name: name_of(value, folder) for name, value in named.items() if value}
        )


@dataclasses.dataclass(frozen=True)
class JudgeMetadata(_Metadata):
    """judge.json: the prompt templates of a judge's training, and its longest critique in tokens.

    template: a shipped one by name, or a file in the folder.
    single: the template for comparisons with one response, such as "compact/single_binary"; None,
    as in files without the field, for the one that `template` chooses.
    """

    FILE = "judge.json"
    EXAMPLE = '{"template": NAME, "max_new_tokens": N}'
    template: str = "grm"
    max_new_tokens: int = 1024
    single: str | None = None

    @classmethod
    def of(cls, model: str | Path, lora: str | Path | None = None) -> Self:
        """Reads the file of a LoRA adapter's folder if it has one, else that of its base."""
        if lora is not None and exists((folder := fetch_adapter(lora)) / cls.FILE):
            return cls.load(folder)
        return cls.load(model)

    def __post_init__(self) -> None:
        _check("template", self.template, isinstance(self.template, str) and bool(self.template))
        tokens = self.max_new_tokens
        _check("max_new_tokens", tokens, type(tokens) is int and 1 <= tokens <= MAX_TOKENS)
        _check("single", self.single, isinstance(self.single, str | None) and self.single != "")


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
        template, weight = self.template, self.likelihood
        _check("template", template, isinstance(template, str | None) and template != "")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        _check("likelihood", weight, number and abs(weight) <= MAX_LIKELIHOOD)
        object.__setattr__(self, "likelihood", float(weight))


def _check(name: str, value: object, right: bool) -> None:
    if not right:
        raise ValueError(f"{name}={value!r:.60} is wrong")


def meta_template(family: str, likelihood: float = 0.0) -> str:
    """Returns the default template of a meta reward model, given the judge's template family.

    With the likelihood of the critique in its score, the model reads the judge's own prompt.
    """
    return family if likelihood else rendering.role_template(family, "meta_rm")
