#!/usr/bin/env python3
"""Integration tests: boot unmodified guests through the real command line.

Each test starts `ringshift run` as a user would (on a pseudo-terminal, with pipes, with files),
types commands, checks what comes back and how it ends.  Python's standard library only.

    tests/integration/run.py [--list] [--build DIR] [--run-args ARGS] [--no-verify] [--jobs N]
                             [--long] [NAME...]

Two tests run at a time; --jobs 1 for one.  NAME may be a prefix (boot- runs every boot-...).  Guests run with --verify, and a block that the
verifier refuses fails the test; tests of what Ringshift costs run without.  With RS_REFERENCE=qemu in the environment the
guests run in qemu-system-x86_64 instead: that tests the tests.  Every test's console is kept in
BUILD/log/integration/NAME.log.
"""
import argparse
import ctypes
import errno
import fcntl
import hashlib
import json
import lzma
import os
import pwd
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import traceback
import zlib

import screen_tools

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REFERENCE = os.environ.get("RS_REFERENCE", "")
TESTS = []


class Skip(Exception):
    """The test cannot run here; the text says why."""


class Failed(Exception):
    """What was observed is not what must be."""


def test(function=None, **options):
    """Registers a test; its name is the function's, with dashes."""
    def register(f):
        TESTS.append((f.__name__.replace("_", "-"), f, options))
        return f
    return register(function) if function else register


def check(condition, message):
    if not condition:
        raise Failed(message)


def wait_until(condition, timeout, message):
    end = time.monotonic() + timeout * PATIENCE
    while not condition():
        check(time.monotonic() < end, message)
        time.sleep(0.05)


def needs_ringshift():
    if REFERENCE:
        raise Skip("about Ringshift itself, not about guests")


# ---- Files ---------------------------------------------------------------------------------------

class Files:
    """Guests and initramfs images, made when first asked for."""

    def __init__(self, build):
        self.build = build
        self.guests = os.path.join(ROOT, "build", "guests")
        self.work = os.path.join(build, "integration")
        os.makedirs(self.work, exist_ok=True)

    def guest(self, name):
        path = os.path.join(self.guests, name)
        if not os.path.exists(path):
            raise Skip(f"there is no {path}; run scripts/fetch-guests")
        return path

    def lock(self):
        """Held while a file is made that other tests want too; freed when closed."""
        f = open(os.path.join(self.work, "lock"), "w")
        fcntl.flock(f, fcntl.LOCK_EX)
        return f

    def initramfs(self, name="plain", *args):
        """An initramfs with these extra arguments to scripts/make-initramfs, remade if they or an
        ingredient changed."""
        with self.lock():
            return self.make_initramfs(name, *args)

    def make_initramfs(self, name, *args):
        out = os.path.join(self.work, f"{name}.cpio.gz")
        stamp = out + ".args"
        inputs = [os.path.join(ROOT, "scripts/make-initramfs"), self.guest("busybox")]
        inputs += [a.split(":")[0] for a in args if a.startswith("/")]
        newest = max(os.stat(p).st_mtime for p in inputs if os.path.exists(p))
        fresh = (os.path.exists(out) and os.path.exists(stamp)
                 and open(stamp).read() == repr(args) and os.stat(out).st_mtime > newest)
        if not fresh:
            command = [os.path.join(ROOT, "scripts/make-initramfs"),
                       "--busybox", self.guest("busybox"), *args, out]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, timeout=120)
            if done.returncode:
                raise Failed(f"make-initramfs: {done.stderr.strip()}")
            with open(stamp, "w") as f:
                f.write(repr(args))
        return out

    def vmlinux(self):
        """The ELF kernel inside a bzImage: the amd64 one, which is packed by xz."""
        with self.lock():
            return self.make_vmlinux()

    def make_vmlinux(self):
        source = self.guest("amd64/vmlinuz")
        out = os.path.join(self.work, "vmlinux")
        if os.path.exists(out) and os.stat(out).st_mtime > os.stat(source).st_mtime:
            return out
        with open(source, "rb") as f:
            image = f.read()
        # boot.rst: setup_sects, payload_offset, payload_length.
        setup = (image[0x1f1] or 4) * 512 + 512
        offset, length = struct.unpack_from("<II", image, 0x248)
        payload = image[setup + offset:setup + offset + length]
        if payload.startswith(b"\xfd7zXZ"):
            data = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            data = zlib.decompressobj(31).decompress(payload)
        else:
            raise Skip("the kernel is packed in a way that Python cannot unpack")
        check(data.startswith(b"\x7fELF"), "the payload of vmlinuz is no ELF file")
        with open(out + ".new", "wb") as f:
            f.write(data)
        os.rename(out + ".new", out)
        return out


FILES = None
RUN_ARGS = []
VERIFY = True  # --verify for every guest, but for tests with verify=False
# All time limits below are for a quiet machine.  They only bound how long a hang is waited for, so
# a busy one gets this much more; what must be fast is tested as CPU time or against the guest's clock.
PATIENCE = 4
LONG = False
LOG_DIR = ""
CURRENT = ""


def vm_command(kernel, initrd=None, append="console=ttyS0", memory="512M", reboot=True, extra=(),
               binary=None):
    """The command line that boots this guest."""
    if REFERENCE == "qemu":
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", memory,
                   "-nographic", "-kernel", kernel, "-append", append]
        if initrd:
            command += ["-initrd", initrd]
        if not reboot:
            command += ["-no-reboot"]
        return command
    command = [binary or os.path.join(FILES.build, "ringshift"), "run", "--memory", memory,
               "--kernel", kernel, "--append", append]
    if initrd:
        command += ["--initrd", initrd]
    if not reboot:
        command += ["--no-reboot"]
    if VERIFY and "--verify" not in RUN_ARGS:
        command += ["--verify"]
    return command + RUN_ARGS + list(extra)


# ---- A running guest -----------------------------------------------------------------------------

class Guest:
    """A process whose console we are, on a pseudo-terminal or on pipes."""

    instances = []

    def __init__(self, command, tty=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                 escapes=True, **popen):
        """escapes=False leaves cursor movements and colours out of self.output."""
        self.output = b""
        self.escapes = escapes
        self.held = b""  # the start of an escape sequence
        self.pos = 0
        self.started = time.monotonic()
        self.log = open(os.path.join(LOG_DIR, f"{CURRENT}.log"), "ab")
        self.log.write(("$ " + shlex.join(command) + "\n").encode())
        self.log.flush()
        self.errors = tempfile.TemporaryFile()
        if tty:
            self.master, self.slave = os.openpty()
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
            self.mode_before = termios.tcgetattr(self.slave)

            def own_tty():
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

            self.process = subprocess.Popen(
                command, stdin=self.slave, stdout=self.slave, stderr=self.errors,
                start_new_session=True, preexec_fn=own_tty, **popen)
            self.read_fd = self.write_fd = self.master
        else:
            self.master = self.slave = -1
            self.process = subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=self.errors,
                start_new_session=True, **popen)
            self.read_fd = self.process.stdout.fileno() if self.process.stdout else -1
            self.write_fd = self.process.stdin.fileno() if self.process.stdin else -1
        Guest.instances.append(self)

    def mode(self):
        return termios.tcgetattr(self.slave)

    def read_some(self, timeout):
        """Reads what there is within timeout; False at the end of the output."""
        ready, _, _ = select.select([self.read_fd], [], [], timeout)
        if not ready:
            return True
        try:
            data = os.read(self.read_fd, 65536)
        except OSError as e:
            if e.errno != errno.EIO:
                raise
            data = b""
        self.log.write(data)
        self.log.flush()
        if not self.escapes:
            text = re.sub(rb"\x1b\[[0-9;=?]*[A-Za-z]", b"", self.held + data)
            self.held = re.search(rb"(\x1b(\[[0-9;=?]*)?)?$", text).group(0)
            self.output += text[:len(text) - len(self.held)]
        else:
            self.output += data
        return bool(data)

    def stderr(self):
        if not self.errors.closed:
            self.errors.seek(0)
            self.last_words = self.errors.read().decode(errors="replace")
        return self.last_words

    def tail(self):
        return self.output[-1500:].decode(errors="replace")

    def expect(self, pattern, timeout=60):
        """Waits for the pattern after what was matched last; returns the match."""
        pattern = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        end = time.monotonic() + timeout * PATIENCE
        while True:
            m = pattern.search(self.output, self.pos)
            if m:
                self.pos = m.end()
                return m
            left = end - time.monotonic()
            if left <= 0:
                raise Failed(f"no {pattern.pattern!r} within {timeout * PATIENCE} s")
            if self.process.poll() is not None:
                # Its last words may still be on the way.
                while self.read_some(0.1) and select.select([self.read_fd], [], [], 0)[0]:
                    pass
                if pattern.search(self.output, self.pos):
                    continue
                raise Failed(f"it ended with code {self.process.returncode} before "
                             f"{pattern.pattern!r}: {self.stderr().strip()}")
            self.read_some(min(left, 0.5))

    def send(self, text):
        data = text.encode() if isinstance(text, str) else text
        while data:
            n = os.write(self.write_fd, data)
            data = data[n:]

    def shell(self, timeout=90):
        """Waits for the shell's prompt."""
        self.expect(r"rs: init runs after", timeout)
        self.boot_time = time.monotonic() - self.started
        self.expect(r"~ # ", 30)
        # Wide enough that the shell's line editor never wraps a command.
        self.send("stty cols 999 rows 25\n")
        self.expect(r"~ # ", 10)

    def cmd(self, command, timeout=30, ok=True):
        """Runs a command in the guest's shell; returns what it printed."""
        self.send(command + "; echo rs-done-$?\n")
        # The terminal's echo, wherever the line was wrapped, holds "$?" and no number.
        start = self.pos
        m = self.expect(r"rs-done-(\d+)\r*\n", timeout)
        text = self.output[start:m.start()].decode(errors="replace").replace("\r", "")
        self.expect(r"~ # ", 10)
        if ok:
            check(m.group(1) == b"0", f"in the guest, {command!r} gave {m.group(1).decode()}")
        # Without the echo of the command itself.
        return text.split("\n", 1)[1] if "\n" in text else text

    def wait(self, code=0, timeout=30):
        """Waits for the end of the process and checks its exit code."""
        end = time.monotonic() + timeout * PATIENCE
        while self.process.poll() is None:
            if time.monotonic() > end:
                raise Failed(f"it did not end within {timeout * PATIENCE} s")
            if self.read_fd >= 0:
                if not self.read_some(0.1):
                    self.process.wait(max(0.1, end - time.monotonic()))
            else:
                time.sleep(0.05)
        if self.read_fd >= 0:
            while select.select([self.read_fd], [], [], 0)[0] and self.read_some(0):
                pass
        got = self.process.returncode
        check(code is None or got == code,
              f"exit code {got} instead of {code}: {self.stderr().strip()}")
        return got

    def power_off(self):
        self.send("poweroff -f\n")
        self.wait(0)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for f in (self.process.stdin, self.process.stdout):
            if f:
                try:
                    f.close()
                except OSError:
                    pass
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)
        errors = self.stderr()
        if errors:
            self.log.write(("\n[stderr]\n" + errors).encode())
        self.log.close()
        self.errors.close()


def cloud(**kwargs):
    return vm_command(FILES.guest("cloud/vmlinuz"), FILES.initramfs(), **kwargs)


# ---- Guests that must boot -----------------------------------------------------------------------

# What Linux says at warning level on sound machines as well.
KNOWN_WARNINGS = [
    r"pci_bus .*: (Unknown|root bus|resource)",
    r"Unknown kernel command line parameters",
    r"unchecked MSR access error: .*RAPL",
    r"^\S*\s*(MDS|TAA|MMIO Stale Data|L1TF|Spectre|RETBleed|SRBDS|Speculative|SRSO|GDS|ITS|TSA|"
    r"VMSCAPE)\b",
    r"ENERGY_PERF_BIAS",
    r"platform rtc_cmos: registered",
    r"device-mapper: core: CONFIG_IMA_DISABLE_HTABLE",
    r"process '.*' started with executable stack",
    r"fail to add MMCONFIG information",
    r"critical resource", r"hrtimer: interrupt took",
]


