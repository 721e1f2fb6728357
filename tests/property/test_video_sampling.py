"""What is sampled keeps its promises for every video, request and cap."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qianyan.errors import InputError
from qianyan.inputs.container import SEEK_FRAMES, split_runs
from qianyan.inputs.frames import VideoConfig, VideoLimits, VideoRequest, fit_frames
from qianyan.inputs.images import MAX_RATIO
from qianyan.inputs.patches import PatchConfig, make_frame_patches
from qianyan.inputs.timeline import Timeline, choose_frames, spread

PATCHES = PatchConfig(min_pixels=3136, max_pixels=12_845_056)
LIMITS = VideoLimits(max_duration_s=1e12)
FACTOR = 28

rates = st.one_of(
    st.sampled_from([Fraction(24), Fraction(25), Fraction(30_000, 1001), Fraction(1, 600)]),
    st.fractions(Fraction(1, 100), Fraction(240), max_denominator=1001),
)
requests = st.one_of(
    st.builds(
        VideoRequest,
        fps=st.none() | st.floats(0.01, 120),
        min_frames=st.none() | st.integers(1, 700),
        max_frames=st.none() | st.integers(700, 2048),
    ),
    st.builds(VideoRequest, nframes=st.integers(2, 2000)),
)


def config(total_tokens: int = 24_576) -> VideoConfig:
    return VideoConfig(patches=PATCHES, total_tokens=total_tokens)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Constant and varying rates, in the ticks of several containers."""
    if draw(st.booleans()):
        return Timeline.counted(draw(st.integers(1, 40_000)), draw(rates))
    gaps = draw(st.lists(st.integers(1, 100_000), min_size=1, max_size=300))
    pts = np.cumsum([draw(st.integers(-(10**6), 10**6)), *gaps])
    time_base = draw(st.sampled_from([Fraction(1, 90_000), Fraction(1, 1000), Fraction(1, 600)]))
    stated = draw(st.lists(rates, max_size=2))
    return Timeline.timed(pts, time_base, stated, draw(st.sampled_from([0.0, 0.04, 10.0])))


@settings(max_examples=300)
@given(timelines(), requests)
def test_an_even_number_of_frames_in_order_that_the_video_has(
    timeline: Timeline, request: VideoRequest
) -> None:
    total = len(timeline.times_s)
    if request.nframes is not None and round(request.nframes / 2) * 2 > max(total, 2):
        with pytest.raises(InputError, match="nframes"):
            choose_frames(timeline, request, config(), LIMITS)
        return
    choice = choose_frames(timeline, request, config(), LIMITS)
    count = len(choice.indices)
    assert count % 2 == 0
    assert 2 <= count <= max(total, 2)
    assert list(choice.indices) == sorted(choice.indices)
    assert 0 <= choice.indices[0] <= choice.indices[-1] < total
    assert list(choice.timestamps_s) == sorted(choice.timestamps_s)
    assert choice.fps * choice.duration_s == pytest.approx(count)
    if request.nframes is None:
        assert count <= (request.max_frames or 768)
    for index, time_s in zip(choice.indices, choice.timestamps_s, strict=True):
        assert timeline.times_s[index] <= time_s + 1e-5  # on the screen already ...
        if index + 1 < total:
            assert time_s < timeline.times_s[index + 1]  # ... and not yet followed


@given(timelines(), st.floats(0, 1), st.floats(0.001, 1))
def test_a_stretch_is_sampled_from_inside_it(
    timeline: Timeline, start: float, length: float
) -> None:
    start_s = start * timeline.duration_s
    assume(start_s < timeline.duration_s)
    request = VideoRequest(video_start=start_s, video_end=start_s + length * timeline.duration_s)
    choice = choose_frames(timeline, request, config(), LIMITS)
    # A stretch between two frames shows the earlier one, whose time may be half a frame off.
    slack_s = 1.6 / timeline.fps
    assert choice.timestamps_s[0] >= start_s - slack_s
    assert choice.timestamps_s[-1] <= start_s + length * timeline.duration_s + slack_s


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 1024))
def test_indices_are_the_rounded_linspace(first: int, length: int, half: int) -> None:
    count = 2 * half
    exact = [first + Fraction(index * length, count - 1) for index in range(count)]
    assert spread(first, first + length, count) == tuple(round(value) for value in exact)
    assert spread(first, first + length, count)[-1] == first + length


