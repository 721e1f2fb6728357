"""Whether somebody speaks, window by window, by silero's small model.

Source: Silero VAD (github.com/snakers4/silero-vad), whose ONNX file lies in its package. The
package itself is not imported: it would set the number of PyTorch's threads for all. The model
takes 512 samples of 16 kHz with the 64 before them, and a state that it hands on.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qianyan.server.realtime.session_settings import TurnDetection

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

RATE_HZ = 16_000
WINDOW, CONTEXT = 512, 64
"""Samples: a window is 32 ms."""
MODEL_FILE = Path("data", "silero_vad_16k_op15.onnx")
MIN_SPEECH_WINDOWS = 3
"""What is shorter is a click."""
HYSTERESIS = 0.15
"""By so much the probability has to fall below the threshold for silence, as silero has it."""
ERRORS_ONLY = 3


def find_model() -> Path | None:
    """Find silero's model; None where the extra `vad` is not installed."""
    package = find_spec("silero_vad")
    if package is None or package.origin is None or find_spec("onnxruntime") is None:
        return None
    path = Path(package.origin).parent / MODEL_FILE
    return path if path.is_file() else None


class SpeechModel:
    """The loaded model; for any number of streams and threads."""

    def __init__(self, path: Path) -> None:
        import onnxruntime  # noqa: PLC0415  (extra: vad)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        self._session: InferenceSession = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def run(self, samples: np.ndarray, state: np.ndarray) -> tuple[float, np.ndarray]:
        """Give the probability of speech in a window with its context, and the next state."""
        rate = np.array(RATE_HZ, dtype=np.int64)
        given = {"input": samples[None], "state": state, "sr": rate}
        probability, state = self._session.run(None, given)
        return float(probability[0, 0]), state


class TurnWatcher:
    """Says when speech begins and when it has ended; for one stream of sound, window by window."""

    def __init__(self, model: SpeechModel, detection: TurnDetection) -> None:
        self.detection = detection
        self.is_speaking = False
        self._model = model
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self.is_speaking = False
        self._num_loud = self._num_silent = 0
        self._context = np.zeros(CONTEXT, dtype=np.float32)
        self._state = np.zeros((2, 1, 128), dtype=np.float32)

    def judge(self, window: np.ndarray) -> bool | None:
        """Hear WINDOW samples more: True where speech has begun, False where it has ended."""
        samples = np.concatenate([self._context, window])
        self._context = window[-CONTEXT:]
        probability, self._state = self._model.run(samples, self._state)
        is_loud = probability >= self.detection.threshold
        if not self.is_speaking:
            self._num_loud = self._num_loud + 1 if is_loud else 0
            self.is_speaking = self._num_loud >= MIN_SPEECH_WINDOWS
            self._num_silent = 0
            return True if self.is_speaking else None
        is_quiet = probability < max(self.detection.threshold - HYSTERESIS, HYSTERESIS / 10)
        if is_loud:
            self._num_silent = 0
        elif is_quiet or self._num_silent:
            self._num_silent += 1
        if self._num_silent * WINDOW * 1000 < self.detection.silence_duration_ms * RATE_HZ:
            return None
        self.is_speaking, self._num_loud = False, 0
        return False
