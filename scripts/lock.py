"""Write `uv.lock` in its index-neutral form.

    python scripts/lock.py             resolve, then strip what names an index
    python scripts/lock.py --upgrade   the same with newer versions allowed
    python scripts/lock.py --neutral   strip the lock in the work tree without resolving
    python scripts/lock.py --check     fail unless the lock (or standard input, with -) is neutral

The neutral form keeps names, versions, markers and dependencies. It drops every address (`sdist`,
`wheels`) and the members' `[package.metadata]`, whose absence makes uv resolve again with the
locked versions as preferences. uv then completes the file in the work tree; that form is never
committed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parent.parent / "uv.lock"
NEUTRAL = "https://index.invalid/simple"


def neutral(text: str) -> str:
    """The lock without index addresses; a fixed point of itself."""
    lines: list[str] = []
    skipping = ""  # the closing line of the entry that is being dropped, or "[" for a whole table
    for line in text.splitlines():
        if skipping == "[":
            if not line.startswith("[") or line.startswith("[package.metadata"):
                continue
            skipping = ""
        elif skipping:
            if line == skipping:
                skipping = ""
            continue
        if line.startswith("[package.metadata"):
            skipping = "["
        elif line.startswith(("sdist = ", "wheels = [")):
            skipping = "]" if line.endswith("[") else ""
        else:
            lines.append(re.sub(r'registry = "[^"]*"', f'registry = "{NEUTRAL}"', line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip("\n") + "\n"


def foreign_addresses(text: str) -> list[str]:
    """Addresses in the lock other than the neutral one."""
    found = re.findall(r"[a-z+]+://[^\s\"']+", text)
    return sorted(
        {address for address in found if not address.startswith("https://index.invalid/")}
    )


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    if arguments[:1] == ["--check"]:
        text = sys.stdin.read() if arguments[1:] == ["-"] else LOCK.read_text(encoding="utf-8")
        found = foreign_addresses(text)
        if found or neutral(text) != text:
            print(
                f"uv.lock: not index-neutral ({', '.join(found[:3]) or 'extra tables'}); "
                "run python scripts/lock.py --neutral",
                file=sys.stderr,
            )
            return 1
        return 0
    if arguments not in ([], ["--upgrade"], ["--neutral"]):
        print(__doc__, file=sys.stderr)
        return 2
    if arguments != ["--neutral"]:
        subprocess.run(["uv", "lock", *arguments], check=True)
    LOCK.write_text(neutral(LOCK.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
