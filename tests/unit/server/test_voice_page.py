"""The voice page's files, as a browser gets them."""

import re

import httpx2
import pytest

from qianyan.server.voice_page import FOLDER, PAGE_PATH, VOICE_PAGE_PATHS

WORDS = (FOLDER / "texts.js").read_text("utf-8")


def test_the_page_and_all_its_files_need_no_key_and_have_their_types(client: httpx2.Client) -> None:
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert len(VOICE_PAGE_PATHS) == len(list(FOLDER.iterdir()))
    for path in VOICE_PAGE_PATHS:
        answer = client.get(path, headers={"authorization": ""})
        assert answer.status_code == 200
        expected = types.get(path.rpartition(".")[2], "text/html")
        assert answer.headers["content-type"].partition(";")[0] == expected
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_loaded_from_elsewhere_and_nothing_stands_in_line(client: httpx2.Client) -> None:
    page = client.get(PAGE_PATH)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script>|javascript:", page.text)
    for file in FOLDER.iterdir():
        text = file.read_text("utf-8")
        named = set(re.findall(r"https?://[\w.]+", text))
        assert named <= {"http://www.w3.org", "http://localhost"}, file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_what_a_browser_has_is_not_sent_again(client: httpx2.Client) -> None:
    path = f"{PAGE_PATH}/page.js"
    first = client.get(path)
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(path, headers={"if-none-match": '"other"'}).content == first.content


@pytest.mark.parametrize(
    "path",
    ["../../server/auth.py", "..%2f..%2fserver%2fauth.py", "%2e%2e/", "page.js/", "index.html"],
)
def test_no_other_file_is_there(client: httpx2.Client, path: str) -> None:
    answer = client.get(f"{PAGE_PATH}/{path}")
    assert answer.status_code in {307, 404}
    assert "import" not in answer.text


def test_both_languages_say_everything(client: httpx2.Client) -> None:
    chinese, english = (
        re.findall(r"^    (\w+): (\".*\"),$", block, flags=re.M)
        for block in re.findall(r"^  (?:zh|en): \{\n(.*?)^  \},$", WORDS, flags=re.M | re.S)
    )
    assert [name for name, _ in chinese] == [name for name, _ in english]
    assert len(english) > 80
    for (name, here), (_, there) in zip(chinese, english, strict=True):
        assert set(re.findall(r"\{\w+\}", here)) == set(re.findall(r"\{\w+\}", there)), name
    used = " ".join(
        file.read_text("utf-8") for file in FOLDER.glob("*.js") if file.name != "texts.js"
    )
    used += client.get(PAGE_PATH).text
    for name, _ in english:
        if not name.startswith(("fault_", "state_", "hint_", "link_")):
            assert re.search(rf"[\"`]{name}[\"`]", used), f"{name} is said nowhere"


def test_the_list_of_models_says_what_the_model_here_reads(client: httpx2.Client) -> None:
    (model, _) = client.get("/v1/models").json()["data"]
    assert model["input_modalities"] == ["text", "image", "video"]
    assert model["output_modalities"] == ["text"]
