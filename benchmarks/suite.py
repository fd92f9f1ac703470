"""What is measured: names, groups, classes, the commands behind them, and the promises."""
from collections import namedtuple

# kind: what classes a benchmark belongs to for the geometric means and the promises.
Bench = namedtuple("Bench", "name group classes unit job memory")

# rsbench's own, by class; `unit` is what one operation is.
INTEGER = {"core": "iteration", "crc32": "KiB", "sort": "element", "qsort": "element",
           "hash": "update", "tree": "operation", "chase32k": "step", "chase16m": "step",
           "regex": "KiB", "interp": "bytecode", "lz": "KiB"}
CALLS = {"fib": "call", "callret": "call", "virtual": "call", "recurse": "call", "longjmp": "jump"}
FLOAT = {"matmul": "mul-add", "spmv": "mul-add", "nbody": "step", "fft": "transform",
         "sin": "call", "libm": "call", "x87": "round", "avx2": "KiB"}
MEMORY = {f"{f}{size}": "call" for f in ("memcpy", "memset")
          for size in ("16", "64", "256", "1k", "4k", "64k", "1m", "16m")} | {"strlen": "string"}
CXX = {"cxx-throw": "throw", "cxx-virtual": "call", "cxx-map": "insertion"}
SYSTEM = {"syscall": "call", "read4k": "call", "open": "open", "signal": "signal",
          "fault": "page", "refault": "page", "cow": "page", "mmap": "cycle",
          "mprotect": "cycle", "fork": "process", "exec": "process", "thread": "thread",
          "pipe": "round trip", "switch": "hand-over", "filecopy": "KiB",
          "procs1": "hand-over", "procs4": "hand-over", "procs16": "hand-over",
          "procs50": "hand-over", "procs100": "hand-over", "procs200": "hand-over"}
INDIRECT = {"interp", "fib", "virtual", "recurse", "longjmp", "cxx-virtual"}

# The shell of the small image: 1000 commands, each a process.
SHELL = "i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done; echo $i"
COPY = ("head -c 16777216 /dev/zero > /tmp/a; for i in 1 2 3 4; do cp /tmp/a /tmp/b; done; "
        "md5sum < /tmp/b")

# Programs of Debian's packages on the image "programs" (scripts/fetch-guests --bench).
SPEED = ("openssl speed -mr -elapsed -seconds 1 -bytes 16384 {algorithm} 2>/dev/null | "
         "busybox awk -F: '{awk}'")
PROGRAMS = [
    # name, classes, unit, job
    ("python", "compute64 indirect", "run", "time {seconds} /usr/bin/python3.11 -S /data/mix.py 5"),
    ("lua", "compute64 indirect", "run", "time {seconds} /usr/bin/lua5.4 /data/mix.lua 25"),
    ("luajit", "compute64", "run", "time {seconds} /usr/bin/luajit /data/mix.lua 80"),
    ("perl", "compute64 indirect", "run", "time {seconds} /usr/bin/perl /data/mix.pl 6"),
    ("sqlite", "compute64", "run",
     "sh {seconds} sqlite3 :memory: < /data/queries.sql"),
    ("zlib", "compute64", "run", "time {seconds} /usr/bin/python3.11 -S /data/pack.py 3"),
    ("gzip", "compute64", "run",
     "sh {seconds} gzip -c < /data/video.y4m > /tmp/z && gzip -dc < /tmp/z | md5sum && md5sum < /tmp/z"),
    ("cc1", "compute64", "run",
     "sh {seconds} /usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -O2 -w -isystem /usr/include/stb "
     "-isystem /usr/lib/gcc/x86_64-linux-gnu/12/include -imultiarch x86_64-linux-gnu "
     "/data/font.c -o /tmp/font.s && md5sum < /tmp/font.s"),
    ("x265", "compute64 float", "run",
     "sh {seconds} x265 --input /data/video.y4m --preset fast --pools none --frame-threads 1 "
     "--no-info --log-level error --no-progress 2>&1 -o /tmp/o.hevc && md5sum < /tmp/o.hevc"),
    ("aes", "compute64 float", "16 MiB",
     "sh {seconds} head -c 16777216 /dev/zero | openssl enc -aes-256-ctr -K 00 -iv 00 2>/dev/null | "
     "openssl dgst -sha256"),
    ("openssl-aes-gcm", "compute64 float", "16 KiB", "speed +F: -evp aes-256-gcm"),
    ("openssl-sha256", "compute64 float", "16 KiB", "speed +F: -evp sha256"),
    ("openssl-rsa-sign", "compute64 float", "signature", "speed +F2: rsa2048"),
    # Dynamically linked programs that do nothing: what their libraries cost each process.
    ("start-perl", "system", "5 processes",
     "sh {seconds} for i in 1 2 3 4 5; do LC_ALL=C perl -e 'print 1'; done"),
    ("start-lua", "system", "5 processes",
     "sh {seconds} for i in 1 2 3 4 5; do lua5.4 -e 'print(1)'; done"),
    ("make", "system", "project",
     "sh {seconds} rm -rf /tmp/m && mkdir /tmp/m && make -s -f /data/Makefile OUT=/tmp/m && "
     "md5sum < /tmp/m/libstb.a"),
]

