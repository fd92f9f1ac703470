"""Objects, dictionaries, strings, generators, exceptions: the sort of work CPython is used for.
The argument says how often."""
import sys


class Vector:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __add__(self, other):
        return Vector(self.x + other.x, self.y + other.y)


def primes(n):
    sieve = bytearray([1]) * (n + 1)
    for i in range(2, int(n ** 0.5) + 1):
        if sieve[i]:
            sieve[i * i::i] = bytes(len(range(i * i, n + 1, i)))
    return sum(1 for i in range(2, n) if sieve[i])


def queens(n, row=0, columns=0, left=0, right=0):
    if row == n:
        return 1
    count = 0
    free = ~(columns | left | right) & ((1 << n) - 1)
    while free:
        bit = free & -free
        free ^= bit
        count += queens(n, row + 1, columns | bit, (left | bit) << 1, (right | bit) >> 1)
    return count


def work(seed):
    words = {}
    for i in range(60000):
        seed = (seed * 1103515245 + 12345) & 0x7fffffff
        word = "w%d" % (seed % 5000)
        words[word] = words.get(word, 0) + 1
    total = Vector(0, 0)
    for i in range(60000):
        total = total + Vector(i, i & 7)
    caught = 0
    for i in range(20000):
        try:
            if i % 3 == 0:
                raise ValueError(i)
        except ValueError:
            caught += 1
    text = " ".join(sorted(words, key=lambda w: (words[w], w)))
    print(primes(200000), queens(7), total.x, total.y, caught, len(text), hash(len(words)),
          sum(map(ord, text[::7])), [w.upper() for w in text.split()[:3]])


for n in range(int(sys.argv[1])):
    work(n + 1)
