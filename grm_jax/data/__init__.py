"""Data: published preference sets, seqio tasks, the judging world, and batches for training.

Only `data.mixtures` imports TensorFlow.
"""
