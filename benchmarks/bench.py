#!/usr/bin/env python3
"""Measures Ringshift against native execution and QEMU's TCG (and KVM where /dev/kvm runs a guest).

All run the same programs, the VMMs on the same kernel and initial file system.  A repetition runs
each group of benchmarks in every environment, one right after the other, so that a slow minute of
the machine hits all of them; figures are medians over the repetitions, with their spread.  Every
benchmark checks its own result, and results must agree between the environments.

    scripts/bench                                everything, 3 repetitions
    scripts/bench -n 1 --only compute,fib        a group and a benchmark, once
    scripts/bench --list                         what there is
    scripts/bench --ringshift A --ringshift B    two builds side by side in one run
    scripts/bench --against old.json             with the change since an earlier run
    scripts/bench --json out.json --html out.html
    scripts/bench --turns 20 --only python --ringshift old=A --ringshift new=B
                                                 in turns of 150 ms, 20 seconds each: for small effects
    scripts/bench --short                        the form for CI: ratios of this run against bounds

It needs a build with its benchmark programs (cmake --build build) and scripts/fetch-guests.
"""
import argparse
import datetime
import glob
import json
import os
import platform
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import image  # noqa: E402
import report  # noqa: E402
import runner  # noqa: E402
import suite  # noqa: E402
import turns  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--repetitions", type=int, default=None, help="default 3")
    parser.add_argument("--only", help="comma-separated groups and benchmarks")
    parser.add_argument("--list", action="store_true", help="list groups and benchmarks")
    parser.add_argument("--ringshift", action="append", metavar="[LABEL=]PATH",
                        help="the program to measure; give two to compare them")
    parser.add_argument("--ringshift-arg", action="append", default=[], metavar="[LABEL:]ARG",
                        help="a further option of Ringshift: for all, or for the one with that "
                             "label, so that the same program can run in two ways")
    parser.add_argument("--skip", default="", help="comma-separated: native, ringshift, qemu, kvm")
    parser.add_argument("--seconds", type=float, help="least time for each benchmark, default 0.5")
    parser.add_argument("--short", action="store_true", help="the form for CI; fails on a bound")
    parser.add_argument("--turns", type=float, metavar="SECONDS",
                        help="run all environments in turns of a fraction of a second, for so many seconds "
                             "each, and print CPU time a round (of rsbench's programs what they say): "
                             "tells effects of 3 %% on a busy machine")
    parser.add_argument("--against", metavar="OLD.json", help="show the change since that run")
    parser.add_argument("--json", metavar="FILE", help="write every sample and the medians")
    parser.add_argument("--html", metavar="FILE", help="write a page with plots")
    parser.add_argument("--build", default=os.path.join(ROOT, "build"), help="the build folder")
    parser.add_argument("--guests", help="the folder of scripts/fetch-guests")
    parser.add_argument("--kernel", help="a bzImage instead of Debian's cloud kernel")
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--append", default="", help="further kernel options, for all VMMs")
    parser.add_argument("--timeout", type=float, default=900, help="seconds without output")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the guests' consoles")
    args = parser.parse_args()
    args.build = os.path.abspath(args.build)
    args.guests = args.guests or os.path.join(args.build, "guests")
    args.repetitions = args.repetitions or (1 if args.short else 3)
    args.seconds = args.seconds or (0.2 if args.short else 0.5)
    return parser, args


def choose(parser, args):
    every = suite.benches()
    if args.short:
        names = {name for name, _, _ in suite.SHORT}
        # One guest for all: starting it is most of the time.
        return [b._replace(group="short") for b in every if b.name in names]
    if not args.only:
        return every
    words = args.only.split(",")
    for word in words:
        if word not in suite.GROUPS and not any(b.name == word for b in every):
            parser.error(f"there is no group or benchmark '{word}' (see --list)")
    return [b for b in every if b.name in words or b.group in words]