# The bare-metal operations of nano/nano.c, in ns; see there.
NANO = ["callret", "callind", "pushf+popf", "cpuid", "rdtsc", "syscall", "syscall-stack", "int",
        "int-cpl0", "iret", "divzero", "pgfault", "pgfault-cpl0", "pgfault-map", "ptemod",
        "ptemod+invlpg", "invlpg", "invlpg+touch", "cr3-2switches", "cr3-2switches-pcid",
        "cli+sti", "pushf+cli+popf", "cr8wr", "cr0rd", "cr2rd", "clts", "rdmsr", "wrmsr", "swapgs",
        "in", "in-none", "out", "mmio-read", "mmio-write", "timer-latency", "timer-latency-hlt",
        "self-ipi"]

MEMORY_SIZES = [256, 512, 1024, 2048, 4096, 8192]  # MiB, of the group "size"


def benches():
    """Every benchmark, in the order of the report."""
    out = []

    def rsbench(program, group, suffix, names, *classes):
        for name, unit in names.items():
            extra = ("indirect",) if name in INDIRECT and not suffix else ()
            out.append(Bench(name + suffix, group, classes + extra, unit,
                             f"self {{seconds}} /{program} {name} {{seconds}}", 512))

    for group, program, suffix, cls in (("compute", "rsbench", "", "compute64"),
                                        ("compute32", "rsbench32", ".32", "compute32")):
        rsbench(program, group, suffix, INTEGER, cls)
        rsbench(program, group, suffix, CALLS, cls)
        rsbench(program, group, suffix, FLOAT, cls, "float" + suffix)
        rsbench(program, group, suffix, MEMORY, cls, "float" + suffix)
    rsbench("rsbench-cxx", "compute", "", CXX, "compute64")
    rsbench("rsbench", "system", "", SYSTEM, "system")
    out.append(Bench("shell", "system", ("system",), "1000 commands", "sh {seconds} " + SHELL, 512))
    out.append(Bench("cp", "system", ("system",), "4 x 16 MiB", "sh {seconds} " + COPY, 512))
    for name, classes, unit, job in PROGRAMS:
        if job.startswith("speed "):
            # openssl's own figures: +F:index:name:bytes a second, +F2:index:bits:signatures a second:....
            _, where, algorithm = job.split(" ", 2)
            tag = where
            awk = (f'/^[+]{tag[1:]}/ {{{{ printf "RESULT {name} %.3f %.3f 0000000000000000 1\\n", '
                   + ("1e9 / $4, 1e9 / $4" if tag == "+F2:" else "16384e9 / $4, 16384e9 / $4")
                   + " }}")
            job = ("selfsh {seconds} " +
                   SPEED.replace("{algorithm}", algorithm).replace("{awk}", awk))
        out.append(Bench(name, "programs", tuple(classes.split()), unit, job, 1024))
    for name in NANO:
        out.append(Bench("nano." + name, "nano", (), "operation", None, 64))
    for name, unit in (("boot.init", "s"), ("boot.memory", "MiB"), ("boot.tables", "MiB"),
                       ("boot.idle", "% CPU"), ("boot.translation", "ns/guest insn"),
                       ("boot.expansion", "bytes/byte")):
        out.append(Bench(name, "boot", (), unit, None, 512))
    for size in MEMORY_SIZES:
        for what, unit in (("init", "s"), ("memory", "MiB")):
            out.append(Bench(f"size{size}.{what}", "size", (), unit, None, size))
    return sorted(out, key=lambda b: list(GROUPS).index(b.group))


