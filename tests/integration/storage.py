"""Disks, CDs and floppies under Linux, through the command line; run.py runs these."""
import glob
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time

import run
from run import Guest, Skip, check, cli, needs_ringshift, one_sentence, test, vm_command

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
SIZE = 32 * MIB
DATA = 8 * MIB  # at the beginning of every disk
# Where /sys says that the disk of a bus is attached; Linux numbers sda and sdb as they are found.
BUSES = {"virtio": "/virtio0/", "ide": ":00:01.1/ata", "ahci": ":00:03.0/ata"}
MODULES = ["virtio_pci", "virtio_blk", "ata_piix", "ahci", "sd_mod", "sr_mod", "floppy", "ext4",
           "isofs"]


def needs(tool, package):
    if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
        raise Skip(f"{tool} ({package}) is not installed: THIS IS NOT TESTED")


def tool(*command, codes=(0,)):
    env = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=100, env=env)
    check(done.returncode in codes,
          f"{' '.join(command)} gave {done.returncode}: {done.stdout[-1500:]}{done.stderr[-500:]}")
    return done


def initramfs():
    args = []
    for m in MODULES:
        args += ["--module", m]
    script = os.path.join(HERE, "disk-torture")
    return run.FILES.initramfs("disks", *args, "--file", f"{script}:/bin/disk-torture")


def command(*drives, append="console=ttyS0", extra=()):
    return vm_command(run.FILES.guest("amd64/vmlinuz"), initramfs(), append=append,
                      extra=[*drives, *extra])


