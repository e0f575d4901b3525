"""results.md of the study: from the content of results.json to Markdown, paper by paper."""
import math
import statistics

from scipy import stats

NAMES = {"dense": "dense", "static": "static", "learned": "learned", "memory": "memory", "topk": "top-k, balance loss 0.01",
         "topk_free": "top-k, no balance loss"}
FUSED, SPARSE = ("static", "learned", "memory"), ("topk", "topk_free")
SCORES = {"frequency": "frequency (0,0,0)", "seer": "SEER (0,1,0)", "ean": "EAN (0,0,1)", "reap": "REAP (1,1,1)", "man": "MAN (1,0,1)",
          "msan": "MSAN (1,0,2)", "gate_norm": "(0,1,1)", "gate_norm_sq": "(0,2,2)", "rsd": "RSD", "taylor": "Taylor"}


# ---- numbers and rows


def defined(values):
    return [value for value in values if value is not None]


def mean(values):
    values = defined(values)
    return statistics.fmean(values) if values else None


def number(value, digits=2, sign=False):
    if value is None:
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def interval(pair, digits=2):
    return "" if pair is None else f" [{pair[0]:.{digits}f}, {pair[1]:.{digits}f}]"


def span(values, digits=2):
    """mean (least to largest)"""
    values = defined(values)
    if not values:
        return "-"
    return f"{statistics.fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def student(values):
    """(mean, half of the 95 % interval) of independent values; no interval of fewer than two."""
    values = defined(values)
    if not values:
        return None, None
    if len(values) < 2:
        return values[0], None
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def with_interval(values, digits=2):
    middle, half = student(values)
    if middle is None:
        return "-"
    return f"{middle:+.{digits}f}" + (f" [{middle - half:+.{digits}f}, {middle + half:+.{digits}f}]" if half is not None else "")


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def of_arms(results, arms):
    """Runs of these arms that are there, arm by arm."""
    return [run for arm in arms for run in results["runs"] if run["arm"] == arm]


def by_arm(results, arms):
    found = {arm: [run for run in results["runs"] if run["arm"] == arm] for arm in arms}
    return {arm: runs for arm, runs in found.items() if runs}


def at_end(runs, column):
    """The last row of a column: every layer of every run."""
    return [value for run in runs if column in run["curves"] for value in run["curves"][column][-1]]


def layer_mean(run, column, row):
    return mean(run["curves"][column][row])


# ---- the runs


def performance(results):
    rows = []
    for arm, runs in by_arm(results, NAMES).items():
        rows.append([NAMES[arm], ", ".join(number(100 * run["curves"]["validation/accuracy"][-1]) for run in runs),
                     number(mean([100 * run["curves"]["validation/accuracy"][-1] for run in runs])),
                     number(mean([run["curves"]["validation/loss"][-1] for run in runs]), 4),
                     number(mean([run["model"]["held_out"]["loss"] for run in runs]), 4)])
    return table(["arm", "validation accuracy, %, by seed", "mean", "validation loss", "loss on the images of the analyses"], rows)


# ---- A: congestion


def middle(point, field):
    """Median over the layers with a value: means are at the mercy of one layer whose load hardly depends on quality."""
    values = defined(layer[field] for layer in point["layers"])
    return statistics.median(values) if values else None


def congestion_rows(results):
    rows = []
    for run in of_arms(results, SPARSE):
        there = [at for at, point in enumerate(run["congestion"]) if middle(point, "gamma_eff") is not None]
        highest = max(there, key=lambda at: middle(run["congestion"][at], "gamma_eff"), default=None)
        for word, at in (("first", there[0]), ("peak", highest), ("last", there[-1])) if there else ():
            point = run["congestion"][at]
            rows.append([NAMES[run["arm"]], run["seed"], f"{word}: {point['step']}", len(defined(layer["gamma_eff"] for layer in point["layers"])),
                         number(point["gamma_eff"]) + interval(point["gamma_ci"]), number(point["gamma_null"]),
                         number(point["gamma_excess"]) + interval(point["gamma_excess_ci"]), number(middle(point, "gamma_eff")),
                         number(middle(point, "gamma_null")), number(middle(point, "gamma_excess")), number(middle(point, "temperature"), 3),
                         number(layer_mean(run, "load/max_mean", at))])
    return table(["arm", "seed", "step", "layers with an estimate", "gamma_eff, mean of layers", "gamma_null", "excess", "gamma_eff, median of layers",
                  "gamma_null", "excess", "T", "max/mean load"], rows)


