"""Reading sound files: any format and any place in them, and what damaged ones are answered with."""

from pathlib import Path

import numpy as np
import pytest

from longseq.domains.audio.files import (
    check_samples,
    read_header,
    read_samples,
    resample,
    resampled_length,
    write_wav,
)
from longseq.errors import DataError
from tests.domains.audio.sounds import wave, write


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_every_format_is_read(tmp_path: Path, name: str) -> None:
    samples = wave(0.5)
    path = write(tmp_path / name, samples)
    header = read_header(path)
    assert (header.sample_rate_hz, header.n_channels) == (8000, 1)
    read = read_samples(path)
    assert len(read) == header.n_frames
    lossless = name.endswith(("wav", "flac"))
    shared = min(len(read), len(samples))
    tolerance = 1e-4 if lossless else 0.1
    if lossless:
        assert shared == len(samples)
    assert np.abs(read[800:shared] - samples[800:shared]).max() < tolerance or not lossless


def test_a_stretch_is_what_the_whole_holds_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", wave(0.5))
    assert np.array_equal(read_samples(path, 1000, 500), read_samples(path)[1000:1500])


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = wave(seed=1), wave(seed=2)
    path = write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT")
    assert np.allclose(read_samples(path), (left + right) / 2, atol=1e-6)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.wav: there is no such file"):
        read_header(tmp_path / "gone.wav")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(DataError, match=r"empty.wav: the file is empty"):
        read_header(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("no sound at all, only words")
    with pytest.raises(DataError, match=r"text.wav: not a sound file"):
        read_header(tmp_path / "text.wav")
    write(tmp_path / "none.wav", np.zeros(0, dtype=np.float32))
    with pytest.raises(DataError, match=r"none.wav: holds no samples"):
        read_header(tmp_path / "none.wav")


def test_truncated_files_are_found(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.wav", wave(0.5))
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"cut.wav: truncated, 1000 bytes"):
        read_header(cut)
    flac = write(tmp_path / "b.flac", wave(2.0))
    cut = tmp_path / "cut.flac"
    cut.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut.flac"):
        read_samples(cut)


def test_nan_and_silence_are_found(tmp_path: Path) -> None:
    samples = wave()
    samples[77] = np.nan
    path = write(tmp_path / "nan.wav", samples, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan.wav: sample 77 is NaN"):
        read_samples(path)
    silent = write(tmp_path / "silent.wav", np.zeros(800, dtype=np.float32))
    assert "silent" in str(check_samples(silent, 0, 800))
    assert check_samples(write(tmp_path / "good.wav"), 0, 800) is None


@pytest.mark.parametrize(("rate", "wanted"), [(16000, 8000), (8000, 16000), (44100, 16000)])
def test_resampling_keeps_a_tone(rate: int, wanted: int) -> None:
    t = np.arange(rate) / rate
    found = resample(np.sin(2 * np.pi * 500 * t).astype(np.float32), rate, wanted)
    assert len(found) == int(resampled_length(rate, rate, wanted))
    expected = np.sin(2 * np.pi * 500 * np.arange(len(found)) / wanted)
    inner = slice(200, -200)
    assert np.abs(found[inner] - expected[inner]).max() < 0.01


def test_written_wav_is_clipped(tmp_path: Path) -> None:
    write_wav(tmp_path / "new" / "a.wav", np.array([0.0, 2.0, -2.0], dtype=np.float32), 8000)
    assert np.allclose(read_samples(tmp_path / "new" / "a.wav"), [0.0, 1.0, -1.0], atol=1e-4)
