"""What the benchmark suite concludes from its samples: medians, ratios, bounds, the page."""
import argparse
import html.parser
import json
import os
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench  # noqa: E402
import image  # noqa: E402
import report  # noqa: E402
import runner  # noqa: E402
import suite  # noqa: E402
import turns  # noqa: E402

ENVS = [runner.Environment("native", "native"), runner.Environment("ringshift", "A", "a"),
        runner.Environment("ringshift", "B", "b"), runner.Environment("qemu", "tcg", "q")]
HEAD = {"date": "today", "host": {"cpu": "a <CPU>", "cpus": 2, "kernel": "6", "load": 0.5},
        "commit": "c", "repetitions": 3, "took_s": 1,
        "environments": [{"label": e.label, "kind": e.kind, "version": "v", "options": []}
                         for e in ENVS]}


def sampled(names, values, check="1"):
    s = bench.Samples()
    for name in names:
        for label, list_ in values.items():
            for v in list_:
                s.add(name, label, v, v, check)
    return s


class Suite(unittest.TestCase):
    def test_names_are_unique_and_groups_known(self):
        names = [b.name for b in suite.benches()]
        self.assertEqual(len(names), len(set(names)))
        self.assertTrue(all(b.group in suite.GROUPS for b in suite.benches()))
        self.assertTrue(all(name in names for name, _, _ in suite.SHORT))

    def test_every_promise_names_something_measured(self):
        names = {b.name for b in suite.benches()}
        for _, kind, what, _ in suite.TARGETS:
            self.assertIn(what, suite.CLASS_TITLES if kind.startswith("native-") else names)


class Report(unittest.TestCase):
    def setUp(self):
        self.chosen = [b for b in suite.benches() if b.name in ("core", "syscall", "procs4", "procs16")]
        self.samples = sampled([b.name for b in self.chosen], {
            "native": [10, 11, 30], "A": [22, 20, 23], "B": [44, 44, 44], "tcg": [110, 100, 120]})
        self.data = report.collect(self.chosen, ENVS, self.samples, HEAD)

    def test_ratios_are_of_medians(self):
        core = self.data["benchmarks"]["core"]["environments"]
        self.assertEqual(core["native"]["median"], 11)
        self.assertEqual(core["A"]["vs_native"], 2)
        self.assertEqual(core["A"]["vs_tcg"], 0.2)
        self.assertEqual(self.data["means"]["compute64"]["B"], 4)

    def test_promises(self):
        met = {(t["benchmark"], t["environment"]): t["met"] for t in self.data["targets"]}
        self.assertFalse(met["syscall", "A"])
        self.assertFalse(met["compute64", "B"])

    def test_bounds(self):
        bounds = [("core", 3.0, 0.3), ("syscall", None, 0.1)]
        wrong = report.beyond(self.samples, ENVS, bounds)
        self.assertIn("B takes", wrong["core"])
        self.assertIn("TCG", wrong["syscall"])
        self.assertEqual(report.beyond(self.samples, ENVS, [("core", 5.0, 0.5)]), {})

    def test_a_missing_result_is_a_failure(self):
        data = report.collect(self.chosen, ENVS, bench.Samples(), HEAD)
        self.assertTrue(any("no result" in f for f in data["failures"]))

    def test_change_since_an_earlier_run(self):
        slower = sampled([b.name for b in self.chosen], {"native": [11], "A": [33]})
        data = report.collect(self.chosen, ENVS, slower, HEAD)
        delta, mark = report.change(self.data, "core", "A",
                                    data["benchmarks"]["core"]["environments"]["A"])
        self.assertAlmostEqual(delta, 0.5)
        self.assertEqual(mark, "*")

    def test_table_and_page(self):
        json.dumps(self.data)
        text = report.table(self.data, self.data)
        self.assertIn("MISSED", text)
        self.assertIn("B/A", text)
        page = report.html(self.data, self.data)
        html.parser.HTMLParser().feed(page)
        self.assertNotIn("a <CPU>", page)
        for address in ("http:", "https:", "src=", "url("):
            self.assertNotIn(address, page)
        plots = page.split("<svg")[1:]
        self.assertGreaterEqual(len(plots), 3)
        for plot in plots:
            xml.fromstring("<svg" + plot.split("</svg>")[0] + "</svg>")


class Archive(unittest.TestCase):
    def test_jobs_are_a_second_archive(self):
        with tempfile.TemporaryDirectory() as tmp:
            root = os.path.join(tmp, "root")
            image.new_root(root, None)
            with open(os.path.join(root, "data/x"), "w") as f:
                f.write("x" * 1001)
            with open(os.path.join(tmp, "a"), "wb") as f:
                image.cpio_of(root, f)
            image.with_jobs(os.path.join(tmp, "a"), "idle 1\n", os.path.join(tmp, "b"))
            with open(os.path.join(tmp, "b"), "rb") as f:
                data = f.read()
            self.assertEqual(data.count(b"TRAILER!!!"), 2)
            self.assertEqual(len(data) % 4, 0)
            self.assertIn(b"idle 1\n", data)


class Turns(unittest.TestCase):
    """Scripts in place of virtual machines: one works for 20 ms a round, one for 40, one fails."""

    def play(self, *bodies):
        class Fake(runner.Environment):
            def command(self, kernel, memory, append, initramfs):
                return ["python3", "-uc", "import time\n"
                        "def work(s):\n"
                        "    end = time.process_time() + s\n"
                        "    while time.process_time() < end: pass\n" + self.program]
        envs = [Fake("ringshift", f"e{i}", body) for i, body in enumerate(bodies)]
        with tempfile.TemporaryDirectory() as tmp:
            archive = os.path.join(tmp, "a")
            open(archive, "wb").close()
            args = argparse.Namespace(append="", kernel="", turns=1.5, timeout=60, build="")
            return turns.play(suite.Bench("b", "compute", (), "u", "self {seconds} /x", 1), envs, None,
                              archive, args)

    def test_ratio_of_cpu_time(self):
        loop = "while True: work({}); print('GUEST-END b 0')"
        out = self.play(loop.format(0.02), loop.format(0.04))
        self.assertGreater(out["e1"][1], 5)
        self.assertAlmostEqual(out["e1"][0] / out["e0"][0], 2, delta=0.4)
        self.assertIn(f"({out['e0'][1]})", "\n".join(turns.table({"b": out}, ["e0", "e1"])))

    def test_figures_of_the_program(self):
        line = "RESULT b {} 9 0000000000000000 1\\nGUEST-END b 0"
        out = self.play(*(f"while True: work(0.02); print('{line.format(n)}')" for n in (10.5, 21)))
        self.assertAlmostEqual(out["e0"][0], 10.5e-9)
        self.assertAlmostEqual(out["e1"][0], 21e-9)
        self.assertIn("10.50 ns", "\n".join(turns.table({"b": out}, ["e0", "e1"])))

    def test_what_fails_says_so(self):
        self.assertIn("e0: ended", self.play("work(0.01)"))
        self.assertIn("failed", self.play("print('GUEST-END b signal 11'); work(100)"))


if __name__ == "__main__":
    unittest.main()
