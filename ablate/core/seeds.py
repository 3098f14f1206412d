"""Numbers that follow from names: seeds of random streams, and draws that do not depend on what else is drawn."""

import hashlib


def bits64(*parts: object) -> int:
    """64 bits of the SHA-256 of the parts' texts, with blanks between them: the same on any machine."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:8], "big")
