"""The study's pictures, from the content of results.json to plain SVG."""
import math

import tables

WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 190, 60, 40, 60
COLOURS = {"dense": "#777777", "static": "#1b9e77", "learned": "#7570b3", "memory": "#e6ab02", "topk": "#1f4e9c", "topk_free": "#d9661f"}
OPACITIES = (1.0, 0.65, 0.4)  # of seeds
GAMMAS = (-10.0, 20.0)  # what lies beyond is drawn at the edge


def known(points):
    return [(x, y) for x, y in points if y is not None]


class Panel:
    """Axes at a place of the picture, and what is drawn in them. `ticks`: (value, text) of the x axis, a third number puts the text lines lower; x as
    log2 where `log`."""

    def __init__(self, column, row, title, x_range, y_values, ticks, log=False, y_range=None):
        self.left, self.top = LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + GAP)
        self.log, self.x = log, [self.scale(x, log) for x in x_range]
        y_values = [y for y in y_values if y is not None] or [0.0]
        room = 0.06 * (max(y_values) - min(y_values)) or 1.0
        self.y = y_range or (min(y_values) - room, max(y_values) + room)
        self.lines = [f'<text x="{self.left}" y="{self.top - 10}">{title}</text>',
                      f'<rect x="{self.left}" y="{self.top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>']
        for part in range(4):
            value = self.y[0] + (self.y[1] - self.y[0]) * part / 3
            self.lines.append(f'<text x="{self.left - 5}" y="{self.place(x_range[0], value)[1] + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        for value, text, *lower in ticks:
            height = self.top + HEIGHT + 16 + 13 * sum(lower)
            self.lines.append(f'<text x="{self.place(value, 0)[0]:.1f}" y="{height}" text-anchor="middle">{text}</text>')

    @staticmethod
    def scale(x, log):
        return math.log2(x) if log else x

    def place(self, x, y):
        share = (self.scale(x, self.log) - self.x[0]) / (self.x[1] - self.x[0] or 1.0)
        y = min(max(y, self.y[0]), self.y[1])
        return self.left + WIDTH * share, self.top + HEIGHT * (self.y[1] - y) / (self.y[1] - self.y[0])

    def line(self, points, colour, dashed=False, opacity=1.0):
        path = " ".join("{:.1f},{:.1f}".format(*self.place(x, y)) for x, y in known(points))
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" opacity="{opacity}"{dash}/>')

    def bar(self, x, low, high, colour, opacity=1.0):
        (at, bottom), (_, top) = self.place(x, low), self.place(x, high)
        self.lines.append(f'<line x1="{at:.1f}" y1="{bottom:.1f}" x2="{at:.1f}" y2="{top:.1f}" stroke="{colour}" opacity="{opacity}"/>')

    def dot(self, x, y, colour, opacity=1.0):
        at, height = self.place(x, y)
        self.lines.append(f'<circle cx="{at:.1f}" cy="{height:.1f}" r="2.4" fill="{colour}" opacity="{opacity}"/>')

    def zero(self, colour="#bbb"):
        if self.y[0] < 0 < self.y[1]:
            height = self.top + HEIGHT * self.y[1] / (self.y[1] - self.y[0])
            self.lines.append(f'<line x1="{self.left}" y1="{height:.1f}" x2="{self.left + WIDTH}" y2="{height:.1f}" stroke="{colour}"/>')

    def legend(self, entries):
        for row, (text, colour) in enumerate(entries):
            self.lines.append(f'<text x="{self.left + 6}" y="{self.top + 14 + 13 * row}" fill="{colour}" font-size="10">{text}</text>')


def picture(panels, columns, rows):
    width, height = LEFT + columns * (WIDTH + GAP), TOP + rows * (HEIGHT + GAP)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
             '<rect width="100%" height="100%" fill="white"/>']
    return "\n".join(lines + [line for panel in panels for line in panel.lines] + ["</svg>", ""])


def step_ticks(steps):
    return [(step, step) for step in steps[::3]]


def opacity(seed):
    return OPACITIES[min(seed, len(OPACITIES) - 1)]


def layer_means(run, column):
    return list(zip(run["curves"]["step"], (tables.mean(row) for row in run["curves"][column])))


def congestion(results):
    """A column an arm, a row a layer: gamma_eff with its interval beside its null (dashed), a line a seed; below them max/mean load."""
    arms, panels = tables.by_arm(results, tables.SPARSE), []
    loads = [load for runs in arms.values() for run in runs for _, load in layer_means(run, "load/max_mean")]
    layers = max((len(point["layers"]) for runs in arms.values() for run in runs for point in run["congestion"]), default=0)
    for column, (arm, runs) in enumerate(arms.items()):
        steps = runs[0]["curves"]["step"]
        for number in range(layers):
            panel = Panel(column, number, f"layer {number}, {tables.NAMES[arm]}: gamma_eff", (steps[0], steps[-1]), [], step_ticks(steps), log=True, y_range=GAMMAS)
            panel.zero()
            for run in runs:
                points, faint = [(point["step"], point["layers"][number]) for point in run["congestion"]], opacity(run["seed"])
                for step, layer in points:
                    if layer["gamma_ci"]:
                        panel.bar(step, *layer["gamma_ci"], COLOURS[arm], faint)
                panel.line([(step, layer["gamma_eff"]) for step, layer in points], COLOURS[arm], opacity=faint)
                panel.line([(step, layer["gamma_null"]) for step, layer in points], "#333", dashed=True, opacity=faint)
            panels.append(panel)
        load = Panel(column, layers, f"{tables.NAMES[arm]}: largest over mean load", (steps[0], steps[-1]), [1.0, *loads], step_ticks(steps), log=True)
        for run in runs:
            load.line(layer_means(run, "load/max_mean"), COLOURS[arm], opacity=opacity(run["seed"]))
        panels.append(load)
    return picture(panels, max(1, len(arms)), layers + 1)


