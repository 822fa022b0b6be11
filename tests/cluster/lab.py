"""A small data centre on one Linux machine, on which a real ``ray up`` can be tried.

Each host is a network, pid, mount, ipc and uts namespace with a copy-on-write root of its own
(overlayfs over ``/``), its own ``/tmp``, ``/dev/shm`` and home, and an sshd. The hosts hang on one
bridge in a namespace of its own, so that no packet reaches the machine's network; ``/shared`` is
the one folder that they share. Pid namespaces, too, because ``ray stop`` kills every Ray process
that it sees.

Nothing has a name outside and every process dies with its parent: whatever ends this process,
SIGKILL included, the kernel takes namespaces, mounts and disks away.

Needs root, iproute2, util-linux, openssh-server, rsync and overlayfs.
"""

import contextlib
import ctypes
import ipaddress
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TOOLS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "rsync": "rsync",
    "curl": "curl",
}
"""What has to be there, and the package of Debian that has it."""

HOME = "/home/lab"
"""Of root on the hosts: nothing that lies in the home of whoever runs the tests is seen there."""

SHARED = "/shared"

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ["--net", "--mount", "--uts", "--ipc", "--pid"]

_SSHD = """\
Port 22
HostKey /etc/ssh/lab_host_key
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
AuthorizedKeysFile /home/lab/.ssh/authorized_keys
Subsystem sftp internal-sftp
MaxStartups 100
PidFile none
"""

_BOOT = r"""
set -eu
disk="$FOLDER/disks/$NAME"
mkdir -p "$disk"
mount -t tmpfs -o size=2g,mode=755 disk "$disk"
mkdir "$disk/upper" "$disk/work" "$disk/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$disk/upper",workdir="$disk/work" "$disk/root"
root="$disk/root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for name in null zero full random urandom tty; do
    touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/tmp" "$root/run"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o size=1g shm "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount -t tmpfs run "$root/run"
mkdir -p "$root/run/sshd" "$root/run/lock" "$root$SHARED" "$root$HOME/.ssh"
for path in $BINDS; do mkdir -p "$root$path"; mount --rbind "$path" "$root$path"; done
mount --bind "$FOLDER/shared" "$root$SHARED"
hostname "$NAME"
chmod 700 "$root$HOME/.ssh"
cp "$FOLDER/key.pub" "$root$HOME/.ssh/authorized_keys"
cp "$FOLDER/host_key" "$root/etc/ssh/lab_host_key"
cp "$FOLDER/sshd_config" "$root/etc/ssh/lab_sshd_config"
cp "$FOLDER/hosts" "$root/etc/hosts"
cp -r "$FOLDER/files/." "$root/"
cp "$FOLDER/profile" "$root$HOME/.bashrc"
cp "$FOLDER/profile" "$root$HOME/.profile"
chmod 600 "$root/etc/ssh/lab_host_key" "$root$HOME/.ssh/authorized_keys"
sed -i "s,:/root:,:$HOME:," "$root/etc/passwd"
exec chroot "$root" /bin/bash -c '
    /usr/sbin/sshd -D -e -f /etc/ssh/lab_sshd_config &
    touch /run/ready
    while :; do wait -n || sleep 0.2; done'
"""


def why_not() -> str:
    """Return in one sentence why there can be no lab on this machine, nothing where there can."""
    if os.uname().sysname != "Linux":
        return "the cluster tests need Linux: their hosts are namespaces of its kernel"
    if os.geteuid() != 0:
        return "the cluster tests make namespaces and mounts: run them as root, on a test machine"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            return f"the cluster tests need {tool}: apt-get install {package}"
    overlay = (
        "mount -t tmpfs t /tmp && cd /tmp && mkdir u w r && "
        "mount -t overlay o -o lowerdir=/,upperdir=/tmp/u,workdir=/tmp/w /tmp/r"
    )
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "bash", "-c", overlay], capture_output=True, text=True
    )
    if tried.returncode:
        return f"the cluster tests need namespaces and overlayfs: {tried.stderr.strip()}"
    return ""


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _start(arguments: Sequence[str], **options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        arguments,
        text=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,
        start_new_session=True,
        **options,
    )


def _run(*arguments: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(arguments)}: {done.stderr.strip()}")


