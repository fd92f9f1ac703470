"""Runs a list of benchmark jobs in one environment: natively, or in a guest of a VMM.

Every run returns {"results": {name: {"ns", "first", "check"}}, "errors": [...], ...}."""
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time

import image


class Environment:
    """What runs the programs.  kind: native, ringshift, qemu, kvm."""

    def __init__(self, kind, label, program=None, options=()):
        self.kind, self.label, self.program, self.options = kind, label, program, list(options)

    def command(self, kernel, memory, append, initramfs):
        if self.kind in ("qemu", "kvm"):
            accel = ["-accel", "kvm", "-cpu", "host"] if self.kind == "kvm" else \
                    ["-accel", "tcg", "-cpu", "max"]
            # Guest RAM is a memfd as in Ringshift, so that memory_of() can tell it apart.
            command = [self.program] + accel + [
                "-m", str(memory), "-object", f"memory-backend-memfd,id=ram0,size={memory}M",
                "-machine", "pc,memory-backend=ram0", "-display", "none", "-nodefaults",
                "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-append", append]
            return command + (["-initrd", initramfs] if initramfs else []) + self.options
        return [self.program, "run", "--memory", f"{memory}M", "--kernel", kernel,
                "--append", append, "--no-reboot"] + \
               (["--initrd", initramfs] if initramfs else []) + self.options


