"""What one server is told when it starts: its limits, the names of its model, and who may ask."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from qianyan.errors import ConfigError, quote
from qianyan.server.batch_lines import BatchLimits
from qianyan.server.files import FileLimits
from qianyan.server.keys import check_key
from qianyan.server.search_providers import SearchSettings
from qianyan.server.tasks import TaskLimits
from qianyan.server.uploads import UploadLimits
from qianyan.server.upstream_settings import UpstreamSettings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one server bears.

    Args:
        max_waiting: requests that wait in line while as many are answered as the engine takes
            at once; one more is refused with 429, or takes the place of the last one of a key
            that has more of them.
        max_wait_s: seconds until a request that waits must have begun; then it is refused with 503.
        retry_after_s: what a refused client is told to wait.
        max_open_per_key: requests of one key that wait or are answered; 0: no limit of their own.
        requests_per_minute: POST requests of one key; 0: no limit.
        tokens_per_minute: tokens of prompts and answers of one key, paid when an answer ends; 0: no
            limit.
        max_answer_s: seconds from a request to the end of its answer; what there is by then is
            sent, with the finish_reason length. Tasks and batches have limits of their own.
        max_speech_s: seconds from the beginning of an answer that is spoken to the end of its
            sound; what was said by then is sent, with the finish_reason length.
        max_preparing: requests of one key whose pictures, videos and documents are read at the
            same time; of all keys together one more.
        max_body_bytes: largest body of a request, uploads of files apart.
        max_json_values: values in the JSON of a body, counted by its commas and brackets before
            it is parsed.
        max_choices: answers to one request (`n`).
        max_head_bytes: largest request line and headers together.
        head_timeout_s: seconds until a connection must have sent the whole head of a request.
        body_timeout_s: seconds that a body may take beside those its bytes earn.
        least_body_rate: bytes of a body that earn one more second.
        write_timeout_s: seconds that a reader may take nothing while an answer waits for it.
        keep_alive_s: seconds that a connection stays open between two requests.
        max_connections: connections at the same time; one more is answered with 503.
        thinking_budget: tokens that a model may think where the request says nothing of it.
        drain_s: seconds that running answers have when the server is told to stop.
    """

    max_waiting: int = 256
    max_wait_s: float = 60.0
    retry_after_s: int = 2
    max_open_per_key: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_answer_s: float = 300.0
    max_speech_s: float = 900.0
    max_preparing: int = 4
    max_body_bytes: int = 64_000_000
    max_json_values: int = 2_000_000
    max_choices: int = 4
    thinking_budget: int = 16_384
    max_head_bytes: int = 65_536
    head_timeout_s: float = 20.0
    body_timeout_s: float = 30.0
    least_body_rate: int = 20_000
    write_timeout_s: float = 60.0
    keep_alive_s: int = 5
    max_connections: int = 4096
    drain_s: int = 30

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value < 0 or (value == 0 and one.name not in MAY_BE_ZERO):
                raise ConfigError(f"{one.name} is {value}; expected more.")


MAY_BE_ZERO = frozenset(
    {"max_waiting", "drain_s", "max_open_per_key", "requests_per_minute", "tokens_per_minute"}
)


@dataclass(frozen=True, kw_only=True)
class RealtimeLimits:
    """What conversations over a socket may take.

    Args:
        max_sessions: conversations at the same time.
        max_sessions_per_key: of one key.
        max_session_s: seconds that one lasts.
        max_idle_s: seconds in which the client must send something, or be answered.
        max_event_bytes: largest event of a client.
        max_event_values: values in the JSON of an event.
        max_unread_bytes: bytes of events that wait for those before them.
        max_unsent_bytes: bytes of events that wait for a client that takes nothing; one more ends
            the conversation.
        max_buffer_s: seconds of sound in one turn of the user.
        max_frame_bytes: largest picture, of a camera or in an item.
        max_text_characters: characters of instructions, and of one text.
        max_items: items of a conversation; the oldest go.
        max_heard_s: seconds of sound in a conversation; the oldest go.
        max_seen_frames: pictures of a camera in a conversation; the oldest go.
        max_picture_bytes: bytes of other pictures in a conversation; the oldest go.
        max_threads: threads that listen, for all conversations.
    """

    max_sessions: int = 64
    max_sessions_per_key: int = 8
    max_session_s: float = 3600.0
    max_idle_s: float = 300.0
    max_event_bytes: int = 16_000_000
    max_event_values: int = 10_000
    max_unread_bytes: int = 32_000_000
    max_unsent_bytes: int = 16_000_000
    max_buffer_s: float = 300.0
    max_frame_bytes: int = 4_000_000
    max_text_characters: int = 100_000
    max_items: int = 200
    max_heard_s: float = 900.0
    max_seen_frames: int = 240
    max_picture_bytes: int = 32_000_000
    max_threads: int = 4


@dataclass(frozen=True, kw_only=True)
class KeepingLimits:
    """What is kept in the state folder, and for how long."""

    files: FileLimits = field(default_factory=FileLimits)
    uploads: UploadLimits = field(default_factory=UploadLimits)
    tasks: TaskLimits = field(default_factory=TaskLimits)
    batches: BatchLimits = field(default_factory=BatchLimits)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server listens, what its model is called there, and which keys open it.

    `model_names` are the names that requests may give the model here, the first one being its own;
    `upstreams` are models at other servers.
    Without `api_keys` everybody may ask, which is accepted on loopback only. Files and batches are
    kept under `state_folder`; without one there are none. Its tables are in a file there, or in the
    database of `database_url`. Without `search` the web is not searched.
    """

    model_names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    limits: ServerLimits = field(default_factory=ServerLimits)
    state_folder: Path | None = None
    database_url: str | None = field(default=None, repr=False)
    keeping: KeepingLimits = field(default_factory=KeepingLimits)
    realtime: RealtimeLimits = field(default_factory=RealtimeLimits)
    search: SearchSettings | None = None
    upstreams: tuple[UpstreamSettings, ...] = ()

    def __post_init__(self) -> None:
        for one in self.upstreams:
            if one.name in self.model_names:
                raise ConfigError(
                    f"Both the model here and an upstream one are called {quote(one.name)}; "
                    "expected different names."
                )
        if not self.model_names or not all(self.model_names):
            raise ConfigError("The model has no name or an empty one; expected at least one name.")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535, 0 for any free one.")
        for key in self.api_keys:
            check_key(key)
        if not self.api_keys and not self.is_loopback:
            raise ConfigError(
                f"host is {quote(self.host)}, which others can reach; expected an API key "
                "(QIANYAN_API_KEYS or --api-keys-file), or 127.0.0.1."
            )

    @property
    def all_names(self) -> tuple[str, ...]:
        """All names that requests may give, those of upstream models last."""
        return (*self.model_names, *(one.name for one in self.upstreams))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK

    @property
    def address(self) -> str:
        """The address that clients of this machine use, without a path."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
