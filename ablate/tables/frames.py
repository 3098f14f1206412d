"""Lines as a pandas DataFrame. pandas is imported when one is asked for: nothing else here needs it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ablate.core.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(lines: Sequence[Mapping[str, Any]]) -> "DataFrame":
    """A DataFrame with a row for each line, and the columns in the order in which lines first have them.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError("to_frame() needs pandas: pip install 'ablate[notebook]', or pandas itself.") from None
    return pandas.DataFrame.from_records(lines, columns=list(dict.fromkeys(name for line in lines for name in line)))