def memory_of(pid, guest_mb):
    """VMM memory in MiB: (resident beyond guest RAM, host page tables, mappings).

    Guest RAM is a memfd in both VMMs; it is the memfd whose mapped pages reach up to the guest's
    size.  It may be mapped many times (Ringshift's windows), so it is told by its inode.
    """
    maps, extent = [], {}
    try:
        with open(f"/proc/{pid}/smaps") as f:
            for line in f:
                m = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+)\s*(.*)", line)
                if m:
                    lo, hi, off = (int(m.group(i), 16) for i in (1, 2, 3))
                    key = (m.group(4), m.group(5))
                    maps.append([key, 0])
                    if "memfd:" in m.group(5):
                        extent[key] = max(extent.get(key, 0), off + hi - lo)
                elif line.startswith("Rss:"):
                    maps[-1][1] = int(line.split()[1])
        with open(f"/proc/{pid}/status") as f:
            pte = next(int(l.split()[1]) for l in f if l.startswith("VmPTE:"))
    except (OSError, StopIteration):
        return None
    ram = {k for k, size in extent.items() if size >= guest_mb * 1024 * 1024 // 2}
    return (sum(rss for key, rss in maps if key not in ram) / 1024, pte / 1024, len(maps))


def cpu_seconds(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None


class Reader:
    """Lines of a process's output as they come; gives up after `silence` seconds without any."""

    def __init__(self, command, silence, verbose):
        self.silence, self.verbose, self.log = silence, verbose, []
        self.error = None
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)

    def lines(self):
        selector = selectors.DefaultSelector()
        selector.register(self.process.stdout, selectors.EVENT_READ)
        last, buffer = self.started, b""
        while True:
            events = selector.select(timeout=1)
            now = time.monotonic()
            if not events:
                if now - last > self.silence:
                    self.error = f"no output for {self.silence:.0f} s"
                    break
                continue
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                break
            last = now
            if self.verbose:
                sys.stderr.write(data.decode("latin-1"))
            buffer += data
            *complete, buffer = buffer.split(b"\n")
            for raw in complete:
                line = raw.decode("latin-1").strip()
                self.log.append(line)
                yield now, line
        selector.close()

    def end(self):
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.error = self.error or "the process did not end after its last line"
        return self.process.returncode

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def check_clock(out, name, wall, rounds):
    """A guest's clock that is wrong would make all its figures wrong: a program that ran once, for
    long enough, must have taken as long by the host's clock."""
    ns = out["results"].get(name, {}).get("ns", 0)
    if rounds == 1 and ns > 1e9 and not 0.8 < wall / (ns / 1e9) < 1.5:
        out["errors"].append(f"{name}: {ns / 1e9:.2f} s by the guest's clock, {wall:.2f} s by the "
                             "host's")


def run(env, command, args, memory=None):
    """Runs a command that prints what bench-init prints, and collects it."""
    reader = Reader(command, args.timeout, args.verbose)
    out = {"results": {}, "errors": []}
    rounds = {}
    begun, finished = None, False
    try:
        for now, line in reader.lines():
            if line == "GUEST-INIT":
                out["boot_s"] = now - reader.started
            elif line.startswith("GUEST-BEGIN "):
                begun = now
            elif line.startswith("GUEST-END "):
                _, name, *status = line.split()
                if status != ["0"]:
                    out["errors"].append(f"{name} ended with {' '.join(status)}: "
                                         + " / ".join(reader.log[-4:-1]))
                elif begun:
                    check_clock(out, name, now - begun, rounds.get(name))
            elif line == "GUEST-IDLE":
                time.sleep(0.5)
                before, cpu0 = time.monotonic(), cpu_seconds(reader.process.pid)
                if memory:
                    out["memory_mib"] = memory_of(reader.process.pid, memory)
                time.sleep(1)
                cpu1 = cpu_seconds(reader.process.pid)
                if cpu0 is not None and cpu1 is not None:
                    out["idle_cpu"] = (cpu1 - cpu0) / (time.monotonic() - before)
            elif line == "GUEST-DONE":
                finished = True
            else:
                m = re.match(r"RESULT (\S+) ([0-9.]+) ([0-9.]+) ([0-9a-f]{16}) (\d+)$", line)
                if m:
                    out["results"][m.group(1)] = {
                        "ns": float(m.group(2)), "first": float(m.group(3)), "check": m.group(4)}
                    rounds[m.group(1)] = int(m.group(5))
                m = re.match(r"translation: .* (\d+) instructions, (\d+) -> (\d+) bytes.*?, (\d+) us",
                             line)
                if m and int(m.group(1)):
                    out["translation_ns"] = int(m.group(4)) * 1000 / int(m.group(1))
                    out["expansion"] = int(m.group(3)) / int(m.group(2))
        out["exit"] = reader.end()
        out["run_s"] = time.monotonic() - reader.started
    finally:
        reader.kill()
    if reader.error:
        out["errors"].append(reader.error)
    elif not finished:
        out["errors"].append("ended early")
    if out["errors"]:
        out["log_tail"] = reader.log[-12:]
    return out


def job_command(env, root, archive, jobs, args, memory, folder):
    """The command that runs the jobs (text for bench-init) in the environment; root and archive hold the
    same files.  What it needs goes into `folder`, which has to last."""
    path = os.path.join(folder, f"jobs{len(os.listdir(folder))}")  # a label may be anything
    if env.kind == "native":
        with open(path, "w") as f:
            f.write(jobs)
        return [os.path.join(args.build, "benchmarks/bench-init"), root, path]
    image.with_jobs(archive, jobs, path)
    append = f"console=ttyS0 panic=-1 {args.append}".strip()
    return env.command(args.kernel, memory, append, path)


def run_jobs(env, root, archive, jobs, args, memory):
    """Runs them to their end: what run() says."""
    with tempfile.TemporaryDirectory(prefix="rsbench-") as folder:
        command = job_command(env, root, archive, jobs, args, memory, folder)
        return run(env, command, args, None if env.kind == "native" else memory)


def run_nano(env, args):
    """The bare-metal benchmarks, nanoseconds for each operation.  What a tick of the TSC is follows
    from when the first and the last of its values arrive."""
    folder = os.path.join(args.build, "benchmarks")
    command = [os.path.join(folder, "nano-native")] if env.kind == "native" else \
        env.command(os.path.join(folder, "nano.elf"), 64, "none", None)
    reader = Reader(command, args.timeout, args.verbose)
    ticks, clock, errors, finished = {}, [], [], env.kind == "native"
    try:
        for now, line in reader.lines():
            if line.startswith("NANO-CLOCK "):
                clock.append((now, int(line.split()[1])))
            elif line.startswith("NANO "):
                _, name, value = line.split()
                ticks[name] = int(value) / 1000
            elif line.startswith("RESULT: PASS"):
                finished = True
            elif line.startswith(("FAIL", "fail", "RESULT: FAIL")):
                errors.append(line)
        reader.end()
    finally:
        reader.kill()
    if reader.error or not finished:
        errors.append(reader.error or "ended early: " + " / ".join(reader.log[-3:]))
    if len(clock) != 2:
        return {"results": {}, "errors": errors or ["no clock"]}
    per_ns = (clock[1][1] - clock[0][1]) / (clock[1][0] - clock[0][0]) / 1e9
    return {"results": {k: v / per_ns for k, v in ticks.items()}, "errors": errors,
            "tsc_per_ns": per_ns}
