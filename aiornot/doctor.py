"""What is wrong with a machine or a cluster, from what its nodes said: one finding per check.

``aiornot doctor`` prints them. Nothing here asks anybody anything: ``machine.py`` and
``ray_doctor.py`` do.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from aiornot.storage import spoken
from aiornot.survey import Node, Survey

Status = Literal["ok", "warn", "fail"]

LEAST_FREE = {"Ray's files": 10e9, "prepared files": 2e9}
"""Bytes below which a disk is warned of."""

FULL = 0.95
"""Ray stops making objects on a disk of which more is used."""

SKEW_WARN, SKEW_FAIL = 2.0, 300.0
"""Seconds between two clocks: logs and curves mislead; S3 refuses after 900, and clocks drift."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, where, what was found, and how to mend it."""

    status: Status
    what: str
    where: str
    found: str
    mend: str = ""


def examine(survey: Survey) -> list[Finding]:
    """Return the findings, in the order in which things are to be mended."""
    answered = [node for node in survey.nodes if not node.error]
    found = [
        Finding(
            status="fail",
            what="node",
            where=node.name,
            found=node.error,
            mend="look at that machine, or take it out of the cluster",
        )
        for node in survey.nodes
        if node.error
    ]
    if survey.cluster is None:
        found.append(_alone(survey, answered))
    checks: list[Callable[[Survey, Node], _Line]] = [_version, _gpu, _storage]
    checks += [_data] * (survey.data is not None) + [*_DISKS, _memory]
    checks += [_clock] * (survey.cluster is not None) + [_hub]
    for check in checks if answered else ():
        found += _merged(survey, [(node.name, check(survey, node)) for node in answered])
    if survey.cluster is not None:
        found += [*_guarded(survey, answered), _dashboard(survey), _state_api(survey)]
    return [*found, _wandb(survey)]


def is_well(findings: Sequence[Finding]) -> bool:
    return all(finding.status != "fail" for finding in findings)


_Line = tuple[Status, str, str, str]
"""Status, what, found, mend."""


def _merged(survey: Survey, lines: Sequence[tuple[str, _Line]]) -> list[Finding]:
    """Make one finding of equal lines of several nodes."""
    silent = len(survey.nodes) > len([node for node in survey.nodes if not node.error])
    everyone = f"{'the other' if silent else 'all'} {len(lines)} nodes"
    nodes: dict[_Line, list[str]] = {}
    for name, line in lines:
        nodes.setdefault(line, []).append(name)
    findings = []
    for (status, what, found, mend), names in nodes.items():
        where = everyone if 1 < len(names) == len(lines) else ", ".join(names)
        findings.append(Finding(status=status, what=what, where=where, found=found, mend=mend))
    return findings


def _alone(survey: Survey, nodes: Sequence[Node]) -> Finding:
    if survey.trouble:
        return Finding(status="fail", what="ray", where="driver", found=survey.trouble)
    has_ray = bool(nodes) and nodes[0].facts["versions"]["ray"] != "absent"
    if not has_ray:
        return Finding(
            status="warn",
            what="ray",
            where="here",
            found="not installed: train, evaluate and predict work, prepare and tune do not",
            mend="in the source tree: pip install -c constraints.txt -e '.[ray]'",
        )
    if survey.beside:
        return Finding(
            status="warn",
            what="ray",
            where="here",
            found=f"one runs at {survey.beside} and RAY_ADDRESS is not set: it is not used",
            mend="export RAY_ADDRESS=auto",
        )
    told = "RAY_ADDRESS is not set: this machine alone"
    return Finding(status="ok", what="ray", where="here", found=told)


def _version(survey: Survey, node: Node) -> _Line:
    own, first = node.facts["versions"], _reference(survey)
    differ = [name for name in first if own.get(name) != first[name]]
    if not differ:
        names = ("python", "aiornot", "ray", "torch")
        return "ok", "versions", ", ".join(f"{name} {own[name]}" for name in names), ""
    told = ", ".join(f"{name} {own.get(name, 'absent')} and not {first[name]}" for name in differ)
    mend = "install the same there: constraints.txt pins all of it"
    if differ == ["source"]:
        told, mend = "another source of the same aiornot", "copy the same source there"
    return "fail", "versions", told, mend


