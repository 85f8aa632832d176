"""One emulated machine: QEMU's processor emulation (TCG), a disk, and a serial port to the agent inside.

    stopped --start--> running --reboot, powercut--> running --stop--> stopped

The disk is a copy of the image, which does not change. It survives `stop`, so a stopped machine can be started again. The
machine has no network device. A second, read-only disk (`/dev/nvme1n1`) is a tar with the files.
To undo everything: `stop`, then remove the directory.
"""

import ctypes
import functools
import json
import mmap
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1


class MachineError(Exception):
    """A failure of the machine, with the end of its console."""


def die_with_parent():
    """QEMU must not outlive a killed test."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@functools.cache
def ticks_khz() -> int:
    """Frequency of the CPU's time stamp counter, also of the emulated one. Measured here, because a guest on a busy host can
    measure a wrong value, which makes all its clocks and time-outs wrong."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl rdx, 32; or rax, rdx; ret
    ticks = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))

    def look() -> tuple[int, int]:
        """Ticks and nanoseconds of one moment: the shortest of some measurements, without an interruption."""
        pairs = [(ticks(), time.monotonic_ns(), ticks()) for _ in range(50)]
        before, now, after = min(pairs, key=lambda pair: pair[2] - pair[0])
        return (before + after) // 2, now

    begin = look()
    time.sleep(0.3)
    end = look()
    return round((end[0] - begin[0]) * 1e6 / (end[1] - begin[1]))


