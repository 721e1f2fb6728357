"""What one server is told when it starts: its limits, the names of its model, and who may ask."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from qianyan.errors import ConfigError, quote

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one server bears.

    Args:
        max_waiting: requests that wait in line while as many are answered as the engine takes
            at once; one more is refused with 429.
        max_wait_s: seconds until a request that waits must have begun; then it is refused with 503.
        retry_after_s: what a refused client is told to wait.
        max_preparing: requests whose pictures, videos and documents are read at the same time.
        max_body_bytes: largest body of a request, uploads of files apart.
        max_choices: answers to one request (`n`).
        drain_s: seconds that running answers have when the server is told to stop.
    """

    max_waiting: int = 256
    max_wait_s: float = 60.0
    retry_after_s: int = 2
    max_preparing: int = 4
    max_body_bytes: int = 64_000_000
    max_choices: int = 4
    drain_s: int = 30

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value < 0 or (value == 0 and one.name not in ("max_waiting", "drain_s")):
                raise ConfigError(f"{one.name} is {value}; expected more.")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server listens, what its model is called there, and which keys open it.

    `model_names` are all names that requests may give, the first one being the model's own.
    Without `api_keys` everybody may ask, which is accepted on loopback only. Files and batches are
    kept under `state_folder`; without one there are none.
    """

    model_names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    limits: ServerLimits = field(default_factory=ServerLimits)
    state_folder: Path | None = None

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise ConfigError("The model has no name or an empty one; expected at least one name.")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535, 0 for any free one.")
        for key in self.api_keys:
            if not key.isascii() or not key.isprintable() or " " in key or len(key) < 8:
                raise ConfigError(
                    "An API key has fewer than 8 characters, or blanks or other characters that "
                    "no header carries; expected something like sk-3b1f8c2e77d94a06."
                )
        if not self.api_keys and not self.is_loopback:
            raise ConfigError(
                f"host is {quote(self.host)}, which others can reach; expected an API key "
                "(--api-key or QIANYAN_API_KEYS), or 127.0.0.1."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK

    @property
    def address(self) -> str:
        """The address that clients of this machine use, without a path."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
