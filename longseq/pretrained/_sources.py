"""Where a checkpoint stands: a file, a folder, a run, or the Hugging Face hub."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longseq.errors import CheckpointError
from longseq.pretrained._weights import PICKLES, weight_files

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?")
_SMALL_FILES = ("config.json", "tokenizer.json", "vocab.json")
_SAFE = ("*.safetensors", "*.safetensors.index.json")
_PICKLED = ("*.bin", "*.bin.index.json", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True)
class Checkpoint:
    """Files of one checkpoint.

    Attributes:
        name: the hub's id, or the local file's or folder's name.
        config: its config.json; empty if it has none.
        files: with the weights.
        vocabulary: token -> id of its tokenizer.json; empty if it has none.
    """

    name: str
    config: dict[str, Any]
    files: list[Path]
    vocabulary: dict[str, int] = field(default_factory=dict)


def find_checkpoint(source: str | Path, revision: str | None = None) -> Checkpoint:
    """The files of a checkpoint, downloaded if need be.

    Args:
        source: a file, a folder, a run's folder, or a hub id `owner/name`, with `/path/of/file` behind it where a
            repository holds several checkpoints.
        revision: of the hub: a branch, a tag or a commit.

    Raises:
        CheckpointError: if there is none, or it cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.exists():
        return _local(path, path.resolve().name)
    match = _HUB_ID.fullmatch(str(source))
    if match is None or str(source).startswith((".", "~")):
        raise CheckpointError(f"{source} does not exist here, and a hub id looks like LongSafari/hyenadna-small-32k-seqlen-hf")
    repository, file = match.groups()
    return _local(_download(repository, file, revision), str(source))


def _local(path: Path, name: str) -> Checkpoint:
    if path.is_file():
        return Checkpoint(name, _read_json(path.parent / "config.json"), [path], _vocabulary(path.parent))
    # A run keeps its model in a folder of that name.
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"
    return Checkpoint(name, _read_json(path / "config.json"), weight_files(path), _vocabulary(path))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object with the network's sizes")
    return content


def _vocabulary(folder: Path) -> dict[str, int]:
    """Token -> id from a tokenizer.json, that of `tokenizers` or our own, or from a vocab.json."""
    content = _read_json(folder / "tokenizer.json")
    model = content.get("model")
    inner = model.get("vocab") if isinstance(model, dict) else None
    found = content.get("vocab") or inner or _read_json(folder / "vocab.json")
    ids = {str(token): i for token, i in found.items() if isinstance(i, int)} if isinstance(found, dict) else {}
    added = [token for token in content.get("added_tokens") or [] if isinstance(token, dict)]
    return ids | {str(token["content"]): int(token["id"]) for token in added if "content" in token and "id" in token}


def _download(repository: str, file: str | None, revision: str | None) -> Path:
    if file is not None:
        folder = _snapshot(repository, revision, [file, *_SMALL_FILES])
        if not (folder / file).is_file():
            raise CheckpointError(f"the repository {repository} has no file {file}")
        return folder / file
    folder = _snapshot(repository, revision, [*_SMALL_FILES, *_SAFE])
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(repository, revision, [*_SMALL_FILES, *_PICKLED])
    if not any(path.suffix in (".safetensors", *PICKLES) for path in folder.iterdir()):
        raise CheckpointError(
            f"the repository {repository} has no weights at its top level: name the file, as in {repository}/checkpoints/x.pt"
        )
    return folder


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    command = f"hf download {repository}{f' --revision {revision}' if revision else ''} --local-dir {repository.split('/')[1]}"
    elsewhere = f"On a machine with internet run `{command}`, copy the folder here, and give its path instead of the id"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository}, then run `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{repository} is neither a folder here nor a repository on the hub; if it is private, run `hf auth login` first"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{repository} has no revision {revision!r}") from None
    except Exception as error:
        # What else goes wrong depends on the client's version and its transport: no network, a full disk, a proxy.
        first = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(f"{repository} could not be fetched ({type(error).__name__}: {first}). {elsewhere}") from None
