"""Fixtures of the judging tests."""

import pytest
from fake_judge import fake_judge, well_formed

from grm_jax.judging import cli


@pytest.fixture
def command(monkeypatch):
    """`grm judge` with a judge that needs no weights."""
    from grm_jax.judging.judge import Judge

    def load(path, **options):
        assert path == "MODEL"
        return fake_judge(
            lambda responses, key: well_formed([7] + [2] * (len(responses) - 1)),
            template=options["template"],
        )

    monkeypatch.setattr(Judge, "load", load)
    return lambda *argv: cli.main(
        [*map(str, argv), "--model", "MODEL", "--quiet", "--template", "compact"]
    )