def _reference(survey: Survey) -> Mapping[str, str]:
    """Return the versions of the head, or of the first node that answered."""
    answered = [node for node in survey.nodes if not node.error]
    versions: Mapping[str, str] = answered[0].facts["versions"]
    return versions


def _gpu(survey: Survey, node: Node) -> _Line:
    found = node.facts["gpus"]
    driver, torch, ray = found["driver"], found["torch"], int(node.resources.get("GPU", 0))
    if torch < driver and found["visible"] is None:
        wrong = f"the driver has {driver}, torch {torch}"
        if found["cuda"] is None:
            return "fail", "gpus", f"{wrong}: it is built for CPUs", "install torch for CUDA"
        return "fail", "gpus", wrong, "see nvidia-smi: the driver may be older than CUDA"
    if survey.cluster is not None and ray != torch:
        mend = "leave out --num-gpus in 'ray start', or correct it"
        status: Status = "fail" if ray > torch else "warn"
        return status, "gpus", f"Ray counts {ray}, torch {torch}", mend
    return "ok", "gpus", str(torch) if torch else "none: it trains on CPUs", ""


def _storage(survey: Survey, node: Node) -> _Line:
    if not node.storage:
        return "ok", "storage", f"{survey.storage} is written and read", ""
    if "://" in survey.storage:
        mend = "check bucket, AWS_* variables of every node, and the role of its machine"
    elif survey.cluster is not None:
        mend = "give --storage s3://BUCKET/FOLDER, or a file system that all nodes mount"
    else:
        mend = "give another --storage"
    return "fail", "storage", f"{survey.storage}: {node.storage}", mend


def _data(survey: Survey, node: Node) -> _Line:
    assert survey.data is not None
    first = next(each.data for each in survey.nodes if not each.error)
    remote = "://" in survey.data
    if isinstance(node.data, str):
        return "fail", "data", node.data, "check --data, and the credentials of every node"
    if not node.data:
        told = f"{survey.data} has no prepared files"
        mend = f"aiornot prepare SOURCE --out {survey.data}"
        if first:
            told, mend = f"{told} there", "give s3://..., or a file system that all nodes mount"
        return "fail", "data", told, mend
    if node.data != first:
        mend = "give s3://..., or a file system that all nodes mount"
        return "fail", "data", f"{survey.data} holds other files than the head's", mend
    needed, cache = sum(node.data.values()), node.facts["disks"]["prepared files"]
    if remote and cache and needed > cache["free"]:
        told = f"{spoken(needed)} to be fetched, {spoken(cache['free'])} free in {cache['path']}"
        return "fail", "data", told, "set AIORNOT_CACHE to a folder on a larger disk"
    names = ", ".join(sorted(node.data))
    return "ok", "data", f"{survey.data}: {names}, {spoken(needed)}", ""


def _disk(name: str, mend: str) -> Callable[[Survey, Node], _Line]:
    def check(survey: Survey, node: Node) -> _Line:
        disk = node.facts["disks"][name]
        if disk is None:
            return "warn", "disk", f"{name}: the disk tells no size", ""
        used, place = 1 - disk["free"] / disk["total"], f"for {name} in {disk['path']}"
        if survey.cluster is not None and name == "Ray's files" and used > FULL:
            return "fail", "disk", f"{used:.0%} used {place}: Ray stops at {FULL:.0%}", mend
        if disk["free"] < LEAST_FREE[name]:
            return "warn", "disk", f"{spoken(disk['free'])} free {place}", mend
        # As a round number: equal lines of several nodes become one.
        return "ok", "disk", f"more than {spoken(LEAST_FREE[name])} free {place}", ""

    return check


_DISKS = (
    _disk("Ray's files", "make room, or 'ray start --temp-dir' on a larger disk"),
    _disk("prepared files", "make room, or set AIORNOT_CACHE to a folder on a larger disk"),
)


