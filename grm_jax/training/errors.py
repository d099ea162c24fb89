"""The error of a run whose data or settings turn out to be unusable during training."""


class TrainingError(ValueError):
    """Training cannot continue until the user changes the data or a setting; the message says which.

    Any other ValueError during training is a bug.
    """
