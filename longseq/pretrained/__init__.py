"""Published checkpoints: one file of this folder per format; weights alone are read, no code that comes with them is run."""

from longseq.pretrained._formats import PretrainedInfo, detect_format, list_formats, list_pretrained
from longseq.pretrained._load import Opened, build_opened, load_pretrained, open_pretrained
from longseq.pretrained._report import KeyReport

__all__ = [
    "KeyReport",
    "Opened",
    "PretrainedInfo",
    "build_opened",
    "detect_format",
    "list_formats",
    "list_pretrained",
    "load_pretrained",
    "open_pretrained",
]