def over_training(results, place, title, arms, column, null=None):
    """Mean over layers and seeds with the range of seeds, an arm a colour; its null dashed."""
    arms = {arm: runs for arm, runs in tables.by_arm(results, arms).items() if column in runs[0]["curves"]}
    every = [value for runs in arms.values() for run in runs for name in (column, null) if name for _, value in layer_means(run, name)]
    steps = results["runs"][0]["curves"]["step"]
    panel = Panel(*place, title, (steps[0], steps[-1]), every, step_ticks(steps), log=True)
    panel.zero()
    for arm, runs in arms.items():
        for name in filter(None, (column, null)):
            rows = list(zip(*(layer_means(run, name) for run in runs)))
            panel.line([(row[0][0], tables.mean([y for _, y in row])) for row in rows], COLOURS[arm], dashed=name == null)
            for row in rows:
                there = [y for _, y in row if y is not None]
                if len(there) > 1:
                    panel.bar(row[0][0], min(there), max(there), COLOURS[arm], 0.5)
    panel.legend([(tables.NAMES[arm], COLOURS[arm]) for arm in arms])
    return panel


def rank_panel(results, place):
    names = list(tables.SCORES)
    panel = Panel(*place, "rank correlation of scores with knock-out loss", (-0.6, len(names) - 0.4), [-1, 1.4],
                  [(at, text.split()[0], at % 2) for at, text in enumerate(tables.SCORES.values())])
    panel.zero()
    for side, (arm, runs) in enumerate(tables.by_arm(results, tables.SPARSE).items()):
        for at, name in enumerate(names):
            x = at + 0.3 * side - 0.15
            middle, half = tables.student(tables.rhos(runs, name))
            if middle is not None and half is not None:
                panel.bar(x, max(-1, middle - half), min(1, middle + half), COLOURS[arm])
            for run in runs:
                rho = run["model"]["rank_correlations"].get(name, {}).get("rho")
                if rho is not None:
                    panel.dot(x, rho, COLOURS[arm], opacity(run["seed"]))
    panel.legend([(tables.NAMES[arm], COLOURS[arm]) for arm in tables.by_arm(results, tables.SPARSE)])
    return panel


def scatter(results, place, score, title):
    """An expert a dot: its score over the layer's mean against what the loss gains without it; the largest losses at the upper edge."""
    dots = []
    for run in tables.of_arms(results, tables.SPARSE):
        for layer in run["layers"]:
            values = layer.get("scores", {}).get(score) or []
            middle = tables.mean(values)
            dots += [(value / middle, loss, run["arm"]) for value, loss in zip(values, layer["knock_out"]["loss"]) if middle and loss is not None]
    most = max((x for x, _, _ in dots), default=1.0)
    losses = sorted(y for _, y, _ in dots) or [0.0, 1.0]
    panel = Panel(*place, title, (0, most), [], [(0, 0), (1, "mean"), (most, f"{most:.1f}")], y_range=(losses[0] - 0.002, 1.2 * losses[int(0.95 * (len(losses) - 1))] + 0.002))
    panel.zero()
    for x, y, arm in dots:
        panel.dot(x, y, COLOURS[arm], 0.6)
    return panel


def all_of(results):
    """{file name: SVG}"""
    return {
        "congestion.svg": congestion(results),
        "lens_scores.svg": picture([
            over_training(results, (0, 0), "top-1 cosine without residual; unrelated experts dashed", tables.SPARSE, "lens/cosine", "lens/cosine_unrelated"),
            over_training(results, (1, 0), "images with the same first class", tables.FUSED + tables.SPARSE, "lens/agreement"),
            rank_panel(results, (2, 0)),
            scatter(results, (0, 1), "frequency", "frequency against loss without the expert"),
            scatter(results, (1, 1), "msan", "MSAN against loss without the expert"),
            scatter(results, (2, 1), "rsd", "RSD against loss without the expert")], 3, 2),
        "fused.svg": picture([
            over_training(results, (0, 0), "kappa, conflict of classes", tables.NAMES, "interference/kappa"),
            over_training(results, (1, 0), "NMI of virtual experts; random directions dashed", tables.FUSED, "fused/nmi_sample", "fused/nmi_random_mean"),
            over_training(results, (2, 0), "functional diversity", tables.FUSED, "fused/functional_diversity")], 3, 1),
    }
