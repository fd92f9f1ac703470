"""Medians, ratios, the promises, and how they are shown: a table, JSON's data, a page of HTML."""
import html as escape
import math
import statistics

import suite


def geomean(values):
    values = [v for v in values if v]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def spread(values):
    """Half the distance between the quartiles (of two or three: the extremes), as a share of the
    median."""
    if len(values) < 2:
        return None
    middle = statistics.median(values)
    if not middle:
        return None
    if len(values) < 4:
        return (max(values) - min(values)) / 2 / middle
    q = statistics.quantiles(values, n=4)
    return (q[2] - q[0]) / 2 / middle


def collect(chosen, envs, samples, head):
    """Everything that is shown or written, from the samples."""
    data = dict(head, benchmarks={}, means={}, targets=[], failures=list(samples.failures))
    data["tsc_ghz"] = {label: statistics.median(v)
                       for label, v in samples.values.get("nano.tsc", {}).items()}
    native = next((e.label for e in envs if e.kind == "native"), None)
    tcg = next((e.label for e in envs if e.kind == "qemu"), None)
    for b in chosen:
        values = samples.values.get(b.name, {})
        entry = {"group": b.group, "classes": list(b.classes), "unit": b.unit, "environments": {},
                 "checks": sorted(samples.checks.get(b.name, {}))}
        for e in envs:
            if e.label not in values:
                continue
            v = values[e.label]
            one = {"samples": v, "median": statistics.median(v), "spread": spread(v)}
            first = samples.first.get(b.name, {}).get(e.label)
            if first:
                one["first_round"] = statistics.median(first)
            entry["environments"][e.label] = one
        medians = {k: v["median"] for k, v in entry["environments"].items()}
        for label, one in entry["environments"].items():
            if medians.get(native) and label != native:
                one["vs_native"] = one["median"] / medians[native]
            if medians.get(tcg) and label != tcg:
                one["vs_tcg"] = one["median"] / medians[tcg]
        if not values and b.group not in ("boot", "size", "nano"):
            data["failures"].append(f"{b.name}: no result at all")
        data["benchmarks"][b.name] = entry
    for cls, title in suite.CLASS_TITLES.items():
        row = {"title": title}
        members = [b for b in data["benchmarks"].values() if cls in b["classes"]]
        for e in envs:
            row[e.label] = geomean([m["environments"].get(e.label, {}).get("vs_native")
                                    for m in members])
        if any(v for k, v in row.items() if k != "title"):
            row["count"] = len(members)
            data["means"][cls] = row
    for e in envs:
        if e.kind == "ringshift" and not any(b.group == "short" for b in chosen):
            data["targets"] += targets(data, e.label)
    return data


def targets(data, label):
    """Each promise with what this run measured of it."""
    out = []
    for title, kind, what, bound in suite.TARGETS:
        if kind == "native-mean":
            value = data["means"].get(what, {}).get(label)
            note = ""
        elif kind == "native-max":
            ratios = {n: b["environments"].get(label, {}).get("vs_native")
                      for n, b in data["benchmarks"].items() if what in b["classes"]}
            ratios = {n: r for n, r in ratios.items() if r}
            worst = sorted(ratios, key=ratios.get, reverse=True)
            value = ratios[worst[0]] if worst else None
            over = [f"{n} {ratios[n]:.2f}" for n in worst if ratios[n] > bound]
            note = ", ".join(over[:8]) + (f" and {len(over) - 8} more" if len(over) > 8 else "")
        else:
            one = data["benchmarks"].get(what, {}).get("environments", {}).get(label, {})
            value = one.get({"native": "vs_native", "tcg": "vs_tcg", "value": "median"}[kind])
            note = ""
        if value is not None:
            out.append({"promise": title, "environment": label, "benchmark": what, "kind": kind,
                        "bound": bound, "value": value, "met": value <= bound, "note": note})
    return out


def beyond(samples, envs, bounds):
    """{benchmark: what is wrong} for the ratios of this run that exceed the short form's bounds."""
    kinds = {kind: [e.label for e in envs if e.kind == kind] for kind in ("native", "qemu")}
    out = {}
    for name, native, tcg in bounds:
        values = {label: statistics.median(v) for label, v in samples.values.get(name, {}).items()}
        for ours in (e.label for e in envs if e.kind == "ringshift" and e.label in values):
            for kind, bound, text in (("native", native, "native"), ("qemu", tcg, "TCG")):
                for other in kinds[kind]:
                    ratio_ = values[ours] / values[other] if values.get(other) else 0
                    if bound and ratio_ > bound:
                        out[name] = (f"{ours} takes {ratio_:.2f} times as long as {text}, the "
                                     f"bound is {bound}")
    return out


