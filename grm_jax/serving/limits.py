"""Limits of a server, and its settings."""

from __future__ import annotations

import dataclasses

from grm_jax.commands import Number

RANGES = {
    "body_mib": Number(float, above=0, high=1024),
    "groups": Number(int, 1, 1 << 16),
    "responses": Number(int, 1, 1 << 16),
    "n": Number(int, 1, 1 << 16),
    "queue": Number(int, 1, 1 << 16),
    "connections": Number(int, 1, 1 << 16),
    "timeout": Number(float, above=0, high=1e6),
    "read_timeout": Number(float, above=0, high=1e6),
    "grace": Number(float, 0, 1e6),
    "group_size": Number(int, 1, 1 << 16),
    "cohort_timeout": Number(float, above=0, high=1e6),
    "cohorts": Number(int, 1, 1 << 20),
}
HEADER_BYTES = 16 << 10  # of a request's line and headers together
BODIES_MIB = 256.0  # of all request bodies that are held at once


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one server; each is an option of `grm serve`.

    Attributes:
      body_mib: size of a request's body.
      groups: groups of one request.
      responses: responses of one group.
      n: samples of one chat completion, and critiques (k) of one group.
      queue: HTTP requests that run or wait; one more is answered with status 429.
      connections: open connections.
      timeout: seconds until a request fails; a client may ask for less.
      read_timeout: seconds in which a client must send a request's head, its body, and read an
        answer that fills the buffers.
      grace: seconds after SIGTERM in which running requests may finish.
      group_size: responses of a group of /verify that does not say it.
      cohort_timeout: seconds until a group of /verify that misses responses fails.
      cohorts: groups of /verify whose rewards are kept for retries.

    Raises ValueError, beginning with the field's name, for a value outside its range.
    """

    body_mib: float = 8.0
    groups: int = 64
    responses: int = 256
    n: int = 128
    queue: int = 128
    connections: int = 1024
    timeout: float = 600.0
    read_timeout: float = 20.0
    grace: float = 30.0
    group_size: int = 8
    cohort_timeout: float = 300.0
    cohorts: int = 4096

    def __post_init__(self) -> None:
        for name, number in RANGES.items():
            number.check(f"{name} = ", getattr(self, name))
