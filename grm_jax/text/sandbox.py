"""Renders Jinja templates of other people: without access to Python, bounded in time and memory.

    what = "the chat template of FOLDER"
    template = sandbox.load(source, what)
    text = sandbox.render(template, {"messages": messages}, what)

Jinja's sandbox refuses attributes that lead out of the template, but not work without end: nested
loops, texts that double, macros that call each other. Here each render has a budget. Loops, calls,
filters, operators and printed values are charged by the size of their arguments and results, so a
template exceeds its budget at the same place on every machine. A limit of CPU time is checked at
the same places, in whichever thread renders.

Whatever a template raises becomes a ValueError of one line.
"""

import contextlib
import contextvars
import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from grm_jax.model_files import one_line

MAX_SOURCE = 100_000  # characters of a template
MAX_TAGS = 4_000  # expressions and statements: compiling one takes up to 0.3 ms
BUDGET = 400_000  # characters, items and steps of one render,
PER_CHARACTER = 100  # and so many more for each character of its variables
SECONDS = 2.0  # of CPU time
MAX_INTEGER = 1_000_000  # in an argument
MAX_BITS = 4096  # of a computed integer
MAX_SEARCH = 10**8  # steps of one search: about 0.1 s
# Random, or not linear in the length of their input. No chat template needs them.
REMOVED = ("random", "urlize", "pprint", "lipsum", "sum", "wordwrap")
# Their results can be as large as the product of two arguments.
_PRODUCTS = frozenset(
    "batch center expandtabs format format_map indent join ljust replace rjust slice tojson "
    "translate xmlattr zfill".split()
)
# Python searches for a text from the right, and for each of many characters, in time proportional
# to the product of both lengths. Searches from the left are linear.
_SEARCHES = frozenset("lstrip rfind rindex rpartition rsplit rstrip strip trim".split())
_SLOW_CODEC = re.compile("puny|idna", re.IGNORECASE)  # they take quadratic time
_WIDE = re.compile(r"\d{4}")  # a field of a format string with 1,000 characters or more


class TooMuchWork(Exception):
    """A template exceeds its budget or its limit of CPU time."""


class Rejected(ValueError):
    """A template called raise_exception; the message is its argument."""


@dataclasses.dataclass
class _Meter:
    left: int
    deadline: float  # of time.thread_time


_METER: contextvars.ContextVar[_Meter] = contextvars.ContextVar("meter")


def _charge(units: int) -> bool:
    meter = _METER.get()
    meter.left -= units
    if meter.left < 0 or time.thread_time() > meter.deadline:
        raise TooMuchWork("it does more work than a prompt needs: too many steps, or too much text")
    return True


def _size(value: Any) -> int:
    """Characters and items of a value, those of its items included, up to what is left."""
    size, values, left = 0, [value], _METER.get().left
    while values and size <= left:
        value = values.pop()
        size += 1
        if isinstance(value, str | bytes | range):
            size += len(value)
        elif isinstance(value, Mapping):
            values += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            values += value
        elif isinstance(value, Namespace):
            values += value._Namespace__attrs.values()
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise TooMuchWork(f"it computes an integer of {value.bit_length():,} bits")
    return size


def _measured(value: Any) -> Any:
    """Charges the size of a value and returns it; of an iterator, each item as it is taken."""
    _charge(_size(value))
    return map(_measured, value) if isinstance(value, Iterator) else value


def _check_call(name: str, values: list[Any]) -> None:
    """Charges the arguments of a call; refuses a result out of proportion before it is made."""
    sizes = [_size(value) for value in values]
    _charge(sum(sizes))
    integers = [abs(v) for v in values if isinstance(v, int)]
    if max(integers, default=0) > MAX_INTEGER:
        raise TooMuchWork(f"it passes {max(integers):,} to {name!r}")
    if name in _PRODUCTS:
        *_, factor, largest = 1, *sorted([*sizes, *integers])
        if factor * largest > 50 * _METER.get().left:
            raise TooMuchWork(f"it makes a text of up to {factor * largest:,} characters")
    if name in _SEARCHES:
        *_, shorter, longer = 1, *sorted(sizes)
        if shorter * longer > MAX_SEARCH:
            raise TooMuchWork(f"it calls {name!r} with {shorter:,} and {longer:,} characters")
    if name in ("encode", "decode") and any(_SLOW_CODEC.search(str(v)) for v in values[1:]):
        raise TooMuchWork(f"it calls {name!r} with {values[1]!r:.40}, which takes quadratic time")
    if name.startswith("format"):
        _check_format(values[0])


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _WIDE.search(text):
        raise TooMuchWork(f"it formats with the width of {text:.60}")


