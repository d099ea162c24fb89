"""The processes of one job on several hosts: joining, failing together, agreeing on values."""
