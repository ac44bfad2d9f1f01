"""One digest everywhere: workers, executor, locale, zone, clock, hash seed, umask, listing order change no byte."""

import os
import shutil
from pathlib import Path

from pipelines.errors import InterruptedRun
from tests.faults.case import ROOT, Case
from tests.faults.table import Tally

HOOKED = {"PYTHONPATH": f"{Path(__file__).with_name('hook')}:{ROOT}"}
_RAY, _SLURM = (("--set", f'prep.executor="{name}"') for name in ("ray", "slurm"))
SURROUNDINGS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    **{f"{count} workers": (("--workers", str(count)), {}) for count in (1, 2, 3, 8, 32)},
    **{f"locale {name}": ((), {"LC_ALL": name, "LANG": name}) for name in ("C", "tr_TR.UTF-8", "zh_CN.UTF-8")},
    **{f"zone {name}": ((), {"TZ": name}) for name in ("Pacific/Kiritimati", "America/St_Johns")},
    "the clock at 1970": ((), {**HOOKED, "FAULT_CLOCK": "60"}),
    "the clock at 2038": ((), {**HOOKED, "FAULT_CLOCK": "2147483650"}),
    **{f"PYTHONHASHSEED {seed}": ((), {"PYTHONHASHSEED": seed}) for seed in ("0", "1", "4294967295")},
    **{f"directories listed in order {seed}": ((), {**HOOKED, "FAULT_SHUFFLE": seed}) for seed in ("a", "b")},
    "the ray executor": (_RAY, {}),
    "a Slurm array of 3": (_SLURM, {}),
}


def same_bytes(ready: Case, folder: Path, names: tuple[str, ...] = tuple(SURROUNDINGS)) -> Tally:
    """Run prep in each of the surroundings, and under a strict umask, from nothing."""
    expected = ready.tree("prep")
    tally = Tally("other surroundings of prep")
    for name in names:
        options, env = SURROUNDINGS[name]
        tally.add(_differs(ready, folder, expected, name, options, env))
    before = os.umask(0o077)
    try:
        tally.add(_differs(ready, folder, expected, "umask 077", (), {}))
    finally:
        os.umask(before)
    return tally


def _differs(
    ready: Case, folder: Path, expected: dict[str, str], name: str, options: tuple[str, ...], env: dict[str, str]
) -> str | None:
    shutil.rmtree(folder / "same", ignore_errors=True)
    case = ready.copy(folder / "same")
    shutil.rmtree(case.home)
    (case.folder / "data_order.txt").unlink()
    if options == _SLURM:
        code, output = case.run("prep", *options, afresh=True)
        if code != InterruptedRun.exit_code:
            return f"{name}: freezing it: exit {code}: {output[-500:]}"
        for part in (2, 0, 1):
            case.run("prep", *options, "--part", f"{part}/3", afresh=True)
    code, output = case.run("prep", *options, env=env, afresh=True)
    if code:
        return f"{name}: exit {code}: {output[-500:]}"
    if case.tree("prep") != expected:
        return f"{name}: other bytes"
    order = (case.folder / "data_order.txt").read_bytes() == (ready.folder / "data_order.txt").read_bytes()
    return None if order else f"{name}: another data_order.txt"
