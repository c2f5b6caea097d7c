"""Where a checkpoint stands: a file, a folder, a run, or the Hugging Face hub."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from longseq.errors import CheckpointError
from longseq.pretrained._weights import PICKLES, weight_files

Answer = TypeVar("Answer")
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?")
_SMALL_FILES = ("config.json", "tokenizer.json", "vocab.json")
# Tried in this order, so that nothing is fetched twice in two forms.
_USUAL_FILES = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin", "weights.ckpt"),
)


@dataclass(frozen=True)
class Checkpoint:
    """Files of one checkpoint.

    Attributes:
        name: the hub's id, or the local file's or folder's name.
        config: its config.json; empty if it has none.
        files: with the weights.
        vocabulary: token -> id of its tokenizer.json; empty if it has none.
        commit: of the hub's repository, so that the same files can be fetched again; empty for local ones.
    """

    name: str
    config: dict[str, Any]
    files: list[Path]
    vocabulary: dict[str, int] = field(default_factory=dict)
    commit: str = ""


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
    path = _download(repository, file, revision)
    # The hub's cache keeps each commit in a folder of that name.
    commit = next((part for part in reversed(path.parts) if re.fullmatch(r"[0-9a-f]{40}", part)), "")
    return replace(_local(path, str(source)), commit=commit)


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
        content = json.loads(path.read_text(encoding="utf-8-sig"))
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
    return ids | {
        str(token["content"]): token["id"] for token in added if "content" in token and isinstance(token.get("id"), int)
    }


def _download(repository: str, file: str | None, revision: str | None) -> Path:
    if file is None:
        for usual in _USUAL_FILES:
            folder = _snapshot(repository, revision, [*_SMALL_FILES, *usual])
            if any(path.suffix in (".safetensors", *PICKLES) for path in folder.iterdir()):
                return folder
        file = _only_file(repository, revision)
    folder = _snapshot(repository, revision, [*_SMALL_FILES, file])
    if not (folder / file).is_file():
        raise CheckpointError(f"the repository {repository} has no file {file}")
    return folder / file


def _only_file(repository: str, revision: str | None) -> str:
    """The one file of weights in a repository without the usual names."""
    from huggingface_hub import HfApi

    names = _ask_hub(repository, revision, lambda: HfApi().list_repo_files(repository, revision=revision))
    files = [name for name in names if Path(name).suffix in (".safetensors", *PICKLES)]
    if len(files) == 1:
        return files[0]
    found = f"several checkpoints: {', '.join(files[:8])}" if files else "no weights that can be read"
    example = f"; name one, as in {repository}/{files[0]}" if files else ""
    raise CheckpointError(f"the repository {repository} holds {found}{example}")


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        _ask_hub(repository, revision, lambda: snapshot_download(repository, revision=revision, allow_patterns=patterns))
    )


def _ask_hub(repository: str, revision: str | None, question: Callable[[], Answer]) -> Answer:
    """The hub's answer, or an error that says what to do."""
    from huggingface_hub import errors

    try:
        return question()
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
        flag = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"{repository} is no folder here, and could not be fetched ({type(error).__name__}: {first}). On a machine with "
            f"internet run `hf download {repository}{flag} --local-dir {repository.split('/')[1]}`, copy the folder here, and "
            "give its path instead of the id"
        ) from None
