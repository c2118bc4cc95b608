"""Whether the operator lives and is ready, and its metrics, over HTTP."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from taskloom_operator.metrics import Metrics

__all__ = ["serve"]


async def serve(
    metrics: Metrics,
    alive: Callable[[], str],
    ready: Callable[[], str],
    health_port: int,
    metrics_port: int,
    host: str = "0.0.0.0",
) -> list[web.AppRunner]:
    """Listen.

    Args:
        alive, ready: say what is wrong; "": nothing.

    Returns:
        what is to be cleaned up at the end.

    Raises:
        OSError: a port is taken.
    """

    def says(what: Callable[[], str]) -> Callable[[web.Request], web.Response]:
        async def answer(request: web.Request) -> web.Response:
            wrong = what()
            return web.Response(text=wrong or "ok", status=503 if wrong else 200)

        return answer  # type: ignore[return-value]

    async def text(request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    runners = []
    for port, pages in (
        (health_port, {"/healthz": says(alive), "/readyz": says(ready)}),
        (metrics_port, {"/metrics": text}),
    ):
        application = web.Application()
        for path, page in pages.items():
            application.router.add_get(path, page)  # type: ignore[arg-type]
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        runners.append(runner)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError:
            for one in runners:
                await one.cleanup()
            raise
    return runners
