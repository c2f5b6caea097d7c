"""Published checkpoints: one file of this folder per format; weights alone are read, no code that comes with them is run."""

from longseq.pretrained._formats import PretrainedInfo, detect_format, list_formats, list_pretrained
from longseq.pretrained._load import load_pretrained
from longseq.pretrained._report import KeyReport

__all__ = ["KeyReport", "PretrainedInfo", "detect_format", "list_formats", "list_pretrained", "load_pretrained"]
