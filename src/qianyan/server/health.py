"""Whether the server lives, whether it can answer, and how much it does."""

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from qianyan.server.metrics import Gauges, Metrics
from qianyan.server.serving import Served
from qianyan.server.worker import Worker

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the server lives: that it takes requests, whatever it can make of them."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(serving: Served) -> dict[str, str]:
    """Say whether the model can be asked; 503 when it is broken or the server stops."""
    serving.worker.refuse_unless_ready()
    return {"status": "ready"}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Give all counts in Prometheus' text format."""
    counts: Metrics = request.app.state.metrics
    return Response(counts.write(), media_type=CONTENT_TYPE_LATEST)


def gauges_of(worker: Worker) -> Gauges:
    """Say what is read of a worker and its engine."""
    engine = worker.engine
    return {
        ("qianyan_requests_running", "Requests being prepared or answered."): lambda: (
            worker.num_running
        ),
        ("qianyan_requests_waiting", "Requests waiting in line."): lambda: worker.num_waiting,
        ("qianyan_ready", "1 when the model can be asked, 0 when it is broken."): lambda: (
            worker.failure is None
        ),
        ("qianyan_cache_blocks", "Blocks of the cache for keys and values."): lambda: (
            engine.num_blocks
        ),
        ("qianyan_cache_blocks_used", "Blocks that running requests hold."): lambda: (
            engine.num_used_blocks
        ),
    }