def _memory(survey: Survey, node: Node) -> _Line:
    memory, store = node.facts["shared_memory"], node.resources.get("object_store_memory", 0)
    if memory is None or not store:
        return "ok", "memory", "no object store yet" if memory else "no /dev/shm here", ""
    if store > memory["total"]:
        told = f"/dev/shm has {spoken(memory['total'])}, the object store wants {spoken(store)}"
        return "warn", "memory", told, "docker run --shm-size=..., or a smaller object store"
    return "ok", "memory", "the object store fits into /dev/shm", ""


def _clock(survey: Survey, node: Node) -> _Line:
    if node.skew is None:
        return "warn", "clock", "it was not told in time", "try again"
    skew = max(0.0, abs(node.skew) - node.skew_within)
    if skew < SKEW_WARN:
        return "ok", "clock", f"within {SKEW_WARN:.0f} s of the driver's", ""
    status: Status = "fail" if skew > SKEW_FAIL else "warn"
    told = f"{skew:.0f} s {'ahead of' if node.skew > 0 else 'behind'} the driver's"
    return status, "clock", told, "sudo systemctl enable --now chrony"


def _hub(survey: Survey, node: Node) -> _Line:
    found = node.facts["hugging_face"]
    if not found["writable"] and not found["offline"]:
        told = f"weights cannot be kept in {found['cache']}"
        return "warn", "hugging face", told, "set HF_HOME to a folder that can be written"
    told = "a token is set" if found["token"] else "no token: public weights only"
    if found["offline"]:
        told += "; offline, from the cache alone"
    return "ok", "hugging face", told, ""


def _guarded(survey: Survey, nodes: Sequence[Node]) -> list[Finding]:
    """Look whether the cluster asks for a token, and whether others may read it."""
    assert survey.cluster is not None
    asked = survey.cluster.refuses
    if asked is None:  # by what the nodes were started with
        asked = bool(nodes) and all(n.facts["token"]["mode"] == "token" for n in nodes)
    where = survey.cluster.address
    if not asked:
        mend = "ray get-auth-token --generate; RAY_AUTH_MODE=token on every node; start Ray anew"
        told = "none is asked for: whoever reaches the cluster runs code on it"
        return [Finding(status="fail", what="token", where=where, found=told, mend=mend)]
    found = Finding(status="ok", what="token", where=where, found="asked for")
    readable = [
        (node.name, _readable(node.facts["token"]["file"]))
        for node in nodes
        if node.facts["token"]["open"]
    ]
    return [found, *_merged(survey, readable)]


def _readable(path: str) -> _Line:
    return "warn", "token", f"other users may read {path}", f"chmod 600 {path}"


def _dashboard(survey: Survey) -> Finding:
    assert survey.cluster is not None
    address = survey.cluster.dashboard
    host = address.rpartition(":")[0].strip("[]")
    if not address:
        return Finding(status="ok", what="dashboard", where="head", found="there is none")
    if host in ("127.0.0.1", "localhost", "::1"):
        told = f"on loopback only, {address}"
        return Finding(status="ok", what="dashboard", where="head", found=told)
    return Finding(
        status="warn" if survey.cluster.refuses else "fail",
        what="dashboard",
        where="head",
        found=f"open to the network, {address}",
        mend="ray start --head --dashboard-host=127.0.0.1, and 'ray dashboard' to look at it",
    )


def _state_api(survey: Survey) -> Finding:
    assert survey.cluster is not None
    if not survey.cluster.state_api:
        return Finding(status="ok", what="state API", where="head", found="answers")
    return Finding(
        status="fail",
        what="state API",
        where="head",
        found=survey.cluster.state_api,
        mend="pip install 'ray[default]' and start the head with its dashboard",
    )


def _wandb(survey: Survey) -> Finding:
    told = {
        "online": "an account is set: runs go online",
        "offline": "no account: runs are kept as offline files",
        "off": "switched off, or not installed",
    }[survey.wandb]
    if survey.wandb == "online" and not survey.has_account:
        return Finding(
            status="fail",
            what="W&B",
            where="driver",
            found="online is asked for, and no key is set",
            mend="set WANDB_API_KEY, or WANDB_MODE=offline",
        )
    if survey.wandb == "offline" and survey.has_account:
        told = "WANDB_MODE=offline: runs are kept as files"
    return Finding(status="ok", what="W&B", where="driver", found=told)
