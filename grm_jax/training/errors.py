"""Errors of inputs: those that are missing before a run, those found unusable during training."""


class MissingInputs(FileNotFoundError):
    """Files or models that an experiment needs are missing; the message has a line for each."""


class TrainingError(ValueError):
    """Training cannot continue until the user changes the data or a setting; the message says so.

    Any other ValueError during training is a bug.
    """
