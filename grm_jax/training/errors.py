"""Errors of inputs and of sampling, which the commands print as one line."""

from typing import Any


class MissingInputs(FileNotFoundError):
    """Files or models that an experiment needs are missing; the message has a line for each."""


class SamplingError(RuntimeError):
    """Critiques cannot be sampled, or differ between the processes."""


class TooManyFailed(SamplingError):
    """More than the share `max_failed` of the requests of one call failed for good.

    replies: of that call; None for each request that failed.
    """

    def __init__(self, replies: list[Any], max_failed: float, reason: str):
        failed = sum(reply is None for reply in replies)
        super().__init__(
            f"{failed} of {len(replies)} requests failed, "
            f"more than the share of {max_failed:g}; {reason}"
        )
        self.replies, self.max_failed = replies, max_failed


class TrainingError(ValueError):
    """Training cannot continue until the user changes the data or a setting; the message says so.

    Any other ValueError during training is a bug.
    """