def check_dmesg(guest):
    """No warning that Linux would not give on a PC."""
    text = guest.cmd("dmesg -r | grep '^<[0-4]>'", ok=False)
    bad = [line for line in text.splitlines()
           if re.match(r"<[0-4]>", line)
           and not any(re.search(k, re.sub(r"^<\d>\[ *[\d.]+\] ", "", line)) for k in KNOWN_WARNINGS)]
    text = guest.cmd("dmesg | grep -iE 'unstable|spurious|FW BUG|firmware bug|WARNING:|BUG:|"
                     "call trace|ACPI.*(error|exception)|nobody cared|soft lockup|rcu.*stall'",
                     ok=False)
    bad += [line for line in text.splitlines() if line.startswith("[")]
    check(not bad, "dmesg has warnings:\n    " + "\n    ".join(bad[:20]))


SEQ_MD5 = hashlib.md5(b"".join(b"%d\n" % i for i in range(1, 1001))).hexdigest()


def boot(command, release, dmesg=True):
    g = Guest(command)
    g.shell(120)
    check("Linux guest " in g.cmd("uname -a") and release in g.cmd("uname -r"), "uname is wrong")
    check(g.cmd("echo $((6 * 7))").strip() == "42", "the shell does not calculate")
    check(g.cmd("seq 1 1000 | sort -rn | sort -n | md5sum").split()[0] == SEQ_MD5,
          "sort or md5sum is wrong")
    check("MemTotal" in g.cmd("cat /proc/meminfo | head -n 1"), "no /proc/meminfo")
    before = time.time()
    now = float(g.cmd("date +%s").split()[0])
    check(before - 2 < now < time.time() + 2, f"the guest's clock is off by {now - before:.0f} s")
    # Job control: the shell has a controlling terminal, and Ctrl-C reaches a program.
    g.send("sh -c 'echo rs-start$((40 + 2)); exec sleep 1000'\n")
    g.expect("rs-start42", 10)
    g.send(b"\x03")
    g.expect(r"~ # ", 10)
    # The clock runs at the host's rate.  The host may let one try wait, but not all of them.
    for _ in range(10):
        start = time.monotonic()
        g.cmd("sleep 3")
        took = time.monotonic() - start
        check(took > 2.9, f"sleep 3 took {took:.1f} s")
        if took < 4.5:
            break
    check(took < 4.5, f"sleep 3 took {took:.1f} s and more")
    if dmesg:
        check_dmesg(g)
    g.power_off()
    return f"init after {g.boot_time:.1f} s"


@test
def boot_cloud():
    return boot(cloud(), "cloud-amd64")


@test
def boot_amd64():
    return boot(vm_command(FILES.guest("amd64/vmlinuz"), FILES.initramfs()), "-amd64")


@test
def boot_vmlinux():
    """The same kernel as an ELF image."""
    return boot(vm_command(FILES.vmlinux(), FILES.initramfs()), "-amd64")


def boot_with(*extra):
    needs_ringshift()
    g = Guest(cloud(extra=extra))
    g.shell(240)
    check(g.cmd("echo $((6 * 7))", 60).strip() == "42", "the shell does not calculate")
    g.cmd("for i in 1 2 3 4 5 6 7 8 9 10; do ls -lR /bin | md5sum; done | uniq | wc -l", 120)
    g.power_off()
    return f"init after {g.boot_time:.1f} s"


@test
def boot_soft():
    return boot_with("--mem", "soft")


@test
def boot_window():
    return boot_with("--mem", "window")


@test
def boot_baseline_cpu():
    return boot_with("--cpu", "baseline")


@test(verify=False)  # it translates everything over and over; tests/guest has both
def boot_chaos():
    return boot_with("--chaos")


@test
def boot_small():
    """Little memory, and an initrd that just fits."""
    g = Guest(cloud(memory="128M"))
    g.shell(120)
    g.power_off()


@test
def boot_large():
    """RAM above 4 GiB."""
    g = Guest(cloud(memory="6G"))
    g.shell(120)
    total = int(re.search(r"MemTotal: +(\d+)", g.cmd("cat /proc/meminfo")).group(1))
    check(total > 5 << 20, f"the guest sees only {total} KiB")
    g.cmd("dd if=/dev/zero of=/dev/shm/x bs=1M count=64 2>/dev/null && rm /dev/shm/x")
    g.power_off()


@test(timeout=400, verify=False)  # so much code that it would take minutes
def installer():
    """The Debian installer to its first menu, in text mode on the serial line."""
    kernel, initrd = FILES.guest("installer/linux"), FILES.guest("installer/initrd.gz")
    g = Guest(vm_command(kernel, initrd, append="console=ttyS0 vga=normal", memory="1G"))
    g.expect(r"Select a language|Choose the language", 350)
    took = time.monotonic() - g.started
    # The menu reacts: Tab goes to <Go Back>, which leads to the main menu.
    g.expect(r"English", 20)
    g.send("\t\r")
    g.expect(r"(?i)main menu", 60)
    return f"first menu after {took:.1f} s"


# ---- Ends ----------------------------------------------------------------------------------------

@test
def reboot_restarts():
    g = Guest(cloud())
    for _ in range(3):
        g.shell(90)
        g.send("reboot -f\n")
    g.shell(90)
    g.power_off()


@test
def no_reboot_ends():
    g = Guest(cloud(reboot=False))
    g.shell()
    g.send("reboot -f\n")
    g.wait(0)
    check(g.output.count(b"rs: init runs") == 1, "it started again")


@test
def triple_fault():
    needs_ringshift()
    # Linux resets by a triple fault when told to.
    g = Guest(cloud(append="console=ttyS0 reboot=t"))
    g.shell()
    g.send("reboot -f\n")
    g.wait(6)
    one_sentence(g.stderr(), "triple fault")


@test
def kernel_panic_reboots():
    g = Guest(vm_command(FILES.guest("cloud/vmlinuz"), append="console=ttyS0 panic=-1",
                         reboot=False), tty=False, stdin=subprocess.DEVNULL)
    g.wait(0, 90)
    check(b"Unable to mount root fs" in g.output, "no panic was seen")


# ---- Firmware ------------------------------------------------------------------------------------

def installed(path, package):
    """A file of a Debian package, or the test is skipped."""
    if not os.path.exists(path):
        raise Skip(f"{path} is missing (Debian: package {package})")
    return path


def firmware_guest(*extra):
    """A guest whose console is drawn by firmware, with cursor movements within words."""
    return Guest(firmware_command(*extra), escapes=False)


def firmware_command(*extra):
    needs_ringshift()
    installed("/usr/share/seabios/bios-256k.bin", "seabios")
    command = [os.path.join(FILES.build, "ringshift"), "run", "--memory", "256M"]
    return command + (["--verify"] if VERIFY else []) + RUN_ARGS + list(extra)


def boot_sector(code):
    return code + bytes(510 - len(code)) + b"\x55\xaa"


@test
def bios_boot_sector():
    """SeaBIOS starts a boot sector; it writes to the debug console and leaves by the exit port."""
    text = b"".join(b"\xb0" + bytes([c]) + b"\xe6\xe9" for c in b"hello\n")  # mov al, c; out 0xe9, al
    with tempfile.TemporaryDirectory() as folder:
        image, log = os.path.join(folder, "disk"), os.path.join(folder, "log")
        for option, size in (("--disk", 1 << 20), ("--floppy", 1474560)):
            with open(image, "wb") as f:
                f.write(boot_sector(text + b"\xb0\x15\xe6\xf4\xf4"))  # mov al, 0x15; out 0xf4, al
                f.truncate(size)
            g = Guest(firmware_command(option, image, "--debugcon", log), tty=False,
                      stdin=subprocess.DEVNULL)
            g.wait(0x15 << 1 | 1, 60)
            with open(log, "rb") as f:
                said = f.read()
            check(b"SeaBIOS" in said and b"hello\n" in said, f"{option}: the debug log is {said[-300:]!r}")


def type_keys(g, text):
    """As a person types: a BIOS' keyboard buffer holds 15 keys, and SeaBIOS looks 18 times a second."""
    for c in text:
        g.send(c)
        time.sleep(0.1)


def anywhere(text):
    """A pattern for text on a screen that may be sent in pieces, with movements of the cursor between."""
    return r"\s*".join(re.escape(c) for c in text if c != " ")


def grub_prompt(g):
    g.expect(anywhere("GNU GRUB"), 90)
    g.expect(anywhere("executed automatically"), 30)
    g.send("c")
    g.expect(anywhere("grub>"), 30)
    type_keys(g, "echo rs-$prefix\r")
    g.expect(anywhere(")/boot/grub"), 30)
    type_keys(g, "halt\r")  # through APM, which SeaBIOS turns into the chipset's power-off
    g.wait(0, 30)


@test
def bios_grub_cdrom():
    iso = installed("/usr/lib/grub-rescue/grub-rescue-cdrom.iso", "grub-rescue-pc")
    grub_prompt(firmware_guest("--cdrom", iso, "--boot", "d"))


@test
def bios_grub_floppy():
    image = installed("/usr/lib/grub-rescue/grub-rescue-floppy.img", "grub-rescue-pc")
    grub_prompt(firmware_guest("--floppy", image))


@test
def bios_isolinux():
    """SeaBIOS, ISOLINUX from an ISO image, and the kernel from there to its shell."""
    loader = installed("/usr/lib/ISOLINUX/isolinux.bin", "isolinux")
    module = installed("/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common")
    installed("/usr/bin/xorriso", "xorriso")
    with tempfile.TemporaryDirectory() as folder:
        tree, iso = os.path.join(folder, "tree"), os.path.join(folder, "iso")
        os.mkdir(tree)
        for source, name in ((loader, "isolinux.bin"), (module, "ldlinux.c32"),
                             (FILES.guest("cloud/vmlinuz"), "vmlinuz"),
                             (FILES.initramfs(), "initrd")):
            shutil.copy(source, os.path.join(tree, name))
        with open(os.path.join(tree, "isolinux.cfg"), "w") as f:
            f.write("default linux\nlabel linux\n kernel vmlinuz\n"
                    " append initrd=initrd console=ttyS0\n")
        subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", iso, "-b", "isolinux.bin",
                        "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4",
                        "-boot-info-table", tree], check=True, capture_output=True)
        g = Guest(firmware_command("--cdrom", iso))
        g.shell(150)
        check("i440FX" in g.cmd("cat /sys/class/dmi/id/product_name"), "no SMBIOS in the guest")
        g.power_off()


@test
def uefi_shell():
    """OVMF to its shell; a variable that is set there is there in the next life."""
    installed("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf")
    with tempfile.TemporaryDirectory() as folder:
        variables = os.path.join(folder, "vars")
        for step in ("set", "get"):
            g = firmware_guest("--firmware", "ovmf", "--firmware-vars", variables)
            g.expect(r"in 5 seconds to skip", 240)
            g.send("\x1b")
            g.expect(r"Shell> ", 60)
            if step == "set":
                g.send("setvar rs -guid 12345678-1234-1234-1234-123456789abc -nv -bs =0x5a\r")
            else:
                g.send("setvar rs -guid 12345678-1234-1234-1234-123456789abc\r")
                g.expect(r"5A", 30)
            g.expect(r"Shell> ", 60)
            g.send("reset -s\r")
            g.wait(0, 60)


