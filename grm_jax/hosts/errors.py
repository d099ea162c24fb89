"""The error of a job that cannot start, and the exit status of one that lost a process."""

PEER_LOST = 70


class LaunchError(ValueError):
    """A command that cannot run, with the remedy, in one line; the program exits with status 2."""
