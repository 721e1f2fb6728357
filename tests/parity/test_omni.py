"""Qwen2.5-Omni's Thinker against transformers, on a small random checkpoint of the whole model."""

import base64
import wave
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tests.omni_checkpoint import IDS

from qianyan.cli import run
from qianyan.cli.answering import LocalModel, TalkOptions
from qianyan.cli.attachments import fit, open_attachment
from qianyan.cli.conversation import Conversation
from qianyan.engine.engine import Engine
from qianyan.engine.scheduler import EngineConfig
from qianyan.errors import QianyanError
from qianyan.inputs.fetch import FetchLimits
from qianyan.inputs.interleaving import interleave
from qianyan.inputs.mel import MelConfig, log_mel
from qianyan.models.attention import NoCache
from qianyan.models.omni.thinker import Thinker
from qianyan.models.registry import load_model

from .omni_oracle import build_omni, for_oracle, save_omni, to_oracle

Grid = tuple[int, int, int]


@pytest.fixture(scope="module")
def whole(one_thread: None) -> Any:
    """The whole model in transformers."""
    return build_omni()


@pytest.fixture(scope="module")
def folder(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole model as it is published; what ends an answer is a row of padding."""
    return save_omni(whole, tmp_path_factory.mktemp("omni"), eos_token_id=399)


@pytest.fixture(scope="module")
def theirs(whole: Any) -> Any:
    return whole.thinker


@pytest.fixture(scope="module")
def ours(folder: Path) -> Thinker:
    model = load_model(folder)
    assert isinstance(model, Thinker)
    return model


def random_mel(*num_frames: int) -> torch.Tensor:
    """Random frames (frames, mel), the same on every call."""
    generator = torch.Generator().manual_seed(sum(num_frames))
    return torch.randn(sum(num_frames), 128, generator=generator)


@pytest.mark.parametrize(
    "num_frames",
    [
        [200],  # one block exactly
        [530],  # a part of a block at the end
        [401],  # whose last block gives no token
        [3],  # the shortest
        [7000],  # more blocks than are encoded in one go
        [63, 200, 301, 5, 460],  # packed together
    ],
)
@torch.inference_mode()
def test_audio_features_equal(ours: Thinker, theirs: Any, num_frames: list[int]) -> None:
    mel = random_mel(*num_frames)
    expected = theirs.get_audio_features(**to_oracle(mel, num_frames)).last_hidden_state
    features = ours.encode_audio(mel, num_frames)
    assert len(features) == sum(ours.config.audio.num_tokens(count) for count in num_frames)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_vision_features_equal(ours: Thinker, theirs: Any) -> None:
    grids: list[Grid] = [(1, 6, 10), (3, 4, 4), (1, 2, 14)]
    pixels = random_pixels(grids)
    expected = theirs.get_image_features(pixels, torch.tensor(grids)).pooler_output
    torch.testing.assert_close(
        ours.encode_images(pixels, grids), torch.cat(expected), atol=1e-5, rtol=1e-5
    )


def random_pixels(grids: Sequence[Grid]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(grids))
    return torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=generator)


class Prompt:
    """A prompt put together piece by piece, with what stands behind its tokens."""

    def __init__(self, *pieces: tuple[Any, ...]) -> None:
        self.ids: list[int] = []
        self.grids: list[Grid] = []
        self.is_video: list[bool] = []
        self.seconds: list[float] = []
        self.num_frames: list[int] = []
        self.has_sounding_video = False
        for kind, *how in pieces:
            getattr(self, f"_{kind}")(*how)

    def _text(self, count: int) -> None:
        generator = torch.Generator().manual_seed(len(self.ids))
        self.ids += torch.randint(0, 256, (count,), generator=generator).tolist()

    def _audio(self, num_frames: int) -> None:
        self.num_frames.append(num_frames)
        run = [IDS["<|AUDIO|>"]] * ((num_frames + 1) // 4)
        self.ids += [IDS["<|audio_bos|>"], *run, IDS["<|audio_eos|>"]]

    def _image(self, *grid: int) -> None:
        self._vision(grid, [IDS["<|IMAGE|>"]] * (grid[0] * grid[1] * grid[2] // 4))
        self.is_video.append(False)

    def _video(self, grid: Grid, seconds: float) -> None:
        self._vision(grid, [IDS["<|VIDEO|>"]] * (grid[0] * grid[1] * grid[2] // 4))
        self.is_video.append(True)
        self.seconds.append(seconds)

    def _sounding(self, grid: Grid, seconds: float, num_frames: int) -> None:
        kinds = interleave(
            num_moments=grid[0],
            tokens_per_moment=grid[1] * grid[2] // 4,
            second_per_grid_t=seconds,
            num_audio_tokens=(num_frames + 1) // 4,
        )
        run = [IDS["<|VIDEO|>"] if is_video else IDS["<|AUDIO|>"] for is_video in kinds]
        self._vision(grid, [IDS["<|audio_bos|>"], *run, IDS["<|audio_eos|>"]])
        self.is_video.append(True)
        self.seconds.append(seconds)
        self.num_frames.append(num_frames)
        self.has_sounding_video = True

    def _vision(self, grid: Any, run: list[int]) -> None:
        self.grids.append(tuple(grid))
        self.ids += [IDS["<|vision_bos|>"], *run, IDS["<|vision_eos|>"]]

    @property
    def pixels(self) -> torch.Tensor:
        return random_pixels(self.grids)

    @property
    def mel(self) -> torch.Tensor:
        return random_mel(*self.num_frames)

    def for_oracle(self) -> dict[str, Any]:
        ids = torch.tensor([self.ids])
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        rows = self.pixels.split([t * h * w for t, h, w in self.grids]) if self.grids else ()
        for is_video, pixels, grid in (
            (False, "pixel_values", "image_grid_thw"),
            (True, "pixel_values_videos", "video_grid_thw"),
        ):
            picked = [i for i, one in enumerate(self.is_video) if one is is_video]
            if picked:
                given[pixels] = torch.cat([rows[i] for i in picked])
                given[grid] = torch.tensor([self.grids[i] for i in picked])
        if self.seconds:
            given["video_second_per_grid"] = torch.tensor(self.seconds)
        if self.num_frames:
            given |= to_oracle(self.mel, self.num_frames)
        return given | {"use_audio_in_video": self.has_sounding_video}


PROMPTS = {
    "text": (("text", 30),),
    "sound": (("text", 5), ("audio", 300), ("text", 7)),
    "two sounds": (("audio", 63), ("text", 3), ("audio", 401), ("text", 2)),
    "picture and sound": (("text", 4), ("image", 1, 6, 10), ("audio", 120), ("text", 6)),
    "video and sound": (("text", 3), ("video", (4, 4, 4), 1.0), ("text", 2), ("audio", 90)),
    "video at an odd rate": (("text", 3), ("video", (7, 4, 6), 2 / 2.987), ("text", 4)),
    "video with its sound": (("text", 6), ("sounding", (5, 4, 4), 1.0, 500), ("text", 5)),
    "sound outlasts its video": (("text", 2), ("sounding", (2, 4, 6), 1.0, 950), ("text", 5)),
    "video outlasts its sound": (("text", 2), ("sounding", (6, 4, 4), 1.0, 130), ("text", 5)),
    "sparse frames": (("text", 2), ("sounding", (4, 4, 6), 4.0, 1300), ("text", 5)),
    "wide video with little sound": (("text", 2), ("sounding", (1, 4, 60), 1.0, 20), ("text", 9)),
    "all of them": (
        ("text", 9),
        ("sounding", (3, 4, 4), 0.7, 333),
        ("text", 3),
        ("image", 1, 4, 6),
        ("text", 2),
        ("sounding", (4, 2, 6), 1.3, 250),
        ("image", 1, 2, 2),
        ("text", 4),
    ),
}


def our_logits(model: Thinker, prompt: Prompt) -> torch.Tensor:
    ids = torch.tensor(prompt.ids)
    vision = model.encode_images(prompt.pixels, prompt.grids) if prompt.grids else None
    audio = model.encode_audio(prompt.mel, prompt.num_frames) if prompt.num_frames else None
    positions = model.place(prompt.ids, prompt.grids, prompt.seconds).prompt
    return model(model.embed(ids, vision, audio), positions, NoCache([len(ids)]))


@pytest.mark.parametrize("name", PROMPTS)
@torch.inference_mode()
def test_positions_and_logits_equal(ours: Thinker, theirs: Any, name: str) -> None:
    prompt = Prompt(*PROMPTS[name])
    given = prompt.for_oracle()
    expected_ids, deltas = theirs.get_rope_index(
        given["input_ids"],
        given.get("image_grid_thw"),
        given.get("video_grid_thw"),
        given["attention_mask"],
        prompt.has_sounding_video,
        torch.tensor(prompt.num_frames),
        given.get("video_second_per_grid"),
    )
    places = ours.place(prompt.ids, prompt.grids, prompt.seconds)
    assert torch.equal(places.prompt, expected_ids[:, 0])
    assert places.next.tolist() == [len(prompt.ids) + int(deltas)] * 3
    theirs.model.rope_deltas = None
    expected = theirs(**given).logits[0]
    torch.testing.assert_close(our_logits(ours, prompt), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_hidden_states_and_embeddings_for_the_voice_equal(ours: Thinker, theirs: Any) -> None:
    """The other half of the model reads the states after the last norm, and what went in."""
    prompt = Prompt(*PROMPTS["picture and sound"])
    theirs.model.rope_deltas = None
    expected = theirs(**prompt.for_oracle(), output_hidden_states=True).hidden_states
    embedded = ours.embed(
        torch.tensor(prompt.ids),
        ours.encode_images(prompt.pixels, prompt.grids),
        ours.encode_audio(prompt.mel, prompt.num_frames),
    )
    torch.testing.assert_close(embedded, expected[0][0], atol=1e-4, rtol=1e-4)
    positions = ours.place(prompt.ids, prompt.grids, prompt.seconds).prompt
    last = ours.model(embedded, positions, NoCache([len(prompt.ids)]))
    torch.testing.assert_close(last, expected[-1][0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_thinker_saved_alone_and_a_whole_in_shards_are_the_same_model(
    ours: Thinker, whole: Any, tmp_path: Path
) -> None:
    whole.thinker.save_pretrained(tmp_path / "alone")
    whole.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 5
    prompt = Prompt(*PROMPTS["all of them"])
    expected = our_logits(ours, prompt)
    for name in ("alone", "shards"):
        model = load_model(tmp_path / name)
        assert isinstance(model, Thinker)
        assert torch.equal(our_logits(model, prompt), expected)


def waveform(num_samples: int, seed: int = 0) -> np.ndarray:
    """Something like speech: two tones that come and go, over a little noise."""
    times = np.arange(num_samples) / 16_000
    rng = np.random.default_rng(num_samples + seed)
    tones = np.sin(2 * np.pi * 220 * (1 + seed) * times) + np.sin(2 * np.pi * 1760 * times)
    swell = 0.2 * (1 + np.sin(2 * np.pi * 3 * times))
    return (swell * tones + 0.01 * rng.standard_normal(num_samples)).astype(np.float32)


def extract(samples: np.ndarray, seconds: int = 300) -> np.ndarray:
    """What the released feature extractor makes of a sound of up to so many seconds."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=seconds)
    out = extractor(samples, sampling_rate=16_000, return_attention_mask=True, return_tensors="np")
    frames: np.ndarray = out["input_features"][0][:, : int(out["attention_mask"].sum())].T
    return frames


@pytest.mark.parametrize(
    "num_samples", [480, 481, 16_000, 48_077, 20 * 16_000, 4_799_700, 4_799_950, 4_800_000]
)
def test_mel_frames_equal(num_samples: int) -> None:
    samples = waveform(num_samples)
    frames = log_mel(samples, MelConfig())
    expected = extract(samples)
    assert frames.shape == expected.shape
    assert np.abs(frames - expected).max() < 1e-4


def test_mel_frames_of_a_sound_beyond_the_released_length_are_those_of_one_whole_sound() -> None:
    samples = waveform(310 * 16_000)
    assert np.abs(log_mel(samples, MelConfig()) - extract(samples, seconds=400)).max() < 1e-4


def test_silence_and_a_clipped_sound_give_the_same_frames() -> None:
    for samples in (np.zeros(8000, np.float32), (9 * waveform(8000)).clip(-1, 1)):
        assert np.abs(log_mel(samples, MelConfig()) - extract(samples)).max() < 1e-4


@pytest.mark.parametrize("seconds", [1.0, 0.7, 2 / 2.987, 3.3, 8.0])
@pytest.mark.parametrize("num_audio_tokens", [1, 49, 50, 51, 333])
def test_a_video_and_its_sound_are_mixed_alike(seconds: float, num_audio_tokens: int) -> None:
    from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

    marks = {"audio_bos": "<", "audio_eos": ">", "video": "V", "audio": "A"}
    marks = {f"{name}_token": mark for name, mark in marks.items()}
    for grid in ((1, 4, 6), (5, 4, 4), (14, 2, 6)):
        theirs = Qwen2_5OmniProcessor.replace_video_with_audio_token(
            SimpleNamespace(
                video_processor=SimpleNamespace(merge_size=2),
                get_chunked_index=lambda *how: Qwen2_5OmniProcessor.get_chunked_index(None, *how),
                **marks,
            ),
            {"video_grid_thw": [np.array(grid)], "video_second_per_grid": [seconds]},
            0,
            {"num_audio_tokens": [num_audio_tokens]},
            0,
            position_id_per_seconds=25,
            seconds_per_chunk=2.0,
        )
        ours = interleave(
            num_moments=grid[0],
            tokens_per_moment=grid[1] * grid[2] // 4,
            second_per_grid_t=seconds,
            num_audio_tokens=num_audio_tokens,
        )
        assert f"<{''.join('V' if is_video else 'A' for is_video in ours)}>" == theirs


NUM_TOKENS = 16


def wav(num_samples: int, seed: int = 0, rate: int = 16_000) -> bytes:
    file = BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(rate)
        written.writeframes((waveform(num_samples, seed) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def audio(num_samples: int, seed: int = 0, rate: int = 16_000) -> dict[str, Any]:
    """A content part as OpenAI's clients send it."""
    data = base64.b64encode(wav(num_samples, seed, rate)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def image(width: int, height: int) -> dict[str, Any]:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def video(seconds: float, num_samples: int, **how: Any) -> dict[str, Any]:
    """A content part with a real file: moving noise, and a sound where it has samples."""
    file = BytesIO()
    rng = np.random.default_rng(round(seconds * 10))
    with av.open(file, "w", format="matroska") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 112, 84
        sound: Any = container.add_stream("pcm_s16le", rate=16_000) if num_samples else None
        for index in range(round(seconds * 10)):
            pixels = rng.integers(0, 256, (84, 112, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if num_samples:
            samples = (waveform(num_samples) * 32767).astype("<i2")[None]
            heard = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            heard.sample_rate, heard.pts = 16_000, 0
            container.mux(sound.encode(heard))
            container.mux(sound.encode(None))
    data = base64.b64encode(file.getvalue()).decode()
    url = {"url": f"data:video/x-matroska;base64,{data}"}
    return {"type": "video_url", "video_url": url, "max_pixels": 28 * 28 * 6, **how}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [user(text("Who is there?"))],
    "sound": [user(text("Listen: "), audio(30_000), text("What was that?"))],
    "sounds and a picture": [
        user(audio(9_000), image(84, 112), text("and"), audio(40_000, rate=44_100)),
        {"role": "assistant", "content": "A bell."},
        user(audio(5_000, seed=1), text("Again?")),
    ],
    "silent video": [user(video(3.0, 0), text("What moves?"))],
    "unheard video": [user(video(3.0, 40_000, use_audio_in_video=False), text("What moves?"))],
    "video with its sound": [user(video(5.0, 80_000), text("What is said?"))],
    "sound that outlasts its video": [
        user(text("Look "), video(3.0, 90_000, use_audio_in_video=True), image(56, 56))
    ],
}


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine(folder, dtype="float32")


@pytest.fixture(scope="module")
def oracle_tokens(theirs: Any, engine: Engine) -> dict[str, list[int]]:
    """The greedy tokens of transformers for each conversation."""
    answers = {}
    num_tokens = engine.processor.tokenizer.vocab_size
    for name, messages in CONVERSATIONS.items():
        given = for_oracle(engine.processor(messages))
        theirs.model.rope_deltas = None
        generated = theirs.generate(
            **given,
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            suppress_tokens=list(range(num_tokens, 400)),
            eos_token_id=399,
            pad_token_id=0,
        )
        answers[name] = generated[0, given["input_ids"].shape[1] :].tolist()
    return answers


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_greedy_tokens_equal_those_of_transformers(
    name: str, engine: Engine, oracle_tokens: dict[str, list[int]]
) -> None:
    done = engine.chat(CONVERSATIONS[name], max_tokens=NUM_TOKENS, temperature=0)
    assert done.token_ids == oracle_tokens[name]
    assert len(done.token_ids) == NUM_TOKENS


def test_a_batch_of_all_conversations_gives_the_same_tokens(
    folder: Path, oracle_tokens: dict[str, list[int]]
) -> None:
    done = Engine(folder, dtype="float32").chat_many(
        list(CONVERSATIONS.values()), max_tokens=NUM_TOKENS, temperature=0
    )
    assert [each.token_ids for each in done] == list(oracle_tokens.values())


@pytest.mark.parametrize("chunk", [7, 64])
def test_prompts_computed_in_chunks_give_the_same_tokens(
    chunk: int, folder: Path, oracle_tokens: dict[str, list[int]]
) -> None:
    engine = Engine(folder, config=EngineConfig(max_batch_tokens=chunk))
    done = engine.chat_many(list(CONVERSATIONS.values()), max_tokens=8, temperature=0)
    assert [each.token_ids for each in done] == [ids[:8] for ids in oracle_tokens.values()]


def test_what_was_heard_is_told(engine: Engine) -> None:
    done = engine.chat(CONVERSATIONS["sounds and a picture"], max_tokens=1)
    assert [heard.rate_hz for heard in done.audios] == [16_000, 44_100, 16_000]
    assert [round(heard.duration_s, 3) for heard in done.audios] == [0.562, 0.907, 0.312]
    assert len(done.images) == 1
    done = engine.chat(CONVERSATIONS["video with its sound"], max_tokens=1)
    assert [heard.duration_s for heard in done.audios] == [5.0]
    assert len(done.videos) == 1


def test_a_sound_heard_before_is_not_computed_again(folder: Path) -> None:
    """A second question about a sound finds its keys and values; another sound does not."""
    engine = Engine(folder, dtype="float32")
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "logprobs": 3}
    first = [user(audio(64_000), text("What was that?"))]
    second = [user(audio(64_000), text("And who?"))]
    other = [user(audio(64_000, seed=1), text("And who?"))]
    engine.chat(first, **options)
    reused, fresh = engine.chat(second, **options), engine.chat(other, **options)
    assert reused.usage.cached_tokens >= 100
    assert fresh.usage.cached_tokens < 100
    for done, messages in ((reused, second), (fresh, other)):
        alone = Engine(folder, dtype="float32").chat(messages, **options)
        assert done.token_ids == alone.token_ids
        for ours, theirs in zip(done.logprobs or [], alone.logprobs or [], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_sound_that_cannot_be_taken_in_ends_its_own_request_only(
    folder: Path, oracle_tokens: dict[str, list[int]]
) -> None:
    engine = Engine(folder, dtype="float32")

    def refuse(tower: torch.nn.Module, inputs: Any) -> None:
        if 188 in inputs[1]:  # the frames of one of the sounds
            raise RuntimeError("index 7 is out of bounds")

    hook = engine.model.audio_tower.register_forward_pre_hook(refuse)  # type: ignore[union-attr]
    names = ("text", "sound", "sounds and a picture")
    options: dict[str, Any] = {"max_tokens": NUM_TOKENS, "temperature": 0}
    done = engine.chat_many([CONVERSATIONS[one] for one in names], return_errors=True, **options)
    hook.remove()
    assert isinstance(done[1], QianyanError)
    assert "could not take in a sound of 1.88 seconds" in str(done[1])
    for name, one in zip(names, done, strict=True):
        if name != "sound":
            assert one.token_ids == oracle_tokens[name]  # type: ignore[union-attr]
    assert engine.chat(CONVERSATIONS["sound"], **options).token_ids == oracle_tokens["sound"]


def test_a_sound_is_attached_to_a_question_in_the_terminal(
    folder: Path, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bell.wav").write_bytes(wav(30_000))
    bell = str(tmp_path / "bell.wav")
    options = ["--model", str(folder), "--max-tokens", "5", "--temperature", "0", "--once"]
    assert run(["chat", "What was that?", "--audio", bell, *options]) == 0
    said = capsys.readouterr()
    part = {"type": "audio", "audio": bell}
    expected = engine.chat([user(part, text("What was that?"))], max_tokens=5, temperature=0)
    assert said.out.rstrip("\n") == expected.text.lstrip().rstrip("\n")


def test_an_attached_video_is_heard_and_needs_its_file_no_more(
    folder: Path, engine: Engine, tmp_path: Path
) -> None:
    url = video(3.0, 40_000)["video_url"]["url"]
    path = tmp_path / "clip.mkv"
    path.write_bytes(base64.b64decode(url.partition(",")[2]))
    model = LocalModel(engine, "omni")
    attachment = fit(open_attachment("video", str(path), FetchLimits()), model)
    path.unlink()
    messages = Conversation(attached=[attachment]).messages("What is said?")
    assert engine.processor(messages).num_audio_frames == (250,)
    *_, end = model.answer(messages, TalkOptions(max_tokens=2))
    assert end.num_tokens == 2
