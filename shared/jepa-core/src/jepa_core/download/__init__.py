"""Public data sets: fetch what is published with checksums, unpack archives nobody vouches for.

`fetch` brings what a list of checksums names, and `unpack` the files of an archive: nothing
unfinished is ever seen under its final name, since files are written to a folder beside it and
renamed when they are whole and verified. `fetch_file` brings one large file and goes on with a part
of it; `ask` is any other question to a server.
"""

from __future__ import annotations

from jepa_core.download.archive import unpack
from jepa_core.download.dataset import Report, fetch, read_checksums
from jepa_core.download.web import ask, fetch_file, must_be_address

__all__ = [
    "Report",
    "ask",
    "fetch",
    "fetch_file",
    "must_be_address",
    "read_checksums",
    "unpack",
]
