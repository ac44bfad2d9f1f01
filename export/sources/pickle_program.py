"""What a pickle's program would build, looked at before it runs: it may be made to use up the machine.

Python's unpickler makes room for any memo number, and walks through nested tuples without a limit where they are keys.
So memo numbers have to be no larger than a program of that length needs, and tuples of tuples have to stay small.
"""

from collections.abc import Sequence

_DEEPEST = 100  # tuples in tuples; those of checkpoints are 3 or 4 deep
_LARGEST = 1_000_000  # parts of a tuple, a tuple in it counting as often as it is there
_Extent = tuple[int, int]
_PLAIN: _Extent = (0, 1)

_FIXED = {
    **dict.fromkeys(b"N\x88\x89]}\x8f", 0), **dict.fromkeys(b"K\x82", 1), **dict.fromkeys(b"M\x83", 2),
    **dict.fromkeys(b"J\x84", 4), ord("G"): 8,
}  # fmt: skip
"""Opcodes that push a value, and the bytes behind them."""
_SIZED = {
    **dict.fromkeys(b"X\x8bTB", 4), **dict.fromkeys(b"\x8c\x8aUC", 1), **dict.fromkeys(b"\x8d\x8e\x96", 8),
}  # fmt: skip
"""Opcodes that push a value, and the bytes that say how many more it takes."""
_LINES = {**dict.fromkeys(b"ILSVFP", 1), ord("c"): 2}
"""Opcodes that push a value, and the lines of text behind them."""
_MADE_OF = {**dict.fromkeys(b"Q", 1), **dict.fromkeys(b"R\x81\x93", 2), ord("\x92"): 3}
"""Opcodes that make one value of as many."""
_ADDED = {**dict.fromkeys(b"ab", 1), ord("s"): 2}
"""Opcodes that put as many values into the one below."""
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_GETS, _PUTS = {ord("h"): 1, ord("j"): 4}, {ord("q"): 1, ord("r"): 4}


def refuse_excess(program: bytes) -> None:
    """Make sure that running a program takes memory and time in proportion to its length.

    Raises:
        ValueError: if it does not, or is cut short.
    """
    try:
        _walk(program)
    except (IndexError, KeyError) as error:
        raise ValueError("takes what is not there") from error


def _walk(program: bytes) -> None:
    at, end = 0, len(program)
    stack: list[_Extent] = []
    marks: list[int] = []
    memo: dict[int, _Extent] = {}
    while True:
        code = program[at]
        at += 1
        if code in _PUTS:
            number, at = _number(program, at, _PUTS[code])
            _remember(memo, number, stack, end)
        elif code in _GETS:
            number, at = _number(program, at, _GETS[code])
            stack.append(memo[number])
        elif code in _SIZED:
            size, at = _number(program, at, _SIZED[code])
            at += size
            stack.append(_PLAIN)
        elif code in _FIXED:
            at += _FIXED[code]
            stack.append(_PLAIN)
        elif code == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif code == 0x28:  # MARK
            marks.append(len(stack))
        elif code in _TUPLES:
            stack.append(_tuple_of([stack.pop() for _ in range(_TUPLES[code])]))
        elif code == 0x29:  # EMPTY_TUPLE
            stack.append((1, 1))
        elif code in b"t":
            stack.append(_tuple_of(_pop_mark(stack, marks)))
        elif code in _MADE_OF:
            del stack[len(stack) - _MADE_OF[code] :]
            stack.append(_PLAIN)
        elif code in _ADDED:
            del stack[len(stack) - _ADDED[code] :]
        elif code in b"eu\x90" or code == 0x31:  # POP_MARK
            _pop_mark(stack, marks)
        elif code in b"ld\x91o":
            _pop_mark(stack, marks)
            stack.append(_PLAIN)
        elif code in _LINES:
            for _ in range(_LINES[code]):
                at = _behind_line(program, at)
            stack.append(_PLAIN)
        elif code in b"i":
            _pop_mark(stack, marks)
            at = _behind_line(program, _behind_line(program, at))
            stack.append(_PLAIN)
        elif code in b"gp":
            behind = _behind_line(program, at)
            number, at = int(program[at : behind - 1]), behind
            if code in b"g":
                stack.append(memo[number])
            else:
                _remember(memo, number, stack, end)
        elif code in b"0":  # POP, of a mark where that is on top
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                stack.pop()
        elif code in b"2":
            stack.append(stack[-1])
        elif code in b"\x80\x95":  # PROTO, FRAME
            at += 1 if code == 0x80 else 8
        elif code in b".":
            return
        else:
            raise ValueError(f"unknown opcode {code:#x}")
        if at > end:
            raise ValueError("names more bytes than there are")


def _number(program: bytes, at: int, width: int) -> tuple[int, int]:
    """A number of that many bytes, and the place behind it."""
    return int.from_bytes(program[at : at + width], "little"), at + width


def _behind_line(program: bytes, at: int) -> int:
    found = program.find(b"\n", at) + 1
    if not found:
        raise ValueError("a line has no end")
    return found


def _remember(memo: dict[int, _Extent], number: int, stack: Sequence[_Extent], most: int) -> None:
    if not 0 <= number <= most:
        raise ValueError(f"remembers a value as number {number:,}, and is {most:,} bytes long")
    memo[number] = stack[-1]


def _pop_mark(stack: list[_Extent], marks: list[int]) -> list[_Extent]:
    mark = marks.pop()
    found = stack[mark:]
    del stack[mark:]
    return found


def _tuple_of(parts: Sequence[_Extent]) -> _Extent:
    depth = 1 + max((one[0] for one in parts), default=0)
    size = 1 + sum(one[1] for one in parts)
    if depth > _DEEPEST or size > _LARGEST:
        raise ValueError("nests tuples without measure")
    return depth, size
