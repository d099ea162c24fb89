"""Trip counts of the loops of a compiled XLA program."""

import dataclasses
import re
from collections.abc import Iterator

from launch.compile.hlo_text import Computation, Instruction, Program

_SAME_VALUE = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
_MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "EQ": "EQ", "NE": "NE"}


def trip_count(program: Program, inside: Computation, loop: Instruction) -> int | None:
    """Returns the iterations of a loop, or None if the program does not state a bound.

    Uses XLA's `known_trip_count`, else the condition `counter < bound`, the counter's start and its
    step: start 0, bound 8, step 2 -> 4. If the loop may also end on data, this is its maximum.
    """
    if known := re.search(r'known_trip_count[":{\s]+n[":\s]+(\d+)', loop.attributes):
        return int(known.group(1))
    state = _State(program, inside, loop)
    counts = [state.trips(*comparison) for comparison in state.comparisons()]
    return min((n for n in counts if n is not None), default=None)


@dataclasses.dataclass(frozen=True)
class _Element:
    """Element `index` of the loop's state."""

    index: int


_Value = int | _Element | None


class _Scope:
    """One computation: resolves its names to constants, or to elements of the loop's state.

    parameters: values of its parameters by number; None if its only parameter is the loop's state.
    """

    def __init__(
        self,
        program: Program,
        computation: Computation,
        parameters: dict[int, _Value] | None = None,
    ):
        self.program, self.computation, self.parameters = program, computation, parameters

    def value(self, name: str) -> _Value:
        i = self.computation.instructions[name]
        if i.opcode == "constant":
            return int(i.arguments) if re.fullmatch(r"-?\d+", i.arguments) else None
        if i.opcode == "parameter":
            return (self.parameters or {}).get(int(i.arguments))
        if i.opcode in _SAME_VALUE:
            return self.value(i.operands[0])
        if i.opcode == "get-tuple-element":
            index = int(i.attribute("index"))
            source = self.computation.instructions[i.operands[0]]
            if source.opcode == "tuple":
                return self.value(source.operands[index])
            if source.opcode == "parameter" and self.parameters is None:
                return _Element(index)
        return None

    def called(self, i: Instruction) -> "_Scope":
        """The computation that a fusion or a call runs, with the values of its parameters."""
        inner = self.program.computations[i.attribute("calls") or i.attribute("to_apply")]
        return _Scope(self.program, inner, {n: self.value(o) for n, o in enumerate(i.operands)})


class _State:
    """A loop's state: initial values of its elements, and how the body changes them."""

    def __init__(self, program: Program, inside: Computation, loop: Instruction):
        self.condition = _Scope(program, program.computations[loop.attribute("condition")])
        self.body = _Scope(program, program.computations[loop.attribute("body")])
        root = self.body.computation.root
        self.updates = self.body.computation.operands(root) if root.opcode == "tuple" else []
        outside = _Scope(program, inside)
        first = inside.operands(loop)[0]
        while first.opcode in ("copy", "opt-barrier"):
            first = inside.operands(first)[0]
        values = map(outside.value, first.operands) if first.opcode == "tuple" else ()
        self.start = {n: v for n, v in enumerate(values) if isinstance(v, int)}

    def comparisons(self) -> Iterator[tuple[_Value, str, _Value]]:
        """Yields (counter, direction, bound) of each comparison that an iteration requires."""
        stack = [(self.condition.computation.root, self.condition)]
        while stack:
            i, scope = stack.pop()
            if i.opcode == "compare":
                direction = i.attribute("direction")
                left, right = (self.resolve(scope.value(o)) for o in i.operands)
                if isinstance(right, _Element):
                    left, right, direction = right, left, _MIRRORED[direction]
                yield left, direction, right
            elif i.opcode in ("and", "copy", "bitcast"):
                stack += [(operand, scope) for operand in scope.computation.operands(i)]
            elif i.opcode in ("fusion", "call"):
                inner = scope.called(i)
                stack.append((inner.computation.root, inner))

    def trips(self, counter: _Value, direction: str, bound: _Value) -> int | None:
        if not (
            isinstance(counter, _Element) and isinstance(bound, int) and counter.index in self.start
        ):
            return None
        step = self.step(counter.index)
        if not step or (step > 0) == (direction in ("GT", "GE")) and direction != "NE":
            return None
        distance = bound - self.start[counter.index]
        if direction in ("LE", "GE"):
            distance += 1 if step > 0 else -1
        return max(0, -(-distance // step))

    def resolve(self, value: _Value) -> _Value:
        """Replaces an element by its initial value if the body does not change it."""
        if isinstance(value, _Element) and value.index in self.start and self.updates:
            if self.body.value(self.updates[value.index].name) == value:
                return self.start[value.index]
        return value

    def step(self, index: int) -> int | None:
        """The constant that the body adds to an element (1 for `i + 1`), or None."""
        if not self.updates:
            return None
        scope, i = self.body, self.updates[index]
        while i.opcode in ("copy", "bitcast"):
            i = scope.computation.operands(i)[0]
        if i.opcode == "fusion":
            scope = scope.called(i)
            i = scope.computation.root
        if i.opcode not in ("add", "subtract"):
            return None
        left, right = (self.resolve(scope.value(o)) for o in i.operands)
        if right == _Element(index) and i.opcode == "add":
            left, right = right, left
        if left != _Element(index) or not isinstance(right, int):
            return None
        return right if i.opcode == "add" else -right
