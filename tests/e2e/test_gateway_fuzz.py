"""Requests that schemathesis makes from the OpenAPI document: none is answered with a fault, or beside the document."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from services.devstack.keys import mint
from services.devstack.stack import Stack
from services.kernel.clock import SystemClock
from services.kernel.principal import Principal, Role
from services.testkit.harness import Harness
from tests.e2e.checked import checked_books
from tests.e2e.conftest import FreshStack

#: Left out: whether every request that fits the document is served, for which the orders and accounts would have to
#: exist; and whether none is that does not fit, for JSON of protobuf takes null for any field.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
#: Below what the gateway lets one caller send.
RATE = "80/s"
_TIMEOUT_S = 900.0
#: Drawn at random for each method; those that it derives from the schemas are many more.
_EXAMPLES = "3"
#: Longer than the gateway gives a call.
_REQUEST_S = "40"


@pytest.mark.long
@pytest.mark.timeout(_TIMEOUT_S)
async def test_no_request_is_answered_with_a_fault_or_beside_the_document(
    fresh_stack: FreshStack, tmp_path: Path
) -> None:
    """Of 2,000 and more, as two callers. The books agree afterwards."""
    made = 0
    async with fresh_stack(gateway=True) as stack, Harness(stack) as harness:
        for principal in (Principal("wang", Role.ACCOUNTANT), Principal("mei", Role.CUSTOMER)):
            code, said = await schemathesis(stack, tmp_path, principal)
            assert code == 0, said
            (generated,) = re.findall(r"(\d+) generated", said)
            made += int(generated)
        await checked_books(harness)
    assert made >= 2_000


async def schemathesis(stack: Stack, tmp_path: Path, caller: Principal) -> tuple[int, str]:
    """Run it; returns its exit code and what it printed."""
    token = mint(stack.data, caller, 1800, SystemClock())
    process = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("schemathesis"), "run", f"http://{stack.describe().gateway}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--max-examples", _EXAMPLES, "--rate-limit", RATE, "--seed", "1"),
        *("--request-timeout", _REQUEST_S, "--no-color", "--header", f"Authorization: Bearer {token}"),
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode(errors="replace")
