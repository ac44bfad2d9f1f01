"""Programs that would use up the machine are known before they run; all that Python's own pickler writes passes."""

import io
import pickle
import random
import struct
from collections import OrderedDict
from pathlib import Path

import pytest

from export.sources.pickle_program import refuse_excess
from export.sources.torch_file import load_pickle
from pipelines.errors import CheckError

EVERYTHING = {
    "a": [1, -2, 300, 70000, -(7**90), 1.5, None, True, "é\n", b"y" * 300, bytearray(b"abc" * 200)],
    "state": random.Random(3).getstate(),
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((("x", "x"),),)),
    "sets": [{1, 2}, frozenset("ab"), OrderedDict(a=1), ValueError("x"), range(3)],
    "many": {index: [str(index)] * 2 for index in range(3000)},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_writes_passes(protocol: int) -> None:
    refuse_excess(pickle.dumps(EVERYTHING, protocol))
    written = io.BytesIO()
    pickle._Pickler(written, protocol).dump(EVERYTHING)  # the slow twin has other frames
    refuse_excess(written.getvalue())


@pytest.mark.parametrize(
    ("program", "finding"),
    [
        (b"\x80\x02Nr" + struct.pack("<I", 1 << 28) + b".", "remembers a value as number 268,435,456"),
        (b"\x80\x02Np268435456\n.", "remembers a value as number 268,435,456"),
        (b"\x80\x02})" + b"\x85" * 10**6 + b"Ns.", "nests tuples without measure"),
        (b"\x80\x02})" + b"2\x86" * 60 + b"Ns.", "nests tuples without measure"),
        (b"\x80\x02})" + b"".join(b"q%ch%c(h%ch%ct" % ((index,) * 4) for index in range(40)) + b"Ns.", "nests tuples"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.", "names more bytes than there are"),
        (b"\x80\x02}", "takes what is not there"),
        (b"\x80\x02\x85.", "takes what is not there"),
        (b"\x80\x02cbuiltins", "a line has no end"),
        (b"\xff", "unknown opcode 0xff"),
    ],
)
def test_programs_that_would_use_up_the_machine_are_refused(tmp_path: Path, program: bytes, finding: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(program)
    with pytest.raises(CheckError, match=rf"x\.pkl: its pickle is damaged \(ValueError: .*{finding}"):
        load_pickle(path)
