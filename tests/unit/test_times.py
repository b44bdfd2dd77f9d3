"""Times as S3 servers write them."""

from datetime import UTC, datetime
from typing import Any

from vault.stores.s3_client import parse_time


def test_time_is_read_in_every_form() -> None:
    second = datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)
    forms: dict[Any, datetime] = {
        "2026-11-22T01:02:03Z": second,
        "2026-11-22T01:02:03.456Z": second.replace(microsecond=456000),
        "2026-11-22T01:02:03.456789+00:00": second.replace(microsecond=456789),
        "Sun, 22 Nov 2026 01:02:03 GMT": second,
        1_795_309_323: second,
    }
    assert {written: parse_time(written) for written in forms} == forms
