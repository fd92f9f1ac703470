"""Benchmarks in turns: all environments run the same job over and over at the same time, but only one of
them at any moment, for a fraction of a second each.

A shared machine gets faster and slower within seconds and for minutes, which one run after another cannot
tell from a change of the program.  In turns, what disturbs one environment disturbs all: CPU time for a
round agrees to 2 % where separate runs differ by 20.

Programs of rsbench run for a fixed time, so CPU time says nothing about them.  What counts is what they
say themselves: the median of their rounds in half a second, of which one is a process, and the median of those.
"""
import os
import signal
import statistics
import subprocess
import tempfile
import time

import runner

TURN = 0.15  # seconds
TURN_OWN = 0.5  # where rounds are timed by the program, some of which take 100 ms
JOBS = 5000  # more than anybody waits for


def times_itself(bench):
    return bench.job.startswith("self ")


class Player:
    """A process group that runs a job again and again, and is stopped but for its turns."""

    def __init__(self, env, bench, root, archive, args, folder):
        self.label, self.rounds, self.tail, self.own = env.label, 0, b"", []
        jobs = f"{bench.name} {bench.job.format(seconds=0.5 if times_itself(bench) else 0)}\n" * JOBS
        command = runner.job_command(env, root, archive, jobs, args, bench.memory, folder)
        self.end = f"GUEST-END {bench.name} 0".encode()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.signal(signal.SIGSTOP)

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def read(self):
        """Counts the rounds that have ended; False at the end of the output."""
        try:
            while data := os.read(self.process.stdout.fileno(), 65536):
                self.tail += data
                *lines, self.tail = self.tail.split(b"\n")
                self.rounds += sum(line.strip() == self.end for line in lines)
                self.own += [float(line.split()[2]) for line in lines if line.startswith(b"RESULT ")]
                if any(b"GUEST-END" in line and line.strip() != self.end for line in lines):
                    return False
            return False
        except BlockingIOError:
            return True

    def turn(self, seconds):
        self.signal(signal.SIGCONT)
        time.sleep(seconds)
        self.signal(signal.SIGSTOP)
        return self.read()

    def cpu(self):
        """CPU seconds so far, of children that have been waited for, too."""
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def close(self):
        try:
            self.signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process.stdout.close()


def play(bench, envs, root, archive, args):
    """{label: (CPU seconds a round, or what the program says of it, rounds)}, or one sentence of what went
    wrong.

    Each environment first runs until it has done two rounds, but at least for args.turns / 3 seconds."""
    length = TURN_OWN if times_itself(bench) else TURN
    with tempfile.TemporaryDirectory(prefix="rsbench-") as folder:
        players = []
        try:
            for env in envs:
                players.append(Player(env, bench, root, archive, args, folder))
            begin = time.monotonic()
            while any(p.rounds < 2 for p in players) or \
                    time.monotonic() - begin < args.turns * len(players) / 3:
                for p in players:
                    if not p.turn(length):
                        return f"{bench.name}, {p.label}: ended, or the benchmark failed"
                if time.monotonic() - begin > args.timeout:
                    return f"{bench.name}: not two rounds in {args.timeout:.0f} s"
            before = [(p.cpu(), p.rounds) for p in players]
            for p in players:
                p.own.clear()
            for _ in range(int(args.turns / length)):
                for p in players:
                    if not p.turn(length):
                        return f"{bench.name}, {p.label}: ended, or the benchmark failed"
            if all(p.own for p in players):
                return {p.label: (statistics.median(p.own) * 1e-9, len(p.own)) for p in players}
            return {p.label: ((p.cpu() - cpu) / max(p.rounds - rounds, 1), p.rounds - rounds)
                    for p, (cpu, rounds) in zip(players, before)}
        finally:
            for p in players:
                p.close()


def table(results, labels):
    """Lines: the figure, rounds or processes, and the ratio to the first environment."""
    yield f"{'CPU time, own time':20}" + "".join(f"{label:>30}" for label in labels)
    for name, result in results.items():
        first = result[labels[0]][0]
        yield f"{name:20}" + "".join(
            f"{f'{cpu * 1e3:.1f} ms' if cpu > 1e-3 else f'{cpu * 1e9:.2f} ns':>14}{f'{cpu / first:.3f}' if first else '':>7}{f'({n})':>9}"
            for cpu, n in (result[label] for label in labels))
