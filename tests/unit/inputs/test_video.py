"""Videos encoded here: the right frames come out, upright and in RGB; the rest is one sentence."""

import re
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from qianyan.errors import InputError, MediaError
from qianyan.inputs import container
from qianyan.inputs.frames import VideoConfig, VideoLimits, VideoRequest
from qianyan.inputs.patches import PatchConfig, make_frame_patches
from qianyan.inputs.video import SampledVideo, read_frames, read_video

CONFIG = VideoConfig(
    patches=PatchConfig(min_pixels=3136, max_pixels=12_845_056),
    total_tokens=24_576,
    min_pixels=28 * 28,
)
STEP = 5  # grey levels from one frame to the next
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

Encode = Callable[..., bytes]


@pytest.fixture
def encode(tmp_path: Path) -> Encode:
    """Give a function that encodes frames whose grey level is STEP times their number."""

    def write(  # noqa: PLR0913
        count: int = 50,
        *,
        form: str = "mp4",
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        wh: tuple[int, int] = (64, 48),
        fps: Fraction = Fraction(25),
        pts: Sequence[int] | None = None,
        time_base: Fraction | None = None,
        picture: np.ndarray | None = None,
        **options: str,
    ) -> bytes:
        path = tmp_path / "encoded"
        muxer = {"movflags": options.pop("movflags")} if "movflags" in options else {}
        ticks = time_base or 1 / fps
        with av.open(str(path), "w", format=form, options=muxer) as file:
            stream = file.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt = *wh, pix_fmt
            stream.options = {"g": "10", "crf": "12", **options}
            stream.time_base = stream.codec_context.time_base = ticks
            for number in range(count):
                if picture is None:
                    grey = number * STEP % 256
                    pixels = np.full((wh[1], wh[0], 3), grey, dtype=np.uint8)
                else:
                    pixels = picture
                form_in = "rgba" if pixels.shape[2] == 4 else "rgb24"
                frame = av.VideoFrame.from_ndarray(pixels, format=form_in)
                frame.pts = number if pts is None else pts[number]
                frame.time_base = ticks
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return path.read_bytes()

    return write


def sample(source: bytes | Path, **asked: Any) -> SampledVideo:
    return read_video(source, VideoRequest(**asked), CONFIG)


def numbers(seen: SampledVideo) -> list[int]:
    """Which frames were taken, by their grey level."""
    return [round(float(frame.mean()) / STEP) for frame in seen.frames]


def refusal(source: bytes | Path, limits: VideoLimits | None = None, **asked: Any) -> MediaError:
    with pytest.raises(MediaError) as caught:
        read_video(source, VideoRequest(**asked), CONFIG, limits)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    for leak in ("Errno", "avcodec", "Traceback", "<none>", "0x7f"):
        assert leak not in sentence
    return caught.value


