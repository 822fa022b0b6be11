"""CPU seconds and memory of a process and of all that it starts, Ray's daemons included."""

import contextlib
import os
import threading
from pathlib import Path

MARK = "AIORNOT_BENCHMARK"
"""An environment variable that the measured process and all that it starts inherit."""
PERIOD = 0.2
TICKS = os.sysconf("SC_CLK_TCK")


class Watch:
    """CPU seconds and memory of a process and of all that it starts, seen from outside.

    A process belongs if its parent does or if it inherited the mark: daemons leave their parents,
    and Ray's workers write their titles over the environment that Linux shows. What a process that
    ended had used when last seen still counts, so at most its last ``PERIOD`` is lost.
    """

    def __init__(self, pid: int, mark: str, *, memory: bool) -> None:
        self.peaks: dict[str, float] = {}
        self._pid, self._mark, self._memory = pid, f"{MARK}={mark}".encode(), memory
        self._cpu: dict[tuple[int, str], float] = {}
        self._strangers: set[tuple[int, str]] = set()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def cpu(self) -> float:
        """Return the CPU seconds until now, of the living and the dead."""
        with self._lock:
            alive = self._look()
            if self._memory:
                self._weigh(alive)
            return sum(self._cpu.values())

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            self.cpu()

    def _look(self) -> set[int]:
        alive: set[int] = set()
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            with contextlib.suppress(OSError):  # it has ended
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                key = (pid, fields[19])  # with its start: numbers are used again
                if key in self._cpu or self._belongs(key, parent=int(fields[1]), alive=alive):
                    self._cpu[key] = (int(fields[11]) + int(fields[12])) / TICKS
                    alive.add(pid)
        return alive

    def _belongs(self, key: tuple[int, str], *, parent: int, alive: set[int]) -> bool:
        pid = key[0]
        if pid == self._pid or parent in alive:
            return True
        if key in self._strangers:
            return False
        found = self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if not found:
            self._strangers.add(key)
        return found

    def _weigh(self, alive: set[int]) -> None:
        """Note the peaks of proportional set sizes: each shared page counts once in the sum."""
        now = {"all": 0.0, "driver": 0.0, "shared memory": 0.0}
        for pid in alive:
            with contextlib.suppress(OSError, KeyError):  # it has ended
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                sizes = {line.split()[0]: int(line.split()[1]) * 1024 / 1e9 for line in lines}
                now["all"] += sizes["Pss:"]
                now["shared memory"] += sizes["Pss_Shmem:"]
                now["driver"] += sizes["Pss:"] if pid == self._pid else 0
        self.peaks = {name: max(self.peaks.get(name, 0), value) for name, value in now.items()}


def machine_cpu() -> float:
    """Return the CPU seconds that all processes of this machine have used."""
    first = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _, _, irq, softirq, *_ = map(int, first.split()[1:])
    return (user + nice + system + irq + softirq) / TICKS