class Work:
    """A folder of this test's own, gone at its end."""

    def __init__(self):
        self.dir = os.path.join(run.FILES.work, run.CURRENT)

    def __enter__(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        return self

    def __exit__(self, kind, *_):
        if not kind:
            shutil.rmtree(self.dir)

    def path(self, name):
        return os.path.join(self.dir, name)

    def file(self, name, data, size=0):
        path = self.path(name)
        with open(path, "wb") as f:
            f.write(data)
            f.truncate(max(size, len(data)))
        return path


def contents(seed, size):
    return random.Random(seed).randbytes(size)


def md5(data):
    return hashlib.md5(data).hexdigest()


def md5_of(path):
    with open(path, "rb") as f:
        return md5(f.read())


def image(work, name, model, format):
    """An image of this kind that holds the model."""
    raw = work.file(name + ".raw", bytes(model[:DATA]), len(model))
    if format == "raw":
        return raw
    path = work.path(name + ".qcow2")
    options = {"virtio": "cluster_size=64k", "ide": "cluster_size=4k,refcount_bits=8",
               "ahci": "compat=0.10"}[name]
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    return path


def exercise(g, bus, model):
    """Reads, writes, flushes and discards on the guest's device; the model follows."""
    found = [line.split("/")[-1] for line in g.cmd(
        "for b in /sys/block/[sv]d*; do readlink $b; done").split()
             if BUSES[bus] in line]
    check(len(found) == 1, f"the disks on {bus} are {found}")
    device = found[0]
    d = "/dev/" + device
    got = g.cmd(f"dd if={d} bs=1M count=8 2>/dev/null | md5sum").split()[0]
    check(got == md5(model[:DATA]), f"{device} does not hold what the host put there")
    # Many sectors at once, then a few that straddle blocks and clusters.
    g.cmd(f"dd if={d} of={d} bs=64k count=64 seek=256 conv=notrunc,fsync 2>/dev/null")
    model[16 * MIB:20 * MIB] = model[:4 * MIB]
    g.cmd(f"dd if={d} of={d} bs=512 count=7 skip=3 seek=49149 conv=notrunc,fsync 2>/dev/null")
    model[49149 * 512:49156 * 512] = model[3 * 512:10 * 512]
    # Past the page cache.
    g.cmd(f"dd if={d} of={d} bs=4k count=5 skip=2 seek=7000 iflag=direct oflag=direct "
          "conv=notrunc 2>/dev/null")
    model[7000 * 4096:7005 * 4096] = model[2 * 4096:7 * 4096]
    limit = int(g.cmd(f"cat /sys/block/{device}/queue/discard_max_bytes"))
    check(limit > 0, f"Linux sees no discard on {device}")
    g.cmd(f"blkdiscard -o {2 * MIB} -l {MIB} {d}")
    model[2 * MIB:3 * MIB] = bytes(MIB)
    g.cmd("sync; echo 3 >/proc/sys/vm/drop_caches")
    got = g.cmd(f"md5sum {d}", 60).split()[0]
    check(got == md5(model), f"{device} does not hold what was written")


def disks(format):
    needs_ringshift()
    if format == "qcow2":
        needs("qemu-img", "qemu-utils")
    with Work() as work:
        models = {bus: bytearray(contents(bus, DATA) + bytes(SIZE - DATA)) for bus in BUSES}
        paths = {bus: image(work, bus, models[bus], format) for bus in BUSES}
        fixed = work.file("fixed.raw", contents("fixed", 3 * MIB + 512))
        drives = [f"--disk={paths[bus]},if={bus}" for bus in BUSES]
        g = Guest(command(*drives, f"--disk={fixed},readonly"))
        g.shell(120)
        for bus in BUSES:
            exercise(g, bus, models[bus])
        check(g.cmd("cat /sys/block/vdb/ro /sys/block/vdb/size").split() == ["1", "6145"],
              "the read-only disk is not")
        check(g.cmd("md5sum /dev/vdb").split()[0] == md5_of(fixed), "the read-only disk differs")
        g.cmd("dd if=/dev/zero of=/dev/vdb count=1 2>&1 && exit 1; true")
        run.check_dmesg(g)
        g.power_off()
        check(md5_of(fixed) == md5(contents("fixed", 3 * MIB + 512)), "a read-only image changed")
        for bus, path in paths.items():
            if format == "raw":
                check(md5_of(path) == md5(models[bus]), f"the image behind {bus} is wrong")
                check(os.stat(path).st_blocks * 512 <= 13 * MIB,
                      f"discarding over {bus} gave no space back")
                continue
            tool("qemu-img", "check", "-q", "-f", "qcow2", path)
            whole = work.file("model", models[bus])
            tool("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", whole, path)


@test
def disk_raw():
    """Raw images over virtio-blk, IDE and AHCI."""
    disks("raw")


@test
def disk_qcow2():
    """qcow2 images over virtio-blk, IDE and AHCI, checked by qemu-img."""
    disks("qcow2")


@test
def disk_snapshot():
    """With --snapshot the guest sees its writes, and the files do not change."""
    needs_ringshift()
    have_qcow2 = shutil.which("qemu-img") is not None
    with Work() as work:
        models = {bus: bytearray(contents(bus, DATA) + bytes(SIZE - DATA)) for bus in BUSES}
        formats = {"virtio": "raw", "ide": "raw", "ahci": "qcow2" if have_qcow2 else "raw"}
        paths = {bus: image(work, bus, models[bus], formats[bus]) for bus in BUSES}
        before = {path: md5_of(path) for path in paths.values()}
        floppy = work.file("floppy", contents("floppy", 1440 << 10))
        before[floppy] = md5_of(floppy)
        for path in before:
            os.chmod(path, 0o444)
        g = Guest(command(*[f"--disk={paths[bus]},if={bus}" for bus in BUSES],
                          f"--floppy={floppy}", "--snapshot"))
        g.shell(120)
        for bus in BUSES:
            exercise(g, bus, models[bus])
        g.cmd("dd if=/dev/zero of=/dev/fd0 bs=512 count=3 seek=100 conv=fsync 2>/dev/null")
        g.power_off()
        for path, was in before.items():
            check(md5_of(path) == was, f"{path} changed")
    return "" if have_qcow2 else "qemu-img is not installed: qcow2 WAS NOT TESTED"


@test
def disk_removable():
    """CD and floppy drives: an ISO, a floppy that ends early, an empty drive, a read-only one."""
    needs_ringshift()
    with Work() as work:
        tree = work.path("tree")
        os.makedirs(tree)
        with open(os.path.join(tree, "data.bin"), "wb") as f:
            f.write(contents("iso", 5 * MIB))
        iso, have_iso = work.path("cd.iso"), shutil.which("xorriso") is not None
        if have_iso:
            tool("xorriso", "-as", "mkisofs", "-quiet", "-o", iso, tree)
        else:
            work.file("cd.iso", contents("iso", 5 * MIB + 2048))
        short = work.file("short.img", contents("short", 1296384))
        fixed = work.file("fixed.img", contents("fixed", 720 << 10))
        g = Guest(command(f"--cdrom={iso}", f"--cdrom={iso},if=ahci", "--cdrom=",
                          f"--floppy={short}", f"--floppy={fixed},readonly"))
        g.shell(120)
        for cd in ("sr0", "sr2"):
            blocks = os.path.getsize(iso) // 2048
            got = g.cmd(f"dd if=/dev/{cd} bs=2k count={blocks} 2>/dev/null | md5sum").split()[0]
            check(got == md5_of(iso), f"{cd} is not the disc")
        g.cmd("dd if=/dev/sr1 of=/dev/null count=1 2>/tmp/why; grep -i medium /tmp/why")
        if have_iso:
            g.cmd("mkdir /tmp/cd; mount -t iso9660 -o ro /dev/sr0 /tmp/cd")
            check(g.cmd("md5sum /tmp/cd/data.bin").split()[0] == md5(contents("iso", 5 * MIB)),
                  "the file on the disc differs")
            g.cmd("umount /tmp/cd")
        want = bytearray(contents("short", 1296384) + bytes(1474560 - 1296384))
        check(g.cmd("md5sum /dev/fd0", 60).split()[0] == md5(want), "the first floppy differs")
        g.cmd("dd if=/dev/fd0 of=/dev/fd0 bs=512 count=20 skip=5 seek=2800 conv=notrunc,fsync "
              "2>/dev/null")
        want[2800 * 512:2820 * 512] = want[5 * 512:25 * 512]
        got = g.cmd("dd if=/dev/fd1 bs=512 count=1440 2>/dev/null | md5sum", 60).split()[0]
        check(got == md5_of(fixed), "the second floppy differs")
        g.cmd("dd if=/dev/zero of=/dev/fd1 count=1 2>/tmp/why; grep -i 'read-only' /tmp/why")
        g.power_off()
        # Linux writes pages: the file ends with that of the last sector written.
        check(os.path.getsize(short) in range(2820 * 512, 2820 * 512 + 4096),
              f"the floppy's file has {os.path.getsize(short)} bytes")
        check(md5_of(short) == md5(bytes(want[:os.path.getsize(short)])),
              "the floppy's file does not hold what was written")
        check(md5_of(fixed) == md5(contents("fixed", 720 << 10)), "a read-only floppy changed")
    return "" if have_iso else "xorriso is not installed: no file system on the CD"


@test
def disk_media():
    """Media go into the empty drives of a running machine, come out, and are held by the guest."""
    needs_ringshift()
    with Work() as work, tempfile.TemporaryDirectory() as short:
        disc = work.file("disc.iso", contents("disc", 2 * MIB))
        floppy = work.file("floppy.img", contents("floppy", 1440 << 10))
        large = work.file("large.img", contents("large", 2880 << 10))
        sock = os.path.join(short, "monitor")
        g = Guest(command(extra=["--monitor", f"unix:{sock}"]))

        def ctl(*args, fails=None):
            done = cli("ctl", sock, *args)
            if fails:
                one_sentence(done.stderr, fails)
            check((done.returncode != 0) == bool(fails), f"ctl {args}: {done.stderr}")

        def md5_in_guest(device, bytes):
            return g.cmd(f"head -c {bytes} /dev/{device} | md5sum", 60).split()[0]

        g.shell(120)
        ctl("change", "cdrom0", work.path("gone"), fails="gone")
        ctl("change", "floppy0", large, fails="2880 KiB")
        ctl("change", "cdrom0", disc)
        ctl("change", "floppy0", floppy)
        check(md5_in_guest("sr0", 2 * MIB) == md5_of(disc), "the guest does not see the disc")
        check(md5_in_guest("fd0", 1440 << 10) == md5_of(floppy), "the guest sees no floppy")
        # Linux locks the drive as long as somebody has it open.
        g.cmd("exec 7</dev/sr0")
        ctl("eject", "cdrom0", fails="locked")
        g.cmd("exec 7<&-")
        ctl("eject", "cdrom0")
        g.cmd("head -c 512 /dev/sr0 2>/tmp/why; grep -i medium /tmp/why")
        ctl("change", "cdrom0", floppy, fails="in use")  # by the other drive
        ctl("change", "cdrom0", large)  # another disc, of another size
        check(md5_in_guest("sr0", 2880 << 10) == md5_of(large), "the new disc is not seen")
        ctl("eject", "floppy0")
        g.cmd("! head -c 512 /dev/fd0 >/dev/null 2>&1", 60)
        g.power_off()


@test
def disk_bad_input():
    """Images that cannot be used: one sentence, exit code 2 or 3, and not a byte changed."""
    needs_ringshift()
    with Work() as work:
        kernel = run.FILES.guest("cloud/vmlinuz")
        disk = work.file("disk.raw", contents("disk", MIB))
        liar = work.file("liar.qcow2", b"QFI\xfb" + contents("liar", 4096))
        empty = work.file("empty", b"")
        large = work.file("large", b"x", 2949121)
        four = [work.file(f"{i}.raw", b"x" * 512) for i in range(8)]
        before = {p: md5_of(p) for p in glob.glob(work.path("*"))}
        cases = [
            (["--disk"], 2, "value"),
            (["--disk", ""], 2, "--disk"),
            (["--disk", f"{disk},if=scsi"], 2, "scsi"),
            (["--disk", f"{disk},format=vmdk"], 2, "vmdk"),
            (["--disk", f"{disk},snapshot"], 2, "snapshot"),
            (["--cdrom", f"{disk},if=virtio"], 2, "virtio"),
            (["--floppy", "none,readonly"], 2, "none"),
            (["--disk", work.path("gone")], 3, "gone"),
            (["--disk", work.dir], 3, "directory|regular"),
            (["--disk", "/dev/null"], 3, "/dev/null"),
            (["--disk", empty], 3, "empty"),
            (["--disk", liar], 3, "liar"),
            (["--disk", f"{disk},format=qcow2"], 3, "qcow2"),
            (["--disk", disk, "--disk", disk], 3, "in use"),
            (["--floppy", large], 3, "larger"),
            (["--floppy", "", "--floppy", "", "--floppy", ""], None, "two|2 floppy"),
            ([a for p in four[:5] for a in ("--disk", f"{p},if=ide")], None, "if=ahci"),
            ([a for p in four[:7] for a in ("--disk", f"{p},if=ahci")], None, "if=virtio"),
        ]
        for args, code, pattern in cases:
            done = cli("run", "--kernel", kernel, *args)
            check(done.returncode == code or (code is None and done.returncode in (3, 4)),
                  f"{args} gave exit code {done.returncode}, not {code}: {done.stderr!r}")
            one_sentence(done.stderr, pattern)
        for path, was in before.items():
            check(md5_of(path) == was, f"{path} changed")


def numbers(text, name, word):
    return [int(n) for n in re.findall(rf"rs-{name} {word} (\d+)\r".encode(), text)]


@test(verify=False)  # boots as often as it can in its time
def disk_kill():
    """kill -9 in the middle of writes: sound images, journals that recover, nothing lost that
    was synced."""
    needs_ringshift()
    needs("qemu-img", "qemu-utils")
    needs("mkfs.ext4", "e2fsprogs")
    rng = random.Random(os.environ.get("RS_SEED", time.time_ns()))
    began, kills = time.monotonic(), 0
    options = {"virtio": "cluster_size=64k", "ide": "cluster_size=4k,refcount_bits=8",
               "ahci": "cluster_size=16k,lazy_refcounts=on"}
    with Work() as work:
        paths, synced = {}, {bus: [] for bus in BUSES}
        raw = work.file("fs.raw", b"", 24 * MIB)
        tool("mkfs.ext4", "-q", "-F", "-b", "4096", raw)
        for bus in BUSES:
            paths[bus] = work.path(f"{bus}.qcow2")
            tool("qemu-img", "convert", "-O", "qcow2", "-o", options[bus], raw, paths[bus])
        drives = [f"--disk={paths[bus]},if={bus}" for bus in BUSES]

        def boot(what, first):
            """Mounts, which recovers the journals, and compares what is there."""
            g = Guest(command(*drives, append=f"console=ttyS0 quiet rs.run=/bin/disk-torture "
                                              f"rs.args={what},{first}"))
            for _ in BUSES:
                m = g.expect(r"rs-(\w+) (have ([\d ]*)end|failed)\r", 120)
                bus = m.group(1).decode()
                check(m.group(3) is not None, f"the file system over {bus} cannot be mounted")
                have = {int(n) for n in m.group(3).split()}
                missing = [n for n in synced[bus][-6:] if n not in have]
                check(not missing, f"files {missing} over {bus} were synced and are gone")
            bad = re.search(rb"rs-\w+ bad \d+", g.output)
            check(not bad, f"a file that was complete has other contents: {bad and bad.group()}")
            return g

        while kills < 2 or (kills < 8 and time.monotonic() - began < 25):
            g = boot("write", 1 + 1000 * kills)
            for bus in BUSES:
                g.expect(rf"rs-{bus} synced \d+\r", 60)
                g.pos = 0
            delay = rng.random() * 2
            end = time.monotonic() + delay
            while time.monotonic() < end:
                g.read_some(max(0, end - time.monotonic()))
            g.process.kill()
            g.wait(-signal.SIGKILL)
            kills += 1
            for bus, path in paths.items():
                synced[bus] = numbers(g.output, bus, "synced")
                # Exit code 3: leaked clusters, which the next writer gives back.
                done = tool("qemu-img", "check", "--output=json", "-f", "qcow2", path,
                            codes=(0, 3))
                report = json.loads(done.stdout)
                check(not report.get("corruptions") and not report.get("check-errors"),
                      f"the image behind {bus} is corrupt after kill -9 ({delay:.2f} s): {report}")
                copy = work.path("copy.raw")
                tool("qemu-img", "convert", "-O", "raw", path, copy)
                # The journal recovers to a file system without errors.
                tool("e2fsck", "-p", copy, codes=(0, 1))
                tool("e2fsck", "-f", "-n", copy)
            g.close()
        g = boot("check", 0)
        g.wait(0)
        for bus, path in paths.items():
            tool("qemu-img", "check", "-q", "-f", "qcow2", path)
            tool("qemu-img", "convert", "-O", "raw", path, work.path("copy.raw"))
            tool("e2fsck", "-f", "-n", work.path("copy.raw"))
    return f"killed {kills} times, {sum(map(len, synced.values()))} files in the last round"
