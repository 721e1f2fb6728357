"""What routes work with: the settings and the worker of the app they belong to."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from qianyan.errors import quote
from qianyan.server.asking import asked_now
from qianyan.server.errors import RefusedError
from qianyan.server.searching import WebSearch
from qianyan.server.settings import ServerSettings
from qianyan.server.upstream_chat import UpstreamModels
from qianyan.server.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Serving:
    """One running server; `web` is None where it has no web search."""

    settings: ServerSettings
    worker: Worker
    upstreams: UpstreamModels
    web: WebSearch | None = None

    def check_model(self, name: str) -> None:
        """Raise RefusedError for a model that is not loaded here."""
        if name in self.upstreams.by_name:
            raise RefusedError(
                f"The model {quote(name)} is at another server, which is asked for conversations "
                "and embeddings only; expected a model of this server: "
                f"{', '.join(self.settings.model_names)}.",
                status=400,
                code="unsupported_model",
                param="model",
            )
        if name not in self.settings.model_names:
            known = ", ".join(self.settings.all_names)
            raise RefusedError(
                f"The model {quote(name)} does not exist here; expected one of {known}.",
                status=404,
                code="model_not_found",
                param="model",
            )
        asked_now().model = name


def find_serving(request: Request) -> Serving:
    """Find what serves a request; for FastAPI's Depends."""
    serving: Serving = request.app.state.serving
    return serving


Served = Annotated[Serving, Depends(find_serving)]
"""A parameter of this type gets the Serving of the app."""
