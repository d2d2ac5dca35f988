"""What a pickle would ask for, told from its opcodes alone: nothing is built, imported or called.

Source: the pickle protocol as ``pickletools`` of the standard library documents it, and the layout
of ``torch.save``: storages are persistent ids ``('storage', class, key, location, elements)``.

The scan runs the pickle machine on placeholders, so that before anything is unpickled

* every class a pickle names is known, and one that is neither a tensor's nor a plain container's is
  refused by name (an allow-list narrower than ``torch.load(weights_only=True)``'s, and one that
  nothing else in the process can widen);
* every storage is known with its size in bytes, and no tensor reaches beyond its storage (torch would
  enlarge it);
* only what ``torch.save`` calls is called: ``_codecs.encode`` with latin1 alone (other codecs take
  quadratic time), no storage by its size, and no attribute is set but a state dict's ``_metadata``;
* tuples nested more than ``DEEPEST`` deep, or whose members repeated come to more than ``MOST_MEMBERS``,
  are refused: hashing a tuple recurses in C, and visits a member as often as it appears;
* keys that a file can choose to hash alike (all but text and whole numbers below 2^61 - 1, Python's
  modulus) are at most ``MOST_KEYS`` in all, since such a dictionary or set takes quadratic time.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from kerple_eval.types import UserError

DEEPEST = 100
MOST_MEMBERS = 1 << 24  # members of all tuples, repeated ones counted each time
MOST_KEYS = 256  # keys of all dictionaries and members of all sets that could hash alike

#: Bytes an element of each storage class takes.
STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8,
    "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
    "ComplexDoubleStorage": 16, "ComplexFloatStorage": 8, "UntypedStorage": 1,
}  # fmt: skip

_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip

_REBUILD = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
CALLED = frozenset(
    {
        "collections.OrderedDict", "torch.Size", "torch.device", *_REBUILD,
        "torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter", "_codecs.encode",
        "builtins.set", "builtins.complex", "__builtin__.set", "__builtin__.complex",
    }
)  # fmt: skip
ALLOWED = CALLED | {"torch.storage.UntypedStorage"} | {f"torch.{name}" for name in (*STORAGES, *_DTYPES)}

_MARK = object()
_OTHER = object()  # anything the scan need not know more of
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_POPS = {"STOP": 1, "POP": 1}
_POPS_MARK = {"ADDITEMS", "LIST", "DICT"}  # torch's loader knows none of them
_CONSTANTS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING",
}  # fmt: skip
_PLAIN = {
    "NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "FLOAT", "EMPTY_SET",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "LIST", "DICT",
}  # fmt: skip  # what leaves one object on the stack


@dataclass(frozen=True, slots=True)
class Storage:
    """One storage a pickle asks for: its key and its size in bytes."""

    key: str
    size: int
    width: int = 1  # bytes an element takes


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Tuple:
    items: tuple[Any, ...]
    depth: int
    members: int  # of it and of the tuples in it


class _Dict:
    """A dictionary's string keys; others are not needed."""

    def __init__(self) -> None:
        self.keys: set[str] = set()


class _List:
    """How many of a list's items could hash alike: as members of a set, and as pairs by their keys."""

    def __init__(self) -> None:
        self.first: Any = _OTHER
        self.odd = self.odd_keys = self.size = 0

    def extend(self, items: list[Any]) -> None:
        for item in items:
            self.first = self.first if self.size else item
            self.size += 1
            self.odd += _is_odd(item)
            key = item.first if isinstance(item, _List) else _OTHER
            self.odd_keys += _is_odd(item.items[0] if isinstance(item, _Tuple) and item.items else key)


def _is_odd(key: Any) -> bool:
    """Whether a file could choose many keys of this kind that hash alike."""
    return not isinstance(key, str) and not (isinstance(key, int) and abs(key) < (1 << 61) - 1)


def scan(file: IO[bytes], where: str) -> list[Storage]:
    """Read one pickle from ``file``, leave the position after it, and say which storages it wants.

    Raises UserError with one line that starts with ``where``.
    """
    machine = _Machine(where)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError, UnicodeError, MemoryError) as error:
        raise UserError(f"{where}: damaged pickle: {one_line(error)}") from None
    return list(machine.storages.values())


def one_line(error: BaseException) -> str:
    """The first line of an exception's message, or its name."""
    text = "" if isinstance(error, LookupError) else str(error).strip()  # a bare key tells nothing
    return (text.splitlines()[0] if text else type(error).__name__)[:200]