def _check_operator(operator: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers and left.bit_length() * abs(right) > MAX_BITS:
        raise TooMuchWork(f"it computes an integer of {left.bit_length() * abs(right):,} bits")
    if operator == "*" and not numbers:
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(value, float):
                _charge(_size(value) * max(0, times))
    if operator == "%" and isinstance(left, str):
        _check_call("format", [left, *(right if isinstance(right, tuple) else [right])])


def _metered(name: str, function: Callable) -> Callable:
    @functools.wraps(function)  # keeps the mark of a filter that takes the context
    def call(*args: Any, **kwargs: Any) -> Any:
        _check_call(name, [*args, *kwargs.values()])
        return _measured(function(*args, **kwargs))

    return call


def _counted(test: Any) -> Any:
    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> Any:
        _charge(1)
        return test(*args, **kwargs)

    return call


class _Instrument(NodeTransformer):
    """Adds a charge to each loop, macro, comparison and literal container of a template."""

    def __init__(self, environment: jinja2.Environment):
        self.environment = environment

    def _call(self, name: str, argument: nodes.Expr, lineno: int) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(name), [argument], [], None, None)
        call.set_lineno(lineno)
        return call

    def _charge(self, node: nodes.Node, units: int = 1) -> nodes.Call:
        return self._call("charge", nodes.Const(units), node.lineno)

    def _body(self, node: Any) -> Any:
        units = 1 + sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._charge(node, units)).set_lineno(node.lineno))
        return node

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.test is not None:
            node.test = nodes.And(self._charge(node), node.test)
        return self._body(node)

    visit_Template = visit_Macro = visit_CallBlock = _body

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        return nodes.And(self._charge(node), self.generic_visit(node))

    def _container(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        is_target = getattr(node, "ctx", "load") != "load"
        return node if is_target else self._call("measured", node, node.lineno)

    visit_List = visit_Tuple = visit_Dict = visit_Concat = _container


class _Generation(Extension):
    """{% generation %} marks what a model wrote, for training in transformers; printed as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _reject(reason: object) -> None:
    raise Rejected(_short(reason))


def _short(message: object) -> str:
    return f"{one_line(message):.300}"


class Environment(ImmutableSandboxedEnvironment):
    """The environment of all templates; see the top of this file.

    It has the tags, filters and functions of chat templates in transformers: `generation`, `break`,
    `continue`, `tojson`, `raise_exception`. Nothing in it is random.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constant expressions are charged as well
            finalize=jinja2.pass_eval_context(lambda _, value: _measured(value)),
            extensions=["jinja2.ext.loopcontrols", _Generation],
            **options,
        )
        self.charge, self.measured = _charge, _measured
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _reject
        self.filters = {
            name: _metered(name, function)
            for name, function in self.filters.items()
            if name not in REMOVED
        }
        self.tests = {name: _counted(test) for name, test in self.tests.items()}
        for name in REMOVED:
            self.globals.pop(name, None)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        instrumented = _Instrument(self).visit(source)
        return super()._generate(instrumented.set_environment(self), *args, **kwargs)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if __obj is _charge or __obj is _measured:
            return __obj(*args)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        name = getattr(method, "__name__", "") if isinstance(owner, str | int | bytes) else ""
        _check_call(name, [*([owner] if name else []), *args, *kwargs.values()])
        return _measured(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operator(operator, left, right)
        return _measured(super().call_binop(context, operator, left, right))


_PLAIN = (jinja2.TemplateError, TooMuchWork, ValueError)  # their messages are sentences


@contextlib.contextmanager
def guard(what: str, characters: int = 0) -> Iterator[None]:
    """Bounds the work of templates in the body; what they raise becomes a ValueError of one line.

    Args:
      what: the template in error messages.  characters: length of the variables.
    """
    meter = _Meter(BUDGET + PER_CHARACTER * characters, time.thread_time() + SECONDS)
    token = _METER.set(meter)
    try:
        yield
    except Rejected:
        raise
    except jinja2.TemplateSyntaxError as error:
        file = f" of {error.name}" if error.name and error.name not in what else ""
        message = f"{what}, line {error.lineno}{file}: {_short(error.message)}"
        raise ValueError(message) from error
    except jinja2.TemplateNotFound as error:
        message = f"{what} includes {error.name!r:.80}, which is no template of its folder"
        raise ValueError(message) from None
    except RecursionError:
        raise ValueError(f"{what} includes or calls itself without end") from None
    except Exception as error:  # templates are programs: anything may be raised
        reason = str(error) if isinstance(error, _PLAIN) else repr(error)
        raise ValueError(f"{what} fails: {_short(reason)}") from error
    finally:
        _METER.reset(token)


def check_source(source: str, what: str) -> str:
    """Returns the source of a template. Raises ValueError for one that is too long to compile."""
    if len(source) > MAX_SOURCE:
        raise ValueError(f"{what} has {len(source):,} characters, more than {MAX_SOURCE:,}")
    if (tags := source.count("{{") + source.count("{%")) > MAX_TAGS:
        raise ValueError(f"{what} has {tags:,} expressions and statements, more than {MAX_TAGS:,}")
    return source


def load(source: str, what: str, functions: dict[str, Any] | None = None) -> jinja2.Template:
    """Compiles a template, which may call these functions. Raises ValueError for a faulty one."""
    check_source(source, what)
    with guard(what):
        return Environment().from_string(source, globals=functions)


def render(template: jinja2.Template, variables: dict[str, Any], what: str) -> str:
    """Renders a template.

    Raises:
      Rejected: it called raise_exception.
      ValueError: it fails, or does too much work.
    """
    with guard(what, len(repr(variables))):
        try:
            return template.render(variables)
        except jinja2.UndefinedError as error:
            raise jinja2.TemplateError(f"{error}; it may use {', '.join(variables)}") from error
