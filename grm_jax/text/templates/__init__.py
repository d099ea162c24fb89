"""The shipped prompt templates, FAMILY/ROLE.jinja, and the functions of text/rendering.py."""

from grm_jax.text.rendering import (
    Template,
    canonical_name,
    choose,
    family_of,
    load,
    names,
    principles_text,
    render,
    role_template,
    single_binary,
)

__all__ = [
    "Template",
    "canonical_name",
    "choose",
    "family_of",
    "load",
    "names",
    "principles_text",
    "render",
    "role_template",
    "single_binary",
]
