"""Find when something happens in a video.

Usage: python examples/video_moments.py VIDEO [MODEL] [WHAT]

Needs the video extra: pip install 'qianyan[video]'.
"""

import sys

import qianyan


def main(video: str, model: str = "bundled", what: str = "smoke") -> None:
    """Print the start and end of every span in seconds."""
    reader = qianyan.Reader(qianyan.Engine(model), lang="en", max_tokens=512)
    try:
        moments = reader.find_moments(video, what)
    except qianyan.ReplyError as error:
        print(f"No answer: {error}")
        return
    for moment in moments:
        print(f"{moment.start_s:.1f} s to {moment.end_s:.1f} s: {moment.description}")
    print(f"{len(moments)} moments")


if __name__ == "__main__":
    main(*sys.argv[1:])
