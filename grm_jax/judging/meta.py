"""The meta reward model: scores critiques by how likely their scores are right (SPCT, sec. 4)."""

from collections.abc import Sequence

from jax.sharding import Mesh

from grm_jax.judging.scalar_head import ScalarHead
from grm_jax.models.transformer import Transformer
from grm_jax.text import rendering
from grm_jax.text.tokenizer import Tokenizer
from grm_jax.types import Comparison

# A comparison, the response order that the critique saw, and the critique's text.
CritiqueText = tuple[Comparison, tuple[int, ...], str]


class NotFinite(ValueError):
    """The meta reward model gave a critique a score that is not finite."""


class TooLong(ValueError):
    """A critique with its responses is longer than the meta model's context."""


class MetaRM(ScalarHead):
    """Scores critiques with a model that has a scalar head (`models.critique_rewards`).

    The model reads a chat: the query with the responses in the order that the critique saw, then
    the critique as the answer.

    Args:
      template: "grm/meta_rm", a judge's family of templates, or a file.
      mesh: mesh of the model's parameters; None for one device.
      batch: critiques per forward pass.
      name: the model's name in output rows.
      likelihood: weight of the critique's mean log-probability in the score; 0 for the scalar head
        alone.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        template: str = "grm/meta_rm",
        mesh: Mesh | None = None,
        batch: int = 4,
        name: str = "meta_rm",
        likelihood: float = 0.0,
    ):
        rendering.load(template)  # raises for a wrong name or a broken file
        super().__init__(model, tokenizer.pad_id, mesh, batch, likelihood)
        self.tokenizer, self.template, self.name = tokenizer, template, name

    def templates(self) -> list[rendering.Template]:
        """Returns every template under which a critique may be scored."""
        names = [self.template]
        if self.template in rendering.FAMILIES:
            names = [f"{self.template}/{role}" for role in ("judge", "single", "reference")]
        return [rendering.load(name) for name in names]

    def encode(self, critique: CritiqueText) -> list[int]:
        """Returns the token ids that are scored."""
        comparison, order, text = critique
        template = rendering.choose(self.template, comparison)
        messages = rendering.render(template, comparison, order, critique=text)
        return self.tokenizer.encode_chat(messages, add_generation_prompt=False)

    def critique_start(self, critique: CritiqueText, ids: list[int]) -> int:
        """Returns the number of tokens before the critique in `ids`, the result of `encode`.

        A token that spans the end of the prompt and the start of the critique, as some vocabularies
        have, belongs to the critique.
        """
        comparison, order, _ = critique
        messages = rendering.render(rendering.choose(self.template, comparison), comparison, order)
        prompt = self.tokenizer.encode_chat(messages, add_generation_prompt=True)
        return next((i for i, (a, b) in enumerate(zip(prompt, ids)) if a != b), len(prompt))

    def __call__(self, critiques: Sequence[CritiqueText]) -> list[float]:
        """Returns one score per critique. Raises TooLong for one beyond the model's context."""
        encoded = [self.encode(critique) for critique in critiques]
        context = self._model.cfg.max_length
        for ids in encoded:
            if len(ids) > context:
                raise TooLong(
                    f"a critique with its responses is {len(ids):,} tokens, the meta model's "
                    f"context {context:,}: lower max_new_tokens, or shorten the responses"
                )
        if not self.likelihood:  # the starts are not used, and each costs a rendering
            return self.score_tokens(encoded)
        starts = [self.critique_start(c, ids) for c, ids in zip(critiques, encoded)]
        return self.score_tokens(encoded, starts)