def quadrants(width: int = 64, height: int = 96) -> np.ndarray:
    """Red, green / blue, white."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    middle_y, middle_x = height // 2, width // 2
    pixels[:middle_y, :middle_x], pixels[:middle_y, middle_x:] = RED, GREEN
    pixels[middle_y:, :middle_x], pixels[middle_y:, middle_x:] = BLUE, WHITE
    return pixels


def corners(frame: np.ndarray) -> list[tuple[int, ...]]:
    height, width, _ = frame.shape
    places = [(9, 9), (9, width - 9), (height - 9, 9), (height - 9, width - 9)]
    return [tuple(255 if level > 127 else 0 for level in frame[place]) for place in places]


def test_two_frames_a_second_from_the_first_to_the_last(encode: Encode) -> None:
    seen = sample(encode(100, wh=(64, 48)))
    assert numbers(seen) == [0, 14, 28, 42, 57 - 51, 71 - 51, 85 - 51, 99 - 51]
    record = seen.record
    assert (record.photo_wh, record.seen_wh, record.num_frames) == ((64, 48), (56, 56), 8)
    assert (record.fps, record.source_fps, record.duration_s) == (2.0, 25.0, 4.0)
    assert record.timestamps_s == (0.0, 0.56, 1.12, 1.68, 2.28, 2.84, 3.4, 3.96)
    assert record.notes == ()
    assert seen.second_per_grid_t == 1.0
    assert seen.frames.shape == (8, 56, 56, 3)
    assert seen.frames.dtype == np.uint8
    assert make_frame_patches(seen.frames, CONFIG.patches).shape == (4 * 16, 1176)


@pytest.mark.parametrize(
    ("asked", "taken", "fps"),
    [
        ({"fps": 5}, [0, 5, 11, 16, 22, 27, 33, 38, 44, 49], 5.0),
        ({"nframes": 6}, [0, 10, 20, 29, 39, 49], 3.0),
        ({"nframes": 5}, [0, 16, 33, 49], 2.0),
        ({"fps": 5, "max_frames": 3}, [0, 49], 1.0),
        ({"min_frames": 5}, [0, 10, 20, 29, 39, 49], 3.0),
        ({"video_start": 1.0}, [25, 33, 41, 49], 4.0),
        ({"video_start": 0.4, "video_end": 0.8, "fps": 10}, [10, 13, 17, 20], 4 / 0.44),
        ({"video_start": 1.961}, [49, 49], 50.0),
    ],
    ids=str,
)
def test_the_keys_of_a_part(
    encode: Encode, asked: dict[str, Any], taken: list[int], fps: float
) -> None:
    seen = sample(encode(), **asked)
    assert numbers(seen) == taken
    assert seen.record.fps == pytest.approx(fps)


def test_pixel_keys_choose_the_size(encode: Encode) -> None:
    data = encode(10, wh=(640, 360))
    assert sample(data).record.seen_wh == (644, 364)
    assert sample(data, max_pixels=50_176).record.seen_wh == (280, 168)
    assert sample(data, min_pixels=600_000, max_pixels=602_112).record.seen_wh == (1008, 560)
    assert sample(data, total_pixels=4 * 28 * 28 * 10).record.seen_wh == (140, 84)


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        ("fps", {"fps": 0}),
        ("fps", {"fps": 1e9}),
        ("fps", {"fps": "2"}),
        ("fps", {"fps": float("nan")}),
        ("fps", {"fps": True}),
        ("nframes", {"fps": 2.0, "nframes": 4}),
        ("nframes", {"nframes": 4.0}),
        ("nframes", {"nframes": 0}),
        ("nframes", {"nframes": 52}),
        ("nframes", {"nframes": 10**9}),
        ("min_frames", {"min_frames": 9, "max_frames": 8}),
        ("min_frames", {"min_frames": 769}),
        ("max_frames", {"max_frames": 1}),
        ("max_frames", {"max_frames": 10**9}),
        ("min_pixels", {"min_pixels": -1}),
        ("min_pixels", {"min_pixels": 900, "max_pixels": 800}),
        ("max_pixels", {"max_pixels": 783}),
        ("max_pixels", {"max_pixels": 602_113}),
        ("total_pixels", {"total_pixels": 1567}),
        ("total_pixels", {"total_pixels": 24_577 * 784}),
        ("video_start", {"video_start": -0.1}),
        ("video_start", {"video_start": 2.0}),
        ("video_start", {"video_start": 99}),
        ("video_end", {"video_end": 0}),
        ("video_end", {"video_start": 1.0, "video_end": 1.0}),
    ],
    ids=str,
)
def test_values_outside_their_range_are_refused_by_key(
    encode: Encode, key: str, asked: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=rf"^messages\[0\]\.content\[1\]\.{key} is '") as caught:
        read_video(encode(), VideoRequest(**asked, where="messages[0].content[1]"), CONFIG)
    assert not isinstance(caught.value, MediaError)


def test_a_part_gives_its_keys_to_the_request() -> None:
    part = {"type": "video", "video": "a.mp4", "fps": 1.5, "max_pixels": 100_352}
    request = VideoRequest.from_part(part, "messages[2].content[0]")
    assert request == VideoRequest(fps=1.5, max_pixels=100_352, where="messages[2].content[0]")


@pytest.mark.parametrize(
    ("form", "codec", "pix_fmt", "options"),
    [
        ("matroska", "libx264", "yuv420p", {}),
        ("matroska", "ffv1", "yuv444p", {}),
        ("mpegts", "libx264", "yuv420p", {}),
        ("mpegts", "mpeg2video", "yuv420p", {"bf": "2"}),
        ("avi", "libx264", "yuv420p", {}),
        ("avi", "mpeg4", "yuv420p", {"qmax": "2"}),
        ("avi", "mjpeg", "yuvj420p", {"qmax": "2"}),
        ("avi", "rawvideo", "bgr24", {}),
        ("webm", "libvpx", "yuv420p", {}),
        ("webm", "libvpx-vp9", "yuv420p", {}),
        ("mov", "prores_ks", "yuv422p10le", {}),
        ("mov", "qtrle", "rgb24", {}),
        ("mp4", "libx264", "yuv420p10le", {}),
        ("mp4", "libx264", "yuv444p", {}),
        ("mp4", "libx265", "yuv420p10le", {"x265-params": "log-level=0"}),
        ("mp4", "libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
        ("h264", "libx264", "yuv420p", {}),
        ("flv", "flv", "yuv420p", {"qmax": "2"}),
    ],
    ids=str,
)
def test_containers_codecs_and_pixel_formats(
    encode: Encode, form: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    seen = sample(encode(form=form, codec=codec, pix_fmt=pix_fmt, **options))
    assert seen.record.fps == 2.0
    assert seen.record.timestamps_s == (0.0, 0.64, 1.32, 1.96)
    expected = np.array([0, 16, 33, 49]) * STEP
    assert np.abs(seen.frames.mean(axis=(1, 2, 3)) - expected).max() < 4


def test_odd_sizes_keep_their_last_column_and_row(encode: Encode) -> None:
    seen = sample(encode(4, wh=(65, 97), codec="mjpeg", form="avi", pix_fmt="yuvj444p"))
    assert seen.record.photo_wh == (65, 97)
    edges = seen.frames[-1][:, -1].mean(), seen.frames[-1][-1].mean()
    assert np.abs(np.array(edges) - 3 * STEP).max() < 3


def test_full_range_colours_are_told_from_studio_range(encode: Encode) -> None:
    white = np.full((48, 64, 3), 255, dtype=np.uint8)
    for pix_fmt, options in (("yuvj420p", {}), ("yuv420p", {})):
        seen = sample(encode(4, pix_fmt=pix_fmt, picture=white, **options))
        assert seen.frames.min() >= 253


def test_high_dynamic_range_is_noted(encode: Encode) -> None:
    notes = ("high dynamic range: shown without tone mapping",)
    assert sample(encode(4, pix_fmt="yuv420p10le", color_trc="smpte2084")).record.notes == notes
    assert sample(encode(4, pix_fmt="yuv420p10le", color_trc="bt709")).record.notes == ()


def test_transparent_parts_show_white(encode: Encode) -> None:
    picture = np.zeros((48, 64, 4), dtype=np.uint8)
    picture[:, :32] = (200, 0, 0, 255)
    seen = sample(encode(4, codec="png", form="mov", pix_fmt="rgba", picture=picture))
    assert np.abs(seen.frames[:, :, :20].astype(int) - (200, 0, 0)).max() < 3
    assert seen.frames[:, :, 40:].min() >= 253


def test_of_interlaced_frames_one_field_is_shown(encode: Encode) -> None:
    combed = np.zeros((64, 64, 3), dtype=np.uint8)
    combed[::2] = 250  # an object that was here in one field and gone in the other
    options = {"flags": "+ildct+ilme", "qmax": "2"}
    seen = sample(encode(wh=(64, 64), codec="mpeg2video", form="mpegts", picture=combed, **options))
    assert seen.record.photo_wh == (64, 64)
    assert "interlaced: one field of each frame is shown" in seen.record.notes
    assert seen.frames.mean() > 230


@pytest.mark.parametrize(
    ("matrix", "size", "seen_corners"),
    [
        ((0, 1, -1, 0), (96, 64), [BLUE, RED, WHITE, GREEN]),  # a phone held upright
        ((-1, 0, 0, -1), (64, 96), [WHITE, BLUE, GREEN, RED]),
        ((0, -1, 1, 0), (96, 64), [GREEN, WHITE, RED, BLUE]),
    ],
    ids=["90 clockwise", "180", "90 counterclockwise"],
)
def test_videos_are_turned_as_their_metadata_says(
    encode: Encode,
    matrix: tuple[int, int, int, int],
    size: tuple[int, int],
    seen_corners: list[tuple[int, ...]],
) -> None:
    data = bytearray(encode(4, wh=(64, 96), picture=quadrants()))
    assert corners(sample(bytes(data)).frames[0]) == [RED, GREEN, BLUE, WHITE]
    a, b, c, d = (value << 16 for value in matrix)
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    seen = sample(bytes(data))
    assert seen.record.photo_wh == size
    assert corners(seen.frames[0]) == seen_corners


@pytest.mark.parametrize("first", [1000, -30])
def test_times_count_from_the_first_frame(encode: Encode, first: int) -> None:
    pts = [first + number for number in range(50)]
    seen = sample(encode(form="matroska", pts=pts))
    assert seen.record.timestamps_s == (0.0, 0.64, 1.32, 1.96)
    assert numbers(seen) == [0, 16, 33, 49]
    assert seen.record.notes == ()


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_with_a_variable_frame_rate_the_right_moments_are_shown(encode: Encode, form: str) -> None:
    """Ten frames in 0.4 seconds, then twenty in eight: by number half would be of the start."""
    pts = [number if number < 10 else 10 * (number - 9) for number in range(30)]
    seen = sample(encode(30, form=form, pts=pts), nframes=10)
    shown_at = np.array([pts[number] for number in numbers(seen)]) / 25
    moments = np.array(seen.record.timestamps_s)
    assert np.allclose(np.diff(moments), 8.0 / 9)
    assert (shown_at <= moments + 1e-6).all()
    assert (moments - shown_at < 0.4).all()
    assert seen.record.notes == ("variable frame rate: chosen by time",)
    assert seen.record.fps == pytest.approx(10 / seen.record.duration_s)


def test_a_slide_on_the_screen_is_shown_again_at_each_moment(encode: Encode) -> None:
    pts = [0, 25, 250, 260, 500, 510]
    seen = sample(encode(6, pts=pts, form="matroska"), nframes=6)
    assert numbers(seen) == [0, 1, 1, 3, 3, 5]
    assert seen.record.timestamps_s == pytest.approx((0.0, 4.08, 8.16, 12.24, 16.32, 20.4))


def test_a_single_frame_is_shown_twice(encode: Encode) -> None:
    seen = sample(encode(1))
    assert seen.frames.shape[0] == seen.record.num_frames == 2
    assert np.array_equal(seen.frames[0], seen.frames[1])
    assert seen.record.notes == ("only one frame: shown twice",)


def test_frames_without_times_follow_the_rate_of_the_file(encode: Encode) -> None:
    seen = sample(encode(form="h264"))
    assert numbers(seen) == [0, 16, 33, 49]
    assert seen.record.notes == ("frames carry no times: taken as 25 a second",)


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts", "avi", "h264"])
@pytest.mark.parametrize("bf", ["0", "3"])
def test_jumping_to_key_frames_shows_the_same_frames_as_decoding_all(
    encode: Encode, monkeypatch: pytest.MonkeyPatch, form: str, bf: str
) -> None:
    data = encode(400, form=form, bf=bf, crf="8", sc_threshold="0")
    few = sample(data, nframes=8)
    monkeypatch.setattr(container, "SEEK_FRAMES", 10**9)
    assert np.array_equal(few.frames, sample(data, nframes=8).frames)
    # 51 frames have one grey level each, then the levels come again.
    levels = [index * STEP % 256 for index in (0, 57, 114, 171, 228, 285, 342, 399)]
    assert np.abs(few.frames.mean(axis=(1, 2, 3)) - levels).max() <= STEP / 2


def test_sparse_frames_are_reached_without_decoding_all(encode: Encode, tmp_path: Path) -> None:
    path = tmp_path / "sparse.mp4"
    path.write_bytes(encode(1000, sc_threshold="0"))
    file = container.VideoFile(path, VideoLimits())
    listing = file.list_frames()
    runs = container.split_runs([0, 333, 666, 999], listing.keys)
    assert [run.wanted for run in runs] == [(0,), (333,), (666,), (999,)]
    assert [listing.keys[run.key] for run in runs if run.key is not None] == [330, 660, 990]


SAMPLE_AND_MEASURE = """
import re, sys
from pathlib import Path
from qianyan.inputs.frames import VideoConfig, VideoRequest
from qianyan.inputs.patches import PatchConfig, make_frame_patches
from qianyan.inputs.video import read_video
patches = PatchConfig(min_pixels=3136, max_pixels=12845056)
config = VideoConfig(patches=patches, total_tokens=24576)
seen = read_video(Path(sys.argv[1]), VideoRequest(nframes=int(sys.argv[2])), config)
rows = make_frame_patches(seen.frames, patches)
status = Path("/proc/self/status").read_text()
print(len(seen.frames), re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])
"""


def peak_kb(path: Path, nframes: int) -> int:
    """Peak resident memory of a process that samples the file, up to the tower's rows.

    Read from the process table: getrusage would count the parent's memory from before the start.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say a process's peak memory")
    command = [sys.executable, "-c", SAMPLE_AND_MEASURE, str(path), str(nframes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, peak = map(int, done.stdout.split())
    assert taken == nframes
    return peak


def test_a_path_is_read_piece_by_piece(encode: Encode, tmp_path: Path) -> None:
    """A file that is mostly padding is never brought into memory."""
    data = encode()
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:
        file.write(data)
        file.write(struct.pack(">I4sQ", 1, b"free", 16 + (1 << 31)))
        file.truncate(len(data) + 16 + (1 << 31))  # a sparse file of 2 GB
    assert peak_kb(path, 4) < 500_000


def test_memory_does_not_grow_with_length(encode: Encode, tmp_path: Path) -> None:
    """The same number of frames from a video ten times as long takes no more memory."""
    peaks = []
    for count in (50, 500):
        path = tmp_path / f"{count}.mp4"
        path.write_bytes(encode(count, wh=(640, 480), preset="ultrafast", g="250"))
        peaks.append(peak_kb(path, 16))
    # All 450 further frames in RGB would be 415 MB.
    assert peaks[1] - peaks[0] < 40_000


@pytest.mark.slow
def test_three_minutes_of_1080p_fit_in_memory_with_room_to_spare(
    encode: Encode, tmp_path: Path
) -> None:
    """768 frames, the most by default; all 900 in RGB would be 5.6 GB."""
    path = tmp_path / "long.mp4"
    path.write_bytes(encode(900, wh=(1920, 1080), fps=Fraction(5), preset="ultrafast", g="250"))
    assert peak_kb(path, 768) < 1_200_000


@pytest.mark.parametrize("form", ["mp4", "matroska", "mpegts", "avi", "flv"])
def test_damage_anywhere_is_bridged_or_refused(encode: Encode, form: str) -> None:
    """Bytes changed, cut off, lost, or turned into large numbers: a clip or one sentence."""
    whole = encode(form=form, codec="flv" if form == "flv" else "libx264")
    rng = np.random.default_rng(0)
    limits = VideoLimits(max_read_s=20)
    for kind in list(range(4)) * 15:
        data = bytearray(whole)
        place = int(rng.integers(len(data) if kind else min(len(data), 1200)))
        if kind == 0:
            data[place : place + 4] = b"\xff\xff\xff\xff"
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + int(rng.integers(1, 400))]
        else:
            for at in rng.integers(len(data), size=10):
                data[at] = rng.integers(256)
        try:
            seen = read_video(bytes(data), VideoRequest(), CONFIG, limits)
        except MediaError:
            continue
        assert len(seen.frames) == seen.record.num_frames >= 2
        assert seen.record.fps > 0


def test_nothing_is_printed_about_damage(encode: Encode, capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(200, movflags="faststart")
    sample(data[: len(data) * 6 // 10])
    refusal(b"no video at all")
    assert capfd.readouterr() == ("", "")


def test_a_file_cut_short_is_read_as_far_as_it_goes(encode: Encode) -> None:
    for form, options in (("matroska", {}), ("mp4", {"movflags": "faststart"}), ("mpegts", {})):
        data = encode(200, form=form, **options)
        seen = sample(data[: len(data) * 6 // 10])
        assert 1.5 < seen.record.duration_s < 6.0
        assert seen.record.timestamps_s[-1] < seen.record.duration_s
        if form != "mpegts":  # which has no header that states a length
            assert seen.record.source_fps == 25.0
            assert any("of 8 seconds" in note for note in seen.record.notes)


def test_damage_in_the_middle_is_noted_and_bridged(encode: Encode) -> None:
    data = bytearray(encode(200, form="mpegts", codec="mpeg2video"))
    third = len(data) // 3 // 188 * 188
    data[third : third + 188 * 12] = bytes(188 * 12)
    seen = sample(bytes(data))
    assert seen.record.num_frames >= 14
    levels = np.array(numbers(seen))
    assert levels[0] == 0
    assert len(np.unique(levels)) > 8


def test_a_file_whose_frames_are_all_damaged_is_refused(encode: Encode) -> None:
    data = bytearray(encode(100, movflags="faststart"))
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    assert refusal(bytes(data)).code == "truncated"


@pytest.mark.parametrize("box", [b"moov", b"stsd", b"trak"])
def test_a_broken_index_is_refused(encode: Encode, box: bytes) -> None:
    data = encode()
    codes = {"truncated", "no_frames", "unsupported_format"}
    assert refusal(data.replace(box, b"xxxx")).code in codes


def test_an_index_without_frames_is_refused(encode: Encode) -> None:
    assert refusal(encode().replace(b"stco", b"xxxx")).code == "no_frames"


def test_the_index_cut_off_is_refused(encode: Encode) -> None:
    data = encode()
    error = refusal(data[: len(data) // 2])
    assert error.code == "truncated"
    assert "cut short" in str(error)


def test_ten_hours_are_refused_and_a_part_of_them_is_not(encode: Encode) -> None:
    pts = [600 * number for number in range(61)]
    data = encode(61, pts=pts, time_base=Fraction(1), fps=Fraction(1))
    error = refusal(data)
    assert error.code == "too_long"
    assert "10.17 hours" in str(error)
    seen = sample(data, video_start=3600, video_end=6600)
    assert seen.record.timestamps_s == tuple(3600.0 + 600 * number for number in range(6))
    assert numbers(seen) == [6, 7, 8, 9, 10, 11]


def sound(form: str, codec: str, layout: str) -> bytes:
    out = BytesIO()
    with av.open(out, "w", format=form) as file:
        stream = file.add_stream(codec, rate=16_000)
        stream.layout = "mono"
        samples = np.zeros((1, 16_000), dtype=np.float32 if layout == "fltp" else np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format=layout, layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize(
    ("form", "codec", "layout"),
    [("mp4", "aac", "fltp"), ("wav", "pcm_s16le", "s16"), ("mp3", "libmp3lame", "s16p")],
)
def test_sound_alone_is_refused(form: str, codec: str, layout: str) -> None:
    assert refusal(sound(form, codec, layout)).code == "audio_only"


def test_a_cover_picture_does_not_make_a_sound_file_a_video() -> None:
    picture = BytesIO()
    Image.new("RGB", (64, 64), RED).save(picture, "JPEG")
    body = b"\0image/jpeg\0\x03\0" + picture.getvalue()
    tag = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    data = b"ID3\x03\0\0" + size + tag + sound("mp3", "libmp3lame", "s16p")
    assert refusal(data).code == "audio_only"


def test_no_bytes_are_refused() -> None:
    assert refusal(b"").code == "empty_file"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"This was renamed.\n" * 50, "but text;"),
        ("改名的文本。\n".encode() * 50, "but text;"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n", "playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "but text;"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"PK\x03\x04" + bytes(200), "ZIP"),
        (bytes(range(256)) * 4, "unknown kind"),
    ],
)
def test_what_is_no_video_is_called_what_it_is(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "renamed.mp4"
    path.write_bytes(data)
    for source in (data, path):
        error = refusal(source)
        assert error.code == "not_a_video"
        assert what in str(error)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_a_picture_is_sent_back_as_a_picture(form: str) -> None:
    out = BytesIO()
    Image.new("RGB", (64, 64)).save(out, form)
    error = refusal(out.getvalue())
    assert error.code == "not_a_video"
    assert "Send it as a picture" in str(error)


def animation(form: str) -> bytes:
    out = BytesIO()
    frames = [Image.new("RGB", (64, 64), (number * 20,) * 3) for number in range(8)]
    frames[0].save(out, form, save_all=True, append_images=frames[1:], duration=500)
    return out.getvalue()


def test_an_animated_gif_is_read_as_a_video() -> None:
    seen = sample(animation("GIF"))
    assert seen.record.num_frames == 8
    assert (seen.record.fps, seen.record.duration_s) == (2.0, 4.0)
    assert [round(float(frame.mean())) for frame in seen.frames] == [20 * n for n in range(8)]


def test_an_animated_webp_is_refused_with_a_way_out() -> None:
    error = refusal(animation("WEBP"))
    assert error.code == "not_a_video"
    assert "MP4" in str(error)


def with_bitmap_size(data: bytes, width: int, height: int) -> bytes:
    """An AVI whose header announces another size."""
    start = data.index(b"strf") + 12
    return data[:start] + struct.pack("<ii", width, height) + data[start + 8 :]


@pytest.mark.parametrize("side", [7000, 20_000, 60_000, 1 << 30])
def test_huge_announced_sizes_are_refused_before_decoding(encode: Encode, side: int) -> None:
    data = encode(4, codec="rawvideo", form="avi", pix_fmt="bgr24")
    assert refusal(with_bitmap_size(data, side, side)).code == "too_large"


def test_a_size_that_grows_on_the_way_is_refused_by_the_decoder(encode: Encode) -> None:
    """The header says 64x64, the pictures inside are larger than allowed."""
    data = encode(4, codec="mjpeg", form="avi", pix_fmt="yuvj420p", wh=(640, 640))
    error = refusal(with_bitmap_size(data, 64, 64), VideoLimits(max_pixels=100_000))
    assert error.code in {"too_large", "truncated"}


def test_limits_on_sides(encode: Encode) -> None:
    data = encode(4, wh=(640, 64))
    assert refusal(data, VideoLimits(max_side_px=600)).code == "too_large"
    assert refusal(data, VideoLimits(min_side_px=65)).code == "too_small"
    assert refusal(data, VideoLimits(max_source_frames=3)).code == "too_many_frames"
    assert refusal(data, VideoLimits(max_read_s=0)).code == "timeout"
    strip = encode(4, codec="rawvideo", form="avi", pix_fmt="bgr24", wh=(2000, 8))
    assert refusal(strip).code == "too_narrow"


def test_rare_codecs_are_not_decoded(encode: Encode) -> None:
    error = refusal(encode(4, codec="jpeg2000", form="mov"))
    assert error.code == "unsupported_format"
    assert "jpeg2000" in str(error)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.mp4", Path("/dev/zero")):
        error = refusal(path)
        assert error.code == "not_found"
        assert str(tmp_path) not in str(error)


def test_a_movie_cannot_make_another_file_be_read(encode: Encode, tmp_path: Path) -> None:
    """A QuickTime file may say that its samples lie in another file; that is never opened."""
    secret = tmp_path / "secret.mov"
    secret.write_bytes(encode(form="mov", codec="png", pix_fmt="rgb24"))
    data = bytearray(secret.read_bytes())
    url = data.index(b"url ", data.index(b"dref"))
    path = str(secret).encode() + b"\0"
    entry = struct.pack(">I4sI", 12 + len(path), b"url ", 0) + path
    data[url - 4 : url + 8] = entry
    grown = len(entry) - 12
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = data.rindex(box, 0, url) - 4
        data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + grown)
    start = data.index(b"mdat") + 4
    media = data.index(b"moov") - 4
    data[start:media] = bytes(media - start)
    assert refusal(bytes(data)).code in {"truncated", "no_frames", "unsupported_format"}


def test_the_missing_extra_is_named(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(4)
    monkeypatch.setitem(sys.modules, "av", None)
    error = refusal(data)
    assert error.code == "unsupported_format"
    assert "pip install 'qianyan[video]'" in str(error)


def test_the_package_is_imported_without_the_extra() -> None:
    code = "import sys; sys.modules['av'] = None; import qianyan.inputs.video"
    subprocess.run([sys.executable, "-c", code], check=True)


def pictures(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    return [Image.new("RGB", size, (number * STEP,) * 3) for number in range(count)]


def test_a_list_of_frames_is_shown_whole() -> None:
    seen = read_frames(pictures(6), VideoRequest(fps=0.5), CONFIG)
    assert numbers(seen) == [0, 1, 2, 3, 4, 5]
    record = seen.record
    assert (record.fps, record.source_fps, record.duration_s) == (0.5, 0.5, 12.0)
    assert record.timestamps_s == (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    assert (record.photo_wh, record.seen_wh) == ((64, 48), (56, 56))
    assert seen.second_per_grid_t == 4.0


@pytest.mark.parametrize(("count", "taken"), [(1, [0, 0]), (5, [0, 1, 2, 3, 4, 4])])
def test_of_an_odd_list_the_last_frame_is_repeated(count: int, taken: list[int]) -> None:
    seen = read_frames(pictures(count), VideoRequest(), CONFIG)
    assert numbers(seen) == taken
    assert seen.record.fps == 2.0
    assert seen.record.notes == ("odd number of frames: the last is repeated",)


def test_frames_of_any_mode_become_rgb() -> None:
    half = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    seen = read_frames([half, Image.new("L", (64, 48), 255)], VideoRequest(), CONFIG)
    assert seen.frames.min() == 255


def list_refusal(images: list[Image.Image], **asked: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read_frames(images, VideoRequest(**asked), CONFIG, VideoLimits(max_frames=10))
    return caught.value


def test_lists_outside_the_form_are_refused() -> None:
    assert list_refusal([]).code == "no_frames"
    assert list_refusal(pictures(11)).code == "too_many_frames"
    assert list_refusal([*pictures(3), *pictures(1, (48, 64))]).code == "sizes_differ"
    assert list_refusal(pictures(2, (4, 400))).code == "too_small"
    assert list_refusal(pictures(2, (8, 4000))).code == "too_narrow"
    for key in ("nframes", "min_frames", "max_frames", "video_start", "video_end"):
        error = list_refusal(pictures(4), **{key: 4})
        assert re.match(rf"video\.{key} is '4'", str(error))


def test_a_lazy_list_holds_one_frame_at_a_time() -> None:
    class Lazy(Sequence[Image.Image]):
        reads: list[int] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: Any) -> Any:
            if index >= 4:
                raise IndexError
            self.reads.append(index)
            return pictures(4)[index]

    assert numbers(read_frames(Lazy(), VideoRequest(), CONFIG)) == [0, 1, 2, 3]
    assert Lazy.reads == [0, 1, 2, 3]
