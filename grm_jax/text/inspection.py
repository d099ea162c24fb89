"""Finds the settings and the included files of a prompt template without rendering it.

The parser of critiques uses the settings, and an export copies the included files. So a template
whose settings or included files depend on its variables is refused.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jinja2
from jinja2 import meta, nodes

MAX_RESPONSES = 32
SETTINGS: dict[str, Any] = {  # that a template may set, with their defaults
    "output": "scores", "low": 1, "high": 10, "n_min": 1, "n_max": MAX_RESPONSES, "needs": (),
}  # fmt: skip
PARSED = ("output", "low", "high")  # an included file may set these to the same values only
SHOWN = ("low", "high")  # variables of the prompt; loops and imports must not bind them either
REFERENCES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


def settings(env: jinja2.Environment, sources: dict[str, str]) -> dict[str, Any]:
    """The settings of a template: constants that it sets at its top level, else the defaults.

    sources: {name: source} of the template, then of all that it includes.

    Raises TemplateSyntaxError for a setting whose value in the prompt may be another one.
    """
    main, *_ = sources
    values = dict(SETTINGS)
    for file, source in sources.items():
        tree = env.parse(source)
        constants = list(_constants(tree))
        values |= dict(constants) if file == main else {}
        for name in SETTINGS if file == main else PARSED:
            lines = [line for x, line in (_bound if name in SHOWN else _set)(tree) if x == name]
            known = [value for x, value in constants if x == name]
            if len(lines) > len(known) or any(value != values[name] for value in known):
                value = known[-1] if known else SETTINGS[name]
                raise jinja2.TemplateSyntaxError(
                    f"{name} may differ between prompt and parser: set it to a constant, once, at "
                    f"the top level of {main}, such as {{% set {name} = {value!r} %}}, and give "
                    "other variables other names",
                    lines[-1],
                    file,
                )
    return {name: values[name] for name in SETTINGS}


def _constants(tree: nodes.Template) -> Iterator[tuple[str, Any]]:
    for node in tree.body:
        if isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
            assert isinstance(node.node, nodes.Expr)
            with contextlib.suppress(nodes.Impossible):
                yield node.target.name, node.node.as_const()


def _set(tree: nodes.Template) -> Iterator[tuple[str, int]]:
    """The names that a template sets, with their lines."""
    targets = [node.target for node in tree.find_all(nodes.Assign)]
    for target in (*targets, *(node.target for node in tree.find_all(nodes.AssignBlock))):
        for name in nodes.Template([target]).find_all(nodes.Name):
            yield name.name, name.lineno


def _bound(tree: nodes.Template) -> Iterator[tuple[str, int]]:
    """The names that a template assigns or imports, with their lines. Parameters are not listed."""
    for block in tree.find_all(nodes.With):
        for target in block.targets:
            target.set_ctx("store")
    for name in tree.find_all(nodes.Name):
        if name.ctx == "store":
            yield name.name, name.lineno
    for macro in tree.find_all(nodes.Macro):
        yield macro.name, macro.lineno
    for module in tree.find_all(nodes.Import):
        yield module.target, module.lineno
    for names in tree.find_all(nodes.FromImport):
        yield from ((x if isinstance(x, str) else x[1], names.lineno) for x in names.names)


def sources(env: jinja2.Environment, filename: str) -> dict[str, str]:
    """{name: source} of a template and all that it includes."""
    queue, texts = [filename], dict[str, str]()
    while queue:
        name = queue.pop(0)
        if name not in texts:
            texts[name] = _source(env, name)
            queue += sorted(_included(env, name, texts[name]))
    return texts


def _source(env: jinja2.Environment, name: str) -> str:
    assert env.loader
    return env.loader.get_source(env, name)[0]


def _included(env: jinja2.Environment, file: str, source: str) -> Iterator[str]:
    """The existing files that a template includes, imports or extends.

    Raises TemplateSyntaxError for a name that is not constant, TemplateNotFound for a missing file.
    """
    for node in env.parse(source).find_all(REFERENCES):
        files, names = [], list(meta.find_referenced_templates(nodes.Template([node])))
        for name in names:
            if name is None:
                raise jinja2.TemplateSyntaxError(
                    "the name of an included file is not constant: write it as a string, such as "
                    "{% include 'head.jinja' %}",
                    node.lineno,
                    file,
                )
            with contextlib.suppress(jinja2.TemplateNotFound):
                _source(env, name)
                files.append(name)
        if not files and not getattr(node, "ignore_missing", False):
            raise jinja2.TemplateNotFound(names[0] if names else "an empty list")
        yield from files