def number(value):
    if value is None:
        return "-"
    if value >= 10000:
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.1f}"


def shown(data, b, label, divisor):
    """A benchmark's figure for one environment; with the host's cycles where that is the point."""
    one = b["environments"].get(label)
    if not one:
        return "-"
    ghz = data.get("tsc_ghz", {}).get(label)
    cycles = f" ({one['median'] * ghz:.0f})" if b["group"] == "nano" and ghz else ""
    return number(one["median"] / divisor) + cycles


def scale_of(b):
    """(divisor, unit) in which a benchmark's values are short."""
    if b["group"] in ("boot", "size"):
        return 1, b["unit"]
    if b["group"] == "nano":
        return 1, "ns (cycles)"
    top = max((e["median"] for e in b["environments"].values()), default=0)
    for divisor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if top >= 20 * divisor:
            return divisor, f"{unit}/{b['unit']}"
    return 1, f"ns/{b['unit']}"


def ratio(value):
    return "-" if value is None else f"{value:.2f}"


def old_value(old, name, label):
    """What the earlier run has under this label, or else for its first Ringshift."""
    entries = old["benchmarks"].get(name, {}).get("environments", {})
    first = next((e["label"] for e in old["environments"] if e["kind"] == "ringshift"), None)
    return entries.get(label) or entries.get(first)


def change(old, name, label, one):
    """(relative change of the ratio to native if there is one, else of the value; a mark if it is
    larger than both spreads).  A ratio survives a machine that is slower today."""
    before = old_value(old, name, label)
    if not before:
        return None, ""
    key = "vs_native" if one.get("vs_native") and before.get("vs_native") else "median"
    if not before.get(key):
        return None, ""
    delta = one[key] / before[key] - 1
    noise = (one.get("spread") or 0.05) + (before.get("spread") or 0.05)
    return delta, ("*" if abs(delta) > max(noise, 0.03) else "")


def layout(data):
    """[(label, kind)] in order; native first, TCG last."""
    return [(e["label"], e["kind"]) for e in data["environments"]]


def table(data, old=None):
    envs = layout(data)
    native = next((l for l, k in envs if k == "native"), None)
    ours = [l for l, k in envs if k == "ringshift"]
    tcg = next((l for l, k in envs if k == "qemu"), None)
    others = [l for l, k in envs if k != "native"]
    columns = [l for l, _ in envs] + ([f"{l}/nat" for l in others] if native else []) + \
              ([f"tcg/{l}" for l in ours] if tcg else []) + \
              ([f"{ours[1]}/{ours[0]}"] if len(ours) == 2 else []) + (["change"] if old else [])
    widths = [max(16 if c in dict(envs) else 10, len(c) + 2) for c in columns]
    lines = []
    group = None
    for name, b in data["benchmarks"].items():
        if b["group"] != group:
            group = b["group"]
            lines += ["", f"{group}: {suite.GROUPS[group]}",
                      f"{'':<24}{'':<18}" + "".join(c.rjust(w) for c, w in zip(columns, widths))]
        e = b["environments"]
        divisor, unit = scale_of(b)
        cells = [shown(data, b, l, divisor) for l, _ in envs]
        if native:
            cells += [ratio(e.get(l, {}).get("vs_native")) for l in others]
        if tcg:
            cells += [ratio(1 / e[l]["vs_tcg"]) if e.get(l, {}).get("vs_tcg") else "-" for l in ours]
        if len(ours) == 2:
            both = all(e.get(l, {}).get("median") for l in ours)
            cells.append(ratio(e[ours[1]]["median"] / e[ours[0]]["median"]) if both else "-")
        if old:
            delta, mark = change(old, name, ours[0], e[ours[0]]) if ours and ours[0] in e \
                else (None, "")
            cells.append("-" if delta is None else f"{delta * 100:+.1f}%{mark}")
        widest = max((v["spread"] or 0 for v in e.values()), default=0)
        lines.append(f"{name:<24}{unit[:17]:<18}" +
                     "".join(c.rjust(w) for c, w in zip(cells, widths)) +
                     (f"  ±{widest * 100:.0f} %" if widest > 0.1 else "") +
                     ("  DIFFERENT RESULTS" if len(b["checks"]) > 1 else ""))
    if data["means"]:
        lines += ["", "geometric means, times native:"]
        for row in data["means"].values():
            lines.append(f"    {row['title']:<34}" + "".join(
                f"{l} {ratio(row.get(l))}   " for l in others) + f"({row['count']} benchmarks)")
    if len(ours) == 2:
        for cls, title in suite.CLASS_TITLES.items():
            both = [b["environments"][ours[1]]["median"] / b["environments"][ours[0]]["median"]
                    for b in data["benchmarks"].values() if cls in b["classes"]
                    and all(l in b["environments"] for l in ours)]
            if both:
                lines.append(f"    {title:<34}{ours[1]} / {ours[0]} {geomean(both):.3f}")
    if data["targets"]:
        lines += ["", "promises:"]
        for t in data["targets"]:
            note = f"  ({t['note']})" if t["note"] else ""
            who = f" [{t['environment']}]" if len(ours) > 1 else ""
            lines.append(f"    {'met   ' if t['met'] else 'MISSED'}  {t['promise']}{who}: "
                         f"{number(t['value'])}, bound {t['bound']}{note}")
    lines.append("")
    lines += [f"FAILED: {f}" for f in data["failures"]]
    lines.append(f"{data['repetitions']} repetitions in {data['took_s']:.0f} s on {data['host']['cpu']}, "
                 f"{data['host']['cpus']} CPUs; load at the end {data['host']['load']:.1f}")
    return "\n".join(lines)


