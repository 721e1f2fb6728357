import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pypdfium2
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from qianyan.errors import ConfigError
from qianyan.inspection.records import (
    Box,
    Detection,
    Failure,
    Hazard,
    Inspection,
    SubLabel,
    Veto,
)
from qianyan.inspection.reporting.fonts import BOLD_FONT_FILE, FONT_FILE, missing_glyphs
from qianyan.inspection.reporting.report import (
    ReportData,
    ReportPicture,
    picture_quality,
    render_report,
)
from qianyan.inspection.reporting.report_content import BREAK, breakable, shortened
from qianyan.inspection.reporting.report_words import REPORT_WORDS, bold_characters
from qianyan.inspection.words import Lang

BEIJING = timezone(timedelta(hours=8))
FIRE = Detection(Hazard.FIRE, SubLabel.SEVERE, Box(10, 20, 110, 90), 0.91, "logprob")
BARE = Detection(Hazard.PERSON, SubLabel.NO_HELMET, Box(120, 30, 150, 110))
LAMP = Detection(Hazard.FIRE, SubLabel.MINOR, Box(1, 2, 3, 4), 0.4, "detector")
MALICIOUS = [
    '#import "@preview/evil:1.0.0": *',
    '#read("/etc/passwd") #{panic()}',
    "a\\b\\\\c *bold* _em_ $x^2$ <label> @ref `raw` [[x]] // c /* d */ ~ -- ---",
    "</script><img src=x>%s{0}{n}",
    '"},"verdict":{"headline":"none"}',
]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.linear_gradient("L").convert("RGB").resize((160, 120)).save(path)
    return path


def picture(photo: Path | None, *found: Detection, source: str = "site/a.jpg") -> ReportPicture:
    inspection = Inspection(
        source, found, tuple(Hazard), width=160, height=120, sha256="0123456789abcdef" * 4
    )
    return ReportPicture(inspection, photo, photo)


def failed(source: str = "broken.jpg") -> ReportPicture:
    error = Failure("truncated", "The picture is cut short.")
    return ReportPicture(Inspection(source, None, (), error))


def data(*pictures: ReportPicture, lang: Lang = "zh") -> ReportData:
    return ReportData(
        run_id="run-1",
        started_at=datetime(2026, 11, 22, 8, 1, 2, tzinfo=BEIJING),
        finished_at=datetime(2026, 11, 22, 8, 3, 4, tzinfo=BEIJING),
        model="bundled",
        lang=lang,
        version="0.1.0",
        pictures=pictures,
        settings={"max_objects": "10"},
    )


def pages(report: ReportData, tmp_path: Path) -> list[str]:
    """Render and read back the text of every page, line breaks and break points taken out."""
    out = tmp_path / "report.pdf"
    render_report(report, out)
    document = pypdfium2.PdfDocument(out)
    try:
        texts = [document[index].get_textpage().get_text_range() for index in range(len(document))]
    finally:
        document.close()
    # Without white space at all: where a line breaks is the layout's business.
    return [re.sub(rf"[\s{BREAK}\ufffe\x02]", "", text) for text in texts]


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


def test_the_chinese_report_leads_with_the_verdict_and_says_everything(
    photo: Path, tmp_path: Path
) -> None:
    vetoed = replace(picture(photo).inspection, vetoed=(Veto(LAMP, "判断为灯光"),))
    found = pages(
        data(picture(photo, FIRE, BARE), ReportPicture(vetoed, photo, photo), failed()), tmp_path
    )
    whole = "".join(found)
    cover = found[0]
    assert cover.index("安全检查报告") < cover.index(
        "发现2处隐患：火灾1处（严重）、未佩戴安全帽1人。"
    )
    assert cover.index("未佩戴安全帽1人。") < cover.index("基本信息")
    for words in (
        "AQJC-20261122-",
        "2026-11-2208:01:02–08:03:04(UTC+08:00)",
        "3张图片中有1张未能检查",
        "检查地点",
        "陪同人",
        "site/a.jpg",
        "火灾（严重），位于",
        "模型未给出评分",
        "10,20,110,90",
        "91%对数概率",
        "复核否决（未计入结论）",
        "判断为灯光",
        "图片不完整或已损坏",
        "Thepictureiscutshort.",
        "max_objects",
        "qianyan0.1.0",
        "0123456789abcdef" * 4,
        "GB50116",
        "被检查单位负责人",
        "隐患等级（由检查人员判定）",
        f"第1页，共{len(found)}页",
    ):
        assert words in whole, words


