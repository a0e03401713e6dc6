"""Public data sets: fetch what a checksum list names, unpack archives nobody vouches for.

Nothing unfinished is ever seen under its final name: files are written to a folder beside it and
renamed when they are whole and verified.
"""

from __future__ import annotations

from jepa_core.download.archive import unpack
from jepa_core.download.dataset import Report, fetch, read_checksums

__all__ = ["Report", "fetch", "read_checksums", "unpack"]
