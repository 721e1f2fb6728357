"""Whether the server lives, whether it can answer, and how much it does."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from qianyan.server.serving import Served

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the server lives."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(serving: Served) -> dict[str, str]:
    """Say whether the model can be asked; 503 when it is not."""
    serving.worker.refuse_unless_ready()
    return {"status": "ready"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(serving: Served) -> str:
    """Count requests in Prometheus' text format."""
    gauges = {
        "qianyan_requests_running": (
            "Requests being prepared or answered.",
            serving.worker.num_running,
        ),
        "qianyan_requests_waiting": ("Requests waiting in line.", serving.worker.num_waiting),
    }
    return "".join(
        f"# HELP {name} {meaning}\n# TYPE {name} gauge\n{name} {value}\n"
        for name, (meaning, value) in gauges.items()
    )
