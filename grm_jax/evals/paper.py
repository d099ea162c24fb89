"""The results of arXiv 2504.02495 v3 (SPCT), with marks where its tables contradict each other.

Columns: RewardBench, PPE Preference, PPE Correctness, RMB, and their mean, all in percent.
"""

import dataclasses

from grm_jax.evals.benchmarks import PAPER

COLUMNS = ("RewardBench", "PPE Preference", "PPE Correctness", "RMB", "overall")
BENCHMARKS = PAPER


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the paper: values in percent by column. marks: keys of NOTES."""

    name: str
    values: tuple[float, ...]
    marks: str = ""


NOTES = {
    "a": "The subsets in the paper's table 8 do not average to this total (BTRM and PairRM look "
    "swapped, CLoud copied).",
    "b": "Table 10 repeats the row without token probabilities although table 6 has other totals.",
    "c": "The paper's increments are against Voting@1, not greedy: against greedy (69.9) they "
    "are +0.7 @8, +1.1 @32, +2.1 MetaRM@8, +2.9 MetaRM@32.",
    "d": "Called 230B in one place and 236B in another.",
    "e": "Drawn on the RL line, although models above 27B had no RL (appendix C.1).",
    "f": "Read off figure 4.",
    "g": "The printed mean is not the mean of the row's four columns, which is 67.7.",
}

TABLE_2 = (
    Row("Skywork-Reward-Gemma-2-27B", (94.1, 56.6, 56.6, 60.2, 66.9)),
    Row("DeepSeek-V2.5-0905", (81.5, 62.8, 58.5, 65.7, 67.1)),
    Row("Gemini-1.5-Pro", (86.8, 66.1, 59.8, 56.5, 67.3)),
    Row("ArmoRM-8B-v0.1", (90.4, 60.6, 61.2, 64.6, 69.2)),
    Row("InternLM2-20B-Reward", (90.2, 61.0, 63.0, 62.9, 69.3)),
    Row("Llama-3.1-70B-Instruct", (84.1, 65.3, 59.2, 68.9, 69.4)),
    Row("Claude-3.5-Sonnet", (84.2, 65.3, 58.8, 70.6, 69.7)),
    Row("Nemotron-4-340B-Reward", (92.0, 59.3, 60.8, 69.9, 70.5)),
    Row("GPT-4o", (86.7, 67.1, 57.6, 73.8, 71.3)),
    Row("LLM-as-a-Judge (Gemma-2-27B)", (83.4, 64.2, 58.8, 64.8, 67.8)),
    Row("DeepSeek-BTRM-27B", (81.7, 68.3, 66.7, 57.9, 68.6), "a"),
    Row("CLoud-Gemma-2-27B", (82.0, 67.1, 62.4, 63.4, 68.7), "a"),
    Row("DeepSeek-PairRM-27B", (87.1, 65.8, 64.8, 58.2, 69.0), "a"),
    Row("DeepSeek-GRM-27B-RFT", (84.5, 64.1, 59.6, 67.0, 68.8)),
    Row("DeepSeek-GRM-27B", (86.0, 64.7, 59.8, 69.0, 69.9)),
    Row("DeepSeek-GRM-27B, Voting@32", (88.5, 65.3, 60.4, 69.7, 71.0)),
    Row("DeepSeek-GRM-27B, MetaRM@32", (90.4, 67.2, 63.2, 70.3, 72.8)),
)
TABLE_3 = {
    1: (
        Row("LLM-as-a-Judge", (83.0, 63.4, 57.4, 64.3, 67.0)),
        Row("CLoud-Gemma-2-27B", (82.0, 67.0, 62.0, 63.2, 68.5)),
        Row("DeepSeek-GRM-27B-RFT", (84.0, 62.2, 59.4, 65.8, 67.8)),
        Row("DeepSeek-GRM-27B", (85.2, 62.4, 59.5, 64.4, 67.9)),
    ),
    8: (
        Row("LLM-as-a-Judge", (83.4, 63.8, 58.2, 65.2, 67.6), "c"),
        Row("LLM-as-a-Judge, token probabilities", (83.8, 64.6, 58.8, 65.2, 68.1), "bc"),
        Row("CLoud-Gemma-2-27B", (82.4, 67.3, 62.4, 63.2, 68.8), "c"),
        Row("DeepSeek-GRM-27B-RFT", (85.3, 64.5, 59.7, 67.7, 69.3), "c"),
        Row("DeepSeek-GRM-27B", (87.7, 64.9, 60.3, 69.5, 70.6), "c"),
        Row("DeepSeek-GRM-27B, MetaRM", (89.8, 66.4, 63.0, 68.8, 72.0), "c"),
    ),
    32: (
        Row("DeepSeek-GRM-27B", (88.5, 65.3, 60.4, 69.7, 71.0), "c"),
        Row("DeepSeek-GRM-27B, MetaRM", (90.4, 67.2, 63.2, 70.3, 72.8), "c"),
    ),
}
# Name of our run -> the paper's row. Names are ablations of experiments/ablations.py joined by "-",
# after "rft-" for an ablation of the RFT model.
TABLE_4 = {
    "spct": Row("DeepSeek-GRM-27B, greedy", (86.0, 64.7, 59.8, 69.0, 69.9)),
    "no_principles": Row("without principle generation", (82.0, 62.8, 58.2, 67.1, 67.5)),
    "no_hinted-no_non_hinted": Row("without rejective sampling", (84.0, 63.2, 59.4, 68.0, 68.7)),
    "rft": Row("DeepSeek-GRM-27B-RFT", (84.5, 64.1, 59.6, 67.0, 68.8)),
    "rft-no_hinted": Row("RFT without hinted sampling", (83.0, 63.8, 58.2, 65.8, 68.0), "g"),
    "rft-no_non_hinted": Row("RFT without non-hinted sampling", (82.5, 63.4, 58.6, 65.2, 67.4)),
    "rft-no_hinted-no_non_hinted": Row("RFT without either", (81.5, 61.8, 57.8, 63.1, 66.1)),
    "rft-no_general": Row("RFT without general instruction data", (79.1, 59.2, 51.5, 63.2, 63.3)),
}
# Figure 4, on RewardBench: (k or parameters in billions, value, marks).
FIGURE_4 = {
    "27B, voting": ((1, 85.2, ""), (8, 87.7, ""), (32, 88.5, "")),
    "27B, meta-guided": ((4, 89.7, "f"), (8, 89.8, ""), (32, 90.4, "")),
    "16B, voting": ((1, 82.4, "f"), (8, 84.9, "f")),
}
FIGURE_4_SIZES = {
    "RFT": ((16, 81.5, "f"), (27, 84.5, ""), (236, 85.3, "d")),
    "RL": ((16, 82.9, ""), (27, 86.0, ""), (671, 88.4, "e")),
}
