"""What a study found, drawn: a heat map, a curve, bars, or a panel for each setting.

Needs matplotlib, but no display.
"""

import collections
import itertools

from mnist.bench.plots import label_cells, new_figure, plain_ticks, save_figure
from mnist.bench.tables import setting_text


def plot_study(path, record):
    """Draw a study's record: two settings that were varied make a heat map, a sweep of the rate a
    curve, a search by Optuna a panel for each setting, everything else bars."""
    study, rows, varied = record["study"], record["rows"], record["varied"]
    figure = new_figure(8, 4.5, dpi=120)
    if study["kind"] == "tune":
        figure.set_size_inches(9, 0.6 + 2.7 * -(-len(varied) // 3))
        draw_settings(figure, rows, varied)
    elif "lr" in varied:
        draw_rates(figure.add_subplot(), rows, [name for name in varied if name != "lr"])
    elif len(varied) == 2 and study["kind"] == "grid":
        draw_heat_map(figure.add_subplot(), rows, *varied)
    else:
        figure.set_size_inches(8, 1.4 + 0.35 * len(rows))
        draw_bars(figure.add_subplot(), rows, varied)
    seeds = f", mean of {study['seeds']} seeds" if study["seeds"] > 1 else ""
    figure.suptitle(f"{study['network']}: held-out images misread, % (trained on "
                    f"{record['trained_on']:,}{seeds})", fontsize=11)
    figure.tight_layout()
    save_figure(figure, path)


def misread(row):
    """The error rate on the held-out images, in %."""
    return 100 - row["mean"] * 100


def name_of(setting):
    return setting.replace("_", " ")


def draw_heat_map(panel, rows, down, across):
    """Cells of what was misread: the darker, the fewer."""
    import numpy as np
    heights, widths = (sorted({row["settings"][name] for row in rows}) for name in (down, across))
    cells = {(row["settings"][down], row["settings"][across]): row for row in rows}
    shares = np.array([[misread(cells[y, x]) if (y, x) in cells else np.nan for x in widths]
                       for y in heights])
    levels = np.log(shares)
    panel.imshow(levels, cmap="Blues_r", aspect="auto")
    middle = (np.nanmin(levels) + np.nanmax(levels)) / 2
    for i, y in enumerate(heights):
        for j, x in enumerate(widths):
            if (y, x) in cells:
                row = cells[y, x]
                text = "diverged" if row["diverged"] else f"{shares[i, j]:.2f}"
                if row["deviation"] is not None and not row["diverged"]:
                    text += f" ± {row['deviation'] * 100:.2f}"
                panel.text(j, i, f"{text}\n{row['seconds']:.0f} s", ha="center", va="center",
                           fontsize=8, color="white" if levels[i, j] < middle else "black")
    label_cells(panel, heights, widths, name_of(down), name_of(across))


def draw_rates(panel, rows, others):
    """A curve over the learning rate for each combination of the other settings."""
    curves = collections.OrderedDict()
    for row in sorted(rows, key=lambda row: row["settings"]["lr"]):
        label = ", ".join(f"{name_of(name)} {row['settings'][name]}" for name in others)
        curves.setdefault(label, []).append(row)
    for (label, points), marker in zip(curves.items(), itertools.cycle("osD^v")):
        panel.errorbar([row["settings"]["lr"] for row in points], [misread(row) for row in points],
                       [(row["deviation"] or 0) * 100 for row in points], marker=marker,
                       capsize=3, label=label)
    panel.set(xscale="log", yscale="log", xlabel="learning rate (its peak)", ylabel="misread, %")
    plain_ticks(panel.yaxis)
    panel.grid(alpha=0.3, which="both")
    if others:
        panel.legend()


def draw_bars(panel, rows, varied):
    """A bar for each combination, the best on top."""
    labels = [", ".join(f"{name_of(name)} {setting_text(row['settings'][name])}" for name in varied)
              for row in rows]
    shares = [misread(row) for row in rows]
    deviations = [(row["deviation"] or 0) * 100 for row in rows]
    places = range(len(rows))
    panel.barh(places, shares, xerr=deviations, color="0.75", edgecolor="black", capsize=3)
    # A training that diverged would leave no room for the others: its bar is cut off.
    ends = [share + deviation for share, deviation in zip(shares, deviations)]
    widest = min(max(ends), 2.5 * sorted(ends)[len(ends) // 2])
    panel.set_xlim(0, 1.15 * widest or 1)
    for place, row, share, end in zip(places, rows, shares, ends):
        text = "diverged" if row["diverged"] else f"{share:.2f}"
        if end <= widest:
            panel.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center",
                           fontsize=8)
        else:
            panel.annotate(text + " →", (widest, place), ha="right", va="center", fontsize=8,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    panel.set_yticks(places)
    panel.set_yticklabels(labels, fontsize=9)
    panel.invert_yaxis()
    panel.set_xlabel("misread, %")


def draw_settings(figure, rows, varied):
    """What was misread over each setting, in turn; crosses were stopped early."""
    lines = -(-len(varied) // 3)
    panels = [figure.add_subplot(lines, 3, k + 1) for k in range(len(varied))]
    for panel, name in zip(panels, varied):
        values = [row["settings"][name] for row in rows]
        if any(isinstance(value, str) for value in values) or name == "batch_size":
            choices = sorted(set(values))
            panel.set_xticks(range(len(choices)))
            panel.set_xticklabels([setting_text(choice) for choice in choices])
            panel.set_xlim(-0.5, len(choices) - 0.5)
            values = [choices.index(value) for value in values]
        elif name in ("lr", "weight_decay"):
            panel.set_xscale("log")
        for pruned, marker in ((False, "o"), (True, "x")):
            some = [k for k, row in enumerate(rows) if row["pruned"] == pruned]
            panel.plot([values[k] for k in some], [misread(rows[k]) for k in some], marker,
                       color="black", markersize=4)
        panel.set_xlabel(name_of(name))
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
        panel.grid(alpha=0.3, which="both")
    for panel in panels[::3]:
        panel.set_ylabel("misread, %")
