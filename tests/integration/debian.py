"""A whole Debian 12 on a disk: power-on, SeaBIOS, GRUB, systemd, work inside, clean power-off.

The image is built by scripts/make-debian-disk, which takes minutes; without it these tests are
skipped and say so.  One combination of controller and image format runs by default, all of them and
the soak with run.py --long (scripts/test --long also builds the image).  Imported by run.py.
"""
import os
import re
import shutil
import subprocess
import sys
import time

run = sys.modules["__main__"]
check, Guest = run.check, run.Guest
START = 1 << 20  # of the partition, in the image

HELLO_C = r"""
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static void *half(void *p)
{
    double *sum = p;
    for (int i = 1; i <= 1000000; i++)
        *sum += 1.0 / ((double)i * i);
    return NULL;
}
int main(void)
{
    double sum[2] = {0, 0};
    pthread_t t[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&t[i], NULL, half, &sum[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], NULL);
    printf("pi is about %.4f\n", sqrt(6 * (sum[0] + sum[1]) / 2));
    return sum[0] == sum[1] ? 0 : 1;
}
"""

# What systemd's journal and Linux say at warning level on this image under QEMU as well.
KNOWN_JOURNAL = [
    r"kernel: ", r"systemd-sysv-generator", r"Configuration file .* is marked", r"Unable to open env file: .etc.default.locale",
]


def image(name, fmt, arch="amd64"):
    """A copy of the image for one test; the caller removes it."""
    source = os.path.join(run.ROOT, "build", "disks", f"debian12-{arch}.raw")
    source = os.environ.get("RS_DEBIAN_DISK", source) if arch == "amd64" else source
    if not os.path.exists(source):
        flag = " --i386" if arch == "i386" else ""
        raise run.Skip(f"there is no {source}: run scripts/make-debian-disk{flag} (some minutes)")
    for tool in ("e2fsck", "qemu-img"):
        if not which(tool):
            raise run.Skip(f"there is no {tool} (Debian: e2fsprogs, qemu-utils)")
    out = os.path.join(run.FILES.work, f"{name}.{fmt}")
    if os.path.exists(out):
        os.unlink(out)
    if fmt == "raw":
        command = ["cp", "--sparse=always", "--reflink=auto", source, out]
    else:
        command = ["qemu-img", "convert", "-O", fmt, source, out]
    tool_run(command, 600)
    return out


def which(tool):
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def tool_run(command, timeout=300):
    done = subprocess.run([which(command[0]) or command[0], *command[1:]], capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, timeout=timeout * run.PATIENCE)
    check(done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n"
          f"{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout


def fsck(path, fmt):
    """The image after the guest is gone: the container's own check, then the file system's."""
    raw = path
    if fmt != "raw":
        tool_run(["qemu-img", "check", path])
        raw = path + ".check"
        tool_run(["qemu-img", "convert", "-O", "raw", path, raw])
    try:
        features = tool_run(["dumpe2fs", "-h", f"{raw}?offset={START}"])
        check("needs_recovery" not in features, "the file system was not unmounted")
        tool_run(["e2fsck", "-f", "-n", f"{raw}?offset={START}"])
    finally:
        if raw != path:
            os.unlink(raw)


def command(path, interface, fmt, memory="1G", extra=()):
    if run.REFERENCE == "qemu":
        base = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", memory, "-nographic",
                "-serial", "mon:stdio", "-nic", "none"]
        drive = f"file={path},format={fmt},id=d0"
        if interface == "ahci":
            return base + ["-device", "ahci,id=a", "-device", "ide-hd,bus=a.0,drive=d0", "-drive",
                           drive + ",if=none"]
        return base + ["-drive", f"{drive},if={interface}"]
    base = [os.path.join(run.FILES.build, "ringshift"), "run", "--memory", memory,
            "--disk", f"{path},if={interface},format={fmt}"]
    if run.VERIFY and "--verify" not in run.RUN_ARGS:
        base += ["--verify"]
    return base + run.RUN_ARGS + list(extra)


