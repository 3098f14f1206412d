"""What can be wrong with data: one sample, or a whole shard."""

from collections.abc import Sequence

from ablate.core.errors import UserError


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
    """A shard or its index cannot be used. Never skipped: what else it has lost is not known.

    Attributes:
        members: where members were refused, each with its name and the reason.
    """

    def __init__(self, message: str, members: Sequence[tuple[str, str]] = ()):
        super().__init__(message)
        self.members = list(members)

    def __reduce__(self):
        return type(self), (str(self), self.members)
