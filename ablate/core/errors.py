"""The errors that a user can correct: shown as one message, without a traceback."""

import difflib
import errno
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


_WHAT_TO_DO = {
    errno.EACCES: "Choose a place that you may use, or ask for its permission.",
    errno.EPERM: "Choose a place that you may use, or ask for its permission.",
    errno.EROFS: "Nothing can be written there: choose another place.",
    errno.ENOENT: "Check the path: it, or a folder on the way to it, is not there or cannot be made.",
    errno.ENOTDIR: "Check the path: a part of it is a file, where a folder is expected.",
    errno.EISDIR: "Give a file: this is a folder.",
    errno.EEXIST: "Something is there, such as a file where a folder is expected: choose another path.",
    errno.ENOTEMPTY: "Choose another folder, or empty it.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Its symbolic links lead in a circle: choose another path.",
    errno.ENOSPC: "What was finished is kept; free some space and repeat.",
    errno.EDQUOT: "What was finished is kept; free some space and repeat.",
    errno.EFBIG: "The file system allows no larger files: choose another place.",
    errno.EIO: "The disk or its connection has failed: try again, or choose another place.",
    errno.ESTALE: "The network's file system has lost the file: try again.",
    errno.EMFILE: "Allow more open files: ulimit -n 4096.",
    errno.ENFILE: "The system has too many open files: close other programs.",
    errno.ETXTBSY: "Another program is using it: wait, or choose another path.",
}


def file_problem(error: OSError) -> str:
    """What cannot be written or read, why, and what to do, for an error of the file system; "" for any other.

    Errors with neither a path nor a known reason come from elsewhere, such as a network.
    """
    if error.errno is None or (error.filename is None and error.errno not in _WHAT_TO_DO):
        return ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename is not None else ""
        return f"the disk is full{where}. {_WHAT_TO_DO[error.errno]}"
    path = error.filename2 if error.filename2 is not None else error.filename
    where = f"{path} cannot be written or read" if path is not None else "a file cannot be written or read"
    return f"{where}: {error.strerror}. {_WHAT_TO_DO.get(error.errno, 'Choose another path.')}"