def side(pair):
    """1: the interval lies above 0; -1: below; 0: neither, or there is none."""
    return 0 if pair is None else (pair[0] > 0) - (pair[1] < 0)


def claims(results):
    """Layers with an excess above 0 and below 0, per step, summed over seeds."""
    arms = by_arm(results, SPARSE)
    if not arms:
        return ""
    steps = [point["step"] for point in next(iter(arms.values()))[0]["congestion"]]
    rows = []
    for arm, runs in arms.items():
        cells = []
        for at in range(len(steps)):
            sides = [side(layer["gamma_excess_ci"]) for run in runs for layer in run["congestion"][at]["layers"]]
            known = sum(layer["gamma_excess_ci"] is not None for run in runs for layer in run["congestion"][at]["layers"])
            cells.append(f"{sides.count(1)}, {sides.count(-1)} of {known}")
        rows.append([NAMES[arm], *cells])
    return table(["arm", *(f"step {step}" for step in steps)], rows)


def claims_at_end(results):
    rows = []
    for run in of_arms(results, SPARSE):
        for layer in run["layers"]:
            word = {1: "congestion", -1: "more concentrated than its logits explain", 0: "nothing beyond logit spread"}[side(layer["gamma_excess_ci"])]
            rows.append([NAMES[run["arm"]], run["seed"], layer["layer"], number(layer["gamma_eff"]) + interval(layer["gamma_ci"]),
                         number(layer["gamma_null"]), number(layer["gamma_excess"]) + interval(layer["gamma_excess_ci"]),
                         word if layer["gamma_excess_ci"] else "no interval", number(layer["gamma_probe"]),
                         " ".join(number(layer["gamma_by_quality"][q], 1) for q in ("q1", "q2", "q3", "q4")),
                         " ".join(number(layer["gamma_null_by_quality"][q], 1) for q in ("q1", "q2", "q3", "q4"))])
    return table(["arm", "seed", "layer", "gamma_eff", "gamma_null", "excess", "verdict", "probe", "by q1 to q4", "their nulls"], rows)


def balance_effect(results):
    """The same seed with and without balance loss, at the end; gamma_eff, excess and T median of layers, the others mean."""
    arms, rows = by_arm(results, SPARSE), []
    if len(arms) < 2:
        return ""
    for balanced, free in zip(*(arms[arm] for arm in SPARSE)):
        last, plain = balanced["congestion"][-1], free["congestion"][-1]
        cells = [f"{number(middle(last, name), digits)}, {number(middle(plain, name), digits)}" for name, digits in (("gamma_eff", 2), ("gamma_excess", 2), ("temperature", 3))]
        cells += [", ".join(number(layer_mean(run, column, -1), digits) for run in (balanced, free))
                  for column, digits in (("load/max_mean", 2), ("load/cv", 3), ("load/dead", 2), ("congestion/sigma", 2), ("congestion/sigma_bias", 2))]
        rows.append([balanced["seed"], *cells])
    price = results["balance_loss"] * results["experts"]
    return (f"With balance loss, without it (first three: median of layers, others: mean). The explicit price of the loss is {price:.2f} (shares that "
            f"sum to 1) or {price * results['top_k']:.2f} (to k), reconstructed.\n\n"
            + table(["seed", "gamma_eff", "excess", "T", "max/mean load", "cv", "dead experts", "sigma", "spread of mean logits"], rows))


def estimators(results):
    """Do two estimates of quality tell the same story? Pearson's r over steps, of the mean over layers in which both are defined."""
    rows = []
    for run in of_arms(results, SPARSE):
        pairs = []
        for point in run["congestion"]:
            both = [(layer["q1"], layer["gamma_eff"]) for layer in point["layers"] if None not in (layer["q1"], layer["gamma_eff"])]
            if both:
                pairs.append([mean(values) for values in zip(*both)])
        varies = len(pairs) > 2 and all(len(set(values)) > 1 for values in zip(*pairs))
        r = stats.pearsonr(*zip(*pairs))[0] if varies else None
        opposed = sum((a > 0) != (b > 0) for a, b in pairs)
        rows.append([NAMES[run["arm"]], run["seed"], len(pairs), number(r), opposed])
    return table(["arm", "seed", "steps", "r of gamma by q1 (log mean probability) and q2 (mean logit)", "steps with opposite signs"], rows)


