"""Root file systems of the benchmark guests: folders that the native runs use as root and the
virtual machines get as initramfs."""
import os
import shutil
import stat


def cpio_entry(name, mode, data=b"", rdev=(0, 0)):
    """One member of a "newc" archive (Documentation/driver-api/early-userspace/buffer-format)."""
    path = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(path), 0]
    out = b"070701" + b"".join(b"%08x" % f for f in fields) + path
    out += b"\0" * (-len(out) % 4) + data
    return out + b"\0" * (-len(out) % 4)


def cpio_end():
    out = cpio_entry("TRAILER!!!", 0)
    return out + b"\0" * (-len(out) % 512)


def cpio_of(root, out):
    """Writes all of the folder `root`, and a console device, to the open file `out`."""
    out.write(cpio_entry("dev", 0o040755) + cpio_entry("dev/console", 0o020600, rdev=(5, 1)))
    size = 0
    for here, folders, files in os.walk(root):
        for name in sorted(folders + files):
            path = os.path.join(here, name)
            inside = os.path.relpath(path, root)
            st = os.lstat(path)
            if inside == "dev":
                continue
            if stat.S_ISLNK(st.st_mode):
                data = cpio_entry(inside, 0o120777, os.readlink(path).encode())
            elif stat.S_ISDIR(st.st_mode):
                data = cpio_entry(inside, 0o040755)
            else:
                with open(path, "rb") as f:
                    data = cpio_entry(inside, 0o100000 | (st.st_mode & 0o755), f.read())
            size += len(data)
            out.write(data)
    out.write(cpio_end())
    return size


def new_root(root, busybox):
    """An empty root file system with a shell."""
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "dev", "proc", "sys", "tmp", "etc", "data"):
        os.makedirs(os.path.join(root, folder))
    os.chmod(root, 0o755)
    if busybox:
        shutil.copy(busybox, os.path.join(root, "bin/busybox"))
        for name in ("sh", "true", "cat", "cp", "md5sum", "awk", "rm", "mkdir", "head", "tail", "ls"):
            os.symlink("busybox", os.path.join(root, "bin", name))


def install(root, source, inside):
    path = os.path.join(root, inside)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copy(source, path)
    os.chmod(path, 0o755)


def copy_tree(source, root, leave_out):
    """Copies a tree of unpacked packages, links as links, without what leave_out(path) names."""
    for here, folders, files in os.walk(source):
        inside = os.path.relpath(here, source)
        folders[:] = [f for f in folders if not leave_out(os.path.normpath(os.path.join(inside, f)))]
        target = os.path.join(root, inside)
        os.makedirs(target, exist_ok=True)
        for name in files + [f for f in folders if os.path.islink(os.path.join(here, f))]:
            if leave_out(os.path.normpath(os.path.join(inside, name))):
                continue
            where = os.path.join(target, name)
            if not os.path.lexists(where):
                shutil.copy2(os.path.join(here, name), where, follow_symlinks=False)


def with_jobs(image, jobs, path):
    """The archive `image` followed by one that holds /jobs: a kernel unpacks both."""
    shutil.copyfile(image, path)
    with open(path, "ab") as f:
        f.write(cpio_entry("jobs", 0o100644, jobs.encode()) + cpio_end())


def video(width, height, frames):
    """A raw video (YUV4MPEG2) of moving gradients, edges and noise; always the same."""
    out = bytearray(f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg\n".encode())
    seed = 1
    for n in range(frames):
        out += b"FRAME\n"
        for y in range(height):
            seed = (seed * 1103515245 + 12345) & 0x7fffffff
            row = bytearray((x + 2 * n + y // 2) & 255 for x in range(width))
            box = (3 * n + y // 8) % (width - 64)
            row[box:box + 64] = bytes((seed >> 8) + 7 * k & 255 for k in range(64))
            out += row
        for plane in range(2):
            for y in range(height // 2):
                out += bytes((x // 2 + plane * 64 + n + y) & 255 for x in range(width // 2))
    return bytes(out)
