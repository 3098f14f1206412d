"""What can be wrong with data: one sample, or a whole shard."""

from ablate.errors import UserError


class BadSample(UserError):
    """One sample cannot be used. `on_bad_sample="skip"` leaves it out and counts it.

    Attributes:
        key: where the sample is, as `shard:key`.
        reason: what is wrong with it.
    """

    def __init__(self, key: str, reason: str):
        super().__init__(f"Bad sample {key}: {reason}")
        self.key = key
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.key, self.reason)


class ShardError(UserError):
    """A shard or its index cannot be used. Never skipped: what else it has lost is not known."""
