"""From the bytes of a request to a JSON object or to uploaded files, without trusting a byte of them."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from longseq.pipelines.serving.limits import Refusal

# An empty list takes 64 bytes of memory and two of a body: lists and objects are counted before they are made.
MOST_CONTAINERS = 250_000
MOST_FILES = 64
FORM = "A form holds files with their names and nothing else, such as curl -F file=@input sends; values go into JSON"
# Files that come as the body itself.
MEDIA_TYPES = {
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "text/x-fasta": ".fa",
    "application/x-fasta": ".fa",
    "audio/wav": ".wav",
    "audio/x-wav": ".wav",
    "audio/wave": ".wav",
    "audio/flac": ".flac",
    "audio/x-flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/mpeg": ".mp3",
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "video/mp4": ".mp4",
}


@dataclass(frozen=True)
class Upload:
    """A file that a client sent.

    Attributes:
        name: as the client calls it, without folders; for messages and ids, never opened.
        suffix: its ending, one of those that are taken.
        data: its bytes.
    """

    name: str
    suffix: str
    data: bytes


def media_types(suffixes: Sequence[str]) -> list[str]:
    """The kinds of bodies that are files with one of these endings."""
    return [kind for kind, suffix in MEDIA_TYPES.items() if suffix in suffixes]


async def uploads(request: Request, media_type: str, suffixes: Sequence[str]) -> list[Upload]:
    """The files of a form, or the body as a file.

    Raises:
        Refusal: 415 for kinds that are not taken, 422 for a broken form.
    """
    if media_type != "multipart/form-data":
        name = "upload" + MEDIA_TYPES[media_type]
        return [checked(name, await request.body(), suffixes)]
    try:
        async with request.form(max_files=MOST_FILES, max_fields=0) as form:
            files = [item for _, item in form.multi_items()]
            found = [
                checked(file.filename or "", await file.read(), suffixes) for file in files if isinstance(file, UploadFile)
            ]
    # Starlette turns its own error into one of HTTP where an application is around it.
    except HTTPException as error:
        raise Refusal(422, f"the form cannot be read: {error.detail} {FORM}") from None
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refusal(422, f"the form cannot be read: {error} {FORM}") from None
    if not found:
        raise Refusal(422, f"the form holds no file. {FORM}")
    return found


def checked(name: str, data: bytes, suffixes: Sequence[str]) -> Upload:
    """An upload whose ending is known."""
    bare = re.sub(r"[^\w.\- ]", "_", PurePath(name.replace("\\", "/")).name)[:100]
    suffix = PurePath(bare).suffix.lower()
    if suffix not in suffixes:
        raise Refusal(415, f"a file ending in {suffix or 'nothing'} is not taken here; expected {', '.join(suffixes)}")
    if not data:
        raise Refusal(422, f"{bare} is empty")
    return Upload(bare, suffix, data)


def json_object(body: bytes | str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refusal: 422 for anything else, and for what would take far more memory than its text.
    """
    data = body.encode("utf-8", "replace") if isinstance(body, str) else body
    count = data.count(b"[") + data.count(b"{")
    if count > MOST_CONTAINERS:
        raise Refusal(422, f"the JSON holds {count} lists and objects, at most {MOST_CONTAINERS} are allowed")
    if not data.strip():
        raise Refusal(422, "the body is empty, a JSON object was expected")
    try:
        found = json.loads(data, object_pairs_hook=without_repeats)
    except RecursionError:
        raise Refusal(422, "the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise Refusal(422, f"the body is no UTF-8 text (byte {error.start}); for a file, send its own Content-Type") from None
    # Numbers of more than 4,300 digits raise a ValueError as well.
    except ValueError as error:
        hint = "; files are sent as forms, such as curl -F file=@input does" if isinstance(body, bytes) else ""
        raise Refusal(422, f"the body is not valid JSON: {str(error)[:160]}{hint}") from None
    if not isinstance(found, dict):
        raise Refusal(422, f"the body must be a JSON object, found {type(found).__name__}")
    return found


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two values for one key, one would be dropped without a word.

    Raises:
        ValueError: if a key stands there twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!r} stands there twice")
    return found
