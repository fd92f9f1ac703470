#!/usr/bin/env python3
"""Runs the same static benchmark program natively, in Ringshift and in QEMU's TCG, and compares.

One repetition runs each of the environments once, one after the other, so that a slow minute of
the machine hits all of them; the table shows medians over the repetitions.  Both VMMs boot the same
kernel, initramfs and command line.  Besides the benchmarks it measures: wall time from the start of
the VMM's process until the guest's init runs, VMM memory beyond guest RAM, and the host CPU that an
idle guest uses.  Needs nothing but Python's standard library; qemu-system-x86_64 is optional.

    benchmarks/run.py                        all of it, 3 repetitions
    benchmarks/run.py -n 1 --only fib,lz     two benchmarks, once
    benchmarks/run.py --only none            boot time, memory and idle use only
"""
import argparse
import glob
import json
import math
import os
import re
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

COMPUTE = ["crc32", "sort", "qsort", "hash", "chase32k", "chase16m", "fib", "virtual", "matmul",
           "sin", "x87", "avx2", "memcpy4k", "memcpy1m", "memset", "interp", "lz"]
SYSTEM = ["syscall", "read4k", "fault", "mmap", "fork", "exec", "pipe", "switch"]
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)


def cpio_entry(name, mode, data=b"", rdev=(0, 0)):
    """One member of a "newc" archive (Documentation/driver-api/early-userspace/buffer-format)."""
    path = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(path), 0]
    out = b"070701" + b"".join(b"%08x" % f for f in fields) + path
    out += b"\0" * (-len(out) % 4) + data
    return out + b"\0" * (-len(out) % 4)


def make_initramfs(path, files):
    """files: {name: path on the host}; all become executables in the root directory."""
    data = b""
    for directory in ("dev", "proc", "sys", "tmp"):
        data += cpio_entry(directory, 0o040755)
    data += cpio_entry("dev/console", 0o020600, rdev=(5, 1))
    for name, source in files.items():
        with open(source, "rb") as f:
            data += cpio_entry(name, 0o100755, f.read())
    data += cpio_entry("TRAILER!!!", 0)
    with open(path, "wb") as f:
        f.write(data + b"\0" * (-len(data) % 512))


def vmm_command(name, args, initramfs, append):
    if name == "qemu":
        return [args.qemu, "-accel", "tcg", "-cpu", "max", "-m", str(args.memory),
                "-object", f"memory-backend-memfd,id=guest-ram,size={args.memory}M",
                "-machine", "pc,memory-backend=guest-ram", "-display", "none", "-nodefaults",
                "-serial", "stdio", "-no-reboot", "-kernel", args.kernel, "-initrd", initramfs,
                "-append", append]
    return [args.ringshift, "run", "--memory", f"{args.memory}M", "--kernel", args.kernel,
            "--initrd", initramfs, "--append", append, "--no-reboot"] + args.ringshift_arg


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


