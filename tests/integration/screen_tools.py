"""What tests of the screen need and Python's library lacks: PNG, VNC's authentication, an X client."""
import os
import socket
import struct
import zlib

# ---- Pictures ------------------------------------------------------------------------------------


def read_ppm(path):
    """(width, height, RGB bytes) of a binary PPM."""
    with open(path, "rb") as f:
        data = f.read()
    magic, size, depth, pixels = data.split(b"\n", 3)
    assert magic == b"P6" and depth == b"255", data[:20]
    width, height = map(int, size.split())
    assert len(pixels) == 3 * width * height, "the picture has another size than it says"
    return width, height, pixels


def read_png(path):
    """(width, height, RGB bytes) of a PNG with 8-bit RGB (PNG specification, clauses 5 and 9)."""
    with open(path, "rb") as f:
        data = f.read()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "no PNG"
    at, packed, kinds = 8, b"", []
    while at < len(data):
        length, = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4:at + 8], data[at + 8:at + 8 + length]
        crc, = struct.unpack_from(">I", data, at + 8 + length)
        assert crc == zlib.crc32(kind + body), f"the checksum of {kind} is wrong"
        kinds.append(kind)
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", body)
        if kind == b"IDAT":
            packed += body
        at += 12 + length
    assert kinds[0] == b"IHDR" and kinds[-1] == b"IEND", kinds
    width, height = header[:2]
    assert header[2:] == (8, 2, 0, 0, 0), header
    raw, stride = zlib.decompress(packed), 3 * width
    assert len(raw) == height * (stride + 1), "the picture has another size than it says"
    out, above = [], bytearray(stride)
    for y in range(height):
        kind = raw[y * (stride + 1)]
        line = bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        if kind == 2:
            line = bytearray((a + b) & 255 for a, b in zip(line, above))
        elif kind:
            for i in range(stride):
                a = line[i - 3] if i >= 3 else 0
                b, c = above[i], above[i - 3] if i >= 3 else 0
                p = a + b - c
                add = (0, a, b, (a + b) // 2,
                       min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2])[kind]
                line[i] = (line[i] + add) & 255
        out.append(bytes(line))
        above = line
    return width, height, b"".join(out)


# ---- VNC authentication (RFC 6143, 7.2.2): DES with the bits of each key byte reversed -----------

IP = [(58, 60, 62, 64, 57, 59, 61, 63)[i // 8] - 8 * (i % 8) for i in range(64)]
FP = [IP.index(i + 1) + 1 for i in range(64)]
EXPAND = [(4 * (i // 6) + i % 6 - 1) % 32 + 1 for i in range(48)]
P = [16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10,
     2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25]
PC1 = [57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3,
       60, 52, 44, 36, 63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45,
       37, 29, 21, 13, 5, 28, 20, 12, 4]
PC2 = [14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2, 41,
       52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32]
# FIPS 46-3's S-boxes, a row of 16 as hexadecimal digits.
S = ["e4d12fb83a6c5907 0f74e2d1a6cb9538 41e8d62bfc973a50 fc8249175b3ea06d",
     "f18e6b34972dc05a 3d47f28ec01a69b5 0e7ba4d158c6932f d8a13f42b67c05e9",
     "a09e63f51dc7b428 d709346a285ecbf1 d6498f30b12c5ae7 1ad069874fe3b52c",
     "7de3069a1285bc4f d8b56f03472c1ae9 a690cb7df13e5284 3f06a1d8945bc72e",
     "2c417ab6853fd0e9 eb2c47d150fa3986 421bad78f9c5630e b8c71e2d6f09a453",
     "c1af92680d34e75b af427c9561de0b38 9ef528c3704a1db6 432c95fabe17608d",
     "4b2ef08d3c975a61 d0b7491ae35c2f86 14bdc37eaf680592 6bd814a7950fe23c",
     "d2846fb1a93e50c7 1fd8a374c56b0e92 7b419ce206adf358 21e74a8dfc90356b"]
SHIFTS = [1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1]


def bits(data):
    return [byte >> (7 - i) & 1 for byte in data for i in range(8)]


def permute(source, table):
    return [source[i - 1] for i in table]


def des(key, block):
    boxes = [[int(d, 16) for d in s.replace(" ", "")] for s in S]
    key = permute(bits(key), PC1)
    c, d = key[:28], key[28:]
    data = permute(bits(block), IP)
    left, right = data[:32], data[32:]
    for shift in SHIFTS:
        c, d = c[shift:] + c[:shift], d[shift:] + d[:shift]
        mixed = [a ^ b for a, b in zip(permute(right, EXPAND), permute(c + d, PC2))]
        out = []
        for i in range(8):
            b = mixed[6 * i:6 * i + 6]
            value = boxes[i][16 * (2 * b[0] + b[5]) + 8 * b[1] + 4 * b[2] + 2 * b[3] + b[4]]
            out += [value >> (3 - j) & 1 for j in range(4)]
        left, right = right, [a ^ b for a, b in zip(left, permute(out, P))]
    data = permute(right + left, FP)
    return bytes(int("".join(map(str, data[i:i + 8])), 2) for i in range(0, 64, 8))


def vnc_response(password, challenge):
    key = bytes(int(f"{b:08b}"[::-1], 2) for b in password.encode()[:8].ljust(8, b"\0"))
    return des(key, challenge[:8]) + des(key, challenge[8:])


# ---- An X client that types and clicks (X11 protocol, and the XTEST extension's) -----------------

class XTest:
    KEY_PRESS, KEY_RELEASE, BUTTON_PRESS, BUTTON_RELEASE, MOTION = 2, 3, 4, 5, 6

    def __init__(self, number):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(f"/tmp/.X11-unix/X{number}")
        self.socket.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
        ok, length = struct.unpack("<B5xH", self.read(8))
        self.read(4 * length)
        assert ok == 1, "the X server refuses"
        name = b"XTEST"
        self.socket.sendall(struct.pack("<BxHHxx", 98, 4, len(name)) + name.ljust(8, b"\0"))
        reply = self.read(32)
        assert reply[0] == 1 and reply[8], "the X server has no XTEST"
        self.opcode = reply[9]

    def read(self, n):
        data = b""
        while len(data) < n:
            part = self.socket.recv(n - len(data))
            assert part, "the X server hung up"
            data += part
        return data

    def fake(self, kind, detail, x=0, y=0):
        self.socket.sendall(struct.pack("<BBHBBxxIIxxxxxxxxhhxxxxxxxx", self.opcode, 2, 9, kind,
                                        detail, 0, 0, x, y))

    def key(self, code):
        """A key by Linux' number: X has it 8 further on."""
        self.fake(self.KEY_PRESS, code + 8)
        self.fake(self.KEY_RELEASE, code + 8)

    def close(self):
        self.socket.close()


def xvfb_pixels(folder):
    """The pixels that Xvfb -fbdir shows, as bytes (XWD version 7: the header says where)."""
    with open(os.path.join(folder, "Xvfb_screen0"), "rb") as f:
        data = f.read()
    header = struct.unpack(">25I", data[:100])
    return data[header[0] + 12 * header[19]:]
