"""The launcher's error and exit statuses."""


class LaunchError(Exception):
    """A command that cannot run, with the remedy, in one line; the launcher exits with status 2."""


class DoesNotFit(LaunchError):
    """This machine cannot hold the experiment: three lines, with the ways on."""


# Exit statuses of launch/tpu.py.
FAILED, WRONG_COMMAND, PEER_LOST, START_AGAIN, INTERRUPTED = 1, 2, 70, 75, 130
