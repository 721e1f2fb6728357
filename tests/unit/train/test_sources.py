"""Conversations, labels and shards are samples; what is wrong with one is one sentence."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.sound_files import write_video, write_wav

from qianyan.errors import ConfigError, InputError
from qianyan.inputs.fetch import FetchLimits, fetch
from qianyan.inputs.processor import ModelInputs
from qianyan.inspection.lessons import find_teacher
from qianyan.train.examples import Example
from qianyan.train.recipe import Dataset, Rates, Recipe, Stage
from qianyan.train.samples import JsonLines, read_sample
from qianyan.train.sources import Source, open_source
from qianyan.train.stage import StepReport
from qianyan.train.streams import Draw, Draws, Made, Stream, StreamState
from qianyan.train.training import Places, Report, Training


def opened(data: Dataset) -> Source:
    return open_source(
        data,
        teacher=lambda lang: find_teacher("Qwen2_5_VLForConditionalGeneration", lang=lang),
        seen_wh=lambda photo_wh: (112, 112),
    )


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def png(colour: tuple[int, int, int]) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(made, "PNG")
    return made.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as shard:
            for index in range(3):
                key = f"{number}{index}"
                turns = [
                    {"from": "human", "value": "<image>\n<image>Compare."},
                    {"from": "gpt", "value": f"answer {key}"},
                ]
                files = [f"{key}.a.png", f"{key}.b.png"]
                sample = {"image": files, "conversations": turns}
                add(shard, f"{key}.json", json.dumps(sample).encode())
                add(shard, f"{key}.a.png", png((index * 50, 0, 0)))
                add(shard, f"{key}.b.png", png((0, index * 50, 0)))
    return folder


def test_shards_are_read_in_any_order_with_their_pictures(shards: Path) -> None:
    source = opened(Dataset(path=shards))
    assert len(source) == 6
    sample = source.read(5)
    parts = sample.messages[0]["content"]
    assert [part["type"] for part in parts] == ["image", "image", "text"]
    assert parts[0]["image"].getpixel((0, 0)) == (100, 0, 0)
    assert parts[1]["image"].getpixel((0, 0)) == (0, 100, 0)
    assert sample.messages[1]["content"] == "answer 12"


def test_shards_hold_the_sounds_and_videos_of_their_conversations(tmp_path: Path) -> None:
    bell = write_wav(tmp_path / "bell.wav", 0.5, 880).read_bytes()
    clip = write_video(tmp_path / "clip.mkv", 1.0, 440).read_bytes()
    turns = [
        {"from": "human", "value": "<audio>\n<video>Do they fit?"},
        {"from": "gpt", "value": "Yes."},
    ]
    sample = {"audio": "0.wav", "video": "0.mkv", "use_audio_in_video": True,
              "conversations": turns}  # fmt: skip
    with tarfile.open(tmp_path / "sounds.tar", "w") as shard:
        add(shard, "0.json", json.dumps(sample).encode())
        add(shard, "0.wav", bell)
        add(shard, "0.mkv", clip)
    heard, seen, _ = opened(Dataset(path=tmp_path / "sounds.tar")).read(0).messages[0]["content"]
    assert heard == {"type": "audio", "audio": bell}
    assert seen["use_audio_in_video"] is True
    assert fetch(seen["video_url"]["url"], limits=FetchLimits(), allow_files=False).data == clip


def test_labels_become_inspections(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "images" / "a.png")
    labels = {
        "categories": [{"id": 1, "name": "fire"}],
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [50, 25, 100, 50]}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    source = opened(Dataset(path=tmp_path / "labels.json", lang="en"))
    question, answer = source.read(0).messages
    assert question["content"][0] == {"type": "image", "image": tmp_path / "images" / "a.png"}
    assert json.loads(answer["content"]) == [
        {"bbox_2d": [28, 28, 84, 84], "label": "fire", "sub_label": "severe"}
    ]


def test_labels_and_shards_train_a_model(
    checkpoint: Path, shards: Path, conversations: Path, tmp_path: Path
) -> None:
    (tmp_path / "yolo" / "images").mkdir(parents=True)
    (tmp_path / "yolo" / "labels").mkdir()
    (tmp_path / "yolo" / "classes.txt").write_text("fire\nsmoke\n")
    for index in range(3):
        Image.new("RGB", (120, 90), (200, index * 60, 0)).save(
            tmp_path / "yolo" / "images" / f"{index}.png"
        )
        (tmp_path / "yolo" / "labels" / f"{index}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    data = (
        Dataset(path=tmp_path / "yolo"),
        Dataset(path=shards, weight=2.0),
        Dataset(path=conversations, weight=0.25),
    )
    stage = Stage(
        name="mixed", train=("language", "merger"), epochs=1, batch=2, max_tokens=1024,
        rates=Rates(language=1e-3),
    )  # fmt: skip
    steps: list[StepReport] = []

    def note(stage: Stage, report: Report) -> None:
        assert isinstance(report, StepReport)
        steps.append(report)

    Training(
        Recipe(stages=(stage,), data=data, precision="float32"),
        Places(source=checkpoint, run_dir=tmp_path / "run", out=tmp_path / "model"),
        on_report=note,
        teacher=lambda lang: find_teacher("Qwen2_5_VLForConditionalGeneration", lang=lang),
    ).run()
    assert steps[-1].step == steps[-1].num_steps
    assert all(step.num_learned > 0 for step in steps)


def test_labels_need_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="taught by conversations only"):
        open_source(Dataset(path=tmp_path), teacher=None, seen_wh=lambda photo_wh: photo_wh)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({}, "no messages and no conversations"),
        ({"messages": "hello"}, "no messages"),
        ({"messages": [3]}, "a message that is int"),
        ({"conversations": [{"from": "robot", "value": ""}]}, "a turn without from and value"),
        (
            {"conversations": [{"from": "human", "value": "<image>"}]},
            "more tags <image> than files",
        ),
        ({"image": "a", "conversations": []}, "more files than tags <image>"),
        ({"conversations": [{"from": "gpt", "value": "<image>"}]}, "the tag <image> in an answer"),
        ({"messages": [], "rejected": 3}, "no text for rejected"),
        ({"conversations": 5}, "a turn without from and value"),
        ({"audio": [3], "conversations": []}, "'3' in audio; expected names of files"),
        ({"audio": "a.wav", "conversations": []}, "more files than tags <audio>"),
        ({"conversations": [{"from": "human", "value": "<audio>"}]}, "more tags <audio> than"),
        ({"conversations": [{"from": "gpt", "value": "<audio>"}]}, "tag <audio> in an answer"),
    ],
)
def test_a_sample_that_cannot_be_used_is_one_sentence(line: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_sample(line, source="a [0]", images=Path())  # type: ignore[arg-type]


def test_a_video_and_several_pictures_keep_their_places(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "First <image> then <video> and <image>"},
        {"from": "gpt", "value": "yes"},
    ]
    data = {"image": ["a.jpg", "http://x/b.jpg"], "video": "c.mp4", "conversations": turns}
    sample = read_sample(data, source="a [0]", images=tmp_path)
    parts = sample.messages[0]["content"]
    assert [part["type"] for part in parts] == [
        "text", "image_url", "text", "video_url", "text", "image_url",
    ]  # fmt: skip
    assert parts[1]["image_url"]["url"] == str(tmp_path / "a.jpg")
    assert parts[3]["video_url"]["url"] == str(tmp_path / "c.mp4")
    assert parts[5]["image_url"]["url"] == "http://x/b.jpg"


def test_files_listed_beside_messages_take_the_place_of_their_tags(tmp_path: Path) -> None:
    """As other trainers write them: the tags in a text, the names in lists."""
    asked = {"role": "user", "content": "<audio><image>Do they fit?"}
    messages = [{"role": "system", "content": "<image>"}, asked]
    data = {"messages": messages, "audios": ["a.wav"], "images": ["b.png"]}
    system, user = read_sample(data, source="a [0]", images=tmp_path).messages
    assert system["content"] == "<image>"
    assert [part["type"] for part in user["content"]] == ["audio_url", "image_url", "text"]
    plain = read_sample({"messages": messages}, source="a [0]", images=tmp_path).messages
    assert plain[1] == asked
    with pytest.raises(InputError, match="more files than tags <video>"):
        read_sample({**data, "videos": ["c.mp4"]}, source="a [0]", images=tmp_path)


def test_sounds_are_looked_for_beside_the_data_unless_a_message_holds_them(tmp_path: Path) -> None:
    parts = [
        {"type": "audio", "audio": "a.wav"},
        {"type": "audio_url", "audio_url": {"url": "b.wav"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "c.wav", "format": "wav"}},
        {"type": "video", "video": ["1.png", "2.png"]},
    ]
    data = {"messages": [{"role": "user", "content": parts}]}
    found = read_sample(data, source="a [0]", images=tmp_path).messages[0]["content"]
    assert found[0]["audio"] == str(tmp_path / "a.wav")
    assert found[1]["audio_url"]["url"] == str(tmp_path / "b.wav")
    assert found[2] == parts[2]
    assert found[3] == {"type": "audio_url", "audio_url": {"url": str(tmp_path / "c.wav")}}
    assert found[4]["video"] == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]


def test_a_good_sample_between_many_bad_ones_is_found(tmp_path: Path) -> None:
    """Whatever order an epoch takes, training goes on as long as one sample can be used."""
    good, seed = (0, 3), 0
    draws = Draws([9], [1.0], seed=seed)
    tried: list[Draw] = []

    def make(draw: Draw) -> None:
        tried.append(draw)

    with pytest.raises(InputError, match="No sample of the data can be used"):
        stream(draws, make).next()
    assert sorted(tried) == [(0, index) for index in range(9)], "each was tried once"
    taken = stream(draws, lambda draw: (example(),) if draw == good else None)
    for _ in range(20):
        assert len(taken.next()[0]) == 1


def stream(draws: Draws, make: Callable[[Draw], Made | None]) -> Stream:
    return Stream(draws, make, state=StreamState(1), stride=4, max_tokens=8, joins=False)


def example() -> Example:
    inputs = ModelInputs([1, 2])
    return Example(source="a", inputs=inputs, position_ids=torch.zeros(1, 2), learned=(1,))


def test_empty_and_missing_data_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match="is empty; expected a sample on each line"):
        JsonLines(tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        JsonLines(tmp_path / "gone.jsonl")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(ConfigError, match="expected a tar file"):
        opened(Dataset(path=tmp_path / "bad.tar"))
