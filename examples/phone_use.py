"""Ask for the next step of a task on a phone's screen; nothing is carried out.

Usage: python examples/phone_use.py SCREENSHOT [MODEL] [TASK]
"""

import sys

import qianyan


def main(screenshot: str, model: str = "bundled", task: str = "Open the settings.") -> None:
    """Print the step, with places in pixels of the real screen."""
    reader = qianyan.Reader(qianyan.Engine(model), lang="en")
    history = ["open Home"]  # earlier steps, in words or as they were returned by act()
    try:
        step = reader.act(screenshot, task, device="phone", history=history)
    except qianyan.ReplyError as error:
        print(f"No answer: {error}")
        return
    print(f"Next step: {step}")
    if step.is_last:
        print(f"The task has ended: {step.status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
