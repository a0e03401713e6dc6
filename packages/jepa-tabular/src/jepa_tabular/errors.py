"""What is wrong with a table, where a value of the wrong type is to blame.

Everything else that is wrong with a table is a `jepa_core.errors.DataError`, which is a ValueError.
"""

from __future__ import annotations

from jepa_core.errors import JepaError


class TableTypeError(JepaError, TypeError):
    """A table or a value in it is of a type that cannot be read; scikit-learn expects TypeError."""
