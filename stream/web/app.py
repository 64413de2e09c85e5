"""The ASGI application: routers, background tasks, OpenAPI."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.types import ASGIApp

from connectors.postgres.setup.versions import release
from stream.config.settings import Settings
from stream.metrics.families import Page
from stream.metrics.poller import DatabasePoller
from stream.web import campaigns, events, health, metrics, models, operations, pages, problems, recounts, stats
from stream.web.access import AccessMiddleware, AccessRules
from stream.web.context import Context, PollState
from stream.web.database_poll import poll_database
from stream.web.live_state import LiveState
from stream.web.proxies import behind_proxies
from stream.web.sessions import open_pool

log = logging.getLogger(__name__)

#: seconds before a failed background task is restarted
RESTART_AFTER: Final = 1.0

#: stats first: its path `campaigns/running` would match `campaigns/{id}`
ROUTERS: Final = tuple(part.router for part in (stats, campaigns, events, recounts, operations, health, metrics, pages))

Source = Callable[[Context], Coroutine[Any, Any, None]]


def make_context(settings: Settings, *, has_feed: bool = False) -> Context:
    """The context of an application. ``has_feed``: see `Context`."""
    rules = AccessRules(
        settings.http_token,
        frozenset(host.lower() for host in settings.http_allowed_hosts),
        frozenset(origin.lower() for origin in settings.http_allowed_origins),
    )
    live = LiveState(settings.http_max_streams)
    settings.require_database()
    return Context(settings, rules, live, PollState(time.monotonic()), open_pool(settings), has_feed)


def make_app(context: Context, *sources: Source) -> ASGIApp:
    """The ASGI application. ``sources``: tasks that bring counts beside the poll."""
    poller = DatabasePoller(context.settings, context.session)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        poller.start()
        tasks = [
            asyncio.create_task(_restarting("publisher", context.live.publish)),
            asyncio.create_task(_restarting("poll", lambda: poll_database(context))),
            asyncio.create_task(_restarting("stats", lambda: app.state.stats.refresh(context))),
            *(asyncio.create_task(_restarting("source", _bound(source, context))) for source in sources),
        ]
        try:
            yield
        finally:
            context.live.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(poller.stop)
            await asyncio.to_thread(context.pool.close, 1)

    app = FastAPI(
        title="sentstream",
        version=release(),
        summary="Progress of campaigns, live; and the proof that the numbers are right.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={"default": {"description": "An error", "model": models.Problem}},
    )
    app.state.context = context
    app.state.metrics = metrics.Metrics(context.live)
    app.state.stats = stats.Stats()
    app.state.poller = poller
    context.texts.append(Page(poller.view.families).text)
    app.state.recount_queue = recounts.RecountQueue()
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", pages.files(), name="static")
    problems.install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    own_routes = [route for router in ROUTERS for route in router.routes]
    counting = metrics.CountingMiddleware(app, app.state.metrics, [*own_routes, *app.routes])
    guarded = AccessMiddleware(counting, context.rules, context.wrong_tokens)
    return behind_proxies(guarded, context.settings.http_trusted_proxies)


def _bound(source: Source, context: Context) -> Callable[[], Coroutine[Any, Any, None]]:
    return lambda: source(context)


async def _restarting(name: str, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a task, and restart it when it fails: an unexpected exception must not stop updates for good."""
    while True:
        try:
            await what()
            return
        except Exception:
            log.exception("The %s failed and is restarted", name)
            await asyncio.sleep(RESTART_AFTER)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's OpenAPI 3.1, with errors as application/problem+json and both ways to authenticate."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes, openapi_version="3.1.0"
    )
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "cookie": {"type": "apiKey", "in": "cookie", "name": "sentstream"},
    }
    components.setdefault("schemas", {})["Login"] = models.Login.model_json_schema()
    schema["security"] = [{"token": []}, {"cookie": []}, {}]
    for path in schema["paths"].values():
        for call in path.values():
            _as_problems(call["responses"])
    app.openapi_schema = schema
    return schema


def _as_problems(responses: dict[str, Any]) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses["default"] = {"description": "A problem", "content": problem}
    if "422" in responses:
        responses["422"] = {"description": "The request is not valid", "content": problem}
    if "409" in responses:
        responses["409"]["content"] = problem
