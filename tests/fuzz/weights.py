"""Weights: what torch.save, safetensors, DeepSpeed, FSDP and InternEvo wrote, and what may only look like it."""

from pathlib import Path

from export.internevo.importer import hf_config, plain
from export.internevo.reader import InternEvoCheckpoint
from export.sources.foreign import find
from export.sources.torch_file import load, load_pickle
from pipelines.artifacts import canonical_json
from pipelines.file_ranges import FileRanges
from pipelines.safetensors_header import read_header
from pipelines.sentencepiece_model import SentencePieceModel, changed
from tests.fuzz.bundle import write, write_torch_file
from tests.fuzz.target import Feed, Target

_READ = 1 << 16  # elements of every tensor


def _torch_file(data: bytes, folder: Path) -> None:
    """The whole archive."""
    (folder / "x.pt").write_bytes(data)
    load(folder / "x.pt")


def _torch_pickle(data: bytes, folder: Path) -> None:
    """The pickle within a sound archive, and one that is a file of its own."""
    write_torch_file(folder / "x.pt", data)
    (folder / "x.pkl").write_bytes(data)
    try:
        load(folder / "x.pt")
    finally:
        load_pickle(folder / "x.pkl")


def _safetensors(data: bytes, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    for entry in read_header(path).values():
        assert 0 <= entry.first <= entry.first + entry.size <= len(data)
    _find(folder)


def _foreign(names: tuple[str, ...]) -> Feed:
    def feed(data: bytes, folder: Path) -> None:
        write(data, folder, names)
        _find(folder)

    return feed


def _find(folder: Path) -> None:
    """All that is found can be read, as far as its files reach."""
    ranges = FileRanges()
    for tensor in find(folder).tensors.values():
        stop = min(tensor.size, _READ)
        assert tensor.read(ranges, 0, stop).size == stop


def _internevo(data: bytes, folder: Path) -> None:
    write(data, folder, INTERNEVO)
    found = InternEvoCheckpoint(folder)
    assert found.files
    assert canonical_json([hf_config(found, found.kind, "bfloat16"), plain(found.config), found.flag("adapt_hf")])


def _sentencepiece(data: bytes, folder: Path) -> None:
    try:
        model = SentencePieceModel.parse(data)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        return  # whoever reads the file adds its name
    assert model.pieces
    assert SentencePieceModel.parse(changed(data, dummy_prefix=True)).dummy_prefix


INTERNEVO = ("model_config.pt", "model_tp0_pp0.pt", "model_tp1_pp0.pt")
ZERO_2 = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
ZERO_3 = ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
UNIVERSAL = ("zero/a.weight/fp32.pt", "zero/b.weight/fp32.pt", "mp_rank_00_model_states.pt")
DISTRIBUTED = (".metadata", "__0_0.distcp")
PLAIN = ("model.safetensors.index.json", "a.safetensors", "b.safetensors", "config.json")
TORCH = ("pytorch_model.bin.index.json", "pytorch_model-1.bin")
_PICKLE = (
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", b"\x80\x02",
    b"(",
    b"X\x07\x00\x00\x00storage", b"tQ", b"R", b"}", b"]", b"K\x00", b"\x85", b"\x86", b"\x87", b"q\x00", b"h\x00",
    b"s.",
    b"J\xff\xff\xff\x7f", b"\x8a\x08", b"Ntb", b"ctorch\nSize\n", b"cbuiltins\nset\n", b"ctorch\nDoubleStorage\n",
)  # fmt: skip
_HEADER = (b'"dtype":"F32"', b'"shape":[', b'"data_offsets":[', b'"__metadata__":', b"{", b"}")

TARGETS = (
    Target(
        "torch_file", _torch_file, tokens=(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"archive/data.pkl", *_PICKLE)
    ),
    Target("torch_pickle", _torch_pickle, tokens=_PICKLE),
    Target("safetensors", _safetensors, tokens=_HEADER),
    Target("plain", _foreign(PLAIN), PLAIN, (b'"weight_map":', *_HEADER, b'"quantization_config":')),
    Target("torch_bin", _foreign(TORCH), TORCH, (b'"weight_map":', *_PICKLE)),
    Target("zero_2", _foreign(ZERO_2), ZERO_2, _PICKLE),
    Target("zero_3", _foreign(ZERO_3), ZERO_3, _PICKLE),
    Target("universal", _foreign(UNIVERSAL), UNIVERSAL, _PICKLE),
    Target("distributed", _foreign(DISTRIBUTED), DISTRIBUTED, _PICKLE),
    Target("internevo", _internevo, INTERNEVO, _PICKLE),
    Target("sentencepiece", _sentencepiece, tokens=(b"\x0a", b"\x12", b"\x1a", b"\x15")),
)
