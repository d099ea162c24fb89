"""The launcher's error and exit statuses."""

from grm_jax.hosts.errors import (
    PEER_LOST as PEER_LOST,
    START_AGAIN as START_AGAIN,
    LaunchError as LaunchError,
    Unavailable as Unavailable,
    WorkersAbsent as WorkersAbsent,
)


class DoesNotFit(LaunchError):
    """This machine cannot hold the experiment: three lines, with the ways on."""


# Exit statuses of launch/tpu.py, besides START_AGAIN.
FAILED, WRONG_COMMAND, INTERRUPTED = 1, 2, 130
