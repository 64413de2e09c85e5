"""The application: the calls put together, and the tasks that keep it alive."""

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
from stream.web import campaigns, events, health, lag, metrics, models, pages, problems, recounts, stats
from stream.web.context import Context, Following
from stream.web.follow import follow
from stream.web.guard import Guard, Rules
from stream.web.live import Live
from stream.web.sessions import open_pool

log = logging.getLogger(__name__)

#: seconds before a task that failed is begun again
AGAIN: Final = 1.0

#: the calls; stats first, for `running` is no id
ROUTERS: Final = tuple(part.router for part in (stats, campaigns, events, recounts, lag, health, metrics, pages))

Source = Callable[[Context], Coroutine[Any, Any, None]]


def make_context(settings: Settings, *, beside: bool = False) -> Context:
    """What the calls share. ``beside``: counts arrive by another way than the database, too."""
    rules = Rules(
        settings.http_token,
        frozenset(host.lower() for host in settings.http_allowed_hosts),
        frozenset(origin.lower() for origin in settings.http_allowed_origins),
    )
    live = Live(settings.http_max_streams)
    settings.require_database()
    return Context(settings, rules, live, Following(time.monotonic()), open_pool(settings), beside)


def make_app(context: Context, *sources: Source) -> ASGIApp:
    """The ASGI application. ``sources``: tasks that bring counts by another way than the database."""
    poller = DatabasePoller(context.settings, context.session)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        poller.start()
        tasks = [
            asyncio.create_task(_kept_up("publisher", context.live.publish)),
            asyncio.create_task(_kept_up("follower", lambda: follow(context))),
            asyncio.create_task(_kept_up("stats", lambda: app.state.stats.refresh(context))),
            *(asyncio.create_task(_kept_up("source", _bound(source, context))) for source in sources),
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
    app.state.asking = recounts.Asking()
    app.state.wrong_token = asyncio.Lock()
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static", pages.files(), name="static")
    problems.install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    own_routes = [route for router in ROUTERS for route in router.routes]
    return Guard(metrics.Counted(app, app.state.metrics, [*own_routes, *app.routes]), context.rules)


def _bound(source: Source, context: Context) -> Callable[[], Coroutine[Any, Any, None]]:
    return lambda: source(context)


async def _kept_up(name: str, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a task, and begin it again where it fails: one fault must not silence the page until a restart."""
    while True:
        try:
            await what()
            return
        except Exception:
            log.exception("The %s failed and is begun again", name)
            await asyncio.sleep(AGAIN)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1: FastAPI's own, with problems as application/problem+json and the two ways to be known."""
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
