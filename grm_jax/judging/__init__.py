"""From comparisons to verdicts: sample critiques, parse them, vote."""
