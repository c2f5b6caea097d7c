"""longseq: train, fine-tune and export long-sequence backbones on your own data."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longseq.version import __version__

# torch's OpenMP threads wait for more work in a busy loop of many milliseconds, in the way of the compiled loops' threads.
# This shortens it; it is read when torch is imported, and what the user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# In a checkout the folders domains, pipelines and configs stand beside this package, not inside it.
# An installed package has them inside (setup.py maps them), and then this line changes nothing.
if not (Path(__file__).parent / "domains").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

_PUBLIC = {
    "create_backbone": "longseq.registry",
    "list_backbones": "longseq.registry",
    "register_backbone": "longseq.registry",
    "Backbone": "longseq.backbone",
    "Mixer": "longseq.backbone",
    "Stack": "longseq.backbone",
    "SequenceModel": "longseq.model",
    "load_model": "longseq.checkpoint",
    "save_model": "longseq.checkpoint",
    "load_pretrained": "longseq.pretrained",
}
__all__ = [
    "Backbone",
    "Mixer",
    "SequenceModel",
    "Stack",
    "__version__",
    "create_backbone",
    "list_backbones",
    "load_model",
    "load_pretrained",
    "register_backbone",
    "save_model",
]

if TYPE_CHECKING:
    from longseq.backbone import Backbone, Mixer, Stack
    from longseq.checkpoint import load_model, save_model
    from longseq.model import SequenceModel
    from longseq.pretrained import load_pretrained
    from longseq.registry import create_backbone, list_backbones, register_backbone


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that `import longseq` and the command line's help stay fast."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'longseq' has no attribute {name!r}")