# -- HTML -------------------------------------------------------------------------------------------

STYLE = """
:root { --bg: #fdfdfc; --fg: #1c1e21; --dim: #6b7076; --line: #d9dbdd; --card: #f3f4f4;
  --c0: #8a9099; --c1: #1769c4; --c2: #c2571a; --c3: #7a3fb0; --c4: #1f8a5b; --bad: #b3261e;
  --good: #1f7a44; }
@media (prefers-color-scheme: dark) { :root { --bg: #15171a; --fg: #e4e6e8; --dim: #9aa0a6;
  --line: #383c41; --card: #1f2226; --c0: #8a9099; --c1: #62a8f5; --c2: #f0955a; --c3: #bd8cec;
  --c4: #58c592; --bad: #f2867e; --good: #6fcf97; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif;
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .15rem .5rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--dim); font-weight: 500; } td.left, th.left { text-align: left; }
.dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); }
.wide { overflow-x: auto; } svg { width: 100%; height: auto; } svg text { fill: var(--fg);
  font: 12px system-ui, sans-serif; } svg .dim { fill: var(--dim); }
summary { cursor: pointer; color: var(--dim); margin: .5rem 0; }
"""


def esc(text):
    return escape.escape(str(text), quote=True)


def colour(index, kind):
    return {"native": "var(--c0)", "qemu": "var(--c2)", "kvm": "var(--c4)"}.get(
        kind, "var(--c1)" if index == 0 else "var(--c3)")


def bars(rows, series):
    """Dots on a logarithmic axis of "times native", one line per benchmark; native is the line at 1.
    rows: [(name, {label: ratio})], series: [(label, colour)]."""
    values = [v for _, r in rows for v in r.values() if v]
    if not values:
        return ""
    lo, hi = min(0.8, min(values) * 0.9), max(2.0, max(values) * 1.15)
    left, width, step = 130, 830, 18
    height = step * len(rows) + 42

    def x(v):
        return left + (width - left - 20) * (math.log(v) - math.log(lo)) / (math.log(hi) - math.log(lo))

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" '
           f'aria-label="time relative to native, logarithmic">']
    for tick in (0.1, 0.2, 0.5, 1, 1.15, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500):
        if lo <= tick <= hi and (tick not in (1.15, 1.5, 3) or hi < 12):
            strong = "var(--c0)" if tick == 1 else "var(--line)"
            out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="18" y2="{height - 22}" '
                       f'stroke="{strong}" stroke-width="{2 if tick == 1 else 1}"/>'
                       f'<text class="dim" x="{x(tick):.1f}" y="12" text-anchor="middle">{tick:g}</text>')
    for i, (name, r) in enumerate(rows):
        y = 32 + i * step
        out.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{esc(name)}</text>')
        points = [v for v in r.values() if v]
        if points:
            out.append(f'<line x1="{x(min(points + [1])):.1f}" x2="{x(max(points + [1])):.1f}" y1="{y}" '
                       f'y2="{y}" stroke="var(--line)" stroke-width="3"/>')
        for label, fill in series:
            if r.get(label):
                out.append(f'<circle cx="{x(r[label]):.1f}" cy="{y}" r="5" fill="{fill}">'
                           f'<title>{esc(name)}, {esc(label)}: {r[label]:.2f} x native</title></circle>')
    cx = left
    for label, fill in series:
        out.append(f'<circle cx="{cx}" cy="{height - 9}" r="5" fill="{fill}"/>'
                   f'<text x="{cx + 9}" y="{height - 5}">{esc(label)}</text>')
        cx += 40 + 8 * len(label)
    out.append("</svg>")
    return "".join(out)