GROUPS = {
    "short": "the short form",
    "boot": "process start to the guest's init; memory beyond guest RAM; idle CPU",
    "compute": "64-bit programs of our own",
    "compute32": "the same in 32-bit code",
    "programs": "programs of Debian's packages (scripts/fetch-guests --bench)",
    "nano": "virtualisation costs one by one, ns (cycles) per operation, on bare metal; native "
            "in user mode, pgfault and divzero with the host kernel's signals",
    "system": "the operating system's work",
    "size": "cost against the size of guest memory",
}

CLASS_TITLES = {
    "compute64": "64-bit compute", "compute32": "32-bit compute",
    "float": "floating point, SIMD, memory", "float.32": "the same, 32-bit",
    "indirect": "interpreters, calls, recursion", "system": "operating system",
}

# What issue 4 set out to reach: (promise, kind, what, bound).  kinds: native-mean and native-max
# (over a class), native (one benchmark), tcg (a share of TCG's time), value (the unit's own).
TARGETS = [
    ("64-bit compute, geometric mean", "native-mean", "compute64", 1.15),
    ("64-bit compute, each program", "native-max", "compute64", 1.6),
    ("32-bit compute, geometric mean", "native-mean", "compute32", 1.08),
    ("floating point, SIMD, memory, geometric mean", "native-mean", "float", 1.05),
    ("interpreters, indirect calls, recursion, geometric mean", "native-mean", "indirect", 1.4),
    ("system call", "native", "syscall", 1.5),
    ("page fault, fresh", "native", "fault", 3.0),
    ("page fault, fresh, against TCG", "tcg", "fault", 0.5),
    ("page fault, repeated", "native", "refault", 3.0),
    ("page fault, repeated, against TCG", "tcg", "refault", 0.5),
    ("fork+exec+exit", "native", "exec", 1.5),
    ("fork+exec+exit against TCG", "tcg", "exec", 0.25),
    ("shell loop", "native", "shell", 1.5),
    ("shell loop against TCG", "tcg", "shell", 0.25),
    ("pipe round trip", "native", "pipe", 1.0),
    ("boot to init against TCG", "tcg", "boot.init", 0.35),
    ("VMM memory beyond guest RAM after boot, MiB", "value", "boot.memory", 64),
    ("translation, ns for each guest instruction", "value", "boot.translation", 1000),
    ("host code for each byte of guest code", "value", "boot.expansion", 2.5),
]

# The short form for CI: few, long enough to be stable, and bounds that only a real regression
# breaks: about twice what a busy machine measures today.
# (benchmark, at most this many times native or None, at most this share of TCG's time or None)
SHORT = [
    ("core", 4.0, 0.9), ("sort", 4.0, 1.0), ("fib", 8.0, 0.9), ("virtual", 10.0, 0.8),
    ("matmul", 2.5, 0.3), ("memcpy4k", 8.0, 0.5), ("interp", 6.0, 0.9), ("lz", 5.0, 1.0),
    ("core.32", 5.0, 0.9), ("syscall", 6.0, 0.8), ("fault", None, 0.9), ("exec", None, 1.2),
    ("pipe", None, 0.8),
]
