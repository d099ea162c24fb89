"""The JSON bodies of the routes: their fields, ranges and examples; checked and documented here."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grm_jax import strict_json
from grm_jax.serving.errors import Refusal

MAX_INT = 2**31 - 1
Timeout = Annotated[
    float | None,
    Field(gt=0, description="Seconds until the request fails; at most the server's --timeout."),
]


class Body(BaseModel):
    """A request body: unknown fields and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Message(Body):
    """One turn of a chat."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]

    def turn(self) -> dict[str, str]:
        """Returns the turn as the tokenizer's chat template takes it. Raises Refusal."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        texts = []
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise Refusal(400, "a part of a message is not a text: send texts", "messages")
            texts.append(part["text"])
        return {"role": role, "content": "".join(texts)}


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatBody(Body):
    """A chat completion: raw access to the sampler."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "judge",
                "messages": [{"role": "user", "content": "Name a prime number."}],
                "max_tokens": 32,
                "temperature": 0.5,
                "n": 2,
                "seed": 1,
            }
        }
    )

    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    model: str | None = Field(None, description="A name of /v1/models, or none.")
    max_tokens: Annotated[int | None, Field(ge=1, le=MAX_INT)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=MAX_INT)] = None
    temperature: Annotated[float | None, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float | None, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int | None, Field(ge=0, le=MAX_INT)] = Field(0, description="0: off.")
    n: Annotated[int | None, Field(ge=1)] = 1
    seed: int | None = Field(None, description="The same seed gives the same texts.")
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = Field(
        False, description="Log-probabilities of the sampled tokens, under temperature 1."
    )
    top_logprobs: Annotated[int | None, Field(ge=0, le=0)] = Field(
        None, description="0: the sampler returns the sampled token's alone."
    )
    timeout: Timeout = None
    # Fields that other clients send, with the values that change nothing.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    frequency_penalty: Annotated[float | None, Field(ge=0, le=0)] = 0.0
    presence_penalty: Annotated[float | None, Field(ge=0, le=0)] = 0.0
    logit_bias: Annotated[dict[str, float] | None, Field(max_length=0)] = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    def limit(self, most: int) -> int:
        """Returns the longest completion in tokens. Raises Refusal if the server's is shorter."""
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        value = getattr(self, name)
        if value is not None and value > most:
            raise Refusal(400, f"{name} = {value}: this server samples at most {most} tokens", name)
        return value or most

    def sampling_seed(self) -> int:
        """Returns the seed from 0 to 2**31 - 1; a random one if the client set none."""
        return secrets.randbelow(MAX_INT) if self.seed is None else self.seed & MAX_INT

    def stops(self) -> list[str]:
        """Returns the texts that end a completion. Raises Refusal for an empty one."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stops:
            raise Refusal(400, "stop has an empty text: remove it", "stop")
        return stops


class RewardBody(Body):
    """OpenRLHF's call: each query is a prompt and an answer with their special tokens."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "query": [
                    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
                ],
                "prompts": ["<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"],
                "labels": ["4"],
            }
        }
    )

    query: Annotated[list[str], Field(min_length=1)]
    prompts: list[str] | None = None
    labels: list[Any] | None = None
    timeout: Timeout = None


class CompareBody(Body):
    """NeMo-Gym's call: rewards of all responses to one conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "conversation_history": [{"role": "user", "content": "What is 2 + 2?"}],
                "response_objs": [
                    {
                        "output": [
                            {
                                "type": "message",
                                "content": [{"type": "output_text", "text": "It is 4."}],
                            }
                        ]
                    },
                    {
                        "output": [
                            {"type": "message", "content": [{"type": "output_text", "text": "5"}]}
                        ]
                    },
                ],
                "principle": "The answer must be correct.",
            }
        }
    )

    conversation_history: list[dict[str, Any]]
    response_objs: list[dict[str, Any]]
    principle: str | None = None
    timeout: Timeout = None


class VerifyBody(BaseModel):
    """NeMo-Gym's call for one response; it waits for the others of its group.

    Other fields are copied into the answer.
    """

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        populate_by_name=True,
        json_schema_extra={
            "example": {
                "responses_create_params": {
                    "input": [{"role": "user", "content": "What is 2 + 2?"}]
                },
                "response": {
                    "output": [
                        {"type": "message", "content": [{"type": "output_text", "text": "4"}]}
                    ]
                },
                "_ng_group_id": "step 12, prompt 3",
                "_ng_group_attempt": 0,
                "_ng_rollout_index": 0,
                "group_size": 1,
            }
        },
    )

    responses_create_params: dict[str, Any]
    response: dict[str, Any]
    principle: str | None = None
    group: str | None = Field(
        None, alias="_ng_group_id", max_length=1024, description="The caller's name of the group."
    )
    attempt: Annotated[int, Field(ge=0)] = Field(
        0, alias="_ng_group_attempt", description="Raised by a caller that samples a group anew."
    )
    index: Annotated[int | None, Field(ge=0)] = Field(
        None, alias="_ng_rollout_index", description="0 to group_size - 1."
    )
    task: Annotated[int | None, Field(ge=0)] = Field(None, alias="_ng_task_index")
    group_size: Annotated[int | None, Field(ge=1)] = Field(
        None, description="Responses of the group; by default the server's --group_size."
    )
    timeout: Timeout = None


B = TypeVar("B", bound=BaseModel)
_BRANCHES = ("str", "list[str]")  # pydantic's names of a field's types


def parse(kind: type[B], data: bytes) -> B:
    """Returns the body of a request. Raises Refusal that names the first wrong field."""
    value = json_object(data)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise refusal(error) from None


def json_object(data: bytes) -> dict[str, Any]:
    """Returns a JSON object. Raises Refusal, also for half a surrogate pair."""
    try:
        value = strict_json.loads(data, unique_keys=True)
    except ValueError as error:
        raise Refusal(
            400, f"the body is {error}" if "not" in str(error)[:4] else str(error)
        ) from None
    if not isinstance(value, dict):
        raise Refusal(400, "the body: not a JSON object, send {...}")
    if problem := strict_json.problem(value):
        raise Refusal(400, problem)
    return value


def refusal(error: ValidationError) -> Refusal:
    """Returns the refusal of a validation error; it quotes no value of the request."""
    details = error.errors(include_url=False, include_input=False, include_context=False)
    # Of a field with several types, an error that is not about the type is the one to show.
    same = [detail for detail in details if detail["loc"][:1] == details[0]["loc"][:1]]
    first = next((d for d in same if not d["type"].endswith("_type")), details[0])
    place = ".".join(str(part)[:40] for part in first["loc"] if part not in _BRANCHES)
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"unknown field {place!r}: remove it", place)
    return Refusal(400, f"{place}: {first['msg']}".replace("\n", " "), place)