def curves(points, series, xlabel, ylabel):
    """Lines over a logarithmic x axis.  points: {label: [(x, y)]}."""
    every = [p for line in points.values() for p in line]
    if not every:
        return ""
    width, height, left, bottom = 830, 260, 60, 40
    lx = [math.log(p[0]) for p in every]
    top = max(p[1] for p in every) * 1.1 or 1

    def px(v):
        span = (max(lx) - min(lx)) or 1
        return left + (width - left - 30) * (math.log(v) - min(lx)) / span

    def py(v):
        return (height - bottom) - (height - bottom - 20) * v / top

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{esc(ylabel)} against '
           f'{esc(xlabel)}">']
    for k in range(5):
        v = top * k / 4
        out.append(f'<line x1="{left}" x2="{width - 30}" y1="{py(v):.1f}" y2="{py(v):.1f}" '
                   f'stroke="var(--line)"/><text class="dim" x="{left - 6}" y="{py(v) + 4:.1f}" '
                   f'text-anchor="end">{number(v)}</text>')
    for v in sorted({p[0] for p in every}):
        out.append(f'<text class="dim" x="{px(v):.1f}" y="{height - bottom + 18}" '
                   f'text-anchor="middle">{v:g}</text>')
    cx = left
    for label, fill in series:
        line = points.get(label)
        if not line:
            continue
        path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{fill}" stroke-width="2"/>')
        out += [f'<circle cx="{px(a):.1f}" cy="{py(b):.1f}" r="3.5" fill="{fill}"><title>{esc(label)}, '
                f'{a:g}: {number(b)}</title></circle>' for a, b in line]
        out.append(f'<text x="{cx}" y="12" style="fill:{fill}">{esc(label)}</text>')
        cx += 30 + 8 * len(label)
    out.append(f'<text class="dim" x="{width - 30}" y="{height - 6}" text-anchor="end">{esc(xlabel)}</text>')
    out.append("</svg>")
    return f'<p class="dim">{esc(ylabel)}</p>' + "".join(out)


