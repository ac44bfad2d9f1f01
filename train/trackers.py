"""Where the numbers of metrics.jsonl are drawn while a run goes on: trackers, each fed by a thread of its own.

No tracker can hold a run up or end it. Opening one, sending to it and closing it happen on its thread, so a network
that hangs costs no step; whatever fails is told of once, and metrics.jsonl has every number all the same.

A run that goes on after a stop goes on in the tracker as well: which run it is there is kept in trackers.json. Rows
that metrics.jsonl had before are not sent again, since they would be the same.
"""

import importlib.util
import json
import logging
import netrc
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pipelines.artifacts import Json, canonical_json, write_atomic
from pipelines.errors import MachineError
from pipelines.schema import Pipeline
from pipelines.secret_text import without_secrets

log = logging.getLogger(__name__)

FILE = "trackers.json"
PROJECT = "packtrain"
"""What runs are filed under, where the tracker's own environment variable does not say."""
LONGEST_QUEUE = 10_000
"""Rows that wait for a tracker at most; later ones are not shown."""
CLOSE_S = 60.0
"""How long the end of a run waits for a tracker that still sends."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run."""

    name: str
    group: str
    config: Mapping[str, Json]
    folder: Path
    """Where the run's files are; a tracker that keeps files puts them into a folder below."""
    done: int
    """Steps that were done before."""
    id: str | None = None
    """What the tracker called this run before it was stopped; None for a new run."""


