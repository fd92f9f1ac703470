"""A real-mode program of our own under SeaBIOS (bios_program.S); run.py runs this."""
import os
import re
import shutil
import subprocess
import tempfile

from run import Guest, Skip, check, firmware_command, test

HERE = os.path.dirname(os.path.abspath(__file__))
PARTS = ["memory", "timer", "interrupts", "self_modifying", "a20", "a20_port92", "a20_keyboard",
         "a20_wraparound", "unreal", "a20_all_of_memory", "strings", "disk", "graphics", "planar", "text", "vbe"]


V86_PARTS = ["v86_iopl3", "v86_trapped", "v86_vme"]


def assemble(folder, name="bios_program.S"):
    """A program as a flat image."""
    for tool in ("as", "ld"):
        if not shutil.which(tool):
            raise Skip(f"{tool} (binutils) is not installed: THIS IS NOT TESTED")
    obj, image = os.path.join(folder, "program.o"), os.path.join(folder, "program")
    for command in (["as", "--32", "-I", HERE, "-o", obj, os.path.join(HERE, name)],
                    ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", image, obj]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        check(done.returncode == 0, f"{command[0]} failed: {done.stderr}")
    with open(image, "rb") as f:
        return f.read()


def run_program(program, *args):
    """Runs it; the lines it reported, in order."""
    with tempfile.TemporaryDirectory() as folder:
        image, log = os.path.join(folder, "disk"), os.path.join(folder, "log")
        option, size = args
        with open(image, "wb") as f:
            f.write(program)
            f.truncate(size)
        g = Guest(firmware_command(option, image, "--debugcon", log, "--vga", "std"), tty=False,
                  stdin=subprocess.DEVNULL)
        g.wait(None, 120)
        with open(log, "rb") as f:
            said = re.findall(r"^(?:ok|FAIL) .*$", f.read().decode("latin-1"), re.M)
        check(g.process.returncode == 0x10 << 1 | 1, f"{option}: exit code {g.process.returncode}: {said}")
        return said


def program_passes(name, parts):
    with tempfile.TemporaryDirectory() as folder:
        program = assemble(folder, name)
    for args in (("--disk", 1 << 20), ("--floppy", 1474560)):
        said = run_program(program, *args)
        check(said == [f"ok {part}" for part in parts], f"{args[0]}: {said}")


@test
def bios_real_mode_program():
    """BIOS services, handlers, self-modifying code, unreal mode and graphics, from disk and floppy."""
    program_passes("bios_program.S", PARTS)


@test
def bios_v86_monitor():
    """SeaBIOS in virtual-8086 mode under a monitor like EMM386's: trapped, reflected, and by VME."""
    program_passes("bios_v86.S", V86_PARTS)
