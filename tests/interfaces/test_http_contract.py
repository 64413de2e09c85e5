"""What the server answers is what its OpenAPI says: schemathesis, against the real one."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.schemas import APIOperation

from tests.fix_postgres import Database
from tests.interfaces.fix_web import Site, shared_db, website
from tests.waiting import eventually

__all__ = ["shared_db", "website"]

CHECKS = (not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance)
CALLS = (
    "GET /api/campaigns",
    "GET /api/campaigns/running/stats",
    "GET /api/campaigns/{campaign_id}",
    "GET /api/campaigns/{campaign_id}/history",
    "GET /api/history",
    "GET /api/lag",
    "GET /api/recounts",
    "GET /api/recounts/{run_id}",
    "GET /api/status",
    "GET /livez",
    "GET /readyz",
    "POST /api/campaigns/{campaign_id}/sync-counts",
    "POST /api/login",
    "POST /api/logout",
    "POST /api/recounts",
)
#: endless, or no JSON: looked at by `test_sse` and `test_http`
ELSEWHERE = ("GET /api/events", "GET /api/campaigns/{campaign_id}/events", "GET /metrics")


@pytest.fixture(scope="module")
def operations(website: Site) -> dict[str, APIOperation[Any, Any, Any, Any]]:
    """The calls of the running server, as its own OpenAPI has them."""
    schema = schemathesis.openapi.from_url(website.url + "/openapi.json")
    results: list[Any] = list(schema.get_all_operations())
    found = [result.ok() for result in results]
    return {f"{it.method.upper()} {it.path}": it for it in found}


def test_every_call_is_looked_at(operations: dict[str, APIOperation[Any, Any, Any, Any]]) -> None:
    assert set(operations) == {*CALLS, *ELSEWHERE}


@pytest.mark.parametrize("call", CALLS)
def test_every_answer_fits_its_schema(operations: dict[str, APIOperation[Any, Any, Any, Any]], call: str) -> None:
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(case=operations[call].as_strategy())
    def ask(case: Any) -> None:
        response = case.call(timeout=30)
        if response.status_code == 503 and call.startswith("POST"):
            assert response.headers["retry-after"]  # a recount that can't be made now is no fault of the answer
            return
        case.validate_response(response, checks=list(CHECKS))

    ask()


def test_the_models_name_what_answers_hold(website: Site, shared_db: Database) -> None:
    """A name that an answer has and its model has not would be a name that nobody was told of."""
    from stream.web import models

    models.Campaigns.model_validate(website.get("/api/campaigns").json())
    models.Recounts.model_validate(website.get("/api/recounts").json())
    models.RecountRun.model_validate(website.get("/api/recounts/17").json())
    shared_db.execute("UPDATE sentstream.watermarks SET as_of = clock_timestamp(), seq = seq + 1")
    eventually(lambda: website.get("/api/campaigns/running/stats").status_code == 200)
    models.RunningStats.model_validate(website.get("/api/campaigns/running/stats").json())
    models.History.model_validate(website.get("/api/campaigns/7/history").json())
    models.Lag.model_validate(website.get("/api/lag").json())
    models.Health.model_validate(website.get("/livez").json())
