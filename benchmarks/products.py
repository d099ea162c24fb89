"""The arithmetic limit of a program: the time that its matrix products take by themselves.

`products_of` lists the `dot_general` operations of a traced function: shapes, dtypes, contracted
and batch axes (hence layouts), and how often each runs. `compile_products` compiles the products
of one form as a program of their own, on operands of their own; `limit_seconds` times all forms.
Sums that a program computes without `dot_general`, such as attention over rings on CPUs, are not
counted, so the limit is a lower bound.
"""

import collections
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MOST_BYTES = 512 << 20  # of the operands of one form; more products than fit are extrapolated


class Product(NamedTuple):
    """The form of a product: shapes and dtypes of its factors, axes, dtype of its result."""

    lhs: tuple[tuple[int, ...], str]
    rhs: tuple[tuple[int, ...], str]
    axes: Any
    result: str

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-add."""
        rhs_shape, rhs_used = self.rhs[0], {*self.axes[0][1], *self.axes[1][1]}
        free = [n for i, n in enumerate(rhs_shape) if i not in rhs_used]
        return 2 * int(np.prod(self.lhs[0], dtype=np.int64) * np.prod(free, dtype=np.int64))


def products_of(function: Callable[..., Any], *args: Any) -> dict[Product, int]:
    """Returns the products of one call and their counts; a `while` loop counts as one iteration.

    Of the branches of a condition, the one with the most arithmetic counts.
    """
    return dict(_count(jax.make_jaxpr(function)(*args).jaxpr))


def _count(jaxpr: Any) -> collections.Counter[Product]:
    counts: collections.Counter[Product] = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            lhs, rhs = ((v.aval.shape, str(v.aval.dtype)) for v in equation.invars)
            result = str(equation.outvars[0].aval.dtype)
            counts[Product(lhs, rhs, equation.params["dimension_numbers"], result)] += 1
            continue
        inner = [_count(sub) for sub in _sub_jaxprs(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner, key=total_flops)]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for sub in inner:
            counts.update({product: times * n for product, n in sub.items()})
    return counts


def _sub_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def total_flops(products: Mapping[Product, int]) -> int:
    """Returns the floating-point operations of counted products."""
    return sum(n * product.flops for product, n in products.items())


def compile_products(products: Mapping[Product, int]) -> list[tuple[Callable[[], Any], float]]:
    """Returns (call, weight) per form: `weight` calls compute all of its products."""
    rng = np.random.default_rng(0)
    calls = []
    for product, count in products.items():
        size = sum(np.prod(s, dtype=np.int64) * jnp.dtype(t).itemsize for s, t in product[:2])
        instances = int(max(1, min(count, MOST_BYTES // size)))

        def factor(shape: tuple[int, ...], dtype: str) -> jax.Array:
            return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)

        pairs = [(factor(*product.lhs), factor(*product.rhs)) for _ in range(instances)]

        def all_products(pairs: Any, product: Product = product) -> Any:
            dtype = jnp.dtype(product.result)
            return [
                jax.lax.dot_general(a, b, product.axes, preferred_element_type=dtype)
                for a, b in pairs
            ]

        fn = jax.jit(all_products)
        jax.block_until_ready(fn(pairs))
        calls.append((lambda fn=fn, pairs=pairs: fn(pairs), count / instances))
    return calls


def limit_seconds(calls: list[tuple[Callable[[], Any], float]], repeats: int = 3) -> np.ndarray:
    """Returns wall and CPU seconds of all products: medians of each form, summed over the forms."""
    total = np.zeros(2)
    for call, weight in calls:
        total += weight * np.median([timed(call) for _ in range(repeats)], axis=0)
    return total


def timed(call: Callable[[], Any]) -> np.ndarray:
    """Returns wall and CPU seconds of a call and of what it started on the device."""
    start = np.array([time.perf_counter(), time.process_time()])
    jax.block_until_ready(call())
    return np.array([time.perf_counter(), time.process_time()]) - start
