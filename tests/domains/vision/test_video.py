"""Videos made here and read again: files through PyAV, frame folders, GIFs and arrays; clips; headers that lie."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longseq.domains.vision.datamodule import VisionData
from longseq.domains.vision.sources import ReadOptions, read_source
from longseq.domains.vision.video import VideoStore, make_clips
from longseq.errors import DataError

Read = Callable[..., VisionData]


def frames_of(label: int, n: int, size: int = 16) -> np.ndarray:
    """A bright bar that moves right (0) or left (1), and tells each frame's number by its grey; uint8 (n, size, size)."""
    video = np.zeros((n, size, size), np.uint8)
    for t in range(n):
        column = t % size if label == 0 else size - 1 - t % size
        video[t, :, column] = 200
        video[t, :4] = 8 * t
    return video


def encode(path: Path, video: np.ndarray, codec: str = "mpeg4", b_frames: int = 0) -> None:
    """Writes a video file with a keyframe every 10 frames."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size, stream.bit_rate = 10, 4_000_000
        if b_frames:
            stream.max_b_frames = b_frames
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.repeat(frame[..., None], 3, -1), format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("suffix", "codec", "b_frames"),
    [
        (".mp4", "mpeg4", 0),
        (".avi", "mpeg4", 0),
        (".mkv", "mpeg4", 0),
        (".mp4", "mpeg4", 2),
        (".ts", "mpeg2video", 2),
        (".m4v", "mpeg4", 0),
    ],
)
def test_frames_of_a_file_by_number(tmp_path: Path, suffix: str, codec: str, b_frames: int) -> None:
    video = frames_of(0, 25)
    encode(tmp_path / f"v{suffix}", video, codec, b_frames)
    store = VideoStore([tmp_path / f"v{suffix}"])
    header = store.check(0)
    assert (header.frames, header.height, header.width) == (25, 16, 16)
    for wanted in ([0, 1, 2], [7, 13, 24], [24, 3, 3], [11]):
        found = store.read(0, wanted)
        assert found.shape == (len(wanted), 16, 16, 3)
        error = np.abs(found[..., 0].astype(int) - video[wanted].astype(int)).mean()
        # Compression loses something, but less than the step from one frame to the next.
        assert error < 5, (wanted, error)
        grey = np.rint(found[:, 1:3, :, 0].mean((1, 2)) / 8)
        assert np.abs(grey - np.array(wanted)).max() <= 1


def test_a_truncated_file_whose_header_promises_more(tmp_path: Path, read: Read) -> None:
    for label in (0, 1):
        (tmp_path / str(label)).mkdir()
        for i in range(5):
            encode(tmp_path / str(label) / f"{i}.avi", np.random.default_rng(i).integers(0, 256, (30, 32, 32)).astype(np.uint8))
    whole = (tmp_path / "0" / "3.avi").read_bytes()
    (tmp_path / "0" / "3.avi").write_bytes(whole[: len(whole) // 2])
    options = {"tokenizer": "tubelet", "val_fraction": 0.2, "test_fraction": 0.2, "frames": 4}
    with pytest.raises(DataError, match=r"3\.avi: the header promises 30 frames, the file holds \d+: it is truncated"):
        read(tmp_path, **options)
    data = read(tmp_path, **options, on_bad="skip")
    assert str(data.counts["skipped in train, unreadable"]).startswith("1, the first:")
    assert sum(len(rows) for rows in data.splits.values()) == 9
    # Of many videos only the headers are read first; then the error comes with the frame.
    store = VideoStore([tmp_path / "0" / "3.avi"])
    assert store.header(0).frames == 30
    with pytest.raises(DataError, match=r"3\.avi.*promises"):
        store.read(0, [29])


def test_a_cut_file_that_counts_no_frames_is_known_by_its_length(tmp_path: Path) -> None:
    encode(tmp_path / "v.mkv", np.random.default_rng(0).integers(0, 256, (40, 32, 32)).astype(np.uint8))
    assert VideoStore([tmp_path / "v.mkv"]).check(0).frames == 40
    (tmp_path / "cut.mkv").write_bytes((tmp_path / "v.mkv").read_bytes()[:-40_000])
    with pytest.raises(DataError, match=r"cut\.mkv: the header promises \d\.\d s, the last frame ends after \d\.\d s"):
        VideoStore([tmp_path / "cut.mkv"]).check(0)


def test_what_was_trimmed_away_without_encoding_anew_is_not_shown(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    encode(tmp_path / "whole.mp4", frames_of(0, 25))
    with av.open(str(tmp_path / "whole.mp4")) as source, av.open(str(tmp_path / "v.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        first = int(10 / stream.average_rate / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, copy
                target.mux(packet)
    store = VideoStore([tmp_path / "v.mp4"])
    assert store.check(0, every_frame=True).frames == 15
    found = np.rint(store.read(0, [0, 14])[:, 1:3, :, 0].mean((1, 2)) / 8)
    assert np.abs(found - [10, 24]).max() <= 1
    # The header alone counts all of them; then the last one stands for those that are not there.
    np.testing.assert_array_equal(store.read(0, [24]), store.read(0, [14]))


def test_damage_in_the_middle_is_found_before_training_where_bad_files_are_skipped(tmp_path: Path, read: Read) -> None:
    av = pytest.importorskip("av")
    for label in (0, 1):
        (tmp_path / str(label)).mkdir()
        for i in range(5):
            encode(tmp_path / str(label) / f"{i}.mp4", np.random.default_rng(i).integers(0, 256, (30, 32, 32)).astype(np.uint8))
    spoiled = tmp_path / "1" / "2.mp4"
    content = bytearray(spoiled.read_bytes())
    with av.open(str(spoiled)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    content[places[12] : places[16]] = bytes(places[16] - places[12])
    spoiled.write_bytes(content)
    options = {"tokenizer": "tubelet", "val_fraction": 0.2, "test_fraction": 0.2, "frames": 4}
    data = read(tmp_path, **options, on_bad="skip")
    assert "2.mp4" in str(data.counts["skipped in train, unreadable"])


def test_no_video_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"this is text, not a video" * 20)
    (tmp_path / "b.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.mp4: cannot be decoded as a video"):
        VideoStore([tmp_path / "a.mp4"]).header(0)
    with pytest.raises(DataError, match=r"b\.mp4: the file is empty"):
        VideoStore([tmp_path / "b.mp4"]).header(0)


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"0" * 10)
    with pytest.raises(DataError, match=r"pip install 'longseq\[video\]'"):
        VideoStore([tmp_path / "a.mp4"]).header(0)


def test_frame_folders_in_the_order_of_their_numbers(tmp_path: Path, read: Read) -> None:
    for label in (0, 1):
        for clip in range(5):
            folder = tmp_path / f"class{label}" / f"clip{clip}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(frames_of(label, 12)):
                Image.fromarray(frame).save(folder / f"frame{t}.png")
    data = read(tmp_path, tokenizer="tubelet", frames=12, val_fraction=0.2, test_fraction=0.2)
    assert data.grid == (6, 8, 8) or data.grid[0] == 6
    row = data.splits["test"][0]
    np.testing.assert_array_equal(row["inputs"][:, 0], frames_of(int(row["label"]), 12))


def test_gifs_and_arrays(tmp_path: Path) -> None:
    video = frames_of(1, 9)
    images = [Image.fromarray(frame) for frame in video]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=50)
    np.save(tmp_path / "a.npy", video)
    np.savez(tmp_path / "a.npz", video)
    store = VideoStore([tmp_path / "a.gif", tmp_path / "a.npy", tmp_path / "a.npz"])
    for i in range(3):
        assert store.check(i).frames == 9
        np.testing.assert_array_equal(store.read(i, [8, 2])[..., 0], video[[8, 2]])


def test_frames_of_different_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for t, size in enumerate((8, 8, 9)):
        Image.fromarray(np.zeros((size, 8), np.uint8)).save(tmp_path / "clip" / f"{t}.png")
    with pytest.raises(DataError, match="frames of one video have different sizes"):
        VideoStore([tmp_path / "clip"]).read(0, [0, 1, 2])


def test_clips_from_the_middle_and_all_along() -> None:
    n_frames = np.array([20, 5, 3])
    one = make_clips(n_frames, frames=3, stride=2, window_stride=None)
    assert [one.chosen(i, None).tolist() for i in range(3)] == [[7, 9, 11], [0, 2, 4], [0, 2, 2]]
    many = make_clips(n_frames, frames=3, stride=2, window_stride=5)
    assert many.items.tolist() == [0, 0, 0, 0, 1, 2]
    assert [many.chosen(i, None).tolist() for i in range(4)] == [[0, 2, 4], [5, 7, 9], [10, 12, 14], [15, 17, 19]]
    starts = {int(one.chosen(0, np.random.default_rng(i))[0]) for i in range(300)}
    assert starts == set(range(16))


def test_windows_of_one_video_stay_in_one_split(tmp_path: Path, read: Read) -> None:
    videos = np.stack([frames_of(i % 2, 30) for i in range(20)])
    np.savez(tmp_path / "v.npz", videos=videos, labels=np.arange(20) % 2)
    data = read(tmp_path / "v.npz", tokenizer="tubelet", frames=6, window_stride=6, val_fraction=0.2, test_fraction=0.2)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 60, "val": 20, "test": 20}
    names = data.row_names("test", np.arange(20))
    assert names["first_frame"][:5] == [0, 6, 12, 18, 24] and len(set(names["id"])) == 4
    row = data.splits["test"][1]
    np.testing.assert_array_equal(row["inputs"][:, 0], frames_of(int(row["label"]), 30)[6:12])


def test_training_clips_start_anew_in_every_epoch(tmp_path: Path, read: Read) -> None:
    videos = np.stack([frames_of(i % 2, 30) for i in range(20)])
    np.savez(tmp_path / "v.npz", videos=videos, labels=np.arange(20) % 2)
    data = read(tmp_path / "v.npz", tokenizer="tubelet", frames=4, val_fraction=0.2, test_fraction=0.2)
    rows = data.splits["train"]
    first, again = rows[0]["inputs"], rows[0]["inputs"]
    np.testing.assert_array_equal(first, again)
    rows.epoch = 1
    assert any(not np.array_equal(rows[0]["inputs"], first) for rows.epoch in range(1, 4))


def test_a_folder_of_gifs_is_a_class_and_no_video(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8), 20 * k, np.uint8)) for k in range(4)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            frames[0].save(tmp_path / name / f"{i}.gif", save_all=True, append_images=frames[1:])
    records = read_source(str(tmp_path), ReadOptions(video=True))["all"]
    assert records.labels is not None and records.labels.tolist() == ["a"] * 3 + ["b"] * 3
