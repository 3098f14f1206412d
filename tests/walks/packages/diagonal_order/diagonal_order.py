"""A scan order of another package: along the diagonals of the grid, from its upper left corner."""

import numpy as np

from connectors import scan_order


@scan_order("diagonal")
def diagonal(height: int, width: int) -> np.ndarray:
    row, column = np.divmod(np.arange(height * width), width)
    return np.lexsort((column, row + column))
