"""Two real `qianyan serve`: the second passes on to the first."""

from pathlib import Path

import pytest
from openai import AuthenticationError, InternalServerError, OpenAI

from .test_serve import run, start

FIRST_KEY, SECOND_KEY = "sk-first-0123456789", "sk-second-0123456789"


def test_a_second_server_passes_on_to_the_first(tmp_path: Path) -> None:
    first, first_address, _ = start(
        "--state-dir", str(tmp_path / "first"), QIANYAN_API_KEYS=FIRST_KEY
    )
    models = tmp_path / "models.toml"
    models.write_text(
        f'[models.far]\nbase_url = "{first_address}/v1"\nmodel = "bundled"\n'
        'api_key_env = "FIRST_KEY"\ntimeout_s = 30\n'
    )
    second, address, said = start(
        "--models-file", str(models),
        "--upstream", f"wrong={first_address}/v1#bundled",
        "--state-dir", str(tmp_path / "second"),
        QIANYAN_API_KEYS=SECOND_KEY,
        FIRST_KEY=FIRST_KEY,
    )  # fmt: skip
    try:
        assert "bundled, wrong, far" in said
        client = OpenAI(base_url=f"{address}/v1", api_key=SECOND_KEY, max_retries=0)
        assert [one.id for one in client.models.list()] == ["bundled", "wrong", "far"]
        answers = []
        for model in ("bundled", "far"):
            stream = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "A hard hat?"}],
                max_tokens=12,
                temperature=0,
                stream=True,
            )
            chunks = list(stream)
            assert {one.model for one in chunks} == {model}
            answers.append("".join(one.choices[0].delta.content or "" for one in chunks))
        assert answers[0] == answers[1] != ""
        with pytest.raises(InternalServerError, match="does not accept this server's key"):
            client.chat.completions.create(
                model="wrong", messages=[{"role": "user", "content": "?"}]
            )
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=f"{address}/v1", api_key=FIRST_KEY).models.list()
    finally:
        for process in (second, first):
            process.terminate()
            _, errors = process.communicate(timeout=60)
            assert "Traceback" not in errors
            assert FIRST_KEY not in errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--upstream", "http://gpu-1:8000/v1"], "expected NAME=URL"),
        (["--upstream", "a=ftp://gpu-1"], "expected a plain address"),
        (["--upstream", "bundled=http://gpu-1:8000/v1"], "expected different names"),
        (["--models-file", "no-such-file"], "cannot be read"),
    ],
)
def test_wrong_upstream_models_end_with_a_sentence_and_2(options: list[str], words: str) -> None:
    done = run("--no-auth", *options)
    assert done.returncode == 2, done.stderr
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
