"""What a model's repository holds on Hugging Face or ModelScope: one request, one listing.

Hugging Face is asked through its own library. ModelScope is asked directly: its client weighs
70 MB, keeps its credentials as a pickle and tells the server a lasting id of the installation,
while all that is needed here is two endpoints,

    GET /api/v1/models/{owner}/{name}/repo/files?Revision=master
    GET /api/v1/models/{owner}/{name}/repo?Revision=master&FilePath=config.json

Nothing a hub says is trusted: names must stay inside a folder, sizes and checksums must look like
such, and weights without a checksum are refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlencode

import httpx2
from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from qianyan.engine.folder import CONFIG, INDEX, SINGLE, is_wanted
from qianyan.engine.places import Source, is_hub_name
from qianyan.errors import CheckpointError, quote

HUB_NAMES: dict[Source, str] = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
MODELSCOPE_ENDPOINT = "https://modelscope.cn"
AGENT = {"User-Agent": "qianyan"}
LISTING_TIMEOUT_S = 30.0
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository; its checksum is SHA-256, or Git's SHA-1 where Git itself keeps it."""

    name: str
    url: str
    size_bytes: int | None
    checksum: str | None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What of a repository belongs into a model's folder, as it was at `commit`."""

    model: str
    source: Source
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]
    headers: Mapping[str, str] = field(repr=False)


