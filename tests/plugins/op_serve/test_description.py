"""/openapi.json tells the truth: schemathesis asks whatever it allows, and much that it forbids."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from live_server import Live
from schemathesis import openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from op_serve.app import routes
from op_serve.describe import description

FEW: dict[str, Any] = {"steps": 1, "n": 1, "tries": 1, "batch_size": 1, "max_tokens": 8}
"""The most that is asked for where more is only more of the same work."""

schema: Any = openapi.from_dict(description())


@schema.parametrize()
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_every_address_keeps_to_its_description(case: Any, live: Live) -> None:
    if isinstance(case.body, dict):
        for key, most in FEW.items():
            value = case.body.get(key)
            if key in case.body and isinstance(value, int) and value > most:
                case.body[key] = most
            elif "prompt" in case.body and key in ("steps", "tries"):
                case.body.setdefault(key, most)
    answer = case.call(
        base_url=live.url, headers={"authorization": f"Bearer {live.token}"}, timeout=30
    )
    case.validate_response(
        answer,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )


def test_every_address_is_described_and_no_other() -> None:
    there = {
        (route.path.replace(":path", ""), method)
        for route in routes()
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = {
        (path, method.upper())
        for path, methods in description()["paths"].items()
        for method in methods
    }
    assert told == there


def test_the_description_is_served(live: Live) -> None:
    assert live.client.get("/openapi.json").json() == description()


@pytest.mark.parametrize("path", ["/v1/images/variations", "/v1/responses", "/v1/nothing"])
def test_what_is_not_there_is_said_in_the_dialect(live: Live, path: str) -> None:
    answer = live.client.post(path, json={})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