@test
def bios_ipxe():
    """iPXE from its ISO image to its command line."""
    iso = installed("/usr/lib/ipxe/ipxe.iso", "ipxe")
    g = firmware_guest("--cdrom", iso, "--boot", "d")
    g.expect(r"Press Ctrl-B", 120)
    g.send("\x02")
    g.expect(r"iPXE> ", 30)
    type_keys(g, "set rs 6 && echo ipxe-${rs}7\r")
    g.expect(r"ipxe-67", 30)
    type_keys(g, "reboot\r")
    g.expect(r"Press Ctrl-B", 120)


def memtest_pass(kind):
    """A whole pass over a small memory, watched on the serial line, which its command line asks for."""
    image = installed(f"/boot/memtest86+{kind}.bin", "memtest86+")
    needs_ringshift()
    command = [os.path.join(FILES.build, "ringshift"), "run", "--memory", "16M", "--kernel", image,
               "--append", "console=ttyS0,115200"] + (["--verify"] if VERIFY else []) + RUN_ARGS
    g = Guest(command, escapes=False)
    g.expect(r"Memtest86\+", 60)
    g.expect(r"Pass: +1 +Errors: 0\b|Pass: +0 +Errors: +[1-9]|Pass: +1\s", 800)
    check(not re.search(rb"Errors: +[1-9]", g.output), "it found errors in a memory that has none")
    return f"a pass after {time.monotonic() - g.started:.0f} s"


# Most of a pass is a test that waits 160 seconds for bits to fade.
@test(timeout=900 * 3, long=True)
def memtest_ia32():
    return memtest_pass("ia32")


@test(timeout=900 * 3, long=True)
def memtest_x64():
    return memtest_pass("x64")


@test
def uefi_grub():
    """OVMF starts GRUB for EFI from the EFI system partition of a disk; it runs what it is told."""
    installed("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf")
    installed("/usr/lib/grub/x86_64-efi/kernel.img", "grub-efi-amd64-bin")
    for program, package in (("grub-mkstandalone", "grub-common"), ("mcopy", "mtools")):
        if not shutil.which(program):
            raise Skip(f"{program} is missing (Debian: package {package})")
    with tempfile.TemporaryDirectory() as folder:
        config, loader = os.path.join(folder, "grub.cfg"), os.path.join(folder, "bootx64.efi")
        disk = os.path.join(folder, "disk")
        with open(config, "w") as f:
            # Through the firmware's console, which is the serial line; two drivers for one UART
            # would take keys from each other.
            f.write("terminal_input console\nterminal_output console\nset timeout=-1\n"
                    "echo grub-on-$grub_platform-$grub_cpu\n")
        subprocess.run(["grub-mkstandalone", "-O", "x86_64-efi", "-o", loader, "--fonts=",
                        "--locales=", "--themes=", "--install-modules="
                        "normal echo terminal halt lsefi part_gpt part_msdos fat",
                        f"boot/grub/grub.cfg={config}"], check=True, capture_output=True)
        with open(disk, "wb") as f:
            f.truncate(32 << 20)
        # A disk without partitions that is one FAT: firmware boots it like a removable medium.
        subprocess.run(["mformat", "-i", disk, "::"], check=True)
        subprocess.run(["mmd", "-i", disk, "::EFI", "::EFI/BOOT"], check=True)
        subprocess.run(["mcopy", "-i", disk, loader, "::EFI/BOOT/BOOTX64.EFI"], check=True)
        g = firmware_guest("--firmware", "ovmf", "--disk", disk)
        g.expect(r"grub-on-efi-x86_64", 120)
        g.expect(r"grub> ", 60)
        type_keys(g, "echo rs-$grub_platform-$cmdpath\r")
        g.expect(r"rs-efi-\(hd\d[^)]*\)/EFI/BOOT", 30)
        type_keys(g, "halt\r")
        g.wait(0, 60)


# ---- The terminal --------------------------------------------------------------------------------

def one_sentence(text, pattern):
    lines = [line for line in text.splitlines()
             if line.startswith("ringshift: ") and "Ctrl-A X ends" not in line]
    check(len(lines) == 1, f"not one sentence on stderr: {text!r}")
    check(re.search(pattern, lines[0]), f"no {pattern!r} in: {lines[0]}")


@test
def keys():
    needs_ringshift()
    g = Guest(cloud())
    g.shell()
    check(g.mode() != g.mode_before, "the terminal is not in raw mode")
    g.send(b"\x01h")
    g.expect(r"Ctrl-A X  end", 5)
    g.send(b"\x01s")
    g.expect(r"\n", 5)
    time.sleep(1)
    g.send("\n")
    g.expect("~ # ", 5)
    # Ctrl-A Ctrl-A sends one Ctrl-A: to the start of the line.
    g.send(b"-tail\x01\x01echo head; echo rs-done-$?\n")
    # Break and a letter are Linux's magic SysRq.
    g.expect("~ # ", 5)
    g.cmd("echo 1 > /proc/sys/kernel/sysrq")
    g.send(b"\x01b")
    time.sleep(0.2)
    g.send(b"h")
    g.expect(r"sysrq: HELP", 5)
    g.send(b"\x01x")
    g.wait(0, 10)
    check(g.mode() == g.mode_before, "the terminal was not restored")


@test
def signals_restore_the_terminal():
    needs_ringshift()
    for name in ("TERM", "INT", "HUP", "QUIT", "SEGV", "ABRT", "BUS", "SYS", "ALRM", "USR2", "XCPU",
                 "RTMIN"):
        number = getattr(signal, "SIG" + name)
        g = Guest(cloud())
        g.expect(r"Linux version", 30)
        check(g.mode() != g.mode_before, "the terminal is not in raw mode")
        g.process.send_signal(number)
        # A crash signal kills; the others end the VM in good order.
        code = g.wait(None, 10)
        check(code in (128 + number, -number), f"SIG{name} gave exit code {code}")
        check(g.mode() == g.mode_before, f"the terminal was not restored after SIG{name}")
        g.close()


@test
def stop_and_continue():
    needs_ringshift()
    g = Guest(cloud())
    g.shell()
    raw = g.mode()
    g.process.send_signal(signal.SIGTSTP)
    deadline = time.monotonic() + 5 * PATIENCE
    state = ""
    while time.monotonic() < deadline and state != "T":
        with open(f"/proc/{g.process.pid}/stat") as f:
            state = f.read().rsplit(")", 1)[1].split()[0]
        time.sleep(0.05)
    check(state == "T", f"SIGTSTP left it in state {state}")
    check(g.mode() == g.mode_before, "the terminal was not restored while stopped")
    g.process.send_signal(signal.SIGCONT)
    wait_until(lambda: g.mode() == raw, 5, "the terminal is not raw again")
    check(g.cmd("echo still here").strip() == "still here", "the guest did not survive")
    g.power_off()


def run_and_off(program, *args):
    append = f"console=ttyS0 quiet rs.run={program}"
    if args:
        append += " rs.args=" + ",".join(args)
    return cloud(append=append)


@test
def stdin_dev_null():
    g = Guest(run_and_off("/bin/uname", "-s"), tty=False, stdin=subprocess.DEVNULL)
    g.wait(0, 90)
    check(b"Linux" in g.output and b"rs: exit 0" in g.output, "no output")


@test
def stdin_closed():
    needs_ringshift()
    g = Guest(["sh", "-c", 'exec "$@" <&-', "sh", *run_and_off("/bin/uname", "-s")], tty=False)
    g.wait(0, 90)
    check(b"rs: exit 0" in g.output, "no output")


@test
def stdin_pipe():
    g = Guest(cloud(), tty=False)
    g.shell()
    # More than the UART's FIFO holds, at once: nothing may get lost.
    text = "".join(chr(ord("a") + i % 26) for i in range(3000))
    g.send("stty -echo; echo rs-go$((40 + 2)); "
           "while read -r l; do [ \"$l\" ] || break; echo got ${#l}; done\n")
    g.expect("rs-go42", 10)
    for i in range(5):
        g.send(text[:900] + "\n")
    g.send("\n")
    for i in range(5):
        g.expect("got 900", 20)
    g.process.stdin.close()
    g.write_fd = -1
    # The end of stdin is not the end of the guest, and costs no CPU time.
    for _ in range(5):  # it may have something left to do at first
        before = cpu_seconds(g.process.pid)
        time.sleep(3)
        check(g.process.poll() is None, "it ended with its stdin")
        used = cpu_seconds(g.process.pid) - before
        if used < 0.5:
            break
    check(used < 0.5, f"it spins after the end of its stdin: {used:.1f} s of CPU in 3")
    g.process.terminate()
    g.wait(143 if not REFERENCE else None, 15)


@test
def stdin_file():
    commands = os.path.join(FILES.work, "commands")
    with open(commands, "w") as f:
        # QEMU's first bytes are lost when the kernel sets up the port; ours wait for RTS.
        f.write(("\n" * 60 if REFERENCE else "") + "echo file $((6 * 7))\npoweroff -f\n")
    with open(commands) as f:
        g = Guest(cloud(append="console=ttyS0 quiet"), tty=False, stdin=f)
        g.wait(0, 120)
    check(b"file 42" in g.output, "the commands did not run")


@test
def stdout_file():
    path = os.path.join(FILES.work, "console")
    with open(path, "wb") as f:
        g = Guest(run_and_off("/usr/bin/seq", "20000"), tty=False, stdin=subprocess.DEVNULL, stdout=f)
        g.wait(0, 90)
    check_sequence(open(path, "rb").read())


def check_sequence(data):
    numbers = re.search(rb"rs: init runs[^\n]*\n(.*)rs: exit 0", data, re.S)
    check(numbers, "no output")
    check(numbers.group(1).replace(b"\r", b"").split() == [b"%d" % i for i in range(1, 20001)],
          "output was lost or changed")


@test
def stdout_slow():
    """A consumer that pauses loses nothing."""
    g = Guest(run_and_off("/usr/bin/seq", "20000"), tty=False, stdin=subprocess.DEVNULL)
    g.expect("rs: init runs", 90)
    time.sleep(8)
    g.wait(0, 60)
    check_sequence(g.output)


@test
def stdout_reader_gone():
    needs_ringshift()
    g = Guest(cloud(), tty=False)
    g.expect("Linux version", 60)
    g.process.stdout.close()
    g.read_fd = -1
    g.wait(141, 20)
    one_sentence(g.stderr(), "reader")


@test
def odd_stdio():
    """Every way to start it that a shell script can think of ends in the guest's own time."""
    needs_ringshift()
    command = run_and_off("/bin/uname", "-s")
    for redirect, words in ((">/dev/full", "No space left"), (">&-", ""), ("2>&-", ""),
                            ("<&- >&- 2>&-", ""), ("</dev/zero >/dev/null", ""),
                            ("<>/dev/null 1<>/dev/null", "")):
        done = subprocess.run(["sh", "-c", f'exec "$@" {redirect}', "sh", *command],
                              stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=60 * PATIENCE)
        check(done.returncode == 0, f"{redirect}: exit code {done.returncode}: {done.stderr!r}")
        check(words.encode() in done.stderr, f"{redirect}: {done.stderr!r}")
    # Sockets, as an inetd or a container runtime gives them.
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
    theirs.close()
    data = b""
    while chunk := ours.recv(65536):
        data += chunk
    check(process.wait(10 * PATIENCE) == 0 and b"rs: exit 0" in data, "sockets do not work")
    # A full pipe that nobody reads does not keep a signal from ending it.
    g = Guest(cloud(append="console=ttyS0 rs.run=/usr/bin/seq rs.args=30000"), tty=False,
              stdin=subprocess.DEVNULL)
    time.sleep(6)
    g.process.terminate()
    end = time.monotonic() + 15 * PATIENCE
    while g.process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    check(g.process.returncode == 143, f"exit code {g.process.returncode} after SIGTERM")


