"""Errors of a job on several hosts or over a network, and exit statuses that tell what to do."""

PEER_LOST = CRASHED = 70  # another process of the job, or this one, by an error of the program
START_AGAIN = 75  # the same command may succeed later, as after a preemption


class LaunchError(ValueError):
    """A command that cannot run, with the remedy, in one line; the program exits with status 2."""


class WorkersAbsent(LaunchError):
    """Some workers did not join in time; the program exits with START_AGAIN."""


class Unavailable(OSError):
    """A storage or a network did not answer; the program exits with START_AGAIN."""
