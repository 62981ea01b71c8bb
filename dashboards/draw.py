"""Draws a dashboard's panels from a Prometheus, for where no Grafana is at hand.

    python3 dashboards/draw.py http://127.0.0.1:9090 dashboards/overview.json overview.png 300

takes the last 300 seconds. It wants matplotlib; nothing else here does.
"""

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402: the backend is chosen before


def series(source, expr, seconds, now):
    """A query's lines: labels, times, values."""
    expr = expr.replace("$__rate_interval", "30s")
    ask = {"query": expr, "start": now - seconds, "end": now, "step": max(1, seconds // 150)}
    url = f"{source}/api/v1/query_range?{urllib.parse.urlencode(ask)}"
    with urllib.request.urlopen(url) as answer:
        for line in json.load(answer)["data"]["result"]:
            points = [(float(at) - now, float(value)) for at, value in line["values"]]
            yield line["metric"], [(at, v) for at, v in points if math.isfinite(v)]


def legend(text, labels):
    """A line's name, as Grafana would write it."""
    if text == "__auto":
        return labels.get("__name__", "")
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), text)


def draw(axes, panel, source, seconds, now):
    """One panel."""
    axes.set_title(panel["title"], fontsize=9, loc="left")
    lines = [
        (legend(target["legendFormat"], labels), points)
        for target in panel["targets"]
        for labels, points in series(source, target["expr"], seconds, now)
    ]
    if panel["type"] == "stat":
        names = panel["options"]["textMode"] == "name"
        told = [name if names else f"{points[-1][1]:.4g}" for name, points in lines if points]
        axes.axis("off")
        axes.text(0.5, 0.5, "\n".join(told) or "no data", ha="center", va="center",
                  fontsize=9 if names else 18, wrap=True)
        return
    for name, points in lines:
        axes.plot([at for at, _ in points], [v for _, v in points], linewidth=1, label=name)
    if not any(points for _, points in lines):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center")
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if 0 < len(lines) <= 12:
        axes.legend(fontsize=6, loc="upper left")


def main():
    """Draws what the command line asks for."""
    source, path, out, seconds = sys.argv[1:5]
    with open(path, encoding="utf-8") as file:
        board = json.load(file)
    now, panels = time.time(), board["panels"]
    wide, high = 24, max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    figure = plt.figure(figsize=(16, high / 2.6))
    grid = figure.add_gridspec(high, wide, hspace=0.4, wspace=3.5)
    for panel in panels:
        place = panel["gridPos"]
        y, x = place["y"], place["x"]
        # The last row of each is for the times below and the title of the next.
        axes = figure.add_subplot(grid[y:y + place["h"] - 2, x:x + place["w"]])
        draw(axes, panel, source, int(seconds), now)
    figure.suptitle(board["title"], fontsize=12, y=0.93)
    figure.savefig(out, dpi=60, bbox_inches="tight")


if __name__ == "__main__":
    main()