def test_the_english_report_says_the_same(photo: Path, tmp_path: Path) -> None:
    found = pages(data(picture(photo, FIRE), failed(), lang="en"), tmp_path)
    whole = "".join(found)
    for words in (
        "Safety Inspection Report",
        "1 hazard found: fire 1 (severe).",
        "1 of 2 pictures could not be inspected",
        "Fire (severe), in the centre",
        "91% log-probability",
        "NFPA 72",
        "For the inspected company",
        f"Page 1 of {len(found)}",
    ):
        assert squeezed(words) in whole, words
    assert re.search(r"[\u4e00-\u9fff]", whole) is None


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_name_prints_literally(name: str, photo: Path, tmp_path: Path) -> None:
    report = replace(
        data(picture(photo, FIRE, source=name), failed(name)),
        model=name,
        settings={name: name},
        run_id=name,
    )
    whole = "".join(pages(report, tmp_path))
    assert whole.count(squeezed(name)) >= 5
    assert "发现1处隐患" in whole


def test_rare_characters_and_reversing_marks_are_spelt_and_explained(
    photo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = data(picture(photo, FIRE, source="王龘🔥/\u202egpj.exe"))
    whole = "".join(pages(report, tmp_path))
    assert "王[U+9F98U+1F525]/[U+202E]gpj.exe" in whole
    assert "缺字说明" in whole
    assert "No font at hand" in caplog.text


def test_a_users_font_is_used_for_characters_the_bundled_one_lacks(
    photo: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.ttf"
    with TTFont(FONT_FILE) as font:
        for table in font["cmap"].tables:
            table.cmap[ord("龘")] = table.cmap[ord("龙")]
        for record in font["name"].names:
            if record.nameID in {1, 4, 16}:
                record.string = "Site Sans"
        font.save(mine)
    report = replace(data(picture(photo, FIRE, source="王龘.jpg")), fonts=(mine,))
    whole = "".join(pages(report, tmp_path))
    assert "王龘.jpg" in whole
    assert "缺字说明" not in whole


def test_a_very_long_name_stays_between_the_margins(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    name = "https://example.com/" + "averylongnamewithoutanybreak" * 30
    render_report(data(picture(photo, FIRE, source=name), failed(name)), out)
    document = pypdfium2.PdfDocument(out)
    for index in range(len(document)):
        page = document[index]
        shown = page.render(scale=1).to_pil().convert("L")
        width, height = shown.size
        margin = round(19 / 210 * width)
        for left in (0, width - margin):
            strip = shown.crop((left, 0, left + margin, height))
            assert strip.getextrema()[0] > 200
    document.close()


def test_every_picture_of_a_long_run_is_in_the_report(photo: Path, tmp_path: Path) -> None:
    many = [
        picture(photo, *([FIRE] if index % 4 == 0 else []), source=f"p{index:03}.jpg")
        for index in range(60)
    ]
    found = pages(data(*many), tmp_path)
    whole = "".join(found)
    for index in range(60):
        assert f"p{index:03}.jpg" in whole
    assert whole.index("未发现隐患的图片") > whole.index("逐图记录")
    assert whole.rindex("p056.jpg") < whole.index("p001.jpg")
    assert 8 <= len(found) <= 20


def test_large_pictures_do_not_make_a_large_file(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    Image.effect_noise((3000, 2000), 90).convert("RGB").save(large, quality=95)
    out = tmp_path / "report.pdf"
    render_report(data(*[picture(large, FIRE) for _ in range(3)]), out)
    assert out.stat().st_size < large.stat().st_size


def test_the_more_pictures_the_smaller_they_are() -> None:
    sides = [picture_quality(count)[0] for count in (1, 100, 300, 5000)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 1000
    assert sides[-1] >= 480


def test_a_missing_picture_file_is_said_in_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    report = data(
        picture(tmp_path / "gone.jpg", FIRE), picture(tmp_path / "torn.jpg", FIRE), picture(None)
    )
    assert "".join(pages(report, tmp_path)).count("图片文件缺失") == 5
    assert "gone.jpg" in caplog.text
    assert "torn.jpg" in caplog.text


def test_pictures_that_all_failed_or_none_at_all_still_make_a_report(tmp_path: Path) -> None:
    assert "没有得出结论：图片全部未能检查" in "".join(pages(data(failed()), tmp_path))
    assert "没有得出结论：没有图片" in "".join(pages(data(), tmp_path))


def test_the_same_data_gives_the_same_bytes(photo: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "1.pdf", tmp_path / "2.pdf"
    report = data(picture(photo, FIRE))
    render_report(report, one)
    render_report(report, other)
    assert one.read_bytes() == other.read_bytes()


def test_only_the_bundled_font_is_embedded(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.pdf"
    render_report(data(picture(photo, FIRE)), out)
    fonts = set(re.findall(rb"/FontName\s*/[A-Z]{6}\+([\w-]+)", out.read_bytes()))
    assert {name.decode().split("-")[0] for name in fonts} == {"NotoSansSC"}


def test_a_report_that_cannot_be_written_is_a_sentence(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written to 'report\.pdf'"):
        render_report(data(picture(photo)), tmp_path / "nowhere" / "report.pdf")


def test_times_keep_the_zone_they_carry(photo: Path, tmp_path: Path) -> None:
    report = replace(
        data(picture(photo)),
        started_at=datetime(2026, 11, 22, 23, 59, tzinfo=UTC),
        finished_at=datetime(2026, 11, 23, 0, 1, tzinfo=UTC),
    )
    whole = pages(report, tmp_path)[0]
    assert "2026-11-2223:59:00–2026-11-2300:01:00(UTC+00:00)" in whole


def test_the_number_names_day_and_run() -> None:
    one, other = data(), replace(data(), run_id="run-2")
    assert re.fullmatch(r"AQJC-20261122-[0-9A-F]{4}", one.number)
    assert one.number == data().number != other.number


def test_the_bold_font_has_every_word_of_our_own() -> None:
    assert missing_glyphs(bold_characters(), BOLD_FONT_FILE) == set()
    assert missing_glyphs(bold_characters(), FONT_FILE) == set()


def test_long_runs_may_break_and_words_stay_whole() -> None:
    assert breakable("一个普通的 short name.jpg") == f"一个普通的 short name.{BREAK}jpg"
    pieces = breakable("x" * 50).split(BREAK)
    assert max(map(len, pieces)) <= 14
    assert "".join(pieces) == "x" * 50


def test_a_shortened_name_keeps_its_end() -> None:
    assert shortened("a.jpg") == "a.jpg"
    name = "folder/" * 20 + "0042.jpg"
    assert shortened(name).endswith("0042.jpg")
    assert len(shortened(name)) < 40


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_the_template_takes_its_words_from_the_table(lang: Lang) -> None:
    template = (Path(FONT_FILE).parent.parent / "report" / "report.typ").read_text("utf-8")
    assert set(re.findall(r"\bw\.(\w+)", template)) <= set(REPORT_WORDS[lang])
    assert re.search(r"[\u4e00-\u9fff]", template) is None
