"""Strings: tokenizers, chat and prompt templates, and the critique parser."""

from grm_jax.text.parse import parse, parse_principles

__all__ = ["parse", "parse_principles"]
