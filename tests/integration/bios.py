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


def assemble(folder):
    """bios_program.S as a flat image."""
    for tool in ("as", "ld"):
        if not shutil.which(tool):
            raise Skip(f"{tool} (binutils) is not installed: THIS IS NOT TESTED")
    obj, image = os.path.join(folder, "program.o"), os.path.join(folder, "program")
    for command in (["as", "--32", "-o", obj, os.path.join(HERE, "bios_program.S")],
                    ["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", image, obj]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        check(done.returncode == 0, f"{command[0]} failed: {done.stderr}")
    with open(image, "rb") as f:
        return f.read()


@test
def bios_real_mode_program():
    """BIOS services, handlers, self-modifying code, unreal mode and graphics, from disk and floppy."""
    with tempfile.TemporaryDirectory() as folder:
        program = assemble(folder)
        image, log = os.path.join(folder, "disk"), os.path.join(folder, "log")
        for option, size in (("--disk", 1 << 20), ("--floppy", 1474560)):
            with open(image, "wb") as f:
                f.write(program)
                f.truncate(size)
            g = Guest(firmware_command(option, image, "--debugcon", log, "--vga", "std"), tty=False,
                      stdin=subprocess.DEVNULL)
            g.wait(0x10 << 1 | 1, 120)
            with open(log, "rb") as f:
                said = f.read().decode("latin-1")
            check(re.findall(r"^ok (\w+)$", said, re.M) == PARTS,
                  f"{option}: {re.findall(r'^(?:ok|FAIL) .*$', said, re.M)}")
