"""The baselines that the paper compares with, trained on the same comparisons from the same trunk.

llm_judge   analysis, then the number of the best response; sampled and rejected as in RFT
pairwise    the number of the better response alone; scored by votes, or by its probability
bt          a Bradley-Terry scalar: one reward per response, trained on (best, other) pairs
cloud       a critique of each response by itself, then a scalar of both (CLoud, arXiv 2408.11791)
spct        the SPCT run itself, for comparison

`BASELINES[name].measure(bench, folder)` trains one and returns its judges' results;
studies/baselines.py runs them over seeds and writes the table.
"""

import importlib

from grm_jax.baselines.bench import BASELINES, Bench

# Each module registers its baseline; tables are in this order.
for _name in ("llm_judge", "pairwise", "bt", "cloud", "spct"):
    importlib.import_module(f"{__name__}.{_name}")

__all__ = ["BASELINES", "Bench"]
