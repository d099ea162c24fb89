"""The error of a job that cannot start, and the exit status of one that lost a process."""

PEER_LOST = CRASHED = 70  # another process of the job, or this one, by an error of the program


START_AGAIN = 75  # the same command may succeed later, as after a preemption


class LaunchError(ValueError):
    """A command that cannot run, with the remedy, in one line; the program exits with status 2."""


class WorkersAbsent(LaunchError):
    """Some workers did not join in time; the program exits with START_AGAIN."""


class Unavailable(OSError):
    """A storage or a network did not answer; the program exits with START_AGAIN."""
