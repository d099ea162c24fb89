"""The error of a job that cannot start, and the exit status of one that lost a process."""

PEER_LOST = CRASHED = 70  # another process of the job, or this one, by an error of the program


class LaunchError(ValueError):
    """A command that cannot run, with the remedy, in one line; the program exits with status 2."""