@test
def background_job():
    """In the background it leaves the terminal alone; in the foreground it takes it."""
    needs_ringshift()
    g = Guest(["sh", "-c", "exec bash --norc -i 2>&1"], env={"PATH": "/usr/bin:/bin", "PS1": "host> ",
                                             "TERM": "dumb", "HOME": "/"})
    g.expect("host> ", 10)
    g.send(shlex.join(cloud()) + " &\n")
    g.expect("rs: init runs", 60)
    time.sleep(1)
    g.send("\necho the shell $((40 + 2)) answers\n")
    g.expect("the shell 42 answers", 10)
    g.send("fg\n")
    time.sleep(1)
    g.send("\n")
    g.expect("~ # ", 10)
    # Prompts for the newlines above may still be on the way: look for the answer alone.
    g.send("echo fore$((6 * 7))ground\n")
    g.expect("fore42ground", 10)
    g.send("poweroff -f\n")
    g.expect("host> ", 20)
    g.send("stty -a\nexit\n")
    g.expect(r" icanon[^-]* echo", 10)
    g.wait(0)


@test
def terminal_hangs_up():
    """The terminal's other end goes away."""
    needs_ringshift()
    g = Guest(cloud())
    g.expect("Linux version", 60)
    os.close(g.slave)
    os.close(g.master)
    g.master = g.slave = g.read_fd = -1
    g.wait(129, 20)


# ---- Who may run it, and what it costs ------------------------------------------------------------

def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@test
def unprivileged_user():
    """No capability, no device node, default limits."""
    needs_ringshift()
    with open("/proc/sys/vm/max_map_count") as f:
        maps = int(f.read())
    check(maps <= 65530 or os.environ.get("RS_ANY_MAP_COUNT"),
          f"vm.max_map_count is {maps} here: the test would prove nothing")
    popen = {}
    binary = None
    work = tempfile.mkdtemp(prefix="ringshift-test-")
    try:
        os.chmod(work, 0o755)
        copies = {}
        for key, path in (("binary", os.path.join(FILES.build, "ringshift")),
                          ("kernel", FILES.guest("cloud/vmlinuz")),
                          ("initrd", FILES.initramfs())):
            copies[key] = shutil.copy(path, os.path.join(work, key))
            os.chmod(copies[key], 0o755)
        command = vm_command(copies["kernel"], copies["initrd"], binary=copies["binary"])
        if os.getuid() == 0:
            if not shutil.which("setpriv"):
                raise Skip("no setpriv to drop root's rights with")
            nobody = pwd.getpwnam("nobody")
            command = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}",
                       "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
                       "--no-new-privs", *command]
        g = Guest(command, cwd="/", env={"PATH": "/usr/bin:/bin"})
        g.shell()
        with open(f"/proc/{g.process.pid}/status") as f:
            status = f.read()
        check(re.search(r"CapEff:\s+0+\n", status), "it has capabilities")
        check(not re.search(r"^Uid:\s+0\b", status, re.M), "it runs as root")
        for fd in os.listdir(f"/proc/{g.process.pid}/fd"):
            target = os.readlink(f"/proc/{g.process.pid}/fd/{fd}")
            check(not target.startswith("/dev/") or target.startswith(("/dev/pts/", "/dev/null")),
                  f"it has {target} open")
        g.cmd("i=0; while [ $i -lt 100 ]; do ls / >/dev/null; i=$((i + 1)); done", 120)
        with open(f"/proc/{g.process.pid}/maps") as f:
            count = sum(1 for _ in f)
        g.power_off()
        return f"{count} mappings"
    finally:
        shutil.rmtree(work)


@test(verify=False)
def idle_cpu():
    needs_ringshift()
    g = Guest(cloud())
    g.shell()
    g.cmd("true")
    for _ in range(4):  # its start may still have something to do
        time.sleep(3)
        start, before = time.monotonic(), cpu_seconds(g.process.pid)
        time.sleep(10)
        share = (cpu_seconds(g.process.pid) - before) / (time.monotonic() - start) * 100
        if share < 2:
            break
    g.power_off()
    check(share < 2, f"an idle guest uses {share:.1f} % of a CPU")
    return f"{share:.2f} % of a CPU"


@test(verify=False)
def io_thread_near():
    """The I/O thread stays on the vCPU's CPU, which spares the host interrupts (runtime/near.h)."""
    needs_ringshift()
    if len(os.sched_getaffinity(0)) < 2:
        raise Skip("one CPU: every thread is near")
    g = Guest(cloud())
    g.shell()
    others = [int(t) for t in os.listdir(f"/proc/{g.process.pid}/task") if int(t) != g.process.pid]
    g.cmd("sh -c 'while :; do :; done' & true")
    wait_until(lambda: any(len(os.sched_getaffinity(t)) == 1 for t in others), 60,
               "no thread follows the vCPU")
    g.power_off()


@test(verify=False)
def memory_overhead():
    """Memory beyond guest RAM, for a booted 512 MiB guest."""
    needs_ringshift()
    g = Guest(cloud())
    g.shell()
    g.cmd("ls -lR /bin /sys/class >/dev/null")
    beyond = guest = tables = 0
    name = ""
    with open(f"/proc/{g.process.pid}/smaps") as f:
        for line in f:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                name = line.split(None, 5)[5].strip() if len(line.split(None, 5)) > 5 else ""
            elif line.startswith("Pss:"):
                if "memfd:guest-ram" in name:
                    guest += int(line.split()[1])
                else:
                    beyond += int(line.split()[1])
    with open(f"/proc/{g.process.pid}/status") as f:
        tables = int(re.search(r"VmPTE:\s+(\d+)", f.read()).group(1))
    g.power_off()
    total = (beyond + tables) / 1024
    check(total < 128, f"{total:.0f} MiB beyond guest RAM")
    return f"{total:.1f} MiB beyond guest RAM (page tables {tables / 1024:.1f}); guest touched {guest / 1024:.0f}"


# ---- The command line ----------------------------------------------------------------------------

def cli(*args, timeout=20, **kwargs):
    return subprocess.run([os.path.join(FILES.build, "ringshift"), *args],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout * PATIENCE, **kwargs)


@test
def command_line():
    needs_ringshift()
    done = cli("--version")
    check(done.returncode == 0 and re.fullmatch(r"ringshift \d+\.\d+\.\d+\n", done.stdout),
          f"--version printed {done.stdout!r}")
    for args in (["--help"], ["help"], ["help", "run"], ["run", "--help"], ["help", "explain"],
                 ["help", "help"], ["help", "version"]):
        done = cli(*args)
        check(done.returncode == 0 and "Usage: ringshift" in done.stdout, f"{args} does not help")
    for name in re.findall(r"^  (--[a-z-]+)", cli("help", "run").stdout, re.M):
        with open(os.path.join(ROOT, "docs", "ringshift.1")) as f:
            check("Fl " + name[1:].replace("-", "\\-") in f.read(), f"{name} is not in the man page")


