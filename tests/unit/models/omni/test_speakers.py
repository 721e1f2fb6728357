"""Voices out of a checkpoint: as published, converted, damaged, and dangerous."""

import pickle
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qianyan.errors import CheckpointError
from qianyan.models.omni.speakers import load_speakers, save_speakers
from qianyan.models.omni.token2wav import Token2Wav


def voice(**change: Any) -> dict[str, Any]:
    parts = {"cond": torch.randn(1, 12), "ref_mel": torch.randn(1, 40, 20), "bos_token": 151870}
    return {name: part for name, part in (parts | change).items() if part is not None}


def test_published_voices_are_read(tmp_path: Path, token2wav: Token2Wav) -> None:
    ethan, chelsie = voice(), voice(bos_token=torch.tensor([151872]))
    chelsie["ref_mel"] = chelsie["ref_mel"].half()
    torch.save({"Ethan": ethan, "Chelsie": chelsie}, tmp_path / "spk_dict.pt")
    speakers = load_speakers(tmp_path, token2wav.config.dit)
    assert list(speakers) == ["Ethan", "Chelsie"]
    assert [each.bos_token for each in speakers.values()] == [151870, 151872]
    assert torch.equal(speakers["Ethan"].cond, ethan["cond"][0])
    assert torch.equal(speakers["Chelsie"].ref_mel, chelsie["ref_mel"][0].float())


def test_converted_voices_are_the_same_and_need_no_pickle(
    tmp_path: Path, token2wav: Token2Wav
) -> None:
    pickled = tmp_path / "spk_dict.pt"
    torch.save({"Ethan": voice(), "Dr. X": voice(bos_token=7)}, pickled)
    speakers = load_speakers(tmp_path, token2wav.config.dit)
    save_speakers(tmp_path, speakers)
    pickled.write_bytes(b"never opened")
    again = load_speakers(tmp_path, token2wav.config.dit)
    assert sorted(again) == ["Dr. X", "Ethan"]
    for name, speaker in speakers.items():
        assert again[name].name == name
        assert again[name].bos_token == speaker.bos_token
        assert torch.equal(again[name].cond, speaker.cond)
        assert torch.equal(again[name].ref_mel, speaker.ref_mel)


class Bomb:
    """What a pickle must not be allowed to do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path: Path, token2wav: Token2Wav
) -> None:
    trace = tmp_path / "was-here"
    for save in (torch.save, lambda what, path: path.write_bytes(pickle.dumps(what, 2))):
        save({"Ethan": {**voice(), "more": Bomb(trace)}}, tmp_path / "spk_dict.pt")
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_speakers(tmp_path, token2wav.config.dit)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04 half a file"])
@pytest.mark.parametrize("name", ["spk_dict.pt", "spk_dict.safetensors"])
def test_a_damaged_file_is_named(
    name: str, content: bytes, tmp_path: Path, token2wav: Token2Wav
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
        load_speakers(tmp_path, token2wav.config.dit)


@pytest.mark.filterwarnings("ignore")  # of torch, which says more than it should
@given(seed=st.integers(0, 2**32), is_old=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_file_with_wrong_bytes_gives_voices_or_an_error_that_names_it(
    seed: int, is_old: bool, tmp_path: Path, token2wav: Token2Wav
) -> None:
    random = Random(seed)  # noqa: S311
    file = BytesIO()
    torch.save({"Ethan": voice()}, file, _use_new_zipfile_serialization=not is_old)
    content = bytearray(file.getvalue())
    for _ in range(random.randint(1, 6)):
        content[random.randrange(random.choice((600, len(content))))] = random.randrange(256)
    (tmp_path / "spk_dict.pt").write_bytes(content[: random.choice((len(content), 1000))])
    with suppress(CheckpointError):  # no other error
        (speaker,) = load_speakers(tmp_path, token2wav.config.dit).values()
        assert speaker.ref_mel.isfinite().all()


def test_a_folder_without_voices_says_so(tmp_path: Path, token2wav: Token2Wav) -> None:
    with pytest.raises(CheckpointError, match=r"has no spk_dict\.pt"):
        load_speakers(tmp_path, token2wav.config.dit)


def test_a_file_beyond_the_limit_is_not_opened(tmp_path: Path, token2wav: Token2Wav) -> None:
    with (tmp_path / "spk_dict.pt").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(CheckpointError, match="expected at most 67108864"):
        load_speakers(tmp_path, token2wav.config.dit)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "holds no voice"),
        ([voice()], "is no dictionary of voices"),
        ({3: voice()}, "is no dictionary of voices"),
        ({"Ethan": "deep"}, "is no dictionary of voices"),
        ({"Ethan": voice(cond=None)}, "lacks a part"),
        ({"Ethan": voice(cond=torch.ones(1, 12, dtype=torch.complex64))}, "lacks a part"),
        ({"Ethan": voice(ref_mel=torch.ones(1, 40, 20).to_sparse())}, "lacks a part"),
        ({"Ethan": voice() | {"bos_token": "x"}}, "lacks a part"),
        ({"Ethan": voice(bos_token=torch.tensor([1, 2]))}, "lacks a part"),
        ({"Ethan": voice(cond=torch.ones(1, 13))}, r"is \(1, 13\) and \(1, 40, 20\)"),
        ({"Ethan": voice(ref_mel=torch.ones(1, 40, 21))}, r"expected \(1, 12\) and \(1, frames"),
        ({"Ethan": voice(ref_mel=torch.ones(2, 40, 20))}, "expected"),
        ({"Ethan": voice(ref_mel=torch.ones(20))}, "expected"),
        ({"Ethan": voice(ref_mel=torch.ones(1, 4, 20))}, "5 to 30000 frames"),
        ({"Ethan": voice(ref_mel=torch.ones(1, 30001, 20))}, "5 to 30000 frames"),
        ({"Ethan": voice(ref_mel=torch.full((1, 9, 20), torch.nan))}, "not finite"),
    ],
)
def test_a_voice_that_does_not_fit_is_refused(
    content: Any, words: str, tmp_path: Path, token2wav: Token2Wav
) -> None:
    torch.save(content, tmp_path / "spk_dict.pt")
    with pytest.raises(CheckpointError, match=words):
        load_speakers(tmp_path, token2wav.config.dit)
