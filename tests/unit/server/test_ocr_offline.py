"""The offline reader on drawn pictures, upright and turned."""

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

import qianyan
from qianyan.errors import InputError, MediaError
from qianyan.server.extraction import read_ocr_options
from qianyan.server.ocr_offline import OfflineReader

FONT = Path(qianyan.__file__).parent / "assets" / "fonts" / "NotoSansSC-Regular.ttf"
PLACE = (40, 150)


@pytest.fixture(scope="module")
def reader() -> OfflineReader:
    pytest.importorskip("rapidocr", reason="the extra ocr is not installed")
    return OfflineReader()


@pytest.fixture(scope="module")
def sign() -> Image.Image:
    image = Image.new("RGB", (600, 300), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(str(FONT), 36)
    draw.text((40, 40), "安全帽检查", font=font, fill="black")
    draw.text(PLACE, "Fire exit 7", font=font, fill="black")
    return image


def test_chinese_and_english_lines_are_read_from_top_to_bottom(
    reader: OfflineReader, sign: Image.Image
) -> None:
    done = reader.extract(sign, read_ocr_options({"task": "text_recognition"}))
    assert done.to_json() == {"text": "安全帽检查\nFire exit 7"}


def test_places_are_those_of_the_picture_also_where_it_is_turned(
    reader: OfflineReader, sign: Image.Image
) -> None:
    options = read_ocr_options({"task": "advanced_recognition"})
    for picture in (sign, sign.transpose(Image.Transpose.ROTATE_270)):
        result = reader.extract(picture, options).ocr_result
        assert result is not None
        line = next(one for one in result["words_info"] if "exit" in one["text"])
        xs, ys = line["location"][::2], line["location"][1::2]
        assert 0 <= min(xs) <= max(xs) < picture.width
        assert 0 <= min(ys) <= max(ys) < picture.height
        cx, cy = line["rotate_rect"][:2]
        middle = (127, 177) if picture is sign else (300 - 177, 127)
        assert (cx, cy) == pytest.approx(middle, abs=12)


def test_a_picture_without_text_has_none(reader: OfflineReader) -> None:
    assert reader.read(Image.new("RGB", (200, 100), "grey")) == []


def test_tasks_that_need_a_model_say_so() -> None:
    with pytest.raises(InputError, match="needs a model that reads"):
        OfflineReader().extract(
            Image.new("RGB", (40, 40)), read_ocr_options({"task": "table_parsing"})
        )


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MediaError, match=r"qianyan\[ocr\]") as refused:
        OfflineReader().read(Image.new("RGB", (40, 40)))
    assert refused.value.code == "missing_extra"
