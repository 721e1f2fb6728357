"""How much memory and time does a long video take?

    python benchmarks/video_memory.py --minutes 25 --fps 25

Draws a 1080p video (a still scene with a moving, flickering square; H.264, a key frame every 250
frames), then samples it in a fresh process with the settings of Qwen2.5-VL, up to the rows that the
vision tower reads. Prints, and writes as JSON, the peak resident memory of that process after each
step. A second run asks for 64 frames only, which are reached by jumping to key frames.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from qianyan.inputs.frames import VideoConfig, VideoRequest
from qianyan.inputs.patches import PatchConfig, make_frame_patches
from qianyan.inputs.video import read_video

WIDTH, HEIGHT = 1920, 1080
ALLOWED_MB = 1500


def draw_video(path: Path, *, minutes: float, fps: int) -> None:
    """Encode the synthetic video."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(16, 235, (HEIGHT // 8, WIDTH // 8), dtype=np.uint8)
    scene = np.kron(blocks, np.ones((8, 8), dtype=np.uint8))
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "30", "g": "250"}
        for number in range(round(minutes * 60 * fps)):
            planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, dtype=np.uint8)
            planes[:HEIGHT] = scene
            left = number * 4 % (WIDTH - 64)
            planes[100:164, left : left + 64] = 235 if number % 2 else 16
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def peak_mb() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def sample(path: Path, nframes: int | None) -> dict[str, object]:
    """Sample the video in this process."""
    patches = PatchConfig(min_pixels=56 * 56, max_pixels=16_384 * 28 * 28)
    config = VideoConfig(patches=patches, total_tokens=24_576)
    before_mb = peak_mb()
    started = time.perf_counter()
    seen = read_video(path, VideoRequest(nframes=nframes), config)
    sampled_s = time.perf_counter() - started
    sampled_mb = peak_mb()
    rows = make_frame_patches(seen.frames, patches)
    grid = patches.video_grid(seen.record.num_frames, seen.record.seen_wh)
    return {
        "frames": seen.record.num_frames,
        "seen_wh": seen.record.seen_wh,
        "fps": seen.record.fps,
        "tokens": patches.num_tokens(grid),
        "frames_mb": seen.frames.nbytes >> 20,
        "rows_mb": rows.nbytes >> 20,
        "peak_mb_before": before_mb,
        "peak_mb_sampled": sampled_mb,
        "peak_mb_with_rows": peak_mb(),
        "sampled_s": round(sampled_s, 1),
    }


def sample_afresh(path: Path, nframes: int | None) -> dict[str, object]:
    """Sample the video in a process of its own."""
    command = [sys.executable, __file__, "--sample", str(path)]
    if nframes:
        command += ["--nframes", str(nframes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    result: dict[str, object] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--video", type=Path, help="where the drawn video is kept, or was kept")
    parser.add_argument("--sample", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--nframes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        print(json.dumps(sample(options.sample, options.nframes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.video or Path(folder) / "long.mp4"
        if not path.is_file():
            draw_video(path, minutes=options.minutes, fps=options.fps)
        runs = {"default": sample_afresh(path, None), "64 frames": sample_afresh(path, 64)}
        result: dict[str, object] = {
            "machine": platform.machine(),
            "processors": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "av": av.__version__,
            "video": f"{WIDTH}x{HEIGHT}, {options.minutes:g} minutes, {options.fps} fps",
            "video_mb": path.stat().st_size >> 20,
            "allowed_mb": ALLOWED_MB,
            "runs": runs,
        }
    print(f"{result['video']}, H.264, load {result['load']}")
    print("run        frames  tokens  peak MB: start  sampled  with rows   seconds")
    for name, run in runs.items():
        print(
            f"{name:<10} {run['frames']:>6}  {run['tokens']:>6}  {run['peak_mb_before']:>14}  "
            f"{run['peak_mb_sampled']:>7}  {run['peak_mb_with_rows']:>9}  {run['sampled_s']:>8}"
        )
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    target = Path(__file__).parent / "results" / f"{day}-video-memory-{platform.node()}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten: {target.name}")


if __name__ == "__main__":
    main()
