"""What the audio tests share."""

from pathlib import Path

import pytest

from tests.domains.audio.sounds import class_folders


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two class folders of six short files each."""
    return class_folders(tmp_path / "sounds")
