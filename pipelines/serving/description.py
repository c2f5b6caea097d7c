"""What `/predict` takes and answers, in the words of OpenAPI; the page at /docs is made from it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longseq.pipelines.serving.payload import media_types

if TYPE_CHECKING:
    from longseq.pipelines.serving.server import ModelServer

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {"application/json": {"example": {"error": "what was found and what was expected"}}},
    }
    for status, text in {
        401: "the token is missing or wrong",
        403: "a browser asks for a page of another site",
        408: "the body came too slowly",
        413: "the body is too large",
        415: "a kind of body or file that is not taken",
        422: "the input is wrong; `error` says where",
        429: "too many requests at once; `Retry-After` says when to try again",
        500: "the model failed on the input",
        503: "the model is being loaded, or the server stops; `Retry-After` says when to try again",
        504: "no answer in time",
        507: "no memory left for the input",
    }.items()
}


def request_description(server: "ModelServer") -> dict[str, Any]:
    """What `/predict` takes, in OpenAPI's words."""
    requests = server.served.requests
    keys = {key: {"description": text} for key, text in requests.keys.items()}
    content: dict[str, Any] = {
        "application/json": {"schema": {"type": "object", "properties": keys}, "example": requests.example()},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary", "description": endings(requests.suffixes)}},
            }
        },
    }
    # A file may also be the body itself.
    content |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in media_types(requests.suffixes)}
    full = {
        "name": "full",
        "in": "query",
        "schema": {"type": "boolean"},
        "description": "1: also what is large, such as the logits of language models",
    }
    return {"requestBody": {"required": True, "content": content}, "parameters": [full]}


def endings(suffixes: Sequence[str]) -> str:
    """What files may be sent."""
    return f"files ending in {', '.join(suffixes)}"