def list_files(
    model: str,
    *,
    source: Source = "huggingface",
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Listing:
    """Ask a hub what a model's repository holds.

    `endpoint` is a mirror's address; a token that is only stored on this machine is not sent there.
    Raises CheckpointError when the name is none, the hub does not answer, does not know the model
    or does not hand it out, or the repository holds no safetensors model.
    """
    if not is_hub_name(model):
        raise CheckpointError(
            f"{quote(model)} is not a model's name; expected owner/name such as "
            "Qwen/Qwen2.5-VL-3B-Instruct."
        )
    if source not in HUB_NAMES:
        raise CheckpointError(f"source is {quote(source)}; expected {' or '.join(HUB_NAMES)}.")
    if revision is not None and not (REVISION.fullmatch(revision) and ".." not in revision):
        raise CheckpointError(
            f"{quote(revision)} is not a revision; expected a branch, a tag or a commit."
        )
    ask = _ask_huggingface if source == "huggingface" else _ask_modelscope
    try:
        listing = ask(model, revision, token, endpoint)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise CheckpointError(
            f"{HUB_NAMES[source]} cannot be reached ({type(error).__name__}). Check the network, "
            "or use a mirror (endpoint) or the other source."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise CheckpointError(
            f"{HUB_NAMES[source]} answered with something that is no list of files "
            f"({type(error).__name__}). Check the endpoint."
        ) from error
    return _checked(listing)


def refusal(model: str, source: Source, status_code: int) -> CheckpointError:
    """Say why a hub that was reached gives nothing."""
    hub = HUB_NAMES[source]
    if status_code in (401, 403):
        return CheckpointError(
            f"{hub} does not hand out {quote(model)} to everybody ({status_code}): it is private, "
            "or its terms must be accepted on its page. Accept them and give a token."
        )
    if status_code == 404:
        return CheckpointError(
            f"{hub} knows no model {quote(model)} at this revision (404). "
            "Check the name; a private one needs a token."
        )
    return CheckpointError(f"{hub} answered {status_code} for {quote(model)}. Try again later.")


def _ask_huggingface(
    model: str, revision: str | None, token: str | None, endpoint: str | None
) -> Listing:
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    # The library would send the token stored on this machine to whatever endpoint it is given.
    is_implicit = endpoint == constants.ENDPOINT and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
    token = token or (get_token() if is_implicit else None)
    api = HfApi(endpoint=endpoint, token=token or False, library_name="qianyan")
    try:
        info = api.model_info(
            model, revision=revision, files_metadata=True, timeout=LISTING_TIMEOUT_S
        )
    except OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"HF_HUB_OFFLINE forbids to fetch {quote(model)}. Unset it, or use what is on disk."
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{quote(model)} is not a model's name: {error}.") from error
    except GatedRepoError as error:
        raise refusal(model, "huggingface", 403) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise refusal(model, "huggingface", 404) from error
    except HfHubHTTPError as error:
        raise refusal(model, "huggingface", error.response.status_code) from error
    commit = str(info.sha)
    if re.fullmatch(r"[0-9a-f]{40}", commit) is None:
        raise ValueError("the commit is none")
    return Listing(
        model=model,
        source="huggingface",
        revision=revision or constants.DEFAULT_REVISION,
        commit=commit,
        files=tuple(
            RemoteFile(
                name=entry.rfilename,
                url=hf_hub_url(model, entry.rfilename, revision=commit, endpoint=endpoint),
                size_bytes=entry.size,
                checksum=entry.lfs.sha256 if entry.lfs else entry.blob_id,
            )
            for entry in info.siblings or ()
        ),
        headers=AGENT | ({"Authorization": f"Bearer {token}"} if token else {}),
    )


def _ask_modelscope(
    model: str, revision: str | None, token: str | None, endpoint: str | None
) -> Listing:
    revision = revision or "master"
    repository = f"{(endpoint or MODELSCOPE_ENDPOINT).rstrip('/')}/api/v1/models/{model}/repo"
    headers = dict(AGENT)
    if token:
        # Older endpoints take the token as a cookie, newer ones as a bearer.
        headers |= {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
    response = httpx2.get(
        f"{repository}/files",
        params={"Revision": revision, "Recursive": "True"},
        headers=headers,
        timeout=LISTING_TIMEOUT_S,
        follow_redirects=True,
    )
    if response.status_code != httpx2.codes.OK:
        raise refusal(model, "modelscope", response.status_code)
    answer = response.json()
    if answer.get("Success") is False:
        raise refusal(model, "modelscope", int(answer.get("Code", 0)))
    return Listing(
        model=model,
        source="modelscope",
        revision=revision,
        commit=revision,
        files=tuple(_modelscope_files(repository, revision, answer["Data"]["Files"])),
        headers=headers,
    )


def _modelscope_files(
    repository: str, revision: str, entries: Iterable[Mapping[str, Any]]
) -> Iterable[RemoteFile]:
    for entry in entries:
        if entry.get("Type") != "tree":
            query = urlencode({"Revision": revision, "FilePath": entry["Path"]})
            yield RemoteFile(
                name=entry["Path"],
                url=f"{repository}?{query}",
                size_bytes=entry.get("Size") or None,  # 0 also stands for unknown
                checksum=entry.get("Sha256") or None,
            )


def _checked(listing: Listing) -> Listing:
    """Keep what belongs into a model's folder, if it is believable and makes a model."""
    for file in listing.files:
        _check_name(file.name, listing)
    wanted = [file for file in listing.files if is_wanted(file.name)]
    for file in wanted:
        _check_facts(file, listing)
    names = {file.name for file in wanted}
    if CONFIG not in names:
        raise CheckpointError(f"{quote(listing.model)} has no {CONFIG}; expected a model.")
    if not names & {SINGLE, INDEX}:
        pickled = sorted(
            file.name for file in listing.files if PurePosixPath(file.name).suffix in PICKLED
        )
        holds = f"pickled weights only ({quote(pickled[0])})" if pickled else "no weights"
        raise CheckpointError(
            f"{quote(listing.model)} holds {holds}; expected {SINGLE} or {INDEX}. "
            "Look for a copy in safetensors: pickle files can run code."
        )
    return Listing(**{**vars(listing), "files": tuple(wanted)})


def _check_name(name: object, listing: Listing) -> None:
    if (
        not isinstance(name, str)
        or not name
        or name.startswith("/")
        or any(character in name for character in "\\\0:")
        or ".." in name.split("/")
    ):
        raise CheckpointError(
            f"{quote(listing.model)} names a file {quote(name)}, which is outside the repository; "
            "nothing was fetched."
        )


def _check_facts(file: RemoteFile, listing: Listing) -> None:
    size, checksum = file.size_bytes, file.checksum
    if checksum is not None and not (
        isinstance(checksum, str) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", checksum)
    ):
        raise CheckpointError(f"{quote(file.name)} has a checksum that is none: {quote(checksum)}.")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise CheckpointError(f"{quote(file.name)} has a size that is none: {quote(size)}.")
    if checksum is None and (size is None or file.name.endswith(".safetensors")):
        raise CheckpointError(
            f"{HUB_NAMES[listing.source]} declares no checksum for {quote(file.name)} of "
            f"{quote(listing.model)}, so it cannot be verified. Use the other source."
        )
