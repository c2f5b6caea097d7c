"""A model folder: config.json and model.safetensors, written whole or not at all, and loaded without running its content."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longseq.errors import CheckpointError
from longseq.model import SequenceModel, build_model
from longseq.version import __version__

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` that takes its place when the block ends well, and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield new
        old = new.with_name(new.name + "-old")
        if folder.exists():
            folder.rename(old)
        new.chmod(0o777 & ~_umask())
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name and renames it, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    Path(file.name).chmod(0o666 & ~_umask())
    Path(file.name).replace(path)


def _umask() -> int:
    # It can only be read by setting it. Temporary files are private; what takes their place follows the user's umask.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_model(model: SequenceModel, folder: str | Path, *, extra: dict[str, str] | None = None) -> Path:
    """Writes a model folder: config.json, model.safetensors, and further text files.

    Args:
        model: its `config` must build it again.
        folder: replaced if it exists; until everything is written it stays as it was.
        extra: more files by name, such as a model card.

    Raises:
        OSError: when the disk is full or not writable; nothing half-written is left behind.
    """
    folder = Path(folder)
    config = {"format": FORMAT, "longseq": __version__, **model.config}
    # A tied matrix stands once: safetensors refuses shared memory, and loading ties it again.
    seen: dict[int, str] = {}
    weights = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and seen.setdefault(tensor.data_ptr(), name) != name:
            continue
        weights[name] = tensor.detach().cpu().contiguous()
    with replacing_folder(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(weights, new / WEIGHTS, metadata={"format": "pt"})
        for name, text in (extra or {}).items():
            (new / name).write_text(text, encoding="utf-8")
    return folder


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a model folder.

    Raises:
        CheckpointError: if the folder or the file is missing or is not a longseq model's.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model folder: it has no {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    missing = [key for key in ("backbone", "embedding", "head") if key not in config]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}: it was not written by longseq")
    if config.get("format", 0) > FORMAT:
        raise CheckpointError(f"{path} has format {config['format']}, this version reads up to {FORMAT}: upgrade longseq")
    return config


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: if the file is missing, truncated or corrupted.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or corrupted ({path.stat().st_size} bytes): {error}") from None


def load_into(model: torch.nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Copies weights into a model of the same parameters.

    Raises:
        CheckpointError: naming the first missing, unexpected or differently shaped parameters.
    """
    own = model.state_dict()
    aliases = {name for name, tensor in own.items() if name not in weights and _is_tied(name, tensor, own, weights)}
    missing = [name for name in own if name not in weights and name not in aliases]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        parts = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        found = "; ".join(f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in parts if names)
        raise CheckpointError(f"the weights in {source} do not fit this {type(model).__name__}: {found}")
    model.load_state_dict(weights, strict=False)


def _is_tied(name: str, tensor: torch.Tensor, own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> bool:
    return any(other in weights and own[other].data_ptr() == tensor.data_ptr() for other in own if other != name)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> SequenceModel:
    """A trained model from its folder, in evaluation mode; needs neither Lightning nor the domain's packages.

    Args:
        folder: with config.json and model.safetensors.
        device: where to put it.

    Raises:
        CheckpointError: if the folder is not a model's, or its files do not fit together.
    """
    config = read_config(folder)
    model = build_model(config)
    load_into(model, load_weights(Path(folder) / WEIGHTS), folder)
    return model.to(device).eval()