@given(st.integers(2, 3000), rates, st.integers(-(10**6), 10**6))
def test_times_rounded_to_a_containers_ticks_still_are_a_constant_rate(
    count: int, rate: Fraction, start: int
) -> None:
    assume(rate <= 200)
    pts = np.array([start + round(1000 * Fraction(index) / rate) for index in range(count)])
    assume(len(np.unique(pts)) == count)
    timeline = Timeline.timed(pts, Fraction(1, 1000), [rate], 0.0)
    assert timeline.is_constant
    assert timeline.fps == float(rate)
    asked = choose_frames(timeline, VideoRequest(), config(), LIMITS)
    plain = choose_frames(Timeline.counted(count, rate), VideoRequest(), config(), LIMITS)
    assert asked.indices == plain.indices


@settings(max_examples=500)
@given(
    st.integers(1, 1920),
    st.integers(1, 9000),
    st.booleans(),
    st.integers(1, 384),
    st.integers(1, 30_000),
)
def test_the_cap_on_tokens_holds_for_every_size_and_number_of_frames(
    short: int, extra: int, is_tall: bool, pairs: int, total_tokens: int
) -> None:
    long = min(short + extra, short * MAX_RATIO)
    size = (short, long) if is_tall else (long, short)
    assume(pairs <= total_tokens)
    seen_wh, _ = fit_frames(size, 2 * pairs, VideoRequest(), config(total_tokens))
    assert seen_wh[0] % FACTOR == seen_wh[1] % FACTOR == 0
    assert min(seen_wh) >= FACTOR
    tokens = PATCHES.num_tokens(PATCHES.video_grid(2 * pairs, seen_wh))
    assert 1 <= tokens <= total_tokens
    assert math.prod(seen_wh) <= 768 * FACTOR**2


@given(
    st.tuples(st.integers(16, 2000), st.integers(16, 2000)),
    st.integers(1, 100),
    st.integers(FACTOR**2, 768 * FACTOR**2),
    st.integers(1, 768 * FACTOR**2),
    st.integers(100 * FACTOR**2, 24_576 * FACTOR**2),
)
def test_a_parts_own_areas_are_kept_where_they_agree(
    size: tuple[int, int], pairs: int, highest: int, lowest: int, total: int
) -> None:
    assume(lowest <= highest)
    request = VideoRequest(min_pixels=lowest, max_pixels=highest, total_pixels=total)
    seen_wh, notes = fit_frames(size, 2 * pairs, request, config())
    area = math.prod(seen_wh)
    assert area <= highest
    assert area * pairs <= total
    assert bool(notes) == (area < lowest)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60, unique=True), st.data())
def test_jumping_reaches_every_wanted_frame_and_never_decodes_more(
    wanted: list[int], data: st.DataObject
) -> None:
    wanted.sort()
    keys = sorted({0, *data.draw(st.lists(st.integers(0, 5000), max_size=40))})
    runs = split_runs(wanted, keys)
    assert [index for run in runs for index in run.wanted] == wanted
    reached, decoded = -1, 0
    for run in runs:
        if run.key is not None:
            assert reached < keys[run.key] <= run.wanted[0]
            reached = keys[run.key] - 1
            decoded += SEEK_FRAMES
        decoded += run.wanted[-1] - reached
        reached = run.wanted[-1]
    assert decoded <= wanted[-1] + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 3]))
def test_every_pixel_of_every_frame_lands_in_its_row_and_column(
    block_rows: int, block_columns: int, moments: int, together: int
) -> None:
    """Rows by time and merge block, columns by channel, time, y, x: looked up one by one."""
    patches = PatchConfig(
        min_pixels=1,
        max_pixels=10**9,
        temporal_patch_size=together,
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1 / 255, 1 / 255, 1 / 255),
    )
    rng = np.random.default_rng(block_rows + 10 * block_columns + 100 * moments)
    height, width = block_rows * FACTOR, block_columns * FACTOR
    frames = rng.integers(0, 256, (moments * together, height, width, 3), dtype=np.uint8)
    rows = make_frame_patches(frames, patches)
    grid = patches.video_grid(len(frames), (width, height))
    assert rows.shape == (math.prod(grid), patches.row_size)
    assert grid[0] == moments
    for number, y, x, channel in zip(
        rng.integers(0, len(frames), 50),
        rng.integers(0, height, 50),
        rng.integers(0, width, 50),
        rng.integers(0, 3, 50),
        strict=True,
    ):
        block = (y // FACTOR) * block_columns + x // FACTOR
        inside = (y // 14 % 2) * 2 + x // 14 % 2
        row = (number // together) * grid[1] * grid[2] + block * 4 + inside
        column = ((channel * together + number % together) * 14 + y % 14) * 14 + x % 14
        assert rows[row, column] == pytest.approx(frames[number, y, x, channel], abs=1e-3)