class Host:
    """A machine: power it on and off, cut its cable, run commands on it."""

    def __init__(self, lab: "Lab", name: str, address: str) -> None:
        self.name = name
        self.address = address
        self._lab = lab
        self._process: subprocess.Popen[str] | None = None
        self._init = 0
        """The pid of its first process, as seen from outside."""

    def power_on(self) -> None:
        """Boot a machine with an empty disk and plug it in."""
        folder = self._lab.folder
        environment = {
            "PATH": _PATH,
            "NAME": self.name,
            "FOLDER": str(folder),
            "HOME": HOME,
            "SHARED": SHARED,
            "BINDS": " ".join(self._lab.binds),
        }
        command = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--propagation", "private"]
        with (folder / f"{self.name}.log").open("ab") as log:
            self._process = _start(
                [*command, "bash", "-c", _BOOT], env=environment, stdout=log, stderr=log
            )
        self._init = self._booted(time.monotonic() + 30)
        self._plug_in()

    def _booted(self, deadline: float) -> int:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while time.monotonic() < deadline and self._process.poll() is None:
            found = children.read_text().split()
            if found and Path(f"/proc/{found[0]}/root/run/ready").exists():
                return int(found[0])
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not boot: see {self._lab.folder}/{self.name}.log")

    def _plug_in(self) -> None:
        switch = self._lab.inside_switch
        end, gateway = f"to-{self.name}"[:15], self._lab.gateway
        peer = ["peer", "name", "eth0", "netns", str(self._init)]
        _run(*switch, "ip", "link", "add", end, "type", "veth", *peer)
        _run(*switch, "ip", "link", "set", end, "master", "lan", "up")
        for arguments in (
            f"addr add {self.address}/{self._lab.network.prefixlen} dev eth0",
            "link set eth0 up",
            "link set lo up",
            # Ray learns its own address from the route to 8.8.8.8; nothing is sent there.
            f"route add default via {gateway}",
        ):
            _run("nsenter", "-t", str(self._init), "--net", "ip", *arguments.split())

    def power_off(self) -> None:
        """Pull the plug: every process dies at once, and the disk is gone."""
        if self._process is None:
            return
        if self._init:
            with contextlib.suppress(ProcessLookupError):  # it died by itself
                os.kill(self._init, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait(30)
        self._process, self._init = None, 0

    def cut(self) -> None:
        """Cut the cable; the host itself goes on, and keeps what it shares."""
        _run(*self._lab.inside_switch, "ip", "link", "set", f"to-{self.name}"[:15], "down")

    def splice(self) -> None:
        _run(*self._lab.inside_switch, "ip", "link", "set", f"to-{self.name}"[:15], "up")

    def _arguments(self, command: str) -> list[str]:
        inside = ["nsenter", "-t", str(self._init), *_NAMESPACES, "--root", "--wd"]
        clean = ["env", "-i", f"HOME={HOME}", "USER=root", "TERM=dumb", "LANG=C.UTF-8"]
        script = f"source ~/.bashrc; cd ~; {command}"
        return [*inside, *clean, f"PATH={_PATH}", "bash", "-c", script]

    def run(
        self, command: str, *, check: bool = True, timeout: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in a shell, as somebody who logs in would; stderr is in stdout."""
        done = subprocess.run(
            self._arguments(command),
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if check and done.returncode:
            raise RuntimeError(f"[{self.name}] {command}: {done.returncode}\n{done.stdout[-6000:]}")
        return done

    def start(self, command: str) -> "subprocess.Popen[str]":
        """Start a command that goes on; what it prints is not kept."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return _start(self._arguments(command), **quiet)

    def read(self, path: str) -> str:
        """Return a file of its disk, nothing where there is none."""
        try:
            return Path(f"/proc/{self._init}/root{path}").read_text()
        except OSError:
            return ""

    def processes(self) -> list[str]:
        """Return the command lines of what runs there, without those that belong to the host."""
        shown = self.run("ps -eo pid=,args=").stdout.splitlines()
        own = ("/bin/bash -c", "/usr/sbin/sshd", "sshd:", "ps -eo", "bash -c source", "sleep 0.2")
        lines = [line.strip().partition(" ")[2].strip() for line in shown]
        return [line for line in lines if line and not line.startswith(own)]


class Lab:
    """The hosts of a test and what joins them; a context that leaves nothing behind.

    Args:
        folder: For keys, logs and what the hosts share; absolute.
        network: In which all addresses lie; the last one of it is the switch's.
        hosts: Addresses by name, of those that are powered on at once.
        profile: Variables that every shell on every host has.
        files: Small texts that are on every disk, by their paths.
        binds: Folders to be seen on the hosts that do not lie on the file system of ``/``.
    """

    def __init__(
        self,
        folder: Path,
        network: str,
        hosts: Mapping[str, str],
        *,
        profile: Mapping[str, str],
        files: Mapping[Path, str],
        binds: Sequence[Path] = (),
    ) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.network = ipaddress.ip_network(network)
        self.gateway = str(self.network[-2])
        root = os.stat("/").st_dev
        self.binds = [str(path) for path in binds if path.stat().st_dev != root]
        self._profile = dict(profile)
        self._files = dict(files)
        self._hosts = {name: Host(self, name, address) for name, address in hosts.items()}
        self._switch: subprocess.Popen[str] | None = None

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def add(self, name: str, address: str) -> Host:
        """Put up another machine, and leave it switched off."""
        self._hosts[name] = Host(self, name, address)
        return self._hosts[name]

    @property
    def key(self) -> Path:
        """The private key that every host lets in."""
        return self.folder / "key"

    @property
    def inside_switch(self) -> list[str]:
        assert self._switch is not None
        return ["nsenter", "-t", str(self._switch.pid), "--net"]

    def __enter__(self) -> "Lab":
        try:
            self._write_files()
            self._start_switch()
            for host in self._hosts.values():
                host.power_on()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *why: object) -> None:
        for host in self._hosts.values():
            host.power_off()
        if self._switch is not None:
            self._switch.kill()
            self._switch.wait(30)
            self._switch = None

    def _write_files(self) -> None:
        self.shared.mkdir(parents=True)
        for name in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        (self.folder / "sshd_config").write_text(_SSHD)
        named = [f"{host.address} {host.name}\n" for host in self._hosts.values()]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(named))
        (self.folder / "files").mkdir()
        for path, text in self._files.items():
            target = self.folder / "files" / path.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        lines = [f"export {name}={value}\n" for name, value in self._profile.items()]
        (self.folder / "profile").write_text("".join(lines))

    def _start_switch(self) -> None:
        self._switch = _start(["unshare", "--net", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 10
        while os.readlink(f"/proc/{self._switch.pid}/ns/net") == own:
            assert time.monotonic() < deadline, "the switch did not start"
            time.sleep(0.02)
        for arguments in (
            "link add lan type bridge",
            f"addr add {self.gateway}/{self.network.prefixlen} dev lan",
            "link set lan up",
            "link set lo up",
        ):
            _run(*self.inside_switch, "ip", *arguments.split())