def run_vm(name, args, initramfs, names):
    """Boots a guest that runs the benchmarks; returns a dict of what was measured."""
    words = ",".join(f"rsbench:{b}:{args.scale}" for b in names) or "none"
    append = f"console=ttyS0 panic=-1 {args.append} run={words} idle=2".replace("  ", " ")
    started = time.monotonic()
    proc = subprocess.Popen(vmm_command(name, args, initramfs, append), stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sel = selectors.DefaultSelector()
    sel.register(proc.stdout, selectors.EVENT_READ)
    result = {"bench": {}, "error": None}
    buffer, log, begun, idle_from = b"", [], None, None
    last = started
    try:
        while True:
            events = sel.select(timeout=1)
            now = time.monotonic()
            if not events:
                if now - last > args.timeout:
                    result["error"] = f"no output for {args.timeout:.0f} s"
                    break
                continue
            data = os.read(proc.stdout.fileno(), 65536)
            if not data:
                break
            last = now
            if args.verbose:
                sys.stderr.write(data.decode("latin-1"))
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for raw in lines:
                line = raw.decode("latin-1").strip()
                log.append(line)
                if line == "GUEST-INIT":
                    result["boot_s"] = now - started
                elif line.startswith("GUEST-BEGIN "):
                    begun = now
                elif line.startswith("GUEST-END "):
                    _, bench, *status = line.split()
                    if status != ["0"]:
                        result["error"] = f"{bench} ended with {' '.join(status)}"
                    elif bench in result["bench"] and begun:
                        result["bench"][bench]["wall_s"] = now - begun
                elif line == "GUEST-IDLE":
                    time.sleep(0.5)
                    idle_from = (time.monotonic(), cpu_seconds(proc.pid))
                    result["memory_mib"] = memory_of(proc.pid, args.memory)
                    time.sleep(1)
                    cpu = cpu_seconds(proc.pid)
                    if cpu is not None and idle_from[1] is not None:
                        result["idle_cpu"] = (cpu - idle_from[1]) / (time.monotonic() - idle_from[0])
                elif line == "GUEST-DONE":
                    result["finished"] = True
                else:
                    m = re.fullmatch(r"(\w+) ([0-9.]+) ([0-9a-f]{16})", line)
                    if m:
                        result["bench"][m.group(1)] = {"ns": float(m.group(2)), "check": m.group(3)}
        try:
            proc.wait(timeout=10)
            result["exit"] = proc.returncode
        except subprocess.TimeoutExpired:
            result["error"] = result["error"] or "the VMM did not end after power-off"
    finally:
        if proc.poll() is None:
            proc.kill()
            proc.wait()
    if not result.get("finished") and not result["error"]:
        result["error"] = "the guest ended early"
    if result["error"]:
        result["log_tail"] = log[-15:]
    return result


def run_native(args, names):
    result = {"bench": {}, "error": None}
    for name in names:
        out = subprocess.run([args.rsbench, name, str(args.scale)], capture_output=True, text=True,
                             timeout=args.timeout)
        m = re.fullmatch(r"(\w+) ([0-9.]+) ([0-9a-f]{16})\s*", out.stdout)
        if out.returncode == 0 and m:
            result["bench"][name] = {"ns": float(m.group(2)), "check": m.group(3)}
        else:
            result["error"] = f"{name} failed natively: {out.stderr.strip()}"
    return result


def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def geomean(values):
    values = [v for v in values if v]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def cell(value, form="%.2f"):
    return form % value if value is not None else "-"


def find_kernel():
    for pattern in ("build/guests/cloud/**/vmlinuz*", "build/guests/**/vmlinuz*"):
        found = sorted(glob.glob(os.path.join(ROOT, pattern), recursive=True))
        if found:
            return found[0]
    return None


def default_program(name):
    return os.path.join(ROOT, "build", "benchmarks", name)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ringshift", default=os.path.join(ROOT, "build", "ringshift"))
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--kernel", default=find_kernel(), help="a bzImage")
    parser.add_argument("--rsbench", default=default_program("rsbench"))
    parser.add_argument("--init", default=default_program("guest-init"))
    parser.add_argument("--memory", type=int, default=512, help="MiB")
    parser.add_argument("--append", default="", help="further kernel options, for both VMMs")
    parser.add_argument("-n", "--repetitions", type=int, default=3)
    parser.add_argument("--only", help="comma-separated benchmarks, or none")
    parser.add_argument("--scale", type=int, default=1, help="multiplies every benchmark's work")
    parser.add_argument("--skip", default="", help="comma-separated: native, ringshift, qemu")
    parser.add_argument("--ringshift-arg", action="append", default=[])
    parser.add_argument("--timeout", type=float, default=180, help="seconds without output")
    parser.add_argument("--json", help="write all samples and medians to this file")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the guests' consoles")
    args = parser.parse_args()

    names = COMPUTE + SYSTEM
    if args.only:
        names = [] if args.only == "none" else args.only.split(",")
        unknown = set(names) - set(COMPUTE + SYSTEM)
        if unknown:
            parser.error(f"unknown benchmark {', '.join(sorted(unknown))}")
    skipped = args.skip.split(",")
    environments = [e for e in ("native", "ringshift", "qemu") if e not in skipped]
    if "qemu" in environments and not shutil.which(args.qemu):
        print(f"{args.qemu} not found: compared with native only", file=sys.stderr)
        environments.remove("qemu")
    if not args.kernel and environments != ["native"]:
        parser.error("no kernel: run scripts/fetch-guests or pass --kernel")
    for path in [args.rsbench, args.init] + ([args.ringshift] if "ringshift" in environments else []):
        if not os.path.exists(path):
            parser.error(f"{path} does not exist; build the project or pass its path")

    samples = {e: [] for e in environments}
    with tempfile.TemporaryDirectory(prefix="rsbench-") as tmp:
        initramfs = os.path.join(tmp, "initramfs")
        make_initramfs(initramfs, {"init": args.init, "rsbench": args.rsbench})
        for i in range(args.repetitions):
            for e in environments:
                t = time.monotonic()
                r = run_native(args, names) if e == "native" else run_vm(e, args, initramfs, names)
                samples[e].append(r)
                note = f": {r['error']}" if r["error"] else ""
                print(f"repetition {i + 1}/{args.repetitions}, {e}: "
                      f"{time.monotonic() - t:.1f} s{note}", file=sys.stderr)
                for line in r.get("log_tail", []):
                    print(f"    | {line}", file=sys.stderr)

    def med(e, bench):
        return median([s["bench"].get(bench, {}).get("ns") for s in samples.get(e, [])])

    failures = [f"{e}: {s['error']}" for e in environments for s in samples[e] if s["error"]]
    medians = {}
    print(f"\n{'benchmark':<10}{'native ns':>13}{'ringshift ns':>14}{'qemu ns':>13}"
          f"{'RS/native':>11}{'TCG/native':>11}{'TCG/RS':>8}")
    ratios = {"rs": {}, "tcg": {}}
    for b in names:
        n, r, q = (med(e, b) for e in ("native", "ringshift", "qemu"))
        checks = {s["bench"][b]["check"] for e in environments for s in samples[e] if b in s["bench"]}
        rs = r / n if r and n else None
        tcg = q / n if q and n else None
        gain = q / r if q and r else None
        ratios["rs"][b], ratios["tcg"][b] = rs, tcg
        medians[b] = {"native_ns": n, "ringshift_ns": r, "qemu_ns": q, "ringshift_vs_native": rs,
                      "qemu_vs_native": tcg, "qemu_vs_ringshift": gain, "checks": sorted(checks)}
        mark = "" if gain is None or gain >= 1 else "  slower than TCG"
        if len(checks) > 1:
            mark += "  WRONG RESULT: " + " ".join(sorted(checks))
            failures.append(f"{b}: results differ")
        print(f"{b:<10}{cell(n):>13}{cell(r):>14}{cell(q):>13}{cell(rs):>11}{cell(tcg):>11}"
              f"{cell(gain):>8}{mark}")
    for title, group in (("compute", COMPUTE), ("system", SYSTEM)):
        rs = geomean([ratios["rs"].get(b) for b in group])
        tcg = geomean([ratios["tcg"].get(b) for b in group])
        medians["geomean_" + title] = {"ringshift_vs_native": rs, "qemu_vs_native": tcg}
        if rs or tcg:
            print(f"geometric mean, {title}: Ringshift {cell(rs)} x native, TCG {cell(tcg)} x native")
    machine = {}
    for e in ("ringshift", "qemu"):
        if e not in environments:
            continue
        mem = [s["memory_mib"] for s in samples[e] if s.get("memory_mib")]
        machine[e] = {
            "boot_to_init_s": median([s.get("boot_s") for s in samples[e]]),
            "vmm_memory_mib": median([m[0] for m in mem]),
            "host_page_tables_mib": median([m[1] for m in mem]),
            "host_mappings": median([m[2] for m in mem]),
            "idle_host_cpu": median([s.get("idle_cpu") for s in samples[e]]),
        }
        m = machine[e]
        print(f"{e}: boot to init {cell(m['boot_to_init_s'])} s, VMM memory beyond guest RAM "
              f"{cell(m['vmm_memory_mib'], '%.1f')} MiB (+ {cell(m['host_page_tables_mib'], '%.1f')} "
              f"MiB host page tables, {cell(m['host_mappings'], '%.0f')} mappings), idle guest uses "
              f"{cell(m['idle_host_cpu'] * 100 if m['idle_host_cpu'] is not None else None, '%.1f')} % "
              f"of a CPU")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"medians": medians, "machine": machine, "samples": samples,
                       "kernel": os.path.basename(args.kernel or ""), "memory_mib": args.memory,
                       "scale": args.scale, "failures": failures}, f, indent=1)
            f.write("\n")
    for f in failures:
        print(f"FAILED {f}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
