"""The output file of a long run: a journal that is only ever appended to, and one atomic step that makes it the result.

While a run goes on, OUT.part holds a header and one line per finished row, each forced to the disk before the next. A kill
leaves at most one torn line at its end, which the next run cuts off. When all rows are there they are written in the order of
the input to a temporary file that replaces OUT, and the journal is removed. Every step can be killed and done again.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path


class Journal:
    """The journal of one output file, locked against a second run.

    header: what must agree for a run to go on (settings, a hash of the input).  done: numbers of the input lines that are
    written.  Raises FileExistsError where there is work already and neither resume nor overwrite was asked for, ValueError
    where the journal belongs to other settings or is damaged, BlockingIOError where another run holds it.
    """

    def __init__(
        self, output: str | Path, header: dict, resume: bool = False, overwrite: bool = False
    ):
        self.output = Path(output)
        self.path = self.output.with_name(self.output.name + ".part")
        existing = [path for path in (self.path, self.output) if path.exists()]
        if existing and not resume and not overwrite:
            raise FileExistsError(
                f"{existing[0]} exists: pass --resume to go on with it, or --overwrite to start again"
            )
        self.header = json.loads(json.dumps(header))
        self.offsets: dict[int, int] = {}
        self.file = open(self.path, "a+b")  # closed by finish or close
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise BlockingIOError(
                f"{self.path} is being written by another run: wait for it, or stop it"
            ) from None
        if overwrite and not resume:
            self.file.truncate(0)
        self._read()

    @property
    def done(self) -> set[int]:
        return set(self.offsets)

    def _read(self) -> None:
        """Finds the rows that are there, cuts a torn end off, and writes the header into an empty journal."""
        self.file.seek(0)
        good = 0
        for number, raw in enumerate(iter(self.file.readline, b"")):
            if not raw.endswith(b"\n"):
                break  # the line that was being written when the run was killed
            try:
                content = json.loads(raw)
            except ValueError:
                raise ValueError(
                    f"{self.path}, line {number + 1} is damaged: remove the file, or --overwrite"
                ) from None
            if number == 0:
                self._check_header(content)
            else:
                self.offsets[content["line"]] = good
            good += len(raw)
        self.file.truncate(good)
        self.file.seek(0, os.SEEK_END)
        if good == 0:
            self._write(self.header)

    def _check_header(self, found: dict) -> None:
        names = sorted(set(found) | set(self.header))
        differing = [name for name in names if found.get(name) != self.header.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{self.path} was begun with {name} = {found.get(name)!r:.80}, now it is {self.header.get(name)!r:.80}: "
                "use the same settings, or --overwrite"
            )

    def _write(self, content: dict) -> int:
        at = self.file.seek(0, os.SEEK_END)
        self.file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        return at

    def append(self, row: dict) -> None:
        """Writes a finished row and forces it to the disk. Raises ValueError for a line that is written already."""
        if row["line"] in self.offsets:
            raise ValueError(f"line {row['line']} is in {self.path} already")
        self.offsets[row["line"]] = self._write(row)

    def rows(self):
        """The rows written so far, in the order of the input."""
        for line in sorted(self.offsets):
            self.file.seek(self.offsets[line])
            yield json.loads(self.file.readline())

    def finish(self) -> None:
        """Makes the journal the output file, rows in the order of the input, and removes it."""
        temporary = self.output.with_name(self.output.name + ".tmp")
        with open(temporary, "wb") as file:
            for line in sorted(self.offsets):
                self.file.seek(self.offsets[line])
                file.write(self.file.readline())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.output)
        self.path.unlink(missing_ok=True)
        self._sync_folder()
        self.close()

    def _sync_folder(self) -> None:
        folder = os.open(self.output.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Releases the file; what was appended stays."""
        self.file.close()
