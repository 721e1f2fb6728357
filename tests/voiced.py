"""Sound that a detector of speech takes for some, without anybody's recording.

Pulses of a voice, its pitch falling and trembling, ring through the formants of five vowels, in
syllables of a fifth of a second with breath between them.
"""

import numpy as np

RATE_HZ = 16_000
VOWELS = (
    (730, 1090, 2440),
    (270, 2290, 3010),
    (530, 1840, 2480),
    (300, 870, 2240),
    (570, 840, 2410),
)
WIDTHS_HZ = (80, 100, 140)


def voice(seconds: float, *, seed: int = 0, pitch_hz: float = 180.0) -> np.ndarray:
    """Speak for so long; float32 samples of 16 kHz, full scale 1."""
    chance = np.random.default_rng(seed)
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < seconds * RATE_HZ:
        formants = VOWELS[chance.integers(len(VOWELS))]
        pieces.append(0.5 * _syllable(chance, formants, pitch_hz))
        breath = int(chance.uniform(0.03, 0.07) * RATE_HZ)
        pieces.append(0.03 * chance.normal(size=breath))
    return np.concatenate(pieces)[: int(seconds * RATE_HZ)].astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    """Say nothing for so long."""
    return np.zeros(int(seconds * RATE_HZ), dtype=np.float32)


def to_pcm(samples: np.ndarray) -> bytes:
    """Write samples as 16-bit integers."""
    return (samples.clip(-1, 1) * 32767).astype("<i2").tobytes()


def _syllable(
    chance: np.random.Generator, formants: tuple[int, ...], pitch_hz: float
) -> np.ndarray:
    count = int(chance.uniform(0.14, 0.22) * RATE_HZ)
    times = np.arange(count) / RATE_HZ
    tremble = 1 + 0.15 * np.sin(2 * np.pi * 3 * times + chance.uniform(0, 6))
    phase = np.cumsum(pitch_hz * tremble * (1 - 0.1 * times)) / RATE_HZ
    pulses = np.diff(np.floor(phase), prepend=0)
    sound = np.convolve(pulses, np.exp(-np.arange(80) / 12))[:count]
    sound += 0.01 * chance.normal(size=count)
    for centre_hz, width_hz in zip(formants, WIDTHS_HZ, strict=True):
        sound = _ring(sound, centre_hz, width_hz)
    loudness = np.sin(np.pi * np.linspace(0, 1, count)) ** 0.5
    return sound * loudness / np.abs(sound).max()


def _ring(sound: np.ndarray, centre_hz: float, width_hz: float) -> np.ndarray:
    """Let a resonance of two poles ring."""
    radius = np.exp(-np.pi * width_hz / RATE_HZ)
    first, second = 2 * radius * np.cos(2 * np.pi * centre_hz / RATE_HZ), -(radius**2)
    heard = np.zeros_like(sound)
    before, last = 0.0, 0.0
    for at, sample in enumerate(sound):
        before, last = last, (1 - first - second) * sample + first * last + second * before
        heard[at] = last
    return heard
