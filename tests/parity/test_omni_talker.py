"""Qwen2.5-Omni's Talker against transformers, on a small random checkpoint of the whole model.

The released `generate()` drops the mask of every prompt without padding, and with it two codes'
embeddings and the positions of pictures. The oracle here always has its mask.
"""

import base64
import functools
import inspect
import json
import shutil
import wave
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.omni_checkpoint import END, IDS, NUM_CODES, PAD, SPECIAL, START, TEXT_TOKENS

from qianyan.engine import codes, states
from qianyan.engine.codes import CodeStream, Opening
from qianyan.engine.engine import Engine
from qianyan.engine.options import Sampling
from qianyan.engine.request import Finished, TokenText
from qianyan.engine.speaking import Sound, speak, stream_speech
from qianyan.engine.states import ThinkerStates
from qianyan.errors import CheckpointError, InputError
from qianyan.inputs.interleaving import interleave
from qianyan.inputs.processor import ModelInputs
from qianyan.models.attention import NoCache
from qianyan.models.omni.speech_decoder import SpeechDecoder
from qianyan.models.omni.talker import Talker, load_talker, talker_config, talker_positions
from qianyan.models.omni.thinker import Thinker
from qianyan.models.positions import Positions
from qianyan.models.registry import load_model

from .omni_oracle import build_omni, save_omni

Grid = tuple[int, int, int]

VOICE = IDS["<tts_text_bos_single>"]


@pytest.fixture(scope="module")
def whole(one_thread: None) -> Any:
    """The whole model in transformers."""
    return build_omni()