class Tracker(Protocol):
    """One run in one tracker. Any call may raise what it likes."""

    package: ClassVar[str]
    """What is imported, and what `pip install` takes."""
    replaces: ClassVar[bool]
    """Whether rows after `done` steps are to be sent again: opening it takes back those that were sent before."""
    id: str
    """What the tracker calls the run."""
    place: str
    """Where it is shown, for a person."""

    def __init__(self, run: TrackedRun) -> None: ...

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Show numbers, such as `train/loss`, at a step. Steps never fall; one may come again with other numbers."""

    def close(self, *, finished: bool) -> None:
        """Send what is left; `finished` unless the run was stopped or failed."""


class Trackers:
    """All trackers of a run, on rank 0."""

    def __init__(
        self,
        names: Sequence[str],
        run: TrackedRun,
        *,
        identity: str,
        resume: bool,
        kept: Sequence[Json] = (),
        former: Sequence[Json] = (),
    ) -> None:
        """Open them.

        Args:
            identity: of what the run computes: one that computes something else is another run in a tracker.
            resume: whether to go on with the run that a tracker has of it.
            kept: rows of the steps done before.
            former: all rows that were sent before.
        """
        sent = {_key(row) for row in former}
        ids = _Ids(run.folder / FILE, identity, resume=resume)
        self._feeds = []
        for name in dict.fromkeys(names):
            known = ids[name]
            own = replace(run, id=known)
            self._feeds.append(
                _Feed(name, own, ids, first=kept, sent=set()) if known is None else _Feed(name, own, ids, sent=sent)
            )

    def add(self, row: Json) -> None:
        """Send the numbers of a row of metrics.jsonl, without waiting for it."""
        for feed in self._feeds:
            feed.put(row)

    def close(self, *, finished: bool) -> None:
        """Wait for what is still to be sent, as long as `CLOSE_S` at most."""
        for feed in self._feeds:
            feed.end(finished=finished)
        deadline = time.monotonic() + CLOSE_S
        for feed in self._feeds:
            feed.wait(deadline - time.monotonic())


def check_installed(names: Sequence[str]) -> None:
    """Refuse trackers whose package is missing, before work starts.

    Raises:
        MachineError: naming the command that installs it.
    """
    for name in names:
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            raise MachineError(
                f'train.log.trackers = ["{name}"]: the package is not installed; run `pip install {package}`, or '
                "remove it from train.log.trackers"
            )


def shown_settings(pipeline: Pipeline) -> dict[str, Json]:
    """All settings of a pipeline, defaults as well, as trackers show them: without what may be a secret."""
    shown = _without_secrets(pipeline.model_dump(mode="json"))
    assert isinstance(shown, dict)
    return shown


def numbers_of(row: Json) -> dict[str, float]:
    """The numbers of a row by name, such as `train/loss` or `eval/loss_by_source/NAME`."""
    return {
        f"{row['kind']}/{key}": float(value)
        for key, value in _leaves(row).items()
        if key != "step" and isinstance(value, int | float)
    }


class Tensorboard:
    """Event files in train/tensorboard, which `tensorboard --logdir` reads while they are written."""

    package: ClassVar[str] = "tensorboard"
    replaces: ClassVar[bool] = True

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard"
        self.id = "tensorboard"
        self.place = f"tensorboard --logdir {folder}"
        self._writer: Any = SummaryWriter(str(folder), purge_step=run.done + 1)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002 (event files do not say)
        self._writer.close()


class Wandb:
    """Weights & Biases: online where it has a key, else offline in train/wandb, for `wandb sync`."""

    package: ClassVar[str] = "wandb"
    replaces: ClassVar[bool] = False

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        asked = os.environ.get("WANDB_MODE")
        if asked == "online" and not _has_wandb_key():  # it would ask at the terminal
            raise RuntimeError("WANDB_MODE is online, but there is no key; run `wandb login` or set WANDB_API_KEY")
        self.id = run.id or uuid.uuid4().hex[:16]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            group=run.group,
            id=self.id,
            resume="allow",
            mode=None if asked or _has_wandb_key() else "offline",
            dir=os.environ.get("WANDB_DIR", run.folder),
            config=dict(run.config),
            settings=wandb.Settings(silent=True),
        )
        self.place = f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class Swanlab:
    """SwanLab: online where it has a key, else offline in train/swanlog, for `swanlab sync`."""

    package: ClassVar[str] = "swanlab"
    replaces: ClassVar[bool] = False

    def __init__(self, run: TrackedRun) -> None:
        os.environ["SWANLAB_INTERACTIVE"] = "false"  # it would ask at the terminal
        import swanlab

        offline = "SWANLAB_MODE" not in os.environ and not _has_swanlab_key()
        self.id = run.id or uuid.uuid4().hex[:21]
        folder = Path(os.environ.get("SWANLAB_LOGDIR", run.folder / "swanlog"))
        self._run: Any = swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME", PROJECT),
            name=run.name,
            group=run.group,
            id=self.id,
            resume="allow",
            mode="offline" if offline else None,
            log_dir=str(folder),
            config=dict(run.config),
        )
        self.place = f"swanlab sync {folder}/run-*-{self.id}" if offline else f"run {self.id}, and {folder}"

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(state="success" if finished else "aborted")


class Mlflow:
    """MLflow: the server of MLFLOW_TRACKING_URI, or a database in train/mlflow.db."""

    package: ClassVar[str] = "mlflow"
    replaces: ClassVar[bool] = False
    PARAMETERS_AT_ONCE: ClassVar[int] = 100
    LONGEST_PARAMETER: ClassVar[int] = 500

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.folder / 'mlflow.db'}")
        self._client: Any = MlflowClient(tracking_uri=uri)
        self.place = without_secrets(f"mlflow ui --backend-store-uri {uri}")
        if run.id is not None:
            self.id = run.id
            self._client.update_run(run.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.id = str(self._client.create_run(number, run_name=run.name, tags={"group": run.group}).info.run_id)
        parameters = [
            Param(key, (value if isinstance(value, str) else json.dumps(value))[: self.LONGEST_PARAMETER])
            for key, value in _leaves(run.config, ".").items()
        ]
        for first in range(0, len(parameters), self.PARAMETERS_AT_ONCE):
            self._client.log_batch(self.id, params=parameters[first : first + self.PARAMETERS_AT_ONCE])

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.id, metrics=[self._metric(name, value, now, step) for name, value in numbers.items()]
        )

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


class Trackio:
    """Trackio: a database below TRACKIO_DIR or its usual place, or the Space or server that its variables name."""

    package: ClassVar[str] = "trackio"
    replaces: ClassVar[bool] = False

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.id = f"{project}/{run.name}"
        self.place = f"trackio show --project {project}"
        self._run: Any = trackio.init(
            project=project,
            name=run.name,
            group=run.group,
            resume="never" if run.id is None else "allow",
            config=dict(run.config),
            embed=False,
        )

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, *, finished: bool) -> None:  # noqa: ARG002 (it has no such state)
        self._run.finish()


TRACKERS: Mapping[str, type[Tracker]] = {
    "tensorboard": Tensorboard,
    "wandb": Wandb,
    "swanlab": Swanlab,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


class _Feed:
    """A tracker on a thread of its own, and the rows that wait for it."""

    def __init__(
        self, name: str, run: TrackedRun, ids: "_Ids", *, first: Sequence[Json] = (), sent: set[tuple[str, int]]
    ) -> None:
        self._name, self._run, self._ids, self._first = name, run, ids, first
        self._sent: set[tuple[str, int]] = set() if TRACKERS[name].replaces else sent
        self._rows: queue.Queue[Json] = queue.Queue(LONGEST_QUEUE)
        self._finished: bool | None = None
        self._ended = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, row: Json) -> None:
        if _key(row) in self._sent:
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._warn(f"{LONGEST_QUEUE:,} rows wait for it")

    def end(self, *, finished: bool) -> None:
        self._finished = finished
        self._ended.set()

    def wait(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._warn(f"still not done after {CLOSE_S:.0f} s, not waited for")

    def _work(self) -> None:
        try:
            tracker = TRACKERS[self._name](self._run)
            self._ids[self._name] = tracker.id
        except BaseException as error:
            self._warn(f"not opened: {_one_line(error)}")
            return
        log.info("%s: %s", self._name, tracker.place)
        for row in chain(self._first, iter(self._next, None)):
            self._try(partial(tracker.add, row["step"], numbers_of(row)))
        self._try(partial(tracker.close, finished=bool(self._finished)))

    def _next(self) -> Json | None:
        while True:
            ended = self._ended.is_set()  # asked first: nothing comes after it
            try:
                return self._rows.get(timeout=0.1)
            except queue.Empty:
                if ended:
                    return None

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._warn(_one_line(error))

    def _warn(self, finding: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: %s; the run goes on, and metrics.jsonl has every number", self._name, finding)


class _Ids:
    """trackers.json: what each tracker calls this run."""

    def __init__(self, path: Path, identity: str, *, resume: bool) -> None:
        self._path, self._identity = path, identity
        self._lock = threading.Lock()
        try:
            former: Json = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            former = {}
        self._ids: dict[str, str] = former["ids"] if resume and former.get("identity") == identity else {}

    def __getitem__(self, name: str) -> str | None:
        return self._ids.get(name)

    def __setitem__(self, name: str, value: str) -> None:
        with self._lock:
            self._ids[name] = value
            write_atomic(self._path, canonical_json({"identity": self._identity, "ids": self._ids}))


def _key(row: Json) -> tuple[str, int]:
    return row["kind"], row["step"]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _leaves(value: Json, separator: str = "/") -> dict[str, Json]:
    """The values of nested tables by their names joined."""
    return {
        separator.join(filter(None, (key, name))): leaf
        for key, child in value.items()
        for name, leaf in (_leaves(child, separator).items() if isinstance(child, dict) else (("", child),))
    }


_SECRET = re.compile(r"(^|_)(token|password|passwd|secret|credentials?|api_?key|access_?key)$", re.IGNORECASE)
_USER_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")


def _without_secrets(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_secrets(child) for key, child in value.items() if not _SECRET.search(key)}
    if isinstance(value, list):
        return [_without_secrets(child) for child in value]
    return _USER_IN_ADDRESS.sub("", value) if isinstance(value, str) else value


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return _in_netrc(Path(os.environ.get("NETRC", Path.home() / ".netrc")), address.split("://")[-1].split("/")[0])


def _has_swanlab_key() -> bool:
    home = os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab"
    return bool(os.environ.get("SWANLAB_API_KEY")) or (Path(home) / ".netrc").is_file()


def _in_netrc(path: Path, host: str) -> bool:
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return host in hosts or host.split(":")[0] in hosts