def log_in(g, grub=False):
    """From power-on to a root shell that cmd() can drive; notes the time to the login prompt."""
    g.expect(r"GNU GRUB", 60)
    if grub:
        # Its command line, where a disk is read by the firmware's services.  Without a VGA two
        # terminals write to the serial line, GRUB's own and the firmware's screen: no exact lines.
        # Both read from it, too, and the firmware's keyboard buffer holds 15 keys: a short command.
        g.expect(r"Debian GNU/Linux", 20)
        g.send("c")
        g.expect(r"line editing", 20)
        g.send("ls (hd0,1)/\r")
        g.expect(r"lost\+found/", 20)
        g.send("\x1b")
        g.expect(r"highlighted entry|recovery mode", 20)
    g.grub_time = time.monotonic() - g.started
    g.send("\r")
    g.expect(r"ringshift login: ", 240)
    g.boot_time = time.monotonic() - g.started
    g.send("root\n")
    g.expect(r"Password: ", 30)
    g.send("ringshift\n")
    g.expect(r"root@ringshift:~# ", 30)
    g.send("stty cols 999 rows 25; export PS1='~ ''# ' PAGER=cat SYSTEMD_PAGER= TERM=dumb\n")
    g.expect(r"~ # ", 20)


def healthy(g):
    """systemd is content, and neither kernel nor services complain."""
    state = g.cmd("systemctl is-system-running --wait", 120, ok=False).strip()
    failed = g.cmd("systemctl --failed --no-legend --plain", 30).strip()
    check(not failed and state == "running", f"systemd is {state!r}; failed: {failed!r}")
    run.check_dmesg(g)
    lines = g.cmd("journalctl -b -p warning -o short --no-pager -q", 60).splitlines()
    bad = [line for line in lines if line.strip() and not any(re.search(k, line) for k in KNOWN_JOURNAL)]
    check(not bad, "the journal has warnings:\n    " + "\n    ".join(bad[:20]))


def type_file(g, path, text):
    """Types a file into the guest, as a person would with cat."""
    g.send(f"cat >{path} <<'RS_END'\n")
    for line in text.strip("\n").split("\n") + ["RS_END"]:
        g.expect(r"> ", 20)
        g.send(line + "\n")
    g.expect(r"~ # ", 20)


def packages(g):
    g.cmd("apt-get -q update", 120)
    g.cmd("DEBIAN_FRONTEND=noninteractive apt-get -q -y install hello jq", 240)
    check("Hello, world!" in g.cmd("hello"), "the installed program does not run")
    check(g.cmd("echo '{\"a\":[1,20,300]}' | jq -M '.a | add'").strip() == "321", "jq is wrong")
    g.cmd("dpkg -i /srv/repo/tree_*.deb", 120)
    check("3 directories" in g.cmd("mkdir -p /tmp/t/a/b && tree /tmp/t | tail -n 1"), "tree is wrong")
    g.cmd("apt-get -q -y purge hello", 120)
    check(g.cmd("dpkg --audit").strip() == "", "dpkg has something to complain about")
    check(g.cmd("dpkg --verify jq tree gcc-12 git", 60).strip() == "", "installed files differ")


def develop(g):
    type_file(g, "p.c", HELLO_C)
    g.cmd("gcc -O2 -Wall -Werror -o p p.c -lm -lpthread", 120)
    check("pi is about 3.1416" in g.cmd("./p", 60), "the compiled program is wrong")
    check(g.cmd("python3 -c 'import json, hashlib; print(json.dumps(sum(x * x for x in range(10**5))), "
                "hashlib.sha256(b\"ringshift\" * 10**5).hexdigest()[:8])'", 120).split()
          == ["333328333350000", "34cec707"], "python is wrong")
    g.cmd("git init -q r && cd r && git config user.email a@b && git config user.name n && "
          "cp -r /etc/systemd . && git add . && git commit -q -m first && git fsck --strict && "
          "git gc -q && git log --oneline | wc -l; cd", 120)
    g.cmd("vi -es -c 'normal ihello' -c 'wq' edited || vim.tiny -es -c 'normal ihello' -c wq edited", 60)
    check("hello" in g.cmd("cat edited"), "vim is wrong")
    g.cmd("systemd-analyze --no-pager", 60)


def story(interface, fmt, arch="amd64", memory="1G", grub=True):
    name = run.CURRENT
    path = image(name, fmt, arch)
    try:
        g = Guest(command(path, interface, fmt, memory))
        log_in(g, grub)
        device = {"virtio": "vd"}.get(interface, "sd")
        check(g.cmd("findmnt -n -o SOURCE /").strip() == f"/dev/{device}a1", "root is elsewhere")
        healthy(g)
        packages(g)
        develop(g)
        check(g.cmd("systemctl --failed --no-legend --plain").strip() == "", "a unit failed")
        g.cmd("md5sum /usr/bin/* >sums 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; "
              "md5sum -c --quiet sums", 240)
        started = time.monotonic()
        g.send("poweroff\n")
        g.wait(0, 120)
        down = time.monotonic() - started
        fsck(path, fmt)
        return f"GRUB {g.grub_time:.0f} s, login {g.boot_time:.0f} s, power-off {down:.0f} s"
    finally:
        if os.path.exists(path):
            os.unlink(path)


