"""What is drawn while a run goes on: the numbers of metrics.jsonl, in a tracker's own format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import MachineError


class Tensorboard:
    """Event files in train/tensorboard, which `tensorboard --logdir` reads while they are written."""

    def __init__(self, folder: Path, *, done: int) -> None:
        """Open them.

        Args:
            done: steps that were done before; what an earlier run wrote after them is not shown.
        Raises:
            MachineError: if the package is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MachineError(
                'train.log.trackers = ["tensorboard"]: the package is not installed; run `pip install tensorboard`, or '
                "remove it from train.log.trackers"
            ) from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row, as `train/loss` or `eval/loss`."""
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{row['kind']}/{key}", float(value), row["step"])

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


def open_trackers(names: Sequence[str], home: Path, *, done: int) -> list[Tensorboard]:
    """The trackers of these names, for a run in `home` of which `done` steps are done."""
    return [Tensorboard(home / "tensorboard", done=done) for _ in dict.fromkeys(names)]
