"""results.json of `grm eval`: one entry per benchmark, read from this version and earlier ones."""

import json
from pathlib import Path

FILE = "results.json"
FILES = (FILE, "results.md", "results.html")
# Keys of earlier versions -> today's.
RENAMED = {"floors": "content_blind", "read": "parsing", "nothing_read": "unparsed"}


def read_results(path: str | Path) -> list[dict]:
    """Reads the entries of a results file, with the keys of today's version."""
    return [upgraded(entry) for entry in json.loads(Path(path).read_text(encoding="utf-8"))]


def upgraded(entry: dict) -> dict:
    """Renames the keys that earlier versions wrote."""
    entry = {RENAMED.get(key, key): value for key, value in entry.items()}
    if "parsing" in entry:
        entry["parsing"] = {RENAMED.get(key, key): value for key, value in entry["parsing"].items()}
    return entry
