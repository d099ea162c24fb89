"""Parses the text of an optimized XLA program into computations and instructions.

One instruction:

    %fusion.3 = bf16[8,128]{1,0:T(8,128)S(1)} fusion(%p.0, %p.1), kind=kLoop, calls=%fused.3
"""

import dataclasses
import functools
import math
import re

_BITS = {
    "pred": 8, "token": 0, "opaque": 0, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8,
    "s16": 16, "u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64,
    "u64": 64, "f64": 64, "c64": 64, "c128": 128, "f4e2m1fn": 4,
}  # fmt: skip
_LEAF = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array. `space` is its memory: 0 is HBM, others are on the chip (VMEM, SMEM)."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 32)
        return (self.elements * bits + 7) // 8

    @property
    def hbm_bytes(self) -> int:
        return self.bytes if self.space == 0 else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      leaves: arrays of the result; a tuple is flattened.
      arguments: text between the parentheses.
      attributes: text after them.
    """

    name: str
    opcode: str
    leaves: tuple[Leaf, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    @property
    def hbm_bytes(self) -> int:
        return sum(leaf.hbm_bytes for leaf in self.leaves)

    def attribute(self, key: str) -> str:
        """The value of `key=value` or `key=%value`: attribute("body") -> "region_1.2"; else ""."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return match.group(1) if match else ""

    def attribute_list(self, key: str) -> list[str]:
        """The names in `key={%a, %b}`."""
        match = re.search(rf"\b{key}=\{{([^}}]*)\}}", self.attributes)
        return _NAME.findall(match.group(1)) if match else []

    def ints(self, key: str) -> tuple[int, ...]:
        """The numbers in `key={0,2}`."""
        match = re.search(rf"\b{key}=\{{([0-9,]*)\}}", self.attributes)
        return tuple(int(n) for n in match.group(1).split(",") if n) if match else ()


class Computation:
    """Instructions by name, in program order."""

    def __init__(self, name: str, instructions: list[Instruction], root: str):
        self.name = name
        self.instructions = {i.name: i for i in instructions}
        self.root = self.instructions[root]

    @functools.cached_property
    def parameters(self) -> dict[int, str]:
        """Parameter number -> the instruction's name."""
        return {
            int(i.arguments): i.name for i in self.instructions.values() if i.opcode == "parameter"
        }

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in users:
                    users[operand].append(instruction)
        return users

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.instructions[name] for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Program:
    computations: dict[str, Computation]
    entry: str


@functools.lru_cache(maxsize=65536)
def _leaves(shape: str) -> tuple[Leaf, ...]:
    leaves = []
    for dtype, dims, layout in _LEAF.findall(shape):
        space = _SPACE.search(layout)
        sizes = tuple(int(n) for n in dims.split(",") if n)
        leaves.append(Leaf(dtype, sizes, int(space.group(1)) if space else 0))
    return tuple(leaves)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`; skips quoted text."""
    depth = 0
    quoted = False
    for i in range(start, len(text)):
        character = text[i]
        if character == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and character in "()":
            depth += 1 if character == "(" else -1
            if depth == 0:
                return i
    raise ValueError(f"unbalanced parentheses in HLO: {text[:200]!r}")


def parse_instruction(line: str) -> tuple[Instruction, bool]:
    """Returns (instruction, whether it is the root)."""
    line = line.strip()
    is_root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    bracket = rest.index("(")
    close = _closing(rest, bracket)
    arguments = rest[bracket + 1 : close]
    opcode = rest[:bracket]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(arguments))
    name, attributes = name.removeprefix("%"), rest[close + 1 :]
    return Instruction(name, opcode, _leaves(shape), operands, arguments, attributes), is_root


def parse(text: str) -> Program:
    """Parses a module, as printed by `compiled.as_text()`. Raises ValueError without an entry."""
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: list[Instruction] = []
    for line in _join_lines(text):
        if not name:
            if header := _HEADER.match(line):
                name, instructions, root = header.group(2), [], ""
                entry = name if header.group(1) else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, instructions, root or instructions[-1].name)
            name = ""
        elif " = " in line:
            instruction, is_root = parse_instruction(line)
            instructions.append(instruction)
            root = instruction.name if is_root else root
    if not entry:
        raise ValueError(
            f"no ENTRY computation in {len(text)} characters of HLO: pass compiled.as_text()"
        )
    return Program(computations, entry)


def _join_lines(text: str) -> list[str]:
    """Lines of the text; one without indentation continues the instruction above.

    The metadata of Pallas kernels contains line breaks.
    """
    lines: list[str] = []
    for line in text.splitlines():
        unindented = line and not line.startswith(" ") and line.rstrip() != "}"
        if unindented and lines and lines[-1].startswith(" "):
            lines[-1] += line
        else:
            lines.append(line)
    return lines
