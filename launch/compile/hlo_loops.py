"""How often the loops of a compiled XLA program run."""

import dataclasses
import re

from launch.compile.hlo_text import Computation, Instruction, Program

_SAME_VALUE = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
_MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "EQ": "EQ", "NE": "NE"}


def trip_count(program: Program, inside: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs, or None if the program does not say.

    Taken from XLA's own note (`known_trip_count`), else from the condition `counter < bound`, the counter's start and its step: start 0,
    bound 8, step 2 -> 4. Where a loop may also end earlier, on data, this is the most that it can run.
    """
    noted = re.search(r'known_trip_count[":{\s]+n[":\s]+(\d+)', loop.attributes)
    if noted:
        return int(noted.group(1))
    state = _State(program, inside, loop)
    counts = [state.runs(*comparison) for comparison in state.comparisons()]
    return min((n for n in counts if n is not None), default=None)


@dataclasses.dataclass(frozen=True)
class _Element:
    """Element `index` of a loop's state."""

    index: int


class _Names:
    """Follows names in one computation to constants, or to elements of the loop's state that is its parameter."""

    def __init__(self, program: Program, computation: Computation, bindings: dict | None = None):
        self.program, self.computation, self.bindings = program, computation, bindings

    def value(self, name: str) -> int | _Element | None:
        i = self.computation.instructions[name]
        if i.opcode == "constant":
            return int(i.arguments) if re.fullmatch(r"-?\d+", i.arguments) else None
        if i.opcode == "parameter":
            return (self.bindings or {}).get(int(i.arguments))
        if i.opcode in _SAME_VALUE:
            return self.value(i.operands[0])
        if i.opcode == "get-tuple-element":
            index = int(re.search(r"index=(\d+)", i.attributes)[1])
            source = self.computation.instructions[i.operands[0]]
            if source.opcode == "tuple":
                return self.value(source.operands[index])
            if source.opcode == "parameter" and self.bindings is None:
                return _Element(index)
        return None

    def inside(self, i: Instruction) -> "_Names":
        """The names of the computation that a fusion or a call runs, its parameters bound to what is known here."""
        inner = self.program.computations[i.attribute("calls") or i.attribute("to_apply")]
        return _Names(self.program, inner, {n: self.value(o) for n, o in enumerate(i.operands)})


class _State:
    """What is known of a loop's state: where each element starts and how the body changes it."""

    def __init__(self, program: Program, inside: Computation, loop: Instruction):
        self.condition = _Names(program, program.computations[loop.attribute("condition")])
        self.body = _Names(program, program.computations[loop.attribute("body")])
        outside = _Names(program, inside)
        first = inside.operands(loop)[0]
        while first.opcode in ("copy", "opt-barrier"):
            first = inside.operands(first)[0]
        values = map(outside.value, first.operands) if first.opcode == "tuple" else ()
        self.start = {n: v for n, v in enumerate(values) if isinstance(v, int)}

    def comparisons(self):
        """(counter, direction, bound) of each comparison that must hold for the loop to go on."""
        stack = [(self.condition.computation.root, self.condition)]
        while stack:
            i, names = stack.pop()
            if i.opcode == "compare":
                direction = re.search(r"direction=(\w+)", i.attributes)[1]
                left, right = (self.fixed(names.value(o)) for o in i.operands)
                if isinstance(right, _Element):
                    left, right, direction = right, left, _MIRRORED[direction]
                yield left, direction, right
            elif i.opcode in ("and", "copy", "bitcast"):
                stack += [(operand, names) for operand in names.computation.operands(i)]
            elif i.opcode in ("fusion", "call"):
                inner = names.inside(i)
                stack.append((inner.computation.root, inner))

    def runs(self, counter, direction: str, bound) -> int | None:
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

    def fixed(self, value):
        """A constant for an element that starts as one and that the body hands on unchanged; other values as they are."""
        if (
            isinstance(value, _Element)
            and value.index in self.start
            and self.next(value.index) == value
        ):
            return self.start[value.index]
        return value

    def next(self, index: int):
        root = self.body.computation.root
        return self.body.value(root.operands[index]) if root.opcode == "tuple" else None

    def step(self, index: int) -> int | None:
        """What the body adds to an element: `i + 1` -> 1. None if it does something else."""
        if self.body.computation.root.opcode != "tuple":
            return None
        names = self.body
        i = names.computation.operands(names.computation.root)[index]
        while i.opcode in ("copy", "bitcast"):
            i = names.computation.operands(i)[0]
        if i.opcode == "fusion":
            names = names.inside(i)
            i = names.computation.root
        if i.opcode not in ("add", "subtract"):
            return None
        left, right = (self.fixed(names.value(o)) for o in i.operands)
        if right == _Element(index) and i.opcode == "add":
            left, right = right, left
        if left != _Element(index) or not isinstance(right, int):
            return None
        return right if i.opcode == "add" else -right