def phase_words(phases):
    if not phases or phases["breaks"] is None:
        return "undefined", "", ""
    return (phases["breaks"], ", ".join(f"{step:.0f}" for step in phases["break_steps"]) or "-",
            "; ".join(f"{slope:+.2f}" for slope in phases["slopes"]))


def phases(results):
    rows = []
    for run in of_arms(results, SPARSE):
        for name in ("gamma_eff", "max_mean"):
            found = run["model"].get("phases", {}).get(name)
            breaks, steps, slopes = phase_words(found)
            p = ", ".join(number(one, 3) for one in found["p"]) if breaks != "undefined" else ""
            rows.append([NAMES[run["arm"]], run["seed"], name, len(found["steps"]) if found else 0, breaks, steps, slopes, p,
                         found.get("best_by_bic", "") if found else ""])
    return table(["arm", "seed", "curve", "points", "breaks claimed", "at step", "slopes per e-fold", "p of 1 against 0, 2 against 1", "breaks by BIC alone"], rows)


def held_out_load(results):
    rows = []
    kinds = ("mfg", "softmax_t", "softmax_1", "mean_prob", "multi_type", "uniform", "half_vs_half")
    for arm, runs in by_arm(results, SPARSE).items():
        layers = [layer for run in runs for layer in run["layers"]]
        rows.append([NAMES[arm], *(number(mean([layer["heldout_l1"][kind] for layer in layers]), 4) for kind in kinds)])
    return table(["arm", *kinds], rows)


def types(results):
    rows = []
    for arm, runs in by_arm(results, SPARSE).items():
        found = [row for run in runs for layer in run["layers"] for row in layer.get("multi_type", [])]
        for count in sorted({row["types"] for row in found}):
            some = [row for row in found if row["types"] == count]
            rows.append([NAMES[arm], count, span([100 * row["improvement"] for row in some], 0),
                         span([100 * row["improvement_random_partition"] for row in some], 0)])
    return table(["arm", "types", "improvement over one type, %", "of a random partition, %"], rows)


# ---- B: lens


def cosines(results):
    rows = []
    for arm, runs in by_arm(results, FUSED + SPARSE).items():
        cells = [span(at_end(runs, f"lens/{name}")) for name in
                 ("cosine", "cosine_unrelated", "cosine_shuffled", "cosine_residual", "cosine_unrelated_residual", "cosine_shuffled_residual", "output_ratio")]
        rows.append([NAMES[arm], *cells])
    return table(["arm", "cosine", "null: unrelated", "null: other token", "with residual", "null: unrelated", "null: other token", "output / residual"], rows)


def lens(results):
    rows = []
    for arm, runs in by_arm(results, FUSED + SPARSE).items():
        for layer in range(len(runs[0]["layers"])):
            rows.append([NAMES[arm], layer, *(span([run["curves"][f"lens/{name}"][-1][layer] for run in runs], digits)
                                              for name, digits in (("cosine", 2), ("cosine_unrelated", 2), ("agreement", 3), ("divergence", 4)))])
    return table(["arm", "layer", "cosine", "null: unrelated", "same first class", "KL, nats"], rows)


def sweep(results):
    rows = []
    for arm, runs in by_arm(results, SPARSE).items():
        for way in ("as_is", "renormalised"):
            gates = [run["model"]["lens_gates"] for run in runs]
            for k in range(results["top_k"]):
                losses, change = [one[f"loss_{way}"][k] for one in gates], [one[f"loss_{way}"][k] - one[f"loss_{way}"][-1] for one in gates]
                rows.append([NAMES[arm], way.replace("_", " "), k + 1, ", ".join(number(loss, 4) for loss in losses),
                             number(100 * (math.exp(mean(change)) - 1), 1, True), ", ".join(number(100 * one[f"accuracy_{way}"][k], 2) for one in gates)])
    return table(["arm", "gates", "k'", "loss, by seed", "perplexity, % more", "accuracy, %, by seed"], rows)