def kvm_works(args):
    """KVM counts only if it really runs this guest; /dev/kvm may be there and refuse."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or not shutil.which(args.qemu):
        return False
    env = runner.Environment("kvm", "kvm", args.qemu)
    reader = runner.Reader(env.command(args.kernel, 256, "console=ttyS0 panic=-1", None), 10, False)
    try:
        return any("Linux version" in line for _, line in reader.lines())
    finally:
        reader.kill()


def environments(parser, args):
    skip = args.skip.split(",")
    out = [runner.Environment("native", "native")]
    programs = args.ringshift or [os.path.join(args.build, "ringshift")]
    for i, word in enumerate(programs):
        label, _, path = word.rpartition("=")
        label = label or ("ringshift" if i == 0 else f"ringshift-{i + 1}")
        if not os.access(path, os.X_OK):
            parser.error(f"there is no program {path}: build the project or give --ringshift PATH")
        options = []
        for a in args.ringshift_arg:
            who, colon, what = a.partition(":")
            if colon and who in [w.rpartition("=")[0] for w in programs]:
                options += [what] if who == label else []
            else:
                options.append(a)
        out.append(runner.Environment("ringshift", label, os.path.abspath(path), options))
    if shutil.which(args.qemu):
        out.append(runner.Environment("qemu", "tcg", args.qemu))
        if "kvm" not in skip and kvm_works(args):
            out.append(runner.Environment("kvm", "kvm", args.qemu))
    elif "qemu" not in skip:
        say(f"{args.qemu} is not installed (Debian: qemu-system-x86): no comparison with TCG")
    return [e for e in out if e.kind not in skip]


def available(args, chosen):
    """Leaves out, with a word, what this build or these guests cannot run."""
    have = {os.path.basename(p) for p in glob.glob(os.path.join(args.build, "benchmarks/*"))
            if os.access(p, os.X_OK) and os.path.isfile(p)}
    for program, package in (("rsbench32", "gcc-multilib"), ("rsbench-cxx", "g++")):
        if program not in have and any(b.job and f"/{program} " in b.job for b in chosen):
            say(f"SKIPPED: {program} was not built (Debian: {package}), so were its benchmarks")
            chosen = [b for b in chosen if not (b.job and f"/{program} " in b.job)]
    if any(b.group == "programs" for b in chosen) and \
            not os.path.exists(os.path.join(args.guests, "bench/.complete")):
        say("SKIPPED: the group programs needs 'scripts/fetch-guests --bench'")
        chosen = [b for b in chosen if b.group != "programs"]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    for size in sorted({b.memory for b in chosen if b.group == "size" and b.memory > free}):
        say(f"SKIPPED: no {size} MiB free for the guest of size{size}")
        chosen = [b for b in chosen if b.group != "size" or b.memory != size]
    return chosen


def small_image(args, work):
    root = os.path.join(work, "small")
    busybox = os.path.join(args.guests, "busybox")
    image.new_root(root, busybox)
    image.install(root, os.path.join(args.build, "benchmarks/bench-init"), "init")
    for program in ("rsbench", "rsbench32", "rsbench-cxx"):
        path = os.path.join(args.build, "benchmarks", program)
        if os.path.exists(path):
            image.install(root, path, program)
    archive = os.path.join(work, "small.cpio")
    with open(archive, "wb") as f:
        image.cpio_of(root, f)
    return root, archive


def big_image(args, work):
    """The programs of Debian's packages, with the small image's files; None if they are not there."""
    tree = os.path.join(args.guests, "bench")
    if not os.path.exists(os.path.join(tree, ".complete")):
        return None
    root = os.path.join(work, "programs")
    image.new_root(root, os.path.join(args.guests, "busybox"))
    image.install(root, os.path.join(args.build, "benchmarks/bench-init"), "init")

    def leave_out(path):
        name = os.path.basename(path)
        return name.endswith((".a", ".o")) or path.startswith((
            "usr/share", "etc", ".complete", "usr/lib/x86_64-linux-gnu/gconv",
            "usr/lib/gcc/x86_64-linux-gnu/12/plugin", "usr/include/linux/netfilter",
            "usr/lib/gcc/x86_64-linux-gnu/12/lto")) or "lto-dump" in name or "gprofng" in name

    image.copy_tree(tree, root, leave_out)
    for name in ("as", "ld"): # Debian's package binutils has only these links
        os.symlink(f"x86_64-linux-gnu-{name}", os.path.join(root, "usr/bin", name))
    here = os.path.dirname(os.path.abspath(__file__))
    for name in os.listdir(os.path.join(here, "programs")):
        shutil.copy(os.path.join(here, "programs", name), os.path.join(root, "data", name))
    with open(os.path.join(root, "data/video.y4m"), "wb") as f:
        f.write(image.video(320, 192, 16))
    archive = os.path.join(work, "programs.cpio")
    with open(archive, "wb") as f:
        image.cpio_of(root, f)
    return root, archive


class Samples:
    """name -> environment -> list of values; and what went wrong."""

    def __init__(self):
        self.values, self.first, self.checks, self.failures = {}, {}, {}, []

    def add(self, name, label, value, first=None, check=None):
        if value is None:
            return
        self.values.setdefault(name, {}).setdefault(label, []).append(value)
        if first is not None:
            self.first.setdefault(name, {}).setdefault(label, []).append(first)
        if check is not None:
            self.checks.setdefault(name, {}).setdefault(check, set()).add(label)


def run_group(group, chosen, env, args, images, samples):
    mine = [b for b in chosen if b.group == group]
    if group == "nano":
        out = runner.run_nano(env, args)
        note(group, env, out, samples)
        for b in mine:
            samples.add(b.name, env.label, out["results"].get(b.name.removeprefix("nano.")))
        samples.add("nano.tsc", env.label, out.get("tsc_per_ns"))
        return
    root, archive = images["programs" if group == "programs" else "small"]
    if group in ("boot", "size"):
        if env.kind == "native":
            return
        for memory in sorted({b.memory for b in mine}):
            counted = runner.Environment(env.kind, env.label, env.program, env.options + (
                ["--stats"] if env.kind == "ringshift" and group == "boot" else []))
            out = runner.run_jobs(counted, root, archive, "idle 2\n", args, memory)
            note(group, env, out, samples)
            prefix = "boot" if group == "boot" else f"size{memory}"
            mem = out.get("memory_mib") or (None, None, None)
            for what, value in (("init", out.get("boot_s")), ("memory", mem[0]),
                                ("tables", mem[1]),
                                ("idle", out["idle_cpu"] * 100 if "idle_cpu" in out else None),
                                ("translation", out.get("translation_ns")),
                                ("expansion", out.get("expansion"))):
                if any(b.name == f"{prefix}.{what}" for b in mine):
                    samples.add(f"{prefix}.{what}", env.label, value)
        return
    jobs = "".join(f"{b.name} {b.job.format(seconds=args.seconds)}\n" for b in mine)
    out = runner.run_jobs(env, root, archive, jobs, args, max(b.memory for b in mine))
    note(group, env, out, samples)
    for b in mine:
        r = out["results"].get(b.name)
        if r:
            samples.add(b.name, env.label, r["ns"], r["first"], r["check"])


def repetition(i, chosen, envs, args, images, samples):
    """Every group in every environment, one right after the other.  Another one goes first each
    time: what follows a pause differs."""
    for group in suite.GROUPS:
        if not any(b.group == group for b in chosen):
            continue
        for env in envs[i % len(envs):] + envs[:i % len(envs)]:
            begin = time.monotonic()
            run_group(group, chosen, env, args, images, samples)
            say(f"repetition {i + 1}, {group}, {env.label}: {time.monotonic() - begin:.1f} s")


def in_turns(chosen, envs, args, images):
    """--turns.  Exit status."""
    results, labels, failed = {}, [e.label for e in envs], 0
    for b in chosen:
        if not b.job:
            say(f"{b.name} is no program: not with --turns")
            continue
        root, archive = images["programs" if b.group == "programs" else "small"]
        out = turns.play(b, envs, root, archive, args)
        if isinstance(out, str):
            say(out)
            failed = 1
            continue
        results[b.name] = out
        say(f"{b.name}: " + ", ".join(f"{label} {out[label][1]} rounds" for label in labels))
    print("\n".join(turns.table(results, labels)))
    return failed


def note(group, env, out, samples):
    for error in out["errors"]:
        samples.failures.append(f"{env.label}, {group}: {error}")
        say(f"{env.label}, {group}: {error}")
    for line in out.get("log_tail", []):
        print(f"    | {line}", file=sys.stderr)


def version_of(env):
    if env.kind == "native":
        return platform.release()
    out = subprocess.run([env.program, "version" if env.kind == "ringshift" else "--version"],
                         capture_output=True, text=True, timeout=20)
    return (out.stdout or out.stderr).split("\n")[0]


def host():
    model = ""
    try:
        with open("/proc/cpuinfo") as f:
            model = next(l.split(":", 1)[1].strip() for l in f if l.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": model, "cpus": os.cpu_count(), "kernel": platform.release(),
            "load": os.getloadavg()[0]}


def main():
    parser, args = arguments()
    if args.list:
        for group, title in suite.GROUPS.items():
            if group == "short":
                print("short (--short): " + " ".join(name for name, _, _ in suite.SHORT))
                continue
            print(f"{group}: {title}")
            names = [b.name for b in suite.benches() if b.group == group]
            for i in range(0, len(names), 8):
                print("    " + " ".join(names[i:i + 8]))
        return 0
    chosen = choose(parser, args)
    if not args.kernel:
        args.kernel = os.path.join(args.guests, "cloud/vmlinuz")
    for path, remedy in ((args.kernel, "run scripts/fetch-guests, or give --kernel or --guests"),
                         (os.path.join(args.guests, "busybox"), "run scripts/fetch-guests"),
                         (os.path.join(args.build, "benchmarks/bench-init"),
                          f"build the project in {args.build}, or give --build")):
        if not os.path.exists(path):
            parser.error(f"there is no {path}: {remedy}")
    chosen = available(args, chosen)
    if not chosen:
        say("nothing left to run")
        return 1
    envs = environments(parser, args)
    started = time.monotonic()
    work = os.path.join(args.build, "bench")
    os.makedirs(work, exist_ok=True)
    images = {"small": small_image(args, work)}
    if any(b.group == "programs" for b in chosen):
        images["programs"] = big_image(args, work)
    if args.turns:
        return in_turns(chosen, envs, args, images)
    samples = Samples()
    for i in range(args.repetitions):
        repetition(i, chosen, envs, args, images, samples)
    if args.short:
        # A busy machine spoils a single run: what exceeds its bound is measured twice more.
        again = report.beyond(samples, envs, suite.SHORT)
        again = [b for b in chosen if b.name in again]
        for i in range(2 if again else 0):
            say(f"beyond a bound, measured again: {', '.join(b.name for b in again)}")
            repetition(args.repetitions + i, again, envs, args, images, samples)
    for name, checks in samples.checks.items():
        if len(checks) > 1:
            samples.failures.append(f"{name}: results differ: " + "; ".join(
                f"{check} in {', '.join(sorted(who))}" for check, who in checks.items()))
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    data = report.collect(chosen, envs, samples, {
        "format": 1, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(" ", "seconds"),
        "host": host(), "commit": commit, "repetitions": args.repetitions,
        "seconds": args.seconds, "kernel": os.path.realpath(args.kernel),
        "took_s": round(time.monotonic() - started, 1),
        "environments": [{"label": e.label, "kind": e.kind, "version": version_of(e),
                          "options": e.options} for e in envs]})
    old = None
    if args.against:
        with open(args.against) as f:
            old = json.load(f)
    if args.short:
        for name, who in sorted(report.beyond(samples, envs, suite.SHORT).items()):
            data["failures"].append(f"{name}: {who}")
    print(report.table(data, old))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(data, f, indent=1)
            f.write("\n")
    if args.html:
        with open(args.html, "w") as f:
            f.write(report.html(data, old))
    return 1 if data["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
