"""The one kind of error that is the user's to mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user: the message says what was got, what was expected and what to do next.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 2


def nearest(got: str, choices: Iterable[str], limit: int = 3) -> list[str]:
    """The choices that look most like `got`, best first; case does not matter."""
    by_lower = {choice.lower(): choice for choice in choices}
    return [by_lower[match] for match in difflib.get_close_matches(got.lower(), by_lower, n=limit)]


def unknown_name(kind: str, got: str, choices: Iterable[str]) -> UserError:
    """An error for a name that is not in a registry: the nearest names first, then all choices."""
    choices = sorted(choices)
    near = nearest(got, choices)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listed = ", ".join(choices) if choices else "(none is registered)"
    return UserError(f'Unknown {kind} "{got}".{hint} Choices: {listed}.')