class Machine:
    def __init__(self, image: Path, directory: Path, tar: Path, memory_mib: int = 2048, processors: int = 2):
        self.image, self.directory, self.tar = image, directory, tar
        self.memory_mib, self.processors = memory_mib, processors
        self.process = self.port = None
        self.buffer, self.serial, self.boot, self.boots = b"", 0, None, 0
        self.answers = {}

    # -- start and stop

    def start(self, limit: float):
        """Boots and waits until the agent answers, at most `limit` seconds."""
        if self.process:
            raise MachineError("the machine runs already")
        self.directory.mkdir(parents=True, exist_ok=True)
        disk = self.directory / "disk.img"
        if not disk.exists():
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", self.image / "root.img", disk], check=True)
            # Space after the file system, for a step that grows it.
            os.truncate(disk, 12 << 30)
        (self.directory / "agent").unlink(missing_ok=True)
        arguments = [
            "qemu-system-x86_64", "-name", "ashd-machine", "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none",
            # No /dev/kvm: on test hosts it is absent, or nested and broken.
            "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max",
            "-smp", str(self.processors), "-m", str(self.memory_mib),
            "-kernel", str(self.image / "vmlinux"),
            "-append", "root=/dev/nvme0n1 rw rootwait console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check "
            f"tsc=reliable tsc_early_khz={ticks_khz()} mitigations=off",
            "-drive", "file=disk.img,format=raw,if=none,id=root,cache=unsafe,discard=unmap", "-device", "nvme,drive=root,serial=root",
            "-drive", f"file={self.tar},format=raw,if=none,id=files,readonly=on", "-device", "nvme,drive=files,serial=files",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
            "-chardev", "socket,id=agent,path=agent,server=on,wait=off", "-device", "virtserialport,chardev=agent,name=machine",
            "-chardev", "file,id=console,path=console,append=on", "-serial", "chardev:console",
        ]  # fmt: skip
        with open(self.directory / "qemu.log", "wb") as log:
            self.process = subprocess.Popen(
                arguments, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        try:
            self._connect(time.monotonic() + limit)
            self._wait_for_boot(limit)
        except BaseException:
            self.stop()
            raise

    def stop(self):
        """Kills QEMU, like a power failure. Data that the guest has written to its disk stays."""
        if self.port:
            self.port.close()
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = self.port = None
        self.buffer, self.answers = b"", {}

    def powercut(self, limit: float):
        """A power failure, then a boot. Data in the guest's page cache is lost; data sent to the disk is not (it is in the
        host's page cache). So this tests fsync and the file system's journal, but not a disk that loses acknowledged writes."""
        self.stop()
        self.start(limit)

    def reboot(self, limit: float):
        """`systemctl reboot`; waits for the next boot."""
        self.start_script("systemctl reboot")
        self._wait_for_boot(limit)

    # -- commands

    def run(self, script: str, limit: float = 60, check: bool = True) -> str:
        """Returns the output of a bash script. A status other than 0 is an error unless `check` is false."""
        status, out = self.finish(self.start_script(script, limit), limit)
        if check and status:
            raise MachineError(f"status {status} of: {script.strip()}\n{out.strip()}")
        return out

    def status(self, script: str, limit: float = 60) -> tuple[int, str]:
        return self.finish(self.start_script(script, limit), limit)

    def start_script(self, script: str, limit: float = 60) -> int:
        """Starts a script that runs concurrently; `finish` waits for its end."""
        self.serial += 1
        self._send({"id": self.serial, "run": script, "limit": limit})
        return self.serial

    def finish(self, ident: int, limit: float) -> tuple[int, str]:
        deadline = time.monotonic() + limit + 20
        while ident not in self.answers:
            self._receive(deadline, "an answer")
        return self.answers.pop(ident)

    def wait_until(self, script: str, limit: float, what: str) -> float:
        """Seconds until the script, repeated inside the machine, succeeds."""
        begin = time.monotonic()
        status, out = self.status(f"until {{ {script}\n}}; do sleep 0.2; done", limit)
        if status:
            _, out = self.status(script, 30)
            raise MachineError(f"{what}: not within {limit:.0f} s\n{script}\n{out.strip()}")
        return time.monotonic() - begin

    # -- the port

    def _connect(self, deadline: float):
        here = os.getcwd()
        while True:
            port = socket.socket(socket.AF_UNIX)
            try:
                os.chdir(self.directory)  # a socket's path has at most 107 bytes; a build directory may be deeper
                port.connect("agent")
                self.port = port
                return
            except OSError as error:
                port.close()
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise MachineError(f"QEMU: {self._qemu_log() or error}") from error
                time.sleep(0.05)
            finally:
                os.chdir(here)

    def _wait_for_boot(self, limit: float):
        """Waits until an agent of a new boot answers."""
        deadline, last = time.monotonic() + limit, self.boot
        self.answers.clear()
        while self.boot == last:
            # The agent does not read yet, on a busy host for a long time; it answers pings when it
            # starts to read.
            if select.select([], [self.port], [], 0)[1]:
                self._send({"ping": 0})
            until = time.monotonic() + 1
            while self.boot == last and time.monotonic() < until:
                if time.monotonic() > deadline:
                    raise MachineError(f"no boot within {limit:.0f} s; the console:\n{self.console()}")
                self._receive(until, None)
        self.boots += 1

    def _send(self, request: dict):
        data = b"\n" + json.dumps(request).encode() + b"\n"
        try:
            # A busy host, or one that stops QEMU for a measurement, is not a failure of the
            # machine.
            self.port.settimeout(200)
            self.port.sendall(data)
        except OSError as error:
            raise MachineError(f"the machine accepts no commands: {error}; QEMU: {self._qemu_log()}") from error

    def _receive(self, deadline: float, wanted: str | None):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.port], [], [], left)[0]:
            if wanted:
                raise MachineError(f"the machine did not send {wanted}; the console:\n{self.console()}")
            return
        data = self.port.recv(1 << 16)
        if not data:
            raise MachineError(f"the machine went away; QEMU: {self._qemu_log()}\n{self.console()}")
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in filter(None, lines):
            try:
                answer = json.loads(line)
            except ValueError:  # a line cut off by a reset
                continue
            if "pong" in answer:
                self.boot = answer["boot"]
            else:
                self.answers[answer["id"]] = (answer["status"], answer["out"])

    def _qemu_log(self) -> str:
        return (self.directory / "qemu.log").read_text(errors="replace")[-800:].strip()

    def console(self) -> str:
        """The last output of the kernel and systemd."""
        path = self.directory / "console"
        return path.read_text(errors="replace")[-3000:].strip() if path.exists() else "(nothing)"

    def remove(self):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