@pytest.fixture(scope="module")
def folder(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole model as it is published, voices included."""
    return save_omni(whole, tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="module")
def thinker(folder: Path) -> Thinker:
    model = load_model(folder)
    assert isinstance(model, Thinker)
    return model


@pytest.fixture(scope="module")
def talker(folder: Path) -> Talker:
    config = talker_config(json.loads((folder / "config.json").read_text()))
    return load_talker(folder, config, dtype=torch.float32, device=torch.device("cpu"))


class Prompt:
    """A prompt put together piece by piece, with what stands behind its tokens."""

    def __init__(self, *pieces: tuple[Any, ...]) -> None:
        self.ids: list[int] = []
        self.grids: list[Grid] = []
        self.seconds: list[float] = []
        self.num_frames: list[int] = []
        self.has_sounding_video = False
        self.values: ModelInputs | None = None
        for kind, *how in pieces:
            getattr(self, f"_{kind}")(*how)

    @classmethod
    def of(cls, inputs: ModelInputs) -> "Prompt":
        """Take what our processor has made of messages."""
        made = cls()
        made.ids, made.grids = list(inputs.prompt_token_ids), list(inputs.grid_thw)
        made.num_frames = list(inputs.num_audio_frames)
        made.values = inputs
        return made

    def _text(self, count: int) -> None:
        generator = torch.Generator().manual_seed(len(self.ids))
        self.ids += torch.randint(0, 256, (count,), generator=generator).tolist()

    def _audio(self, num_frames: int) -> None:
        self.num_frames.append(num_frames)
        run = [IDS["<|AUDIO|>"]] * ((num_frames + 1) // 4)
        self.ids += [IDS["<|audio_bos|>"], *run, IDS["<|audio_eos|>"]]

    def _image(self, *grid: int) -> None:
        self._vision(grid, [IDS["<|IMAGE|>"]] * (grid[0] * grid[1] * grid[2] // 4))

    def _sounding(self, grid: Grid, seconds: float, num_frames: int) -> None:
        kinds = interleave(
            num_moments=grid[0],
            tokens_per_moment=grid[1] * grid[2] // 4,
            second_per_grid_t=seconds,
            num_audio_tokens=(num_frames + 1) // 4,
        )
        run = [IDS["<|VIDEO|>"] if is_video else IDS["<|AUDIO|>"] for is_video in kinds]
        self._vision(grid, [IDS["<|audio_bos|>"], *run, IDS["<|audio_eos|>"]])
        self.seconds.append(seconds)
        self.num_frames.append(num_frames)
        self.has_sounding_video = True

    def _vision(self, grid: Any, run: list[int]) -> None:
        self.grids.append(tuple(grid))
        self.ids += [IDS["<|vision_bos|>"], *run, IDS["<|vision_eos|>"]]

    @property
    def pixels(self) -> torch.Tensor:
        if self.values is not None:
            return torch.from_numpy(self.values.pixel_values)
        generator = torch.Generator().manual_seed(len(self.grids))
        return torch.randn(sum(t * h * w for t, h, w in self.grids), 1176, generator=generator)

    @property
    def mel(self) -> torch.Tensor:
        if self.values is not None:
            return torch.from_numpy(self.values.input_features)
        generator = torch.Generator().manual_seed(sum(self.num_frames))
        return torch.randn(sum(self.num_frames), 128, generator=generator)

    def for_oracle(self) -> dict[str, Any]:
        """Sort and pad what was packed; its names keep the pixels from the Talker."""
        ids = torch.tensor([self.ids])
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        rows = self.pixels.split([t * h * w for t, h, w in self.grids]) if self.grids else ()
        for is_video, pixels, grid in (
            (False, "thinker_pixel_values", "image_grid_thw"),
            (True, "thinker_pixel_values_videos", "video_grid_thw"),
        ):
            picked = [i for i, (t, _, _) in enumerate(self.grids) if (t > 1) is is_video]
            if picked:
                given[pixels] = torch.cat([rows[i] for i in picked])
                given[grid] = torch.tensor([self.grids[i] for i in picked])
        if self.seconds:
            given["video_second_per_grid"] = torch.tensor(self.seconds)
        if self.num_frames:
            clips = [clip.T for clip in self.mel.split(self.num_frames)]
            longest = max(self.num_frames)
            padded = [torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one in clips]
            mask = torch.arange(longest) < torch.tensor(self.num_frames).unsqueeze(1)
            given["input_features"] = torch.stack(padded)
            given["feature_attention_mask"] = mask.long()
        return given | {"use_audio_in_video": self.has_sounding_video}

    def open(self, model: Thinker) -> tuple[ThinkerStates, torch.Tensor, Positions]:
        """Begin to follow the conversation, with the states of its prompt."""
        ids = torch.tensor(self.ids)
        seen, heard = model.vision_rows(ids), model.audio_rows(ids)
        features = [model.encode_images(self.pixels, self.grids)] if self.grids else []
        if self.num_frames:
            features.append(model.encode_audio(self.mel, self.num_frames))
        positions = model.place(self.ids, self.grids, self.seconds)
        states = ThinkerStates(model, positions)
        rows = torch.cat([seen, heard])
        return (
            states,
            states.prompt(self.ids, rows, torch.cat(features) if features else None),
            (positions),
        )


PROMPTS = {
    "text": (("text", 30),),
    "sound": (("text", 5), ("audio", 300), ("text", 7)),
    "picture and sound": (("text", 4), ("image", 1, 6, 10), ("audio", 120), ("text", 6)),
    "video with its sound": (("text", 6), ("sounding", (5, 4, 4), 1.0, 500), ("text", 5)),
    "sound outlasts its video": (("text", 2), ("sounding", (2, 4, 6), 1.0, 950), ("text", 5)),
    "a picture at the end": (("text", 3), ("image", 1, 4, 20)),
}
WIDE = (("text", 2), ("sounding", (2, 4, 60), 1.0, 20), ("text", 9))
NUM_TEXT, NUM_SPOKEN = 7, 24


class Heard:
    """What the oracle's Talker was given and gave, step by step."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []
        self.codes: list[int] = []
        self.text: list[int] = []


def ask_oracle(whole: Any, prompt: Prompt, **how: Any) -> Heard:
    """Let transformers answer and speak, with the Talker's mask put back."""
    heard, forward, sound = Heard(), whole.talker.forward, whole.token2wav.forward

    @functools.wraps(forward)
    def masked(*args: Any, **kwargs: Any) -> Any:
        inputs = kwargs.get("inputs_embeds")
        new = (kwargs["input_ids"] if inputs is None else inputs).shape[1]
        past = kwargs.get("past_key_values")
        kwargs["attention_mask"] = torch.ones(1, new + (past.get_seq_length() if past else 0))
        kwargs["attention_mask"] = kwargs["attention_mask"].long()
        out = forward(*args, **kwargs)
        heard.logits.append(out.logits[0, -1].clone())
        return out

    masked.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    def capture(code: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        heard.codes = code[0].tolist()
        return torch.zeros(1)

    whole.talker.forward, whole.token2wav.forward = masked, capture
    whole.thinker.model.rope_deltas = whole.talker.rope_deltas = None
    whole.thinker.rope_deltas = None
    try:
        settings: dict[str, Any] = {
            "thinker_max_new_tokens": NUM_TEXT,
            "thinker_do_sample": False,
            "thinker_eos_token_id": 399,
            "talker_max_new_tokens": NUM_SPOKEN,
            "talker_do_sample": False,
            "talker_eos_token_id": [PAD, END],
            "talker_repetition_penalty": 1.05,
        }
        sequences, _ = whole.generate(**prompt.for_oracle(), **(settings | how))
    finally:
        whole.talker.forward, whole.token2wav.forward = forward, sound
    heard.text = sequences[0, len(prompt.ids) :].tolist()
    return heard


def greedy(max_codes: int = NUM_SPOKEN) -> Sampling:
    return Sampling(max_tokens=max_codes, repetition_penalty=1.05)


def say(thinker: Thinker, talker: Talker, prompt: Prompt, text: Sequence[int]) -> CodeStream:
    """Let our Talker say a text, each token of it as soon as it is there."""
    states, before, positions = prompt.open(thinker)
    stream = CodeStream(talker, num_codes=NUM_CODES, sampling=greedy())
    opening = Opening(
        prompt=before,
        positions=positions,
        voice=states.embed(VOICE),
        first=states.tokens(text[:1]),
    )
    stream.begin(opening)
    for token_id in text[1:]:
        stream.go_on(states.tokens([token_id]))
    stream.go_on(states.embed(IDS["<tts_text_eos>"]))
    while not stream.is_ended:
        stream.go_on(states.embed(IDS["<tts_pad>"]))
    return stream


@pytest.mark.parametrize("name", PROMPTS)
@torch.inference_mode()
def test_logits_and_greedy_codes_equal_those_of_transformers(
    name: str, whole: Any, thinker: Thinker, talker: Talker
) -> None:
    prompt = Prompt(*PROMPTS[name])
    expected = ask_oracle(whole, prompt)
    # The oracle never says the token that its answer was cut at.
    stream = say(thinker, talker, prompt, expected.text[:-1])
    assert len(expected.codes) > 8
    assert stream.codes == expected.codes
    logits = replay(thinker, talker, prompt, expected)
    torch.testing.assert_close(logits, torch.stack(expected.logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pieces", [*PROMPTS.values(), WIDE])
def test_positions_equal(pieces: Any, whole: Any, thinker: Thinker) -> None:
    """Also behind a video that is wider than its prompt is long."""
    prompt = Prompt(*pieces)
    given = prompt.for_oracle()
    ids = torch.tensor([[*prompt.ids, VOICE, 5]])
    expected, deltas = whole.talker.get_rope_index(
        ids,
        given.get("image_grid_thw"),
        given.get("video_grid_thw"),
        torch.ones_like(ids),
        prompt.has_sounding_video,
        torch.tensor(prompt.num_frames),
        given.get("video_second_per_grid"),
    )
    places = talker_positions(thinker.place(prompt.ids, prompt.grids, prompt.seconds))
    assert torch.equal(places.prompt, expected[:, 0])
    assert places.next.tolist() == [ids.shape[1] + int(deltas)] * 3


def replay(thinker: Thinker, talker: Talker, prompt: Prompt, said: Heard) -> torch.Tensor:
    """Compute all of the Talker's logits in one uncached pass over what the oracle said."""
    states, before, positions = prompt.open(thinker)
    track = [*states.tokens(said.text[:-1]).split(1)]
    track += [states.embed(IDS["<tts_text_eos>"])]
    track += [states.embed(IDS["<tts_pad>"])] * len(said.codes)
    num_steps = len(said.logits)
    text = torch.cat([states.embed(VOICE), *track[:num_steps]])
    inputs = torch.cat([before, text])
    codes = torch.tensor([PAD, START, *said.codes[: num_steps - 1]])
    inputs[len(before) :] += talker.embed(codes)
    at = talker_positions(positions).at(0, len(inputs))
    steps = torch.arange(len(inputs) - num_steps, len(inputs))
    return talker(inputs, at, NoCache([len(inputs)]), steps)


def wav(num_samples: int, seed: int = 0) -> bytes:
    file = BytesIO()
    noise = np.random.default_rng(seed).normal(0, 3000, num_samples)
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(16_000)
        written.writeframes(noise.astype("<i2").tobytes())
    return file.getvalue()


def ask(words: str, num_samples: int = 0) -> list[dict[str, Any]]:
    """A question, with a sound and a picture where it has samples."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": words}]
    if num_samples:
        pixels = np.random.default_rng(4).integers(0, 256, (84, 112, 3), dtype=np.uint8)
        sound = {"data": base64.b64encode(wav(num_samples)).decode(), "format": "wav"}
        parts.insert(0, {"type": "image", "image": Image.fromarray(pixels)})
        parts.insert(1, {"type": "input_audio", "input_audio": sound})
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(folder, dtype="float32")


GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": NUM_TEXT}


@pytest.fixture(scope="module")
def brief(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a Talker of few positions: a random one does not end by itself."""
    talker = json.loads((folder / "config.json").read_text())["talker_config"]
    few = talker | {"max_position_embeddings": 160}
    return copy_of(folder, tmp_path_factory.mktemp("brief") / "omni", talker_config=few)


@pytest.fixture(scope="module")
def talking(brief: Path) -> Engine:
    return Engine(brief, dtype="float32")


@pytest.mark.parametrize("is_known", [False, True])
def test_an_answers_codes_and_sound_are_those_of_transformers(
    is_known: bool, folder: Path, engine: Engine, whole: Any
) -> None:
    """Also where the prompt was known, so that no pass has looked at its picture and sound."""
    messages = ask("What is there to be heard? " * 3, 20_000)
    if is_known:
        engine.chat(messages, **GREEDY)
    else:
        engine = Engine(folder, dtype="float32")
    speech = engine.speech.load()
    request, prompt = engine.prepare(messages, {"temperature": 0, "max_tokens": NUM_TEXT - 1})
    speaker = speech.find_speaker("Chelsie")
    speaking = speech.begin(request, prompt, speaker, sampling=greedy())
    for _ in engine.follow(request, prompt):
        assert all(len(samples) == 0 for samples in speaking.catch_up())
    assert request.num_cached_tokens > 30 if is_known else request.num_cached_tokens == 0
    samples = np.concatenate(list(speaking.finish()))
    no_tokens = list(range(TEXT_TOKENS + len(SPECIAL), 400))
    prompted = Prompt.of(engine.processor(messages))
    expected = ask_oracle(whole, prompted, thinker_suppress_tokens=no_tokens)
    assert request.output_token_ids == expected.text[:-1]
    assert speaking.codes == expected.codes
    offline = SpeechDecoder(speech.token2wav, speaker).decode(expected.codes)
    assert len(samples) == len(offline) == 480 * len(expected.codes)


def test_a_voice_is_heard_while_the_answer_is_written(talking: Engine) -> None:
    """Its first sounds come before the last words, and a seed says all of it again."""
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0, "seed": 5}
    events = list(stream_speech(talking, ask("Who is there?", 9000), **options))
    kinds = [type(event) for event in events]
    assert kinds.index(Sound) < len(kinds) - 1 - kinds[::-1].index(TokenText)
    assert kinds[-1] is Finished
    assert kinds.count(TokenText) == 40
    pieces = [event.samples for event in events if isinstance(event, Sound)]
    assert len(pieces) > 2
    assert all(len(piece) for piece in pieces)
    spoken = np.concatenate(pieces)
    assert spoken.dtype == np.float32
    assert np.isfinite(spoken).all()
    assert 0 < np.abs(spoken).max() <= 1
    again = speak(talking, ask("Who is there?", 9000), **options)
    assert np.array_equal(again.samples, spoken)
    assert again.duration_s == len(spoken) / 24_000
    assert len(spoken) % 480 == 0
    other = speak(talking, ask("Who is there?", 9000), **{**options, "seed": 6})
    assert other.completion.text == again.completion.text
    assert not np.array_equal(other.samples[:4000], spoken[:4000])


def test_an_answer_of_one_token_is_spoken_and_one_of_none_is_silent(talking: Engine) -> None:
    assert len(speak(talking, ask("Yes?"), max_tokens=1, temperature=0, seed=1).samples) > 480
    ends = {IDS["<|im_end|>"]: 100.0}
    silent = speak(talking, ask("Yes?"), max_tokens=5, temperature=0, logit_bias=ends)
    assert silent.completion.text == ""
    assert len(silent.samples) == 0


def test_several_passes_over_a_prompt_say_the_same(
    talking: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "seed": 2}
    whole = speak(talking, ask("A long question. " * 2, 9000), **options)
    monkeypatch.setattr(codes, "PASS_TOKENS", 31)
    monkeypatch.setattr(states, "PASS_TOKENS", 50)
    pieces = speak(talking, ask("A long question. " * 2, 9000), **options)
    assert len(whole.samples) == len(pieces.samples) > 0
    assert np.abs(whole.samples - pieces.samples).max() < 1e-3


def test_an_unknown_voice_is_named_with_the_known_ones(engine: Engine) -> None:
    with pytest.raises(
        InputError, match=r"Input should be 'Chelsie' or 'Ethan': parameters\.audio\.voice"
    ):
        stream_speech(engine, ask("Yes?"), voice="Alloy")


def copy_of(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_what_speaks_is_needed_for_speech_alone(folder: Path, tmp_path: Path) -> None:
    mute = Engine(copy_of(folder, tmp_path / "mute", enable_audio_output=False))
    with pytest.raises(InputError, match="The model mute does not speak; expected modalities"):
        speak(mute, ask("Yes?"))
    silent = copy_of(folder, tmp_path / "silent")
    (silent / "spk_dict.pt").unlink()
    engine = Engine(silent)
    assert engine.chat(ask("Yes?"), max_tokens=2).token_ids
    with pytest.raises(CheckpointError, match=r"silent has no spk_dict.pt"):
        speak(engine, ask("Yes?"))


def test_a_voice_whose_token_is_no_word_is_refused(
    folder: Path, whole: Any, tmp_path: Path
) -> None:
    wrong = copy_of(folder, tmp_path / "wrong")
    torch.save({"Eva": whole.speaker_map["Chelsie"] | {"bos_token": 400}}, wrong / "spk_dict.pt")
    with pytest.raises(CheckpointError, match="is 400; expected an id below the Thinker's"):
        speak(Engine(wrong), ask("Yes?"))
