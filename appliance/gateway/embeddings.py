"""`POST /api/v1/embeddings`: texts to vectors, in the names of fields that OpenAI's API has."""

from __future__ import annotations

import base64
from array import array
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Meta

from appliance.wire.messages import INPUT_LIMIT_CHARS, INVOCATIONS_LIMIT, Priority

from .auth import Caller
from .tensors import Tensors

InputText = Annotated[str, Meta(min_length=1, max_length=INPUT_LIMIT_CHARS)]


class EncodingFormat(StrEnum):
    """How a vector is written: a list of numbers, or their float32 bytes (little endian) in base64."""

    FLOAT = "float"
    BASE64 = "base64"


class EmbeddingsRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts that shall become vectors."""

    input: Annotated[
        InputText | Annotated[list[InputText], Meta(min_length=1, max_length=INVOCATIONS_LIMIT)],
        Meta(
            description=f"a text, or up to {INVOCATIONS_LIMIT} of them, each of up to {INPUT_LIMIT_CHARS:,} characters"
        ),
    ]
    model: (
        Annotated[str, Meta(min_length=1, max_length=128, description="left out: the one that is there")]
        | None
    ) = None
    encoding_format: Annotated[EncodingFormat, Meta(description="how the vectors are written")] = (
        EncodingFormat.FLOAT
    )


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """The vector of the input at `index`; of length 1, or all zeros when the text has no words."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The words that the model has read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors, in the order of the input. `ran_on` names the TPUs that made them, or `cpu`."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
    ran_on: list[str]


@post("/api/v1/embeddings", status_code=200, summary="Texts to vectors", tags=["models"])
async def embeddings(
    request: Request[Caller, None, Any],
    data: JSONBody[EmbeddingsRequest],
    tensors: NamedDependency[Tensors],
) -> Embeddings:
    """Vectors whose inner products say how near the texts are in meaning. Several texts in one request are spread over the TPUs;
    who sends one waits behind nobody who sent many."""
    texts = [data.input] if isinstance(data.input, str) else data.input
    invoked, model = await tensors.invoke(
        "embedding",
        texts,
        model=data.model or "",
        account=request.user.subject,
        priority=Priority.NORMAL if len(texts) == 1 else Priority.LOW,
    )
    written = _numbers if data.encoding_format is EncodingFormat.FLOAT else _base64
    return Embeddings(
        data=[
            Embedding(index=index, embedding=written(output)) for index, output in enumerate(invoked.outputs)
        ],
        model=model,
        usage=EmbeddingsUsage(prompt_tokens=invoked.tokens, total_tokens=invoked.tokens),
        ran_on=invoked.ran_on,
    )


def _numbers(output: bytes) -> list[float]:
    return array("f", output).tolist()


def _base64(output: bytes) -> str:
    return base64.b64encode(output).decode("ascii")