def usage(pid):
    """(MiB beyond guest RAM, number of mappings) of the VMM."""
    beyond = count = 0
    name = ""
    with open(f"/proc/{pid}/smaps") as f:
        for line in f:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                name, count = line, count + 1
            elif line.startswith("Pss:") and "memfd:guest-ram" not in name:
                beyond += int(line.split()[1])
    with open(f"/proc/{pid}/status") as f:
        beyond += int(re.search(r"VmPTE:\s+(\d+)", f.read()).group(1))
    return beyond / 1024, count


@run.test(timeout=2400, verify=False, long=True)
def debian_soak():
    """Ten minutes of stress-ng --verify in the installed system with 2G; then idle at the prompt."""
    return soak("amd64", "--cpu 1 --vm 1 --vm-bytes 256M --fork 1 --switch 1")


@run.test(timeout=2400, verify=False, long=True)
def debian_i386_soak():
    """The same of 32-bit programs, with more that the translator of 32-bit code is in for."""
    return soak("i386", "--cpu 1 --vm 1 --vm-bytes 128M --fork 1 --switch 1 --matrix 1 --longjmp 1 "
                "--sigsegv 1 --sigfpe 1 --atomic 1 --funccall 1 --mmap 1 --mmap-bytes 32M")


def soak(arch, stressors):
    run.needs_ringshift()
    seconds = int(os.environ.get("RS_SOAK_SECONDS", "600"))
    path = image(run.CURRENT, "raw", arch)
    try:
        g = Guest(command(path, "virtio", "raw", "2G"))
        log_in(g)
        total = int(g.cmd("awk '/MemTotal/ {print $2}' /proc/meminfo"))
        check(total > 1900 << 10, f"the guest sees only {total} KiB of 2 GiB")
        samples = []
        begin, clock = time.time(), float(g.cmd("date +%s.%N"))
        # Rounds, so that what a round leaves behind shows.
        rounds = 5
        for _ in range(rounds):
            g.cmd(f"stress-ng --verify --timeout {seconds // rounds}s {stressors} "
                  "--hdd 1 --hdd-bytes 64M --temp-path /var/tmp", seconds + 300)
            samples.append(usage(g.process.pid))
        drift = float(g.cmd("date +%s.%N")) - clock - (time.time() - begin)
        healthy(g)
        cpu = []
        for _ in range(4):  # timers of systemd may still have something to do
            time.sleep(5)
            start, before = time.monotonic(), run.cpu_seconds(g.process.pid)
            time.sleep(15)
            cpu.append((run.cpu_seconds(g.process.pid) - before) / (time.monotonic() - start) * 100)
        g.send("poweroff\n")
        g.wait(0, 120)
        fsck(path, "raw")
        note = (", ".join(f"{m:.0f} MiB/{n} maps" for m, n in samples)
                + f"; clock off by {drift:.1f} s; idle {min(cpu):.2f} % of a CPU")
        # The first round fills the caches; what comes later has to fit in them.
        check(samples[-1][0] < samples[1][0] * 1.15 + 16, f"memory grows: {note}")
        check(samples[-1][1] < 60000 and samples[-1][1] < samples[1][1] * 1.5 + 500,
              f"mappings grow: {note}")
        check(abs(drift) < 3, f"the clock drifts: {note}")
        check(min(cpu) < 2, f"the idle system is busy: {note}")
        return note
    finally:
        if os.path.exists(path):
            os.unlink(path)


def register(interface, fmt, arch="amd64", **options):
    def debian():
        return story(interface, fmt, arch)
    i386 = arch == "i386"
    debian.__name__ = f"debian_{'i386_' if i386 else ''}{interface}_{fmt}"
    debian.__doc__ = (f"A whole {'32-bit ' if i386 else ''}Debian 12, {interface} disk, {fmt} image: "
                      "boot, apt, gcc, power-off, fsck.")
    run.test(debian, timeout=900, **options)


register("ide", "raw", verify=False)
for _interface, _fmt in (("ide", "qcow2"), ("ahci", "raw"), ("ahci", "qcow2"),
                         ("virtio", "raw"), ("virtio", "qcow2")):
    register(_interface, _fmt, verify=False, long=True)
for _interface, _fmt in (("ide", "raw"), ("virtio", "qcow2")):
    register(_interface, _fmt, "i386", verify=False, long=True)
