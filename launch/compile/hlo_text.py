"""Reads the text of an optimized XLA program into computations and instructions. Text only: nothing is counted here.

One line of it:  %fusion.3 = bf16[8,128]{1,0:T(8,128)S(1)} fusion(%p.0, %p.1), kind=kLoop, calls=%fused_computation.3, metadata={...}
"""

import dataclasses
import functools
import math
import re

_BITS = {
    "pred": 8, "token": 0, "opaque": 0, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128, "f4e2m1fn": 4,
}  # fmt: skip
_LEAF = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_ATTRIBUTE = r"\b{}=%?([\w.\-]+)"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array. `space` is the memory it lies in: 0 is the main memory (HBM), others are on the chip (VMEM, SMEM)."""

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
    """`leaves` are the arrays of its result (a tuple's are flattened), `arguments` the text between the brackets, `attributes` the rest."""

    name: str
    opcode: str
    leaves: tuple[Leaf, ...]
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    @property
    def hbm_bytes(self) -> int:
        return sum(leaf.hbm_bytes for leaf in self.leaves)

    def attribute(self, key: str) -> str | None:
        """A named computation or word among the attributes: attribute("body") -> "region_1.2"."""
        found = re.search(_ATTRIBUTE.format(key), self.attributes)
        return found.group(1) if found else None

    def attribute_list(self, key: str) -> list[str]:
        """The names in `key={%a, %b}`."""
        found = re.search(rf"\b{key}=\{{([^}}]*)\}}", self.attributes)
        return _NAME.findall(found.group(1)) if found else []

    def ints(self, key: str) -> tuple[int, ...]:
        """The numbers in `key={0,2}`."""
        found = re.search(rf"\b{key}=\{{([0-9,]*)\}}", self.attributes)
        return tuple(int(n) for n in found.group(1).split(",") if n) if found else ()


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
    """Index of the bracket that closes the one at `start`; quoted text is skipped."""
    depth = 0
    quoted = False
    for i in range(start, len(text)):
        letter = text[i]
        if letter == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif not quoted and letter == "(":
            depth += 1
        elif not quoted and letter == ")":
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f"unbalanced brackets in HLO: {text[:200]!r}")


def parse_instruction(line: str) -> tuple[Instruction, bool]:
    """One line -> (instruction, whether it is the root)."""
    line = line.strip()
    is_root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    bracket = rest.index("(")
    close = _closing(rest, bracket)
    arguments = rest[bracket + 1 : close]
    opcode = rest[:bracket]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(arguments))
    return Instruction(
        name.removeprefix("%"), opcode, _leaves(shape), operands, arguments, rest[close + 1 :]
    ), is_root


def parse(text: str) -> Program:
    """A whole module, as `compiled.as_text()` prints it. Raises ValueError if there is no entry computation in it.

    A Pallas kernel's metadata holds line breaks of its own: what does not begin with a blank goes on with the instruction above.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = None
    instructions: list[Instruction] = []
    lines = []
    for line in text.splitlines():
        continues = (
            lines
            and lines[-1].startswith(" ")
            and line
            and not line.startswith(" ")
            and line.rstrip() != "}"
        )
        if continues:
            lines[-1] += line
        else:
            lines.append(line)
    for line in lines:
        if name is None:
            header = _HEADER.match(line)
            if header:
                name, instructions, root = header.group(2), [], None
                entry = name if header.group(1) else entry
        elif line.startswith("}"):
            computations[name] = Computation(name, instructions, root or instructions[-1].name)
            name = None
        elif " = " in line:
            instruction, is_root = parse_instruction(line)
            instructions.append(instruction)
            root = instruction.name if is_root else root
    if entry is None:
        raise ValueError(
            f"no ENTRY computation in {len(text)} characters of HLO: pass compiled.as_text()"
        )
    return Program(computations, entry)