def concentration(results):
    rows = []
    for arm, runs in by_arm(results, SPARSE).items():
        layers = [layer for run in runs for layer in run["layers"]]
        every = {name: [value for layer in layers for value in layer["domains"][name]] for name in ("n50", "exp_h", "max_specialisation")}
        above = {name: sum(layer[name]["z"] is not None and layer[name]["z"] > 3 for layer in layers) for name in ("label_shuffle", "random_router")}
        rows.append([NAMES[arm], span(every["n50"], 1), span(every["exp_h"], 1), span(every["max_specialisation"]), span([layer["nmi"]["sqrt"] for layer in layers], 3),
                     span([layer["random_router"]["null_mean"] for layer in layers], 3), f"{above['random_router']} of {len(layers)}", f"{above['label_shuffle']} of {len(layers)}"])
    return table(["arm", "n50 of a class", "exp H", "largest share of a class's tokens", "NMI of class and expert", "NMI of random routers",
                  "layers with z > 3: random router", "label shuffle"], rows)


# ---- C: scores


def rhos(runs, score):
    return [layer["rank_correlations"].get(score, {}).get("rho") for run in runs for layer in run["layers"]]


def ranks(results):
    rows = []
    for score, name in SCORES.items():
        cells = []
        for arm, runs in by_arm(results, SPARSE).items():
            of_seeds = [run["model"]["rank_correlations"].get(score, {}) for run in runs]
            cells += [with_interval(rhos(runs, score)), "; ".join(number(one.get("rho")) + interval(one.get("ci")) for one in of_seeds)]
        rows.append([name, *cells])
    heads = [head for arm in by_arm(results, SPARSE) for head in (NAMES[arm], "by seed, mean of layers")]
    return table(["score", *heads], rows)


def paired(results):
    """Differences of rank correlations, layer by layer."""
    rows = []
    for less, more in (("frequency", "man"), ("frequency", "msan"), ("gate_norm", "msan"), ("msan", "rsd"), ("msan", "taylor"), ("frequency", "rsd")):
        cells = []
        for runs in [*by_arm(results, SPARSE).values(), of_arms(results, SPARSE)]:
            pairs = zip(rhos(runs, more), rhos(runs, less))
            cells.append(with_interval([a - b for a, b in pairs if a is not None and b is not None]))
        rows.append([f"{SCORES[more]} less {SCORES[less]}", *cells])
    return table(["difference of rho", *(NAMES[arm] for arm in by_arm(results, SPARSE)), "both"], rows)


def knock_outs(results):
    rows = []
    for run in of_arms(results, SPARSE):
        losses = [loss for layer in run["layers"] for loss in layer["knock_out"]["loss"]]
        sides = [side(pair) for layer in run["layers"] for pair in layer["knock_out"]["loss_ci"]]
        braess, interaction = run["model"]["braess"], run["model"]["interaction"]
        rows.append([NAMES[run["arm"]], run["seed"], span(losses, 4), f"{sides.count(1)} of {len(sides)}",
                     number(braess["share"]) + interval(braess["share_ci"]), braess["certain"], number(interaction["contrast"], 4), number(interaction["p"], 3)])
    return table(["arm", "seed", "loss more without an expert", "experts that certainly cost", "Braess share", "certainly better without",
                  "contrast, own classes less others", "p"], rows)


# ---- D: fused experts


def differences(results):
    rows = []
    for arm, runs in by_arm(results, FUSED).items():
        last = {name: [run["curves"][f"experts/{name}"][-1] for run in runs]
                for name in ("difference_ratio", "difference_predicted", "difference_cosine", "update_participation")}
        every = {name: [value for values in last[name] for value in (values if isinstance(values, list) else [values])] for name in last}
        apart = [ratio / expected - 1 for ratios, expected in zip(last["difference_ratio"], last["difference_predicted"]) for ratio in ratios]
        rows.append([NAMES[arm], span(every["difference_ratio"], 4), span(every["difference_predicted"], 4), f"{max(map(abs, apart)):.1e}",
                     f"{min(every['difference_cosine']):.6f}", span(every["update_participation"], 3)])
    return table(["arm", "norm(D) / at the start", "predicted", "largest deviation", "least cos(D, D at the start)", "update participation"], rows)


def fused_functions(results):
    rows = []
    for arm, runs in by_arm(results, FUSED).items():
        scores = at_end(runs, "fused/nmi_random_z")
        rows.append([NAMES[arm], span(at_end(runs, "fused/nmi_sample"), 3), span(at_end(runs, "fused/nmi_random_mean"), 3), span(scores, 1),
                     f"{sum(z > 3 for z in defined(scores))} of {len(scores)}", span(at_end(runs, "fused/functional_diversity"), 3),
                     span(at_end(runs, "fused/fusion_gap"), 3), span(at_end(runs, "fused/n_eff_a"), 3), span([run["curves"]["gap/loss"][-1] for run in runs], 5)])
    return table(["arm", "NMI of class and virtual expert", "of random directions", "z", "layers with z > 3", "functional diversity", "fusion gap", "experts in a, exp H",
                  "collapse gap, loss"], rows)