class _Machine:
    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.members = 0
        self.odd_keys = 0

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _POPS:
            self._pop(_POPS[name])
        elif name in _POPS_MARK:
            self._pop_mark()
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif "TUPLE" in name:
            self._tuple(self._pop_mark() if name == "TUPLE" else self._pop(_TUPLES[name]))
        elif name in ("GLOBAL", "INST"):
            self._global(*str(argument).rsplit(" ", 1))
        elif "GET" in name or "PUT" in name or name == "MEMOIZE":
            self._memo(name, argument)
        elif name not in _PLAIN and name not in ("PROTO", "FRAME"):
            raise UserError(f"{self.where}: refused: pickle opcode {name}, which torch.save never writes")
        if name in _PLAIN:
            self.stack.append(_OTHER)

    def _memo(self, name: str, argument: Any) -> None:
        if "GET" in name:
            item = self.memo[int(argument)]
            self.stack.append(item)
            if isinstance(item, _Tuple):
                self._count(item.members)
        else:
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count or (count and _MARK in self.stack[-count:]):
            raise ValueError("stack underflow")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _pop_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise ValueError("no mark")

    def _tuple(self, items: list[Any]) -> None:
        depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        if depth > DEEPEST:
            raise UserError(f"{self.where}: tuples nested more than {DEEPEST} deep")
        members = len(items) + sum(item.members for item in items if isinstance(item, _Tuple))
        self._count(members)
        self.stack.append(_Tuple(tuple(items), depth, members))

    def _count(self, members: int) -> None:
        self.members += members
        if self.members > MOST_MEMBERS:
            raise UserError(f"{self.where}: refused: tuples of more than {MOST_MEMBERS} members in all")

    def _count_keys(self, odd: int) -> None:
        self.odd_keys += odd
        if self.odd_keys > MOST_KEYS:
            raise UserError(
                f"{self.where}: refused: more than {MOST_KEYS} keys that are neither text nor whole numbers "
                "below 2^61, which can take quadratic time"
            )

    def _append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, _List):
            target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        self._count_keys(sum(map(_is_odd, items[::2])))
        target = self.stack[-1]
        if isinstance(target, _Dict):
            target.keys.update(key if isinstance(key, str) else "" for key in items[::2])

    def _call(self, callee: Any, arguments: Any) -> None:
        name = callee.name if isinstance(callee, _Global) else "what is no function"
        items = arguments.items if isinstance(arguments, _Tuple) else ()
        if name not in CALLED:
            raise UserError(f"{self.where}: refused: the pickle calls {name}, which torch.save never does")
        if name == "_codecs.encode" and (len(items) != 2 or items[1] not in ("latin1", "latin-1")):
            raise UserError(f"{self.where}: refused: the pickle encodes text by another codec than latin1")
        if name in _REBUILD:
            self._check_tensor(items)
        if items and name.endswith((".set", ".OrderedDict")):
            if len(items) != 1 or not isinstance(items[0], _List):
                raise UserError(
                    f"{self.where}: refused: the pickle makes {name} of something else than a list"
                )
            self._count_keys(items[0].odd if name.endswith(".set") else items[0].odd_keys)
        self.stack.append(_OTHER)

    def _check_tensor(self, items: tuple[Any, ...]) -> None:
        """``(storage, offset, shape, strides, ...)``: the last element lies inside the storage."""
        storage, offset, shape, strides = (items + (None,) * 4)[:4]
        damaged = f"{self.where}: damaged pickle: a tensor"
        if not (isinstance(storage, Storage) and isinstance(shape, _Tuple) and isinstance(strides, _Tuple)):
            raise UserError(f"{damaged} without storage, shape and strides")
        numbers = [offset, *shape.items, *strides.items]
        if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 1 << 63 for n in numbers):
            raise UserError(f"{damaged} whose offset, shape or strides are not whole numbers")
        if len(shape.items) != len(strides.items):
            raise UserError(f"{damaged} with {len(shape.items)} sizes and {len(strides.items)} strides")
        last = offset + sum((n - 1) * step for n, step in zip(shape.items, strides.items, strict=True))
        if 0 not in shape.items and (last + 1) * storage.width > storage.size:
            raise UserError(f"{damaged} exceeds its storage of {storage.size} bytes")

    def _build(self, state: Any) -> None:
        if not isinstance(state, _Dict) or not state.keys <= {"_metadata"}:
            raise UserError(f"{self.where}: refused: the pickle sets attributes, which weights never need")

    def _global(self, module: str, attribute: str = "") -> None:
        name = f"{module}.{attribute}"
        if name not in ALLOWED:
            raise UserError(
                f"{self.where}: refused: the pickle wants {name[:80]!r}; "
                "only tensors and plain containers are read"
            )
        self.stack.append(_Global(name))

    def _storage(self, identifier: Any) -> None:
        items = identifier.items if isinstance(identifier, _Tuple) else ()
        kind, storage, key, _, count = (items + (None,) * 5)[:5]
        width = STORAGES.get(storage.name.rpartition(".")[2]) if isinstance(storage, _Global) else None
        if kind != "storage" or width is None or not isinstance(key, str) or not isinstance(count, int):
            raise UserError(f"{self.where}: damaged pickle: a persistent id that is no tensor's storage")
        stored = Storage(key, width * count, width)
        if not 0 <= count < 1 << 60 or self.storages.setdefault(key, stored) != stored:
            raise UserError(f"{self.where}: damaged pickle: storage {key[:80]!r} is given two sizes")
        self.stack.append(stored)


#: Operations on the stack, by opcode.
_ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": lambda machine: machine.stack.append(_MARK),
    "EMPTY_LIST": lambda machine: machine.stack.append(_List()),
    "APPEND": lambda machine: machine._append(machine._pop(1)),
    "APPENDS": lambda machine: machine._append(machine._pop_mark()),
    "EMPTY_DICT": lambda machine: machine.stack.append(_Dict()),
    "SETITEM": lambda machine: machine._set_items(machine._pop(2)),
    "SETITEMS": lambda machine: machine._set_items(machine._pop_mark()),
    "REDUCE": lambda machine: machine._call(*machine._pop(2)),
    "NEWOBJ": lambda machine: machine._call(*machine._pop(2)),
    "BUILD": lambda machine: machine._build(*machine._pop(1)),
    "STACK_GLOBAL": lambda machine: machine._global(*(str(part) for part in machine._pop(2))),
    "BINPERSID": lambda machine: machine._storage(*machine._pop(1)),
}
