"""Times as S3 servers write them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from files.stores.service import moment


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-11-22T01:02:03Z", datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)),
        ("2026-11-22T01:02:03.456Z", datetime(2026, 11, 22, 1, 2, 3, 456000, tzinfo=UTC)),
        ("2026-11-22T01:02:03.456789+00:00", datetime(2026, 11, 22, 1, 2, 3, 456789, tzinfo=UTC)),
        ("Sun, 22 Nov 2026 01:02:03 GMT", datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)),
        (1_795_309_323, datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC)),
    ],
)
def test_time_is_read_in_every_form(written: Any, meant: datetime) -> None:
    assert moment(written) == meant
