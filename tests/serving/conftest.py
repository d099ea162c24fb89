"""One server for the tests that leave it as it was."""

import pytest
from toy_server import serving, toy_judge, toy_service


@pytest.fixture(scope="package")
def server():
    with serving(toy_service()) as running:
        yield running


@pytest.fixture(scope="package")
def texts():
    """A server whose completions are texts."""
    with serving(toy_service(toy_judge(scores=False))) as running:
        yield running
