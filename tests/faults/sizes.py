"""How many cases a test tries: few in every run of the tests, many with `-m nightly`."""

import pytest


def cases(few: int, many: int) -> pytest.MarkDecorator:
    """Gives a test its argument `number`: few, and many under the marker `nightly`."""
    return pytest.mark.parametrize(
        "number", [pytest.param(few, id="few"), pytest.param(many, id="nightly", marks=pytest.mark.nightly)]
    )