def html(data, old=None):
    envs = layout(data)
    native = next((l for l, k in envs if k == "native"), None)
    rs = [l for l, k in envs if k == "ringshift"]
    series = [(l, colour(rs.index(l) if l in rs else 0, k)) for l, k in envs]
    out = ["<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
           "<meta name='viewport' content='width=device-width, initial-scale=1'>"
           f"<title>Ringshift benchmarks</title><style>{STYLE}</style></head><body>"
           "<h1>Ringshift benchmarks</h1>"]
    h = data["host"]
    out.append(f"<p>{esc(data['date'])}, commit {esc(data['commit'])}; {esc(h['cpu'])}, {h['cpus']} CPUs, "
               f"Linux {esc(h['kernel'])}. Medians of {data['repetitions']} repetitions. "
               + " · ".join(f"<b>{esc(e['label'])}</b>: {esc(e['version'])}"
                            f"{esc(' '.join([''] + e['options']))}" for e in data["environments"]) + "</p>")
    for f in data["failures"]:
        out.append(f"<p class='bad'>Failed: {esc(f)}</p>")
    if data["means"]:
        out.append("<h2>Geometric means</h2><p class='dim'>Time relative to native; smaller is "
                   "better.</p><div class='wide'><table><tr><th>class</th>" +
                   "".join(f"<th>{esc(l)}</th>" for l, k in envs if k != "native") + "<th>benchmarks</th></tr>")
        for row in data["means"].values():
            out.append(f"<tr><td>{esc(row['title'])}</td>" + "".join(
                f"<td>{ratio(row.get(l))}</td>" for l, k in envs if k != "native") +
                f"<td>{row['count']}</td></tr>")
        out.append("</table></div>")
    if data["targets"]:
        out.append("<h2>Promises</h2><div class='wide'><table><tr><th>promise</th><th class='left'>"
                   "benchmark</th><th>bound</th><th>measured</th><th></th></tr>")
        for t in data["targets"]:
            who = f" <span class='dim'>({esc(t['environment'])})</span>" if len(rs) > 1 else ""
            note = f"<br><span class='dim'>{esc(t['note'])}</span>" if t["note"] else ""
            out.append(f"<tr><td>{esc(t['promise'])}{who}{note}</td><td class='left'>{esc(t['benchmark'])}"
                       f"</td><td>{t['bound']}</td><td>{number(t['value'])}</td>"
                       f"<td class='{'good' if t['met'] else 'bad'}'>{'met' if t['met'] else 'missed'}</td></tr>")
        out.append("</table></div>")
    groups = list(dict.fromkeys(b["group"] for b in data["benchmarks"].values()))
    for group in groups:
        members = {n: b for n, b in data["benchmarks"].items() if b["group"] == group}
        out.append(f"<h2>{esc(group)}</h2><p class='dim'>{esc(suite.GROUPS[group])}</p>")
        rows = [(n, {l: e.get("vs_native") for l, e in b["environments"].items() if e.get("vs_native")})
                for n, b in members.items()]
        if native and any(r for _, r in rows):
            out.append("<p class='dim'>Times native, logarithmic.</p>" +
                       bars([r for r in rows if r[1]], [s for s in series if s[0] != native]))
        if group == "size":
            for what, label in (("init", "seconds from process start to init"),
                                ("memory", "VMM memory beyond guest RAM, MiB")):
                out.append(curves(lines_of(members, "size", f".{what}", series), series,
                                  "guest memory, MiB", label))
        procs = lines_of(members, "procs", "", series)
        if procs and any(len(p) > 1 for p in procs.values()):
            out.append(curves(procs, series, "processes", "ns per hand-over in a ring of processes"))
        out.append("<details><summary>figures</summary><div class='wide'><table><tr><th>benchmark</th>"
                   "<th class='left'>unit</th>" + "".join(f"<th>{esc(l)}</th>" for l, _ in envs) +
                   "".join(f"<th>{esc(l)} / native</th>" for l, k in envs if k != "native" and native) +
                   ("<th>change</th>" if old else "") + "</tr>")
        for n, b in members.items():
            e = b["environments"]
            divisor, unit = scale_of(b)
            out.append(f"<tr><td>{esc(n)}</td><td class='left dim'>{esc(unit)}</td>")
            for l, _ in envs:
                s = e.get(l, {}).get("spread")
                dim = f" <span class='dim'>±{s * 100:.0f}%</span>" if s is not None else ""
                out.append(f"<td>{shown(data, b, l, divisor)}{dim}</td>")
            if native:
                out += [f"<td>{ratio(e.get(l, {}).get('vs_native'))}</td>" for l, k in envs
                        if k != "native"]
            if old:
                delta, mark = change(old, n, rs[0], e[rs[0]]) if rs and rs[0] in e else (None, "")
                out.append("<td>-</td>" if delta is None else f"<td>{delta * 100:+.1f}%{mark}</td>")
            out.append("</tr>")
        out.append("</table></div></details>")
    out.append("</body></html>\n")
    return "".join(out)


def lines_of(members, prefix, suffix, series):
    """{label: [(n, median)]} of the benchmarks named PREFIX n SUFFIX."""
    out = {}
    for name, b in members.items():
        middle = name[len(prefix):len(name) - len(suffix)] if suffix else name[len(prefix):]
        if not (name.startswith(prefix) and name.endswith(suffix) and middle.isdigit()):
            continue
        for label, _ in series:
            if label in b["environments"]:
                out.setdefault(label, []).append((int(middle), b["environments"][label]["median"]))
    return {k: sorted(v) for k, v in out.items()}