@test
def bad_input():
    """Every failure is one sentence and the documented exit code."""
    needs_ringshift()
    work = FILES.work
    kernel = FILES.guest("cloud/vmlinuz")

    def write(name, data):
        path = os.path.join(work, name)
        with open(path, "wb") as f:
            f.write(data)
        return path

    with open(kernel, "rb") as f:
        image = f.read()
    big = os.path.join(work, "big-initrd")
    with open(big, "wb") as f:
        f.truncate(600 << 20)
    k = ["run", "--kernel", kernel]
    cases = [
        ([], 2, "help"),
        (["boot"], 2, "boot"),
        (["run"], 2, "--kernel"),
        (["run", "--kernel"], 2, "value"),
        (["run", "--colour", "red"], 2, "--colour"),
        (k + ["extra"], 2, "extra"),
        (k + ["--memory", "lots"], 2, "lots"),
        (k + ["--memory", "512Mi"], 2, "512Mi"),
        (k + ["--memory", "-512M"], 2, "-512M"),
        (k + ["--memory", "512"], 2, "16M"),
        (k + ["--memory", "15M"], 2, "16M"),
        (k + ["--memory", "99999999999999999999G"], 2, "host"),
        (k + ["--memory", "17179869184G"], 2, "host"),
        (k + ["--memory", "1T"], 4, "memory"),
        (k + ["--cpus", "2"], 2, "not supported yet"),
        (k + ["--cpus", "0"], 2, "--cpus"),
        (k + ["--trace", "everything"], 2, "everything"),
        (k + ["--trace-range", "5"], 2, "trace-range"),
        (k + ["--trace-range", "1-5"], 2, "trace-range.*add --trace"),
        (k + ["--trace-file", "/dev/null"], 2, "trace-file.*add --trace"),
        (["run", "-kernel", kernel], 2, "-kernel; options begin with --"),
        (k + ["--verify=1"], 2, "--verify takes no value"),
        (["run", "--kernel="], 3, "empty"),
        (["run", "--kernel", "/dev/zero"], 3, "/dev/zero"),
        (k + ["--mem", "hard"], 2, "hard"),
        (k + ["--huge-pages", "always"], 2, "always"),
        (k + ["--cpu", "486"], 2, "486"),
        (k + ["--trace", "io", "--trace-file", "/no/such/dir/x"], 3, "/no/such/dir/x"),
        (["run", "--kernel", "/no/such/file"], 3, "/no/such/file"),
        (["run", "--kernel", "/"], 3, "directory"),
        (["run", "--kernel", "/dev/null"], 3, "device"),
        (["run", "--kernel", "/bin/true"], 3, "/bin/true"),
        (["run", "--kernel", FILES.initramfs()], 3, "gzip"),
        (["run", "--kernel", write("short", image[:0x230])], 3, "cut short|boot protocol"),
        (["run", "--kernel", write("half", image[:len(image) // 2])], 3, "cut short"),
        (["run", "--kernel", write("text", b"hello\n" * 1000)], 3, "neither"),
        (["run", "--kernel", write("elf", b"\x7fELF" + b"\0" * 500)], 3, "ELF"),
        (k + ["--initrd", "/no/such/initrd"], 3, "/no/such/initrd"),
        (k + ["--initrd", big], 3, "initrd.*memory"),
        (k + ["--append", "x" * 5000], 3, "command line"),
        (k + ["--memory", "16M"], 3, "memory"),
        (["help", "nothing"], 2, "nothing"),
        (["version", "x"], 2, "x"),
        (["explain", "--kernel", kernel], 2, "--at"),
        (["explain", "--kernel", kernel, "--at", "zzz"], 2, "zzz"),
    ]
    for args, code, pattern in cases:
        done = cli(*args)
        check(done.returncode == code,
              f"{args} gave exit code {done.returncode}, not {code}: {done.stderr!r}")
        one_sentence(done.stderr, pattern)
        check(not done.stdout, f"{args} printed on stdout")
    os.unlink(big)
    # A limit on address space, as a host short of memory would refuse.
    done = subprocess.run(["sh", "-c", 'ulimit -v 400000; exec "$@"', "sh",
                           os.path.join(FILES.build, "ringshift"), *k, "--memory", "1G"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    check(done.returncode == 4, f"ulimit -v gave exit code {done.returncode}: {done.stderr!r}")
    one_sentence(done.stderr, "memory|address")
    # A pipe that never ends.
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        done = cli("run", "--kernel", "/proc/self/fd/3", timeout=60,
                   preexec_fn=lambda: os.dup2(endless.stdout.fileno(), 3), pass_fds=[3])
        endless.kill()
    check(done.returncode == 3, f"an endless pipe gave exit code {done.returncode}")
    one_sentence(done.stderr, "delivers more than")


def limited(number, value):
    """Runs the cloud kernel as an ordinary user under one resource limit."""
    def drop():
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
        resource.setrlimit(number, (value, value))

    with tempfile.TemporaryDirectory(prefix="ringshift-test-") as work:
        os.chmod(work, 0o755)
        files = [shutil.copy(path, work) for path in (
            os.path.join(FILES.build, "ringshift"), FILES.guest("cloud/vmlinuz"), FILES.initramfs())]
        for path in files:
            os.chmod(path, 0o755)
        return subprocess.run(
            [files[0], "run", "--kernel", files[1], "--initrd", files[2], "--append",
             "console=ttyS0 quiet rs.run=/bin/uname rs.args=-s"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=drop, cwd="/",
            timeout=60 * PATIENCE)


@test
def host_limits():
    """What the host may ration: either it works with less, or it says so."""
    needs_ringshift()
    for name, value, code, words in (
            ("NOFILE", 8, 4, "open files"), ("NOFILE", 12, 4, "open files"), ("NOFILE", 20, 0, ""),
            ("NPROC", 0, 4, "thread"), ("FSIZE", 1 << 20, 4, "memory"), ("AS", 3 << 30, 4, "memory"),
            ("AS", 1 << 40, 0, ""), ("DATA", 20 << 20, 4, "code cache"), ("STACK", 256 << 10, 0, ""),
            ("MEMLOCK", 0, 0, ""), ("SIGPENDING", 0, 0, "")):
        done = limited(getattr(resource, "RLIMIT_" + name), value)
        check(done.returncode == code, f"{name} {value}: exit code {done.returncode}: {done.stderr!r}")
        if code:
            one_sentence(done.stderr, words)
        else:
            check("rs: exit 0" in done.stdout, f"{name} {value}: {done.stdout!r}")


# What the default seccomp profiles of container runtimes refuse (numbers of x86-64).
CONTAINER_DENIES = [
    101, 134, 136, 139, 153, 154, 155, 156, 159, 161, 163, 164, 165, 166, 167, 168, 169, 170, 172,
    173, 174, 175, 176, 177, 178, 179, 180, 203, 205, 206, 212, 227, 237, 238, 239, 246, 248, 249,
    250, 256, 272, 279, 298, 300, 303, 304, 305, 308, 310, 311, 312, 313, 320, 321, 323, 425, 426,
    427, 428, 429, 430, 431, 432, 433, 435, 442]


def confine_as_container():
    """Installs such a filter in this process: EPERM, and ENOSYS for clone3 (seccomp(2))."""
    def insn(code, k, jt=0, jf=0):
        return struct.pack("HBBI", code, jt, jf, k)

    program = insn(0x20, 0)  # the system call's number
    for number in CONTAINER_DENIES:
        program += insn(0x15, number, 0, 1)
        program += insn(0x06, 0x00050000 | (errno.ENOSYS if number == 435 else errno.EPERM))
    program += insn(0x06, 0x7fff0000)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program)
    fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, fprog, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


@test
def container():
    """Under a container runtime's seccomp profile; without /dev and /proc."""
    needs_ringshift()
    command = run_and_off("/bin/uname", "-s")
    done = subprocess.run(command + ["--rng"], stdin=subprocess.DEVNULL, capture_output=True,
                          preexec_fn=confine_as_container, timeout=60 * PATIENCE)
    check(done.returncode == 0 and b"rs: exit 0" in done.stdout, f"seccomp: {done}")
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run(unshare + ["mount -t tmpfs none /dev"], capture_output=True).returncode:
        raise Skip("seccomp is fine; no namespaces here to hide /dev in")
    for redirect in ("", "<&-", "<&- 2>&-"):
        done = subprocess.run(
            unshare + [f'mount -t tmpfs none /dev && mount -t tmpfs none /proc && exec "$@" {redirect}',
                       "sh", *command],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=60 * PATIENCE)
        check(done.returncode == 0 and b"rs: exit 0" in done.stdout, f"no /dev {redirect}: {done}")


@test
def man_page():
    if not shutil.which("mandoc"):
        raise Skip("no mandoc")
    done = subprocess.run(["mandoc", "-Tlint", "-W", "warning",
                           os.path.join(ROOT, "docs", "ringshift.1")],
                          capture_output=True, text=True, timeout=20)
    check(done.returncode == 0, done.stdout)


@test
def stats_and_trace():
    needs_ringshift()
    trace = os.path.join(FILES.work, "trace")
    g = Guest(run_and_off("/bin/true") + ["--stats", "--trace", "traps,irq", "--trace-file", trace],
              tty=False, stdin=subprocess.DEVNULL)
    g.wait(0, 120)
    share = {name: float(percent) for name, percent in
             re.findall(r"(guest code|translating|verifying|callouts|memory misses|devices|"
                        r"dispatcher|idle) ([\d.]+) %", g.stderr())}
    check(len(share) == (8 if VERIFY else 7), f"--stats printed these times: {share}")
    check(99 < sum(share.values()) < 101, f"the times of --stats add up to {share}")
    took = float(re.search(r"vCPU 0: ([\d.]+) s:", g.stderr()).group(1))
    check(0.1 < took < time.monotonic() - g.started, f"--stats counts {took} s")
    check(os.stat(trace).st_size > 1000, "the trace is empty")


@test
def system_calls_without_c():
    """What a program calls the kernel for goes the short way there and back, nearly always."""
    needs_ringshift()
    with open("/proc/cpuinfo") as f:
        if "bmi2" not in f.read().split():
            raise Skip("no BMI2, so there are no windows and no short way")
    g = Guest(run_and_off("/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=20000") + ["--stats"],
              tty=False, stdin=subprocess.DEVNULL)
    g.wait(0, 120)
    short = [int(n) for n in re.search(r"system calls: (\d+) entries, (\d+) returns", g.stderr()).groups()]
    long = [int(n) for n in re.findall(r"^  SYS(?:CALL|RET) +(\d+)$", g.stderr(), re.MULTILINE)]
    check(min(short) > 40000 and max(long) < min(short) / 4, f"short {short}, in C {long}")


@test
def huge_pages():
    """A program with much memory gets huge pages, and computes the same with them and without."""
    needs_ringshift()
    script = ("for c in a b c; do awk 'BEGIN { s = \"'$c'\"; for (i = 0; i < 25; i++) s = s s; "
              "print length(s); gsub(/.*/, \"\", s); print length(s) }'; done; echo rs-huge-done")
    made = {}
    for mode in ("auto", "off"):
        # Linux has transparent huge pages off in less than 512 MiB.
        g = Guest(cloud(extra=["--stats", "--huge-pages", mode], memory="1G"))
        g.shell()
        on = g.cmd("cat /sys/kernel/mm/transparent_hugepage/enabled")
        check("[never]" not in on, f"the guest's kernel has no huge pages on: {on}")
        g.send(script + "\n")
        g.expect(r"33554432\s+0\s+33554432\s+0\s+33554432\s+0\s+rs-huge-done", 120)
        g.send("poweroff -f\n")
        g.wait(0, 60)
        made[mode] = [int(n) for n in
                      re.search(r"huge pages: +(\d+) pieces of RAM, (\d+) refused", g.stderr()).groups()]
    check(made["off"] == [0, 0], f"--huge-pages off made and was refused {made['off']}")
    if made["auto"][0] == 0 and made["auto"][1] > 0:
        raise Skip("this host refuses huge pages of shared memory")
    check(made["auto"][0] > 0, "no huge page was made")


@test
def explain():
    needs_ringshift()
    done = cli("explain", "--kernel", FILES.guest("cloud/vmlinuz"), "--at", "entry")
    if "cannot explain translations" in done.stderr:
        raise Failed("explain is not built in")
    check(done.returncode == 0 and len(done.stdout.splitlines()) > 3, done.stderr)
    check("mov ds, eax" in done.stdout and "callout to the VMM" in done.stdout, done.stdout)
    done = cli("explain", "--kernel", FILES.guest("cloud/vmlinuz"), "--after", "4", "--tier", "both",
               "--at", "0xffffffff81000000", "--count", "3", timeout=60)
    check(done.returncode == 0 and "ffffffff81000000" in done.stdout.lower(), done.stderr)
    # Never reached under that address, but mapped; and never mapped.
    done = cli("explain", "--kernel", FILES.guest("cloud/vmlinuz"), "--at", "0xffffffff81000000",
               timeout=60)
    check(done.returncode == 0 and
          "block 0xffffffff81000000" in done.stdout and "did not get to" in done.stderr, done.stderr)
    done = cli("explain", "--kernel", FILES.guest("cloud/vmlinuz"), "--at", "0x5000000000", timeout=60)
    check(done.returncode == 3 and not done.stdout, f"unmapped: {done}")
    one_sentence(done.stderr, "nothing is mapped")
    done = cli("explain", "--kernel", FILES.guest("cloud/vmlinuz"), "--after", "4",
               "--at", "0xffffffff81000068", "--tier", "both", timeout=60)
    for text in ("RSP is the guest", "<count>", "return address, not"):
        check(text in done.stdout, f"no '{text}' in: {done.stdout}")
    done = cli("explain", "--kernel", FILES.guest("cloud/vmlinuz"), "--after", "4",
               "--at", "0xffffffff81000110", "--count", "3", "--tier", "both", timeout=60)
    for text in ("memory operand redirected", "<write>", "window_delta.kernel", "side door"):
        check(text in done.stdout, f"no '{text}' in: {done.stdout}")


# ---- Programs inside the guest -------------------------------------------------------------------

@test(timeout=420)
def guest_suite():
    """Everything a process may do: tests/guest-user, one static program."""
    program = os.path.join(FILES.build, "tests", "guest-user", "guest-suite")
    if not os.path.exists(program):
        raise Skip(f"there is no {program}")
    image = FILES.initramfs("suite", "--file", f"{program}:bin/guest-suite")
    g = Guest(vm_command(FILES.guest("cloud/vmlinuz"), image, memory="1G",
                         append="console=ttyS0 quiet rs.run=/bin/guest-suite"),
              tty=False, stdin=subprocess.DEVNULL)
    m = g.expect(r"(\d+) passed, (\d+) failed", 400)
    g.wait(0)
    check(m.group(2) == b"0" and m.group(1) != b"0", m.group(0).decode())
    return m.group(0).decode()


@test(timeout=400)
def stress_ng():
    tree = FILES.guest("stress-ng")
    image = FILES.initramfs("stress", "--tree", tree, "--program", "usr/bin/stress-ng")
    g = Guest(vm_command(FILES.guest("cloud/vmlinuz"), image, memory="1G",
                         append="console=ttyS0 quiet"))
    g.shell(120)
    for args in ("--cpu 1", "--vm 1 --vm-bytes 64M", "--fork 1", "--context 1", "--sigsegv 1"):
        text = g.cmd(f"stress-ng {args} --verify --timeout 6 --temp-path /tmp", 120)
        check("successful run completed" in text and "fail" not in text, f"stress-ng {args}: {text}")
    g.power_off()


@test
def luajit():
    tree = FILES.guest("luajit")
    program = "usr/bin/" + next(n for n in sorted(os.listdir(os.path.join(tree, "usr/bin")))
                                if n.startswith("luajit"))
    script = os.path.join(FILES.work, "jit.lua")
    with open(script, "w") as f:
        f.write("""
-- Compiles traces, throws them away and compiles again: code that is written while it runs.
assert(jit.status())
for round = 1, 20 do
    jit.flush()
    local f = assert(loadstring("return function(n) local s = 0 for i = 1, n do s = (s * " ..
                                round .. " + i) % 1000003 end return s end"))()
    local a = f(200000)
    jit.off(f, true)
    assert(f(200000) == a)
    jit.on(f, true)
end
local t = {}
for i = 1, 100000 do t[i] = tostring(i * 1.5) end
print("lua " .. #table.concat(t))
""")
    image = FILES.initramfs("luajit", "--tree", tree, "--program", program,
                            "--file", f"{script}:root/jit.lua")
    g = Guest(vm_command(FILES.guest("cloud/vmlinuz"), image, append="console=ttyS0 quiet"))
    g.shell(120)
    text = g.cmd(f"/{program} /root/jit.lua", 90)
    check("lua 688890" in text or re.search(r"lua \d{6}", text), text)
    g.power_off()


def run_gdb(*extra):
    tree = FILES.guest("gdb")
    image = FILES.initramfs("gdb", "--tree", tree, "--program", "usr/bin/gdb")
    g = Guest(vm_command(FILES.guest("cloud/vmlinuz"), image, memory="1G",
                         append="console=ttyS0 quiet", extra=extra))
    g.shell(120)
    text = g.cmd("gdb -nx -batch -ex starti -ex 'stepi 2000' -ex 'p $rip' -ex 'p $rsp' "
                 "-ex continue --args /bin/busybox echo stepped", 120)
    check("stepped" in text.replace("echo stepped", "") and "exited normally" in text, text)
    text = g.cmd("gdb -nx -batch -ex starti -ex 'watch *(long*)($rsp - 64)' -ex continue "
                 "-ex 'info watchpoints' /bin/busybox", 120)
    check("watchpoint" in text.lower(), text)
    g.power_off()


@test
def gdb():
    """Breakpoints, single steps and watchpoints on a real program."""
    run_gdb()


@test(verify=False)
def gdb_chaos():
    needs_ringshift()
    run_gdb("--chaos")


# ---- Running them --------------------------------------------------------------------------------

# ---- Screen, keyboard and mouse ------------------------------------------------------------------

class Screen:
    """A guest whose console is its VGA text screen, seen and typed to through the monitor."""

    def __init__(self, name, *args, kernel="amd64/vmlinuz", modules=(), append=""):
        needs_ringshift()
        initramfs = FILES.initramfs(name, *[a for m in modules for a in ("--module", m)])
        self.start(vm_command(FILES.guest(kernel), initramfs,
                              append=f"console=ttyS0 console=tty0 {append}", extra=args))

    def start(self, command):
        self.last = None
        self.directory = tempfile.TemporaryDirectory()
        self.socket = self.file("vm.sock")
        self.guest = Guest([*command, "--monitor", f"unix:{self.socket}"])
        wait_until(lambda: os.path.exists(self.socket), 30, "there is no monitor socket")

    @classmethod
    def of(cls, command):
        """Of any other command line."""
        needs_ringshift()
        screen = cls.__new__(cls)
        screen.start(command)
        return screen

    def file(self, name):
        return os.path.join(self.directory.name, name)

    def picture(self):
        """(width, height, RGB bytes)"""
        self.ctl("screendump", self.file("shot.ppm"))
        return screen_tools.read_ppm(self.file("shot.ppm"))

    def ctl(self, *args, code=0):
        """Its output; code None: whatever it returns."""
        done = cli("ctl", self.socket, *args, timeout=90)
        if done.stdout != self.last:
            with open(os.path.join(LOG_DIR, f"{CURRENT}.log"), "a") as log:
                log.write(f"\n$ ctl {shlex.join(args)} -> {done.returncode}\n"
                          f"{done.stdout}{done.stderr}")
        self.last = done.stdout
        check(code is None or done.returncode == code,
              f"ctl {shlex.join(args)}: {done.returncode} {done.stderr}")
        return done.stdout

    def qmp(self, command, **arguments):
        return json.loads(self.ctl(json.dumps({"execute": command, "arguments": arguments})))["return"]

    def wait_for(self, pattern, timeout=150):
        """Waits until the text screen shows it."""
        end = time.monotonic() + timeout * PATIENCE
        while not (found := self.shows(pattern)):
            check(time.monotonic() < end, f"the screen never showed {pattern!r}, but\n{self.last}")
            check(self.guest.process.poll() is None, f"it ended: {self.guest.stderr()}")
            time.sleep(0.05)
        return found

    def shows(self, pattern):
        self.guest.read_some(0)  # its serial console, for the log
        return re.search(pattern, self.ctl("screen", code=None), re.M)

    def shell(self):
        """Waits for a prompt. The kernel may print something behind it (a driver that has found
        its device), so that only another line shows one: Enter is pressed until it does."""
        self.wait_for(r"^~ #")
        end = time.monotonic() + 60 * PATIENCE
        while not self.shows(r"^~ #\s*\Z"):
            check(time.monotonic() < end, f"no prompt at the screen's end, but\n{self.last}")
            self.ctl("send-key", "ret")
            time.sleep(1)

    def type(self, command):
        self.ctl("type", command + "\\n")


def firmware_screen(*args):
    """What the firmware boots, seen on the VGA screen."""
    return Screen.of(firmware_command("--vga", "std", *args))


@test
def bios_grub_screen():
    """GRUB's menu on the VGA screen, and a command typed on the PS/2 keyboard."""
    iso = installed("/usr/lib/grub-rescue/grub-rescue-cdrom.iso", "grub-rescue-pc")
    s = firmware_screen("--cdrom", iso, "--boot", "d")
    s.wait_for(r"GNU GRUB")
    s.ctl("send-key", "c")
    s.wait_for(r"^grub>")
    s.type("echo rs-$grub_platform-$prefix")
    s.wait_for(r"^rs-pc-\(\w+[^)]*\)/boot/grub")
    s.ctl("type", "halt")
    # The key that ends the machine is still held then: the client gets its answer all the same.
    s.qmp("send-key", keys=["ret"], **{"hold-time": 10000})
    s.guest.wait(0, 60)


def memtest_iso(kind):
    """From its ISO image, which starts as a floppy disk does: several tests without an error."""
    iso = installed(f"/usr/lib/memtest86+/memtest86+{kind}.iso", "memtest86+")
    s = firmware_screen("--memory", "16M", "--cdrom", iso, "--boot", "d")
    s.wait_for(r"Memtest86\+", 90)
    s.wait_for(r"Test #[3-9]", 300)
    s.wait_for(r"Errors: 0\s", 30)
    s.ctl("quit")
    s.guest.wait(0, 30)


@test(timeout=1200)
def memtest_iso_ia32():
    memtest_iso("ia32")


@test(timeout=1200)
def memtest_iso_x64():
    memtest_iso("x64")


@test
def screen_text():
    """The kernel's messages on the VGA text screen, and a shell that is typed to."""
    s = Screen("mouse", "--vga", "std", modules=["psmouse"])
    s.shell()
    s.wait_for(r"A busybox shell")
    s.type("clear; echo $((6 * 7)) '~{|}:<>?@#%^&_+'")
    s.wait_for(r"^42 ~\{\|\}:<>\?@#%\^&_\+$")
    # Mouse: enable, move, click, and see the packets that mousedev makes of it.
    s.type("until grep -q PS/2.*Mouse /proc/bus/input/devices; do sleep 1; done; clear; "
           "grep -c PS/2.*Mouse /proc/bus/input/devices; "
           "(dd if=/dev/input/mice bs=3 count=1 2>/dev/null | hexdump -C) & sleep 1; echo ready")
    s.wait_for(r"^1$")
    s.wait_for(r"^ready$")
    s.ctl("mouse", "5", "-3")
    s.wait_for(r"0{8}  [01]8 05 03 ")
    # Magic SysRq by its key combination: the kernel itself answers.
    s.type("echo 1 > /proc/sys/kernel/sysrq; dmesg -n 8; clear; echo armed")
    s.wait_for(r"^armed$")
    s.ctl("send-key", "alt-sysrq-h")
    s.wait_for(r"sysrq: HELP")
    s.type("poweroff -f")
    s.guest.wait(0, 60)
    check(not os.path.exists(s.socket), "the monitor's socket was left behind")


@test
def screen_graphics():
    """bochs-drm on the linear frame buffer, the console on it, and pictures of both formats."""
    s = Screen("bochs", "--vga", "std", modules=["bochs"], append="drm.debug=0")
    wait_until(lambda: s.qmp("query-screen")["mode"] == "graphics", 150, "no graphics mode came")
    wait_until(lambda: s.qmp("query-cpus")[0]["halted"], 60, "the guest never idles")
    mode = s.qmp("query-screen")
    check(mode["width"] >= 1024 and mode["depth"] == 32, f"an odd mode: {mode}")

    def lit():
        data = s.picture()[2]
        return len(data) - data.count(0)
    wait_until(lambda: lit() > 10000, 60, "the screen stays dark")
    check(s.picture()[:2] == (mode["width"], mode["height"]), "the picture has another size")
    before = lit()
    s.type("seq 1 200")
    wait_until(lambda: lit() != before, 30, "typing changes nothing on the screen")
    one_sentence(cli("ctl", s.socket, "screen").stderr, "shows no text")
    s.type("poweroff -f")
    s.guest.wait(0, 60)
    return f"{mode['width']}x{mode['height']}"


@test
def monitor_stop_and_cont():
    """A stopped guest does nothing and does not notice; events tell of it all."""
    s = Screen("plain", "--vga", "std", kernel="cloud/vmlinuz")
    s.shell()
    events = subprocess.Popen([os.path.join(FILES.build, "ringshift"), "ctl", s.socket, "events"],
                              stdout=subprocess.PIPE, text=True)
    s.type("while true; do cut -d. -f1 /proc/uptime; sleep 1; done")
    s.wait_for(r"^\d+\n\d+\n\d+$")
    check(s.ctl("status").strip() == "running", "it does not run")
    s.ctl("stop")
    check(s.ctl("status").strip() == "paused", "it is not stopped")
    then = s.ctl("screen")
    time.sleep(6)
    check(s.ctl("screen") == then, "a stopped guest goes on")
    s.ctl("cont")
    wait_until(lambda: s.ctl("screen") != then, 30, "it does not go on")
    seconds = [int(n) for n in re.findall(r"^(\d+)$", s.ctl("screen"), re.M)]
    steps = [b - a for a, b in zip(seconds, seconds[1:])]
    check(steps and max(steps) <= 4, f"the guest noticed the pause: {seconds}")
    # A shell that is between two commands may take it for that of the one that has ended.
    end = time.monotonic() + 60 * PATIENCE
    while not s.shows(r"^~ #\s*\Z"):
        check(time.monotonic() < end, f"Ctrl-C does not end the loop: {s.last}")
        s.ctl("send-key", "ctrl-c")
        time.sleep(1)
    s.type("clear; dmesg | grep -ciE 'stall|lockup|unstable'")
    s.wait_for(r"^0$")
    s.ctl("powerdown")
    s.ctl("reset")
    s.shell()
    s.ctl("quit")
    s.guest.wait(0, 30)
    told = events.communicate(timeout=30)[0].split()
    for event in ("STOP", "RESUME", "POWERDOWN", "RESET", "SHUTDOWN"):
        check(event in told, f"no event {event}: {told}")


@test
def monitor_hostile_clients():
    """Clients that send garbage, too much, or nothing at all do not disturb the guest."""
    s = Screen("plain", "--vga", "std", kernel="cloud/vmlinuz")
    check(os.stat(s.socket).st_mode & 0o777 == 0o600, "the socket is not private")
    bad = [b"\0" * 70000, b"{" * 100000 + b"\n", b"[" * 100000, os.urandom(50000),
           b'{"execute":"type","arguments":{"text":"' + b"a" * 60000 + b'"}}\n',
           b'{"execute":"query-commands"}\n' * 20000]
    held = []
    for data in bad:
        c = socket.socket(socket.AF_UNIX)
        c.settimeout(5)
        c.connect(s.socket)
        try:
            c.sendall(data)
        except OSError:
            pass
        held.append(c)  # and reads nothing
    check(s.ctl("status").strip() == "running", "the monitor hangs")
    for c in held:
        c.close()

    def connect():
        c = socket.socket(socket.AF_UNIX)
        c.connect(s.socket)  # before the timeout, which would make a full queue an error
        c.settimeout(60)
        return c

    def answers(c):
        """All that comes until the server hangs up."""
        data = b""
        while True:
            part = c.recv(65536)
            if not part:
                return [json.loads(line) for line in data.splitlines()]
            data += part
    # What is no command gets an error each, and the next line is taken.
    with connect() as c:
        c.sendall(b"nonsense\n[1]\n{}\n{\"execute\": 7}\n{\"execute\": \"no-such\"}\n"
                  b"{\"execute\": \"query-status\", \"arguments\": []}\n\xff\xfe\n"
                  b"{\"execute\": \"query-status\", \"execute\": \"quit\"}\n"
                  b"{\"execute\": \"memsave\", \"arguments\": {\"address\": -1, \"size\": 1e300}}\n"
                  b"{\"execute\": \"query-status\", \"id\": [1]}\n")
        c.shutdown(socket.SHUT_WR)  # half closed: the answers still come
        got = answers(c)
        check("QMP" in got[0] and len(got) == 11, f"{len(got) - 1} answers to 10 lines: {got}")
        check(all("error" in m for m in got[1:-1]) and got[-1]["return"]["running"]
              and got[-1]["id"] == [1], f"odd answers: {got}")
    # Gone in the middle of a line, of typing, of an answer.
    for data in (b'{"execute": "quit"', b'{"execute": "type", "arguments": {"text": "aaaaaaaaaa"}}\n',
                 b'{"execute": "query-commands"}\n' * 100):
        with connect() as c:
            c.sendall(data)
    # More than it serves at a time are told so, until others leave.
    crowd = [connect() for _ in range(20)]
    check(b"QMP" in crowd[0].recv(65536), "the first of many is not served")
    check(b"too many clients" in crowd[-1].recv(65536), "the last of many is not refused")
    one_sentence(cli("ctl", s.socket, "status").stderr, "too many clients")
    for c in crowd:
        c.close()
    wait_until(lambda: cli("ctl", s.socket, "status").returncode == 0, 30, "nobody is served")
    check(s.ctl("status").strip() == "running", "the monitor does not answer any more")
    wait_until(lambda: "typing" not in cli("ctl", s.socket, "send-key", "shift").stderr, 40,
               "the keyboard is not given back")
    s.wait_for(r"~ #[a\s]*\Z")
    one_sentence(cli("ctl", s.socket, "send-key", "ctrl-nosuchkey").stderr, "no key")
    one_sentence(cli("ctl", s.socket, "eject", "disk7").stderr, "no drive disk7")
    one_sentence(cli("ctl", s.socket, "screendump", "/nonexistent/x.png").stderr, "cannot write")
    one_sentence(cli("ctl", s.socket + ".no", "status").stderr, "no virtual machine")
    s.ctl("quit")
    s.guest.wait(0, 30)


def default_palette(i):
    """The colours that a VGA BIOS gives the 16 of text and planar modes."""
    bright = 0x55 if i & 8 else 0
    red, green, blue = ((0xaa if i & bit else 0) + bright for bit in (4, 2, 1))
    return (red, 0x55 if i == 6 else green, blue)


@test
def screen_pixels():
    """Modes 13h, 12h and two of VBE, set through the VGA BIOS, compared pixel by pixel."""
    needs_ringshift()
    if not os.path.exists("/usr/share/seabios/vgabios-stdvga.bin"):
        raise Skip("no SeaBIOS (Debian: seabios)")
    image = os.path.join(FILES.work, "screen.img")
    source = os.path.join(ROOT, "tests/guest16/screen.S")
    with FILES.lock():
        subprocess.run(["as", "--32", "-o", image + ".o", source], check=True, timeout=60)
        subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o",
                        image, image + ".o"], check=True, timeout=60)
    debug = tempfile.NamedTemporaryFile()
    s = Screen.of([os.path.join(FILES.build, "ringshift"), "run", "--memory", "64M", "--floppy",
                   image, "--debugcon", debug.name, *(["--verify"] if VERIFY else []), *RUN_ARGS])

    def own_palette(i):
        return tuple(v << 2 | v >> 4 for v in (i >> 2, i & 63, 63 - (i >> 2)))

    palette = [own_palette(i) for i in range(256)]
    planar = [default_palette(i) for i in range(16)]
    for letter, width, height, pixel in (
            ("a", 320, 200, lambda x, y: palette[(x ^ y) & 255]),
            ("b", 640, 480, lambda x, y: planar[(x // 8 + y // 16) % 16]),
            ("c", 1024, 768, lambda x, y: (((x ^ y) >> 2) & 255, y & 255, x & 255)),
            ("d", 1024, 768, lambda x, y: palette[(x + y) & 255])):
        def announced():
            with open(debug.name, "rb") as f:
                return f.read().endswith(b"\n%s\n" % letter.encode())
        wait_until(announced, 60, f"picture {letter} was not drawn")
        w, h, rgb = s.picture()
        # The VGA draws every dot and line of mode 13h twice.
        check(w % width == 0 and h % height == 0 and w // width == h // height,
              f"picture {letter} has {w} x {h} pixels")
        scale = w // width
        line = [bytes(c for x in range(width) for c in pixel(x, y) * scale) for y in range(height)]
        for y in range(h):
            got = rgb[3 * w * y:3 * w * (y + 1)]
            if got != line[y // scale]:
                x = next(x for x in range(w) if got[3 * x:3 * x + 3]
                         != line[y // scale][3 * x:3 * x + 3])
                raise Failed(f"picture {letter}, pixel {x},{y}: {got[3 * x:3 * x + 3].hex()} instead "
                             f"of {line[y // scale][3 * x:3 * x + 3].hex()}")
        if letter == "c":  # The same picture, as PNG.
            s.ctl("screendump", s.file("shot.png"))
            check(screen_tools.read_png(s.file("shot.png")) == (w, h, rgb), "the PNG differs")
        s.ctl("send-key", "spc", code=None)  # after the last one the machine ends
    s.guest.wait(33, 30)


def installer_i386(append):
    return Screen.of(vm_command(FILES.guest("installer-i386/linux"),
                                FILES.guest("installer-i386/initrd.gz"),
                                append=f"vga=normal {append}", extra=["--vga", "std"]))


@test(verify=False, timeout=600)
def installer_i386_text():
    """The 32-bit Debian installer on the VGA's text screen: menus, and keys that move in them."""
    s = installer_i386("nomodeset fb=false")
    s.wait_for(r"Select a language|Choose the language", 350)
    s.wait_for(r"English")
    mode = s.qmp("query-screen")
    check((mode["mode"], mode["columns"], mode["rows"]) == ("text", 80, 25), f"{mode}")
    s.ctl("send-key", "g")  # to the first language with that letter
    s.ctl("send-key", "tab")
    s.ctl("send-key", "ret")
    s.wait_for(r"(?i)debian installer main menu", 60)
    s.wait_for(r"Choose the next step in the install process")
    for _ in range(2):
        s.ctl("send-key", "up")
    s.ctl("quit")
    s.guest.wait(0, 30)


@test(verify=False, timeout=1200)
def installer_i386_serial():
    """The same installer on the serial line."""
    g = Guest(vm_command(FILES.guest("installer-i386/linux"),
                         FILES.guest("installer-i386/initrd.gz"),
                         append="console=ttyS0 vga=normal", memory="1G"), escapes=False)
    g.expect(r"Select a language|Choose the language", 280)
    g.expect(r"English", 20)
    g.send("\t\r")
    g.expect(r"(?i)main menu", 60)


@test(verify=False, timeout=1200)
def userland_i386():
    """The i386 kernel with the 32-bit busybox of the installer and a 32-bit program of ours:
    processes, signals, threads, x87, LDT."""
    program = os.path.join(FILES.build, "tests/guest-user32/user32")
    if not os.path.exists(program):
        raise Skip(f"there is no {program} (Debian: package gcc-multilib)")
    with tempfile.TemporaryDirectory() as folder:
        tree, image = os.path.join(folder, "tree"), os.path.join(folder, "initrd")
        os.mkdir(tree)
        shutil.copy(program, tree)
        with open(os.path.join(tree, "rs-init"), "w") as f:
            f.write("""#!/bin/sh
mount -t proc proc /proc
echo "rs: $(uname -m)"
/user32
i=0; while [ $i -lt 50 ]; do i=$((i + 1)); seq $i | sort -n | tail -n 1 >> /tmp/n; done
echo "rs: $(sort -n /tmp/n | uniq | wc -l) rounds"
poweroff -f
""")
        os.chmod(os.path.join(tree, "rs-init"), 0o755)
        more = subprocess.run("find . | cpio -o -H newc --quiet | gzip -1", shell=True, cwd=tree,
                              check=True, capture_output=True).stdout
        # The kernel unpacks archives one after the other.
        with open(FILES.guest("installer-i386/initrd.gz"), "rb") as f, open(image, "wb") as out:
            shutil.copyfileobj(f, out)
            out.write(more)
        g = Guest(vm_command(FILES.guest("installer-i386/linux"), image, memory="1G",
                             append="console=ttyS0 quiet rdinit=/rs-init"),
                  tty=False, stdin=subprocess.DEVNULL)
        g.expect(r"rs: i686", 250)
        m = g.expect(r"(\d+) passed, (\d+) failed, (\d+) skipped", 120)
        check(m.group(2) == b"0" and int(m.group(1)) >= 7, g.tail())
        g.expect(r"rs: 50 rounds", 60)
        g.wait(0)
        return m.group(0).decode()


@test(verify=False, timeout=600, long=True)
def installer_i386_graphics():
    """The same on bochs-drm's frame buffer: the bar moves when Down is pressed."""
    s = installer_i386("")

    def bar():
        """The lines of the picture that are mostly red in their middle."""
        width, height, rgb = s.picture()
        if (width, height) != (1024, 768):
            return None
        lines = (rgb[3 * (width * y + 400):3 * (width * y + 600)] for y in range(height))
        return [y for y, line in enumerate(lines)
                if sum(line[i:i + 3] == b"\xaa\0\0" for i in range(0, len(line), 3)) > 100]
    wait_until(bar, 350, "there is no menu on the screen")
    before = bar()
    check(len(before) == 16 and before[-1] - before[0] == 15, f"the bar is at lines {before}")
    s.ctl("send-key", "down")
    wait_until(lambda: bar() == [y + 16 for y in before], 30, "the bar does not move down")
    s.ctl("quit")
    s.guest.wait(0, 30)


# ---- VNC and SDL ---------------------------------------------------------------------------------

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Viewer:
    """A VNC client (RFC 6143)."""

    def __init__(self, port, guest=None):
        deadline = time.monotonic() + 20 * PATIENCE
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), 10)
                break
            except ConnectionRefusedError:
                if guest and guest.process.poll() is not None and "built without" in guest.stderr():
                    raise Skip("this build has no VNC")
                check(time.monotonic() < deadline, "nobody listens")
                time.sleep(0.2)
        self.socket.settimeout(60)

    def read(self, n):
        data = b""
        while len(data) < n:
            part = self.socket.recv(n - len(data))
            check(part, "the VNC server hung up")
            data += part
        return data

    def send(self, data):
        self.socket.sendall(data)

    def handshake(self, password=None):
        """Whether the server lets us in."""
        check(self.read(12).startswith(b"RFB 003."), "this is no VNC")
        self.send(b"RFB 003.008\n")
        kinds = self.read(self.read(1)[0])
        check((1 in kinds) == (password is None), f"authentication is {list(kinds)}")
        check(2 in kinds or password is None, f"authentication is {list(kinds)}")
        self.send(b"\1" if password is None else b"\2")
        if password is not None:
            self.send(screen_tools.vnc_response(password, self.read(16)))
        if self.read(4) != bytes(4):
            return False
        self.send(b"\1")
        self.width, self.height = struct.unpack(">HH", self.read(20)[:4])
        self.read(struct.unpack(">I", self.read(4))[0])
        self.send(struct.pack(">BxHi", 2, 1, 0))  # raw pixels only
        return True

    def lit(self):
        """How many bytes of the screen are not black."""
        self.send(struct.pack(">BBHHHH", 3, 0, 0, 0, self.width, self.height))
        kind, n = struct.unpack(">BxH", self.read(4))
        check(kind == 0, f"message {kind}")
        total = 0
        for _ in range(n):
            w, h = struct.unpack(">HHHHi", self.read(12))[2:4]
            data = self.read(w * h * 4)
            total += len(data) - data.count(0)
        return total

    def type(self, text):
        for c in text.encode():
            for down in (1, 0):
                self.send(struct.pack(">BBxxI", 4, down, 0xff0d if c == 10 else c))
            time.sleep(0.05)


def vnc_screen(port, options=""):
    return Screen("plain", "--display", f"vnc=127.0.0.1:{port}{options}", kernel="cloud/vmlinuz")


@test
def display_vnc():
    """What a VNC viewer sees and types."""
    port = free_port()
    command = cloud(append="console=ttyS0 console=tty0",
                    extra=["--display", f"vnc=127.0.0.1:{port}"])
    needs_ringshift()
    g = Guest(command)
    v = Viewer(port, g)
    check(v.handshake(), "the server refuses")
    check((v.width, v.height) == (720, 400), f"the text screen is {v.width}x{v.height}")
    wait_until(lambda: v.lit() > 20000, 120, "the screen stays dark")
    time.sleep(3)
    for _ in range(3):  # again if the shell was not there yet
        try:
            v.type("poweroff -f\n")
        except OSError:
            break  # it is off
        time.sleep(4)
    g.wait(0, 60)


@test
def display_vnc_password():
    """The right password lets in, a wrong one and none do not."""
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".pw") as f:
        f.write("Secret_1\n")
        f.flush()
        s = vnc_screen(port, f",password-file={f.name}")
    check(Viewer(port, s.guest).handshake("Secret_1"), "the right password is refused")
    check(not Viewer(port).handshake("Secret_2"), "a wrong password is taken")
    v = Viewer(port)  # who claims that no password was wanted
    v.read(12)
    v.send(b"RFB 003.008\n")
    v.read(v.read(1)[0])
    v.send(b"\1")
    try:
        refused = v.read(4) != bytes(4)
    except (Failed, OSError):
        refused = True
    check(refused, "the password can be left out")
    check(Viewer(port).handshake("Secret_1"), "nobody is let in any more")
    s.ctl("quit")
    s.guest.wait(0, 30)
    for content, words in (("", "is not a VNC password"), ("waytoolong", "is not a VNC password")):
        with tempfile.NamedTemporaryFile("w") as f:
            f.write(content)
            f.flush()
            done = cli("run", "--kernel", FILES.guest("cloud/vmlinuz"), "--display",
                       f"vnc=127.0.0.1:{port},password-file={f.name}")
            one_sentence(done.stderr, words)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("run", "--kernel", FILES.guest("cloud/vmlinuz"), "--display",
                   f"vnc=127.0.0.1:{taken.getsockname()[1]}")
        one_sentence(done.stderr, "cannot listen for VNC")


@test
def display_vnc_exposed():
    """Listening beyond this machine without a password is said; the default is loopback."""
    with tempfile.NamedTemporaryFile("w") as f:
        f.write("Secret_1\n")
        f.flush()
        for address, options, warned in (("0.0.0.0", "", True), ("127.0.0.1", "", False),
                                         ("127.1.2.3", "", False), ("localhost", "", False),
                                         ("0.0.0.0", f",password-file={f.name}", False)):
            port = free_port()
            s = Screen("plain", "--display", f"vnc={address}:{port}{options}",
                       kernel="cloud/vmlinuz")
            s.ctl("quit")
            s.guest.wait(0, 30)
            said = s.guest.stderr()
            check(("warning: --display vnc" in said) == warned, f"{address}{options}: {said!r}")
            check(not warned or f"port {port}" in said, f"which port? {said!r}")
    with socket.socket() as free:  # port 5900 may be another's
        try:
            free.bind(("127.0.0.1", 5900))
        except OSError:
            return "5900 is taken: the default was not looked at"
    s = Screen("plain", "--display", "vnc", kernel="cloud/vmlinuz")
    with open("/proc/net/tcp") as f:
        listening = [line.split()[1] for line in f if line.split()[3] == "0A"]
    check("0100007F:170C" in listening, f"not on 127.0.0.1:5900: {listening}")
    s.ctl("quit")
    s.guest.wait(0, 30)
    check("warning" not in s.guest.stderr(), "a warning about loopback")


@test
def display_vnc_hostile():
    """Viewers that send garbage or stop in the middle neither stop the guest nor other viewers."""
    port = free_port()
    s = vnc_screen(port)
    Viewer(port, s.guest).handshake()
    held = []
    for data in (b"", b"RFB 0", os.urandom(5000), b"RFB 003.008\n\1\1" + b"\x06\0\0\0\x7f\xff\xff\xff",
                 b"RFB 003.008\n\1\1" + struct.pack(">BxHi", 2, 65535, 0),
                 b"RFB 003.008\n\1\1" + b"\0" * 13,
                 b"RFB 003.008\n\1\1" + struct.pack(">BBHHHH", 3, 0, 65535, 65535, 65535, 65535)):
        v = Viewer(port)
        try:
            v.send(data)
        except OSError:
            pass
        held.append(v)
    for _ in range(3):
        Viewer(port).socket.close()
    check(s.ctl("status").strip() == "running", "the machine does not run")
    s.shell()
    for v in held[::2]:
        v.socket.close()

    def served():
        v = Viewer(port)
        try:
            return v.handshake() and v.lit() > 0
        except (Failed, OSError):
            return False
        finally:
            v.socket.close()
    wait_until(served, 30, "well-behaved viewers are not served any more")
    start = time.monotonic()
    s.ctl("quit")
    s.guest.wait(0, 30)
    return f"ended {time.monotonic() - start:.1f} s after quit"


@test
def display_sdl():
    """A window on an X server without a screen: what it shows, and keys typed into it."""
    if not shutil.which("Xvfb"):
        raise Skip("no Xvfb (Debian: xvfb)")
    folder = tempfile.TemporaryDirectory()
    out, theirs = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(theirs), "-screen", "0", "1280x1024x24",
                               "-fbdir", folder.name, "-nolisten", "tcp"], pass_fds=[theirs],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(theirs)
    try:
        number = os.read(out, 16).decode().strip()
        check(number, "Xvfb does not start")
        os.environ["DISPLAY"] = f":{number}"
        os.environ.pop("WAYLAND_DISPLAY", None)
        s = Screen("plain", "--display", "sdl", kernel="cloud/vmlinuz")

        def lit():
            data = screen_tools.xvfb_pixels(folder.name)
            return len(data) - data.count(0)
        s.shell()
        wait_until(lambda: lit() > 20000, 60, "the window stays dark")
        x = screen_tools.XTest(number)
        x.fake(x.MOTION, 0, 640, 512)  # without a window manager the focus follows the pointer
        time.sleep(1)
        for code in (18, 46, 35, 24, 57, 30, 28):  # echo a, Enter
            x.key(code)
        s.wait_for(r"^~ # echo a\na$")
        x.close()
        s.ctl("quit")
        s.guest.wait(0, 30)
    finally:
        server.terminate()
        server.wait()
        os.close(out)


def run_one(name, function, options):
    """Returns (status, note)."""
    global CURRENT, VERIFY
    CURRENT = name
    if options.get("long") and not LONG:
        return "skipped", "takes minutes: only with --long"
    always, VERIFY = VERIFY, VERIFY and options.get("verify", True)
    log = os.path.join(LOG_DIR, f"{name}.log")
    if os.path.exists(log):
        os.unlink(log)
    Guest.instances = []

    def too_long(*_):
        raise Failed("the test took too long")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(options.get("timeout", 300) * PATIENCE)
    try:
        note = function()
        for g in Guest.instances:
            check("verifier:" not in g.stderr(), g.stderr())
        return "ok", note or ""
    except Skip as e:
        return "skipped", str(e)
    except Failed as e:
        tail = Guest.instances[-1].tail() if Guest.instances else ""
        return "FAILED", f"{e}\n    console ({log}):\n" + "\n".join(
            "    | " + line for line in tail.splitlines()[-25:])
    except Exception:  # a failure of the test itself
        return "FAILED", traceback.format_exc()
    finally:
        signal.alarm(0)
        VERIFY = always
        for g in Guest.instances:
            if not g.log.closed:
                try:
                    g.close()
                except OSError:
                    pass


class Job:
    """A test in a process of its own, so that several can run at a time."""

    def __init__(self, name, function, options):
        self.name, self.start = name, time.monotonic()
        self.fd, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(theirs)
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends its guests
        try:
            with os.fdopen(theirs, "w") as out:
                json.dump(run_one(name, function, options), out)
        finally:
            os._exit(0)

    def result(self):
        with os.fdopen(self.fd) as f:
            text = f.read()
        os.waitpid(self.pid, 0)
        status, note = json.loads(text) if text else ("FAILED", "the test's process died")
        return self.name, status, note, time.monotonic() - self.start


def run_all(chosen, jobs):
    """Yields (name, status, note, seconds) as the tests end."""
    running, waiting = [], list(chosen)

    def end(*_):
        for job in running:
            os.kill(job.pid, signal.SIGTERM)
        sys.exit(1)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while running or waiting:
        while waiting and len(running) < jobs:
            running.append(Job(*waiting.pop(0)))
        ready, _, _ = select.select([job.fd for job in running], [], [])
        for job in [job for job in running if job.fd in ready]:
            running.remove(job)
            yield job.result()


# Tests of other files register with this module, whatever it is run as.
sys.modules["run"] = sys.modules[__name__]
import bios  # noqa: E402, F401
import storage  # noqa: E402, F401


def main():
    global FILES, RUN_ARGS, LOG_DIR, VERIFY, LONG
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="list the tests")
    parser.add_argument("--build", default=os.path.join(ROOT, "build"), help="the build folder")
    parser.add_argument("--run-args", default=os.environ.get("RS_RUN_ARGS", ""),
                        help="more options for every 'ringshift run', such as '--mem soft'")
    parser.add_argument("--no-verify", action="store_true", help="guests run without --verify")
    parser.add_argument("--long", action="store_true", help="also the tests that take many minutes")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1),
                        help="tests at a time; 2 unless given")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a test, or how its name begins")
    options = parser.parse_args()
    chosen = [t for t in TESTS if not options.names
              or any(t[0] == n or t[0].startswith(n) for n in options.names)]
    if options.list:
        for name, function, _ in chosen:
            doc = (function.__doc__ or "").strip().split("\n")[0]
            print(f"{name:32}{doc}".rstrip())
        return 0
    build = os.path.abspath(options.build)
    RUN_ARGS = shlex.split(options.run_args)
    VERIFY = not options.no_verify
    LONG = options.long
    LOG_DIR = os.path.join(build, "log", "integration")
    os.makedirs(LOG_DIR, exist_ok=True)
    FILES = Files(build)
    if not REFERENCE and not os.path.exists(os.path.join(build, "ringshift")):
        print(f"run.py: there is no {build}/ringshift: build it first", file=sys.stderr)
        return 2
    count = {"ok": 0, "FAILED": 0, "skipped": 0}
    for name, status, note, took in run_all(chosen, max(1, options.jobs)):
        count[status] += 1
        print(f"{status:8}{name:32}{took:7.1f} s" + (f"  {note}" if note else ""), flush=True)
    print(f"{count['ok']} passed, {count['FAILED']} failed, {count['skipped']} skipped")
    return 1 if count["FAILED"] or not count["ok"] else 0


sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import debian  # noqa: E402,F401  more tests, which need the helpers above

if __name__ == "__main__":
    sys.exit(main())