def leave_one_out(results):
    rows = []
    for run in of_arms(results, FUSED):
        layers = run["layers"]
        out = [loss for layer in layers for loss in defined(layer["knock_out"]["loss"])]
        alone = [loss for layer in layers for loss in defined(layer["alone"]["loss"])]
        interaction, braess = run["model"]["interaction"], run["model"]["braess"]
        rows.append([NAMES[run["arm"]], run["seed"], span(out, 5), span([layer["random_step"]["mean"] for layer in layers], 5),
                     ", ".join(number(layer["random_step"]["z"], 1) for layer in layers), number(braess["share"]) + interval(braess["share_ci"]),
                     span(alone, 4), span(run["model"]["alone"]["loss"], 4), number(interaction["contrast"], 4), number(interaction["p"], 3)])
    return table(["arm", "seed", "loss more without an expert", "random steps of that size", "z, by layer", "Braess share", "one expert alone in a layer", "in all layers",
                  "contrast, own classes less others", "p"], rows)


def conflict(results):
    rows = []
    for arm, runs in by_arm(results, NAMES).items():
        steps = runs[0]["curves"]["step"]
        cells = [span([layer_mean(run, "interference/kappa", at) for run in runs], 3) for at in (0, len(steps) // 2, -1)]
        own = span([layer_mean(run, "interference/kappa_of_expert", -1) for run in runs], 3) if arm in SPARSE else "-"
        rows.append([NAMES[arm], *cells, own])
    steps = results["runs"][0]["curves"]["step"]
    return table(["arm", *(f"kappa, step {steps[at]}" for at in (0, len(steps) // 2, -1)), "of single experts, at the end"], rows)


# ---- the page


def page(results):
    runs = results["runs"]
    images = runs[0]["model"]["held_out"]
    steps = runs[0]["curves"]["step"]
    parts = [
        "# What experts do while the quickstart trains: results",
        f"Written by study.py: {results['epochs']:g} epochs ({steps[-1]} steps), seeds 0 to {results['seeds'] - 1}, {len(steps)} points at steps "
        f"{', '.join(map(str, steps))}; {images['images']:.0f} validation images in {images['batches']} batches; top-k: {results['experts']} experts, "
        f"{results['top_k']} a token. Square brackets: 95 % intervals; round ones: least to largest over layers and seeds.",
        "## The runs", performance(results),
        "## A. Congestion", "Means over the layers with an estimate, intervals from batches resampled jointly: none where a "
        "layer's load hardly depends on quality, so that many resamples have no finite gamma. Such layers also rule the mean; the medians have no interval. Peak: of the median. T: "
        "temperature of the fit.",
        congestion_rows(results), "Layers (of all seeds) whose interval of the excess lies above 0 and below 0, of those that have one:", claims(results),
        "At the end, layer by layer, sigma from the sampled logits:", claims_at_end(results), "Phases of the mean over layers: breaks claimed by the bootstrap test, not by BIC.",
        phases(results), balance_effect(results), estimators(results), "Held-out L1 of predicted loads at the end, mean over layers and seeds:", held_out_load(results),
        "Token types against random partitions:", types(results),
        "## B. Lens", "One expert for the layer, at the end: the chosen one with the largest gate, the fused one with the largest a.", cosines(results), lens(results),
        "Only the k' largest gates, in all layers:", sweep(results), "Where the tokens of a class go (means over classes, layers and seeds):", concentration(results),
        "## C. Scores", "Spearman's rank correlation with knock-out loss, scores of even batches, losses of odd ones. First column of an arm: mean over layers and seeds, Student's interval "
        "over these as if independent; by seed: intervals from batches resampled.", ranks(results), "Paired, layer by layer:", paired(results), knock_outs(results),
        "## D. Fused experts", "D: differences of the experts from their mean.", differences(results), fused_functions(results), leave_one_out(results),
        "Conflict of classes, means over layers (over seeds: least to largest):", conflict(results)]
    return "\n\n".join(part for part in parts if part) + "\n"
