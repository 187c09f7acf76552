# SPDX-License-Identifier: Apache-2.0
"""What comes out: the table, JSON and a picture. See results/README.md for the format."""
import math
import statistics
from xml.sax.saxutils import escape

SCHEMA = 1


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def verdict(ratio, goal):
    """met or missed, by the median; with "?" when the spread reaches over to the other side."""
    if not goal or not ratio:
        return None

    def holds(x):
        return x <= goal[1] if goal[0] == "<=" else x >= goal[1]
    text = "met" if holds(ratio["median"]) else "missed"
    return text if holds(ratio["min"]) == holds(ratio["max"]) else text + "?"


def summarize(name, row, rounds):
    """A row of the results from the figures of all rounds, each by side."""
    ours = [row.ours(f) for f in rounds]
    result = {"name": name, "what": row.what, "unit": row.unit, "ours": spread(ours), "against": None, "ratio": None,
              "goal": None, "verdict": None}
    if row.against:
        against = [row.against(f) for f in rounds]
        result["against"] = spread(against)
        # Of each round by itself: what disturbed a round disturbed both.
        if all(against):
            result["ratio"] = spread([a / b for a, b in zip(ours, against)])
    if row.goal:
        result["goal"] = {"is": row.goal[0], "ratio": row.goal[1]}
    result["verdict"] = verdict(result["ratio"], row.goal)
    return result


def number(x):
    if x == 0:
        return "0"
    return f"{x:.0f}" if abs(x) >= 1000 else f"{x:.{max(0, 2 - math.floor(math.log10(abs(x))))}f}"


def cells(r):
    ratio, goal = r["ratio"], r["goal"]
    return (
        r["name"],
        f"{number(r['ours']['median'])} {r['unit']}",
        f"{number(r['against']['median'])} {r['unit']}" if r["against"] else "",
        number(ratio["median"]) if ratio else "",
        f"{number(ratio['min'])}-{number(ratio['max'])}" if ratio else
        f"{number(r['ours']['min'])}-{number(r['ours']['max'])}",
        f"{goal['is']} {goal['ratio']:.3g}" if goal else "",
        r["verdict"] or "",
        r["what"],
    )


def table(results):
    head = ("row", "ours", "against", "ratio", "spread", "goal", "verdict", "what")
    rows = [head] + [cells(r) for r in results["rows"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    lines = ["  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:-1], widths[1:])] + [row[-1]])
             for row in rows]
    lines += [f"not measured: {n}: {why}" for n, why in results["not_measured"].items()]
    lines += [f"{n}: {note}" for n, note in results["notes"].items()]
    return "\n".join(lines)


# --- the picture -----------------------------------------------------------------------------------

LEFT, WIDTH, RIGHT, STEP, TOP = 190, 440, 230, 22, 84
DECADES = 1.5  # on each side of the goal
COLOURS = {"met": "#2e7d32", "met?": "#8aa33a", "missed?": "#d98f2b", "missed": "#c62828"}


def place(r, ratio):
    """How far from the goal, in tens: left of 0 is better."""
    far = math.log10(max(ratio, 1e-9) / r["goal"]["ratio"])
    far = -far if r["goal"]["is"] == ">=" else far
    return LEFT + WIDTH / 2 + max(-1, min(1, far / DECADES)) * WIDTH / 2


def picture(results):
    """Every row that has a goal: its ratio, with the spread, on a scale on which the goal is the middle."""
    rows = [r for r in results["rows"] if r["goal"] and r["ratio"]]
    height, middle = TOP + STEP * len(rows) + 40, LEFT + WIDTH / 2
    total = LEFT + WIDTH + RIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{total}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15">Pageferry against its goals, {escape(results["revision"])}</text>',
        f'<text x="12" y="42" fill="#555">{escape(results["machine"]["cpu"])}, {results["machine"]["cpus"]} '
        f'processors, {results["busy_before"] * 100:.0f} % of them in use by others before</text>',
    ]
    for factor in (0.1, 0.3, 1, 3, 10):
        x = middle + math.log10(factor) / DECADES * WIDTH / 2
        out.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height - 30}" '
                   f'stroke="{"#333" if factor == 1 else "#ddd"}"/>')
        label = "goal" if factor == 1 else f"{factor:g}x"
        out.append(f'<text x="{x:.1f}" y="{height - 14}" text-anchor="middle" fill="#555">{label}</text>')
    for i, r in enumerate(rows):
        y, ratio, colour = TOP + STEP * i + 6, r["ratio"], COLOURS[r["verdict"]]
        low, high = sorted((place(r, ratio["min"]), place(r, ratio["max"])))
        goal = f'{r["goal"]["is"]} {r["goal"]["ratio"]:.3g}'
        out += [
            f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(r["name"])}'
            f'<title>{escape(r["what"])}</title></text>',
            f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{place(r, ratio["median"]):.1f}" cy="{y}" r="5" fill="{colour}"/>',
            f'<text x="{LEFT + WIDTH + 12}" y="{y + 4}">{number(ratio["median"])} (goal {escape(goal)}) '
            f'{r["verdict"]}</text>',
        ]
    out.append(f'<text x="{LEFT}" y="{TOP - 14}" fill="#555">better than the goal</text>'
               f'<text x="{LEFT + WIDTH}" y="{TOP - 14}" text-anchor="end" fill="#555">worse</text></svg>')
    return "\n".join(out) + "\n"
