"""zlib, through CPython's module: compresses and expands a text; the argument says how often."""
import sys
import zlib

seed, parts = 1, []
for i in range(60000):
    seed = (seed * 1103515245 + 12345) & 0x7fffffff
    parts.append("line %d of %x, and again %d\n" % (i, seed, seed % 97))
text = "".join(parts).encode()
for level in (1, 6) * int(sys.argv[1]):
    packed = zlib.compress(text, level)
    assert zlib.decompress(packed) == text
    print(level, len(text), len(packed), zlib.crc32(packed))
