"""The document of the HTTP interface: what it says, and that the daemon does what it says."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from craftcache import errors
from tests.daemon.serve.test_http_document import routes, sections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.daemons import DaemonProcess

schemathesis = pytest.importorskip("schemathesis")  # not beside the oldest libraries
CHECKS = pytest.importorskip("schemathesis.checks").CHECKS
GenerationMode = pytest.importorskip("schemathesis.generation").GenerationMode

EXAMPLES = int(os.environ.get("CRAFTCACHE_API_EXAMPLES", "8"))
"""For each operation, right ones and wrong ones; many more in a campaign."""

STREAM = ("GET", "/v1/events")
"""Has no end."""

CHECKED = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance", "negative_data_rejection"),
)


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(daemon.socket_dir / "craftcache.sock"))
    with httpx.Client(transport=transport, base_url="http://craftcache", timeout=60) as client:
        yield client


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/v1/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_each_route_is_described(document: dict[str, Any]) -> None:
    assert set(operations(document)) == set(routes())
    for route, operation in operations(document).items():
        success = operation["responses"].get("200")
        assert success is not None, route
        for media, content in success["content"].items():
            is_said = media != "application/json" or content["schema"] not in ({}, None)
            assert is_said, f"{route} says not what it answers with: see openapi.answers"


def test_each_route_has_the_errors_that_its_section_lists(document: dict[str, Any]) -> None:
    for route, operation in operations(document).items():
        line = re.search(r"Errors: (.*?)(?=\n\n|\Z)", sections()[route], re.DOTALL)
        named = re.findall(r"`([A-Z]\w+)`", line[1]) if line else []
        listed = {str(getattr(errors, name).http_status) for name in named}
        said = set(operation["responses"])
        assert listed <= said, route
        assert {
            code for code in said if code in {"403", "404", "422", "429", "502", "503", "507"}
        } == (listed - {"400"}), route


def test_bodies_have_the_keys_that_are_parsed(document: dict[str, Any]) -> None:
    bodies = {
        route: operation["requestBody"]["content"]["application/json"]["schema"]
        for route, operation in operations(document).items()
        if "requestBody" in operation
    }
    warm = bodies["POST /v1/warm"]
    assert warm["required"] == ["sources"]
    assert warm["properties"]["sources"]["maxItems"] == 256
    assert {"files", "resident", "pair_only", "refresh", "wait"} < set(warm["properties"])
    assert warm["properties"]["wait"]["default"] is True
    assert bodies["PUT /v1/watches/{name}"]["required"] == ["directory"]
    for route, body in bodies.items():
        for key in body["properties"]:
            assert f"`{key}`" in sections()[route] or f'"{key}"' in sections()[route], (route, key)


def test_the_daemon_answers_as_the_document_says(
    client: httpx.Client, document: dict[str, Any]
) -> None:
    warmed = client.post("/v1/warm", json={"sources": ["org/model"]})
    assert warmed.status_code == 200, warmed.text
    schema = schemathesis.openapi.from_dict(document)
    checks = CHECKS.get_by_names(list(CHECKED))
    quick = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    sent = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if (operation.method.upper(), operation.path) == STREAM:
            continue
        may_be_wrong = may_violate(operation.definition.raw)
        for mode in (GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if may_be_wrong else ())):

            @quick
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                sent.append(case.operation.label)
                case.validate_response(send(client, case), checks=checks)

            check()
    assert set(sent) == {route for route in routes() if route != " ".join(STREAM)}
    assert len(sent) > 10 * EXAMPLES


def may_violate(operation: dict[str, Any]) -> bool:
    """Whether a request for it can be wrong: text that only must not be empty always is right."""
    schemas = [each["schema"] for each in operation.get("parameters", ())]
    return "requestBody" in operation or any(set(each) - {"type", "minLength"} for each in schemas)


def send(client: httpx.Client, case: Any) -> httpx.Response:
    """What a generated request is answered with; over the Unix socket, which requests cannot do."""
    sent = case.as_transport_kwargs(base_url="http://craftcache")
    allowed = ("method", "url", "params", "headers", "json", "data")
    request = {key: value for key, value in sent.items() if key in allowed and value is not None}
    if "data" in request:
        request["content"] = request.pop("data")
    return client.request(**request)
