"""The launcher's error and exit statuses."""

from grm_jax.hosts.errors import PEER_LOST as PEER_LOST, LaunchError as LaunchError


class DoesNotFit(LaunchError):
    """This machine cannot hold the experiment: three lines, with the ways on."""


# Exit statuses of launch/tpu.py.
FAILED, WRONG_COMMAND, START_AGAIN, INTERRUPTED = 1, 2, 75, 130
