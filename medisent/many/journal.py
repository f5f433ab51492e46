"""What of a batch is done already: results that a killed run left, each under a name that says what it was made of."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from medisent.files import write_text


@dataclass(frozen=True)
class Journal:
    """A folder beside a batch's output, there as long as the batch is not finished.

    Attributes:
        folder: Where it is; None where nothing is noted.
    """

    folder: Path | None = None

    @classmethod
    def beside(cls, out: Path) -> Journal:
        """The journal of what is to be written to ``out``."""
        return cls(out.with_name(f"{out.name}.unfinished"))

    @staticmethod
    def key(*made_of: object) -> str:
        """The name of what was made of these, all of which JSON can tell."""
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def get(self, key: str) -> object:
        """What was noted under a name, or None; nothing has the empty name."""
        if self.folder is None or not key:
            return None
        try:
            found: object = json.loads((self.folder / f"{key}.json").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        return found

    def put(self, key: str, noted: object) -> None:
        """Note something that JSON can tell, unless its name is empty.

        Raises:
            MachineError: It cannot be written.
        """
        if self.folder is not None and key:
            write_text(self.folder / f"{key}.json", json.dumps(noted))

    def close(self) -> None:
        """Take it away: everything stands under its final name, or is not wanted."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
