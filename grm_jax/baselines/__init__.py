"""The baselines that the paper compares with, trained here on the same comparisons, from the same trunk, for the same benchmarks.

llm_judge   analysis, then the number of the best response (generative; the same sampler and rejection as RFT)
pairwise    the number of the better response at once (generative; scored by votes, or by the probability of the number)
bt          a Bradley-Terry scalar: one reward per response, trained on (best, other) pairs
cloud       a critique of each response by itself, then a scalar of the response with it (after CLoud, arXiv 2408.11791)
"""
