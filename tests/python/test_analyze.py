"""exfusion-analyze on traces that h5py writes with its defaults, and on CSVs of counts: public field names, reasons, bad input."""

import json

import h5py
import numpy as np
import pytest

from programs import call, refused  # noqa: F401

M, K, B, T, S, D = 8, 2, 6, 60, 20, 5


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def made_layer(rng, bias_sd=0.5, domains=None):
    """A Gaussian router with every field of the format."""
    bias = rng.normal(0, bias_sd, M)
    norms = rng.uniform(1, 3, M)
    rows = {name: [] for name in ("tokens count sum_prob sum_logit sum_logit_sq sum_gate sum_norm sum_norm_sq sum_gate_norm "
                                  "sum_gate_norm_sq logits batch hidden").split()}
    for batch in range(B):
        z = bias + rng.normal(0, 1, (T, M))
        chosen = np.argsort(-z, 1)[:, :K]
        routed = np.zeros((T, M), bool)
        np.put_along_axis(routed, chosen, True, 1)
        p = softmax(z)
        gate = p * routed
        norm = norms * routed
        for name, value in (("tokens", T), ("count", routed.sum(0)), ("sum_prob", p.sum(0)), ("sum_logit", z.sum(0)),
                            ("sum_logit_sq", (z * z).sum(0)), ("sum_gate", gate.sum(0)), ("sum_norm", norm.sum(0)),
                            ("sum_norm_sq", (norm**2).sum(0)), ("sum_gate_norm", (gate * norm).sum(0)),
                            ("sum_gate_norm_sq", ((gate * norm)**2).sum(0)), ("logits", z[:S].astype(np.float32)),
                            ("batch", np.full(S, batch, np.int32)), ("hidden", rng.normal(0, 1, (S, D)).astype(np.float32))):
            rows[name].append(value)
    layer = {name: np.concatenate(value) if name in ("logits", "batch", "hidden") else np.array(value) for name, value in rows.items()}
    layer["selection_bias"] = np.zeros(M)
    layer["domain"] = np.arange(B, dtype=np.int32) % 2
    return layer


@pytest.fixture
def layers():
    rng = np.random.default_rng(0)
    return {0: made_layer(rng), 3: made_layer(rng)}


def write_trace(path, layers, **attributes):
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "exfusion-trace", "version": 1, "num_experts": M, "top_k": K, **attributes})
        for number, fields in layers.items():
            group = file.create_group(f"layer_{number:03}")
            for name, value in fields.items():
                group[name] = value
    return path


@pytest.fixture
def analyse(call, tmp_path):
    """analyse(layers, attributes): the JSON of a trace."""
    def analysed(layers, **attributes):
        return json.loads(call("analyze", write_trace(tmp_path / "trace.h5", layers, **attributes), "--json", check=True).stdout)
    return analysed


LAYER_FIELDS = ["layer", "gamma_eff", "gamma_ci", "gamma_estimator", "gamma_iv", "temperature", "gamma_null", "gamma_excess",
                "gamma_excess_ci", "gamma_probe", "gamma_by_quality", "heldout_l1", "imbalance", "undefined"]


def nulls(value, path=""):
    """Paths of all nulls in an object, lists left out."""
    if isinstance(value, dict):
        return {found for key, inner in value.items() if key != "undefined" for found in nulls(inner, f"{path}.{key}" if path else key)}
    return {path} if value is None else set()


def test_the_public_names_are_there(analyse, layers):
    report = analyse(layers, aux_loss_coef=0.01, domains=["code", "prose"], scores="softmax")
    assert list(report) == ["layers", "model"]
    assert [layer["layer"] for layer in report["layers"]] == [0, 3]
    for layer in report["layers"]:
        assert set(LAYER_FIELDS) <= set(layer)
        assert list(layer["gamma_by_quality"]) == ["q1", "q2", "q3", "q4"]
        assert list(layer["heldout_l1"]) == ["mfg", "softmax_t", "softmax_1", "uniform", "mean_prob", "multi_type", "half_vs_half"]
        assert list(layer["imbalance"]) == ["max_mean", "min_mean", "cv", "gini", "exp_h", "m_sum_sq"]
        assert layer["gamma_eff"] == layer["gamma_by_quality"]["q2"]
        assert layer["gamma_ci"][0] <= layer["gamma_eff"] <= layer["gamma_ci"][1]
        assert layer["gamma_excess"] == pytest.approx(layer["gamma_eff"] - layer["gamma_null"])
        assert layer["gamma_explicit"]["aux_share_sums_to_1"] == pytest.approx(0.01 * M)
    mean = np.mean([layer["gamma_eff"] for layer in report["layers"]])
    assert report["model"]["gamma_eff"] == pytest.approx(mean)


def test_every_null_has_a_reason_and_nothing_else_has(analyse, layers):
    full = analyse(layers)
    counts = analyse({0: {name: layers[0][name] for name in ("tokens", "count")}})
    for report in (full, counts):
        for part in report["layers"] + [report["model"]]:
            assert nulls(part) == set(part["undefined"]), part
    reasons = counts["layers"][0]["undefined"]
    for field, missing in (("gamma_eff", "sum_logit"), ("gamma_by_quality.q1", "sum_prob"), ("gamma_by_quality.q3", "sum_gate"),
                           ("gamma_by_quality.q4", "sum_gate_norm"), ("gamma_probe", "logits"), ("heldout_l1.mean_prob", "sum_prob")):
        assert missing in reasons[field] and "not in this trace" in reasons[field]


def test_imbalance_is_numpys(analyse, layers):
    counts = layers[0]["count"].sum(0)
    share = counts / counts.sum()
    found = analyse(layers)["layers"][0]["imbalance"]
    gini = np.abs(counts[:, None] - counts).sum() / (2 * M * counts.sum())
    assert found == pytest.approx({"max_mean": share.max() * M, "min_mean": share.min() * M, "cv": counts.std() / counts.mean(), "gini": gini,
                                   "exp_h": np.exp(-(share * np.log(share)).sum()), "m_sum_sq": M * (share**2).sum()}, rel=1e-12)


def test_the_headline_gamma_is_scipys_maximum_likelihood(analyse, layers):
    optimize = pytest.importorskip("scipy.optimize")
    counts = layers[0]["count"].sum(0)
    m = (counts + 0.5) / (counts.sum() + M / 2)
    q = layers[0]["sum_logit"].sum(0) / (B * T)

    def equilibrium(gamma):
        def balance(x):
            p = np.exp(q - gamma * np.exp(x))
            return x - np.log(p / p.sum())
        return optimize.root(balance, np.log(m), tol=1e-13).x

    best = optimize.minimize_scalar(lambda gamma: -(m @ equilibrium(gamma)), bounds=(-3, 10), method="bounded", options={"xatol": 1e-9}).x
    layer = analyse(layers)["layers"][0]
    assert layer["gamma_estimator"] == "E3"
    assert layer["gamma_eff"] == pytest.approx(best, abs=1e-3)


def test_sigma_is_numpys_and_says_when_it_is_uncentred(analyse, layers):
    z = layers[0]["logits"].astype(float)
    centred = z - z.mean(1, keepdims=True)
    layer = analyse(layers)["layers"][0]
    assert layer["sigma"] == pytest.approx(np.sqrt(centred.var(0, ddof=1).mean() * M / (M - 1)), rel=1e-9)
    assert not layer["sigma_uncentred"]
    without = {name: value for name, value in layers[0].items() if name not in ("logits", "batch", "hidden")}
    layer = analyse({0: without})["layers"][0]
    total = without["sum_logit"].sum(0) / (B * T)
    assert layer["sigma"] == pytest.approx(np.sqrt((without["sum_logit_sq"].sum(0) / (B * T) - total**2).mean()), rel=1e-9)
    assert layer["sigma_uncentred"]


def test_specialisation_is_sklearns_definition_in_numpy(analyse, layers):
    layer = analyse(layers, domains=["code", "prose"])["layers"][0]
    table = np.array([layers[0]["count"][layers[0]["domain"] == d].sum(0) for d in (0, 1)], float)
    for domain, row, name in zip(layer["domains"], table, ("code", "prose")):
        assert domain["domain"] == name
        assert domain["specialisation"] == pytest.approx(row / (T * B / 2))
        assert sum(domain["specialisation"]) == pytest.approx(K)
        assert domain["n50"] == np.searchsorted(np.cumsum(np.sort(row)[::-1]) / row.sum(), 0.5) + 1
    joint = table / table.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    information = (joint * np.log(joint / np.outer(rows, columns))).sum()
    entropies = [-(p * np.log(p)).sum() for p in (rows, columns)]
    assert layer["nmi"]["sqrt"] == pytest.approx(information / np.sqrt(np.prod(entropies)), rel=1e-9)
    assert layer["nmi"]["min"] == pytest.approx(information / min(entropies), rel=1e-9)


def test_scores_are_the_published_ones(analyse, layers):
    fields = {name: value.sum(0) for name, value in layers[0].items() if name.startswith("sum_") or name == "count"}
    scores = analyse(layers)["layers"][0]["scores"]
    for name, expected in (("frequency", fields["count"]), ("seer", fields["sum_gate"]), ("ean", fields["sum_norm"]),
                           ("reap", fields["sum_gate_norm"] / fields["count"]), ("man", fields["sum_norm"] / fields["count"]),
                           ("msan", fields["sum_norm_sq"] / fields["count"]), ("gate_norm", fields["sum_gate_norm"]),
                           ("gate_norm_sq", fields["sum_gate_norm_sq"])):
        assert scores[name]["values"] == pytest.approx(expected, rel=1e-12), name
    assert scores["msan"] | {"values": 0} == {"b": 1, "alpha": 0, "beta": 2, "values": 0}
    assert len([score for score in scores.values() if score]) == 18


def test_damages_and_taylor_sums_are_scores_where_they_are_there(analyse, layers):
    layers[0]["sum_rsd"], layers[0]["sum_taylor"] = layers[0]["count"] * 0.5, layers[0]["count"] * -0.25
    one, other = analyse(layers)["layers"]
    assert one["scores"]["rsd"] == {"values": list(layers[0]["count"].sum(0) * 0.5)}
    assert one["scores"]["taylor"] == {"values": list(layers[0]["count"].sum(0) * -0.25)}
    assert other["scores"]["rsd"] is None and other["undefined"]["scores.taylor"] == "sum_taylor is not in this trace"


def test_items_have_domains_as_batches_have(analyse, layers):
    of_batches = analyse(layers)["layers"][0]
    with_items()(layers[0])
    of_items = analyse(layers)["layers"][0]
    for name in ("domains", "nmi", "label_shuffle", "random_router"):
        assert of_items[name] == of_batches[name], name


def test_a_selection_bias_that_evens_out_loads_is_found_as_congestion(analyse):
    rng = np.random.default_rng(1)
    bias, batches, tokens = rng.normal(0, 0.5, M), 20, 200
    price = 0.5 * (bias - bias.mean()) / 4  # half of what the mean logits do to a sigmoid at 0
    z = bias + rng.normal(0, 1, (batches, tokens, M))
    score = 1 / (1 + np.exp(-z))

    def layer(selection_bias):
        chosen = np.argsort(-(score + selection_bias), 2)[:, :, :K]
        count = np.array([np.bincount(batch.ravel(), minlength=M) for batch in chosen])
        return {"tokens": np.full(batches, tokens), "count": count, "sum_logit": z.sum(1), "sum_logit_sq": (z * z).sum(1),
                "sum_prob": (score / score.sum(2, keepdims=True)).sum(1), "selection_bias": selection_bias,
                "logits": z[:, :50].reshape(-1, M).astype(np.float32), "batch": np.repeat(np.arange(batches, dtype=np.int32), 50)}

    plain, balanced = analyse({0: layer(np.zeros(M)), 1: layer(-price)}, scores="sigmoid")["layers"]
    assert plain["gamma_excess_ci"][0] < 0 < plain["gamma_excess_ci"][1]
    assert balanced["gamma_excess_ci"][0] > 0
    assert balanced["imbalance"]["cv"] < plain["imbalance"]["cv"]
    share = (layer(-price)["count"].sum(0) + 0.5) / (batches * tokens * K + M / 2)
    assert balanced["gamma_explicit"]["selection_bias"] == pytest.approx(np.cov(price, share)[0, 1] / share.var(ddof=1), rel=1e-9)


def test_attributes_and_integers_of_other_widths_are_read(analyse, layers):
    layers[0]["count"] = layers[0]["count"].astype(np.int32)
    report = analyse({0: layers[0]}, format=np.bytes_("exfusion-trace"), version=np.int32(1), num_experts=np.uint16(M), scores="sigmoid",
                     domains=np.array(["a", "b"], dtype="S3"))
    assert report["model"]["experts"] == M


def test_the_same_trace_gives_the_same_answer(analyse, layers):
    assert analyse(layers) == analyse(layers)


def test_a_folder_holds_the_json_its_hdf5_and_sentences(call, layers, tmp_path):
    done = call("analyze", write_trace(tmp_path / "trace.h5", layers), "-o", tmp_path / "out", "--json", check=True)
    report = json.loads(done.stdout)
    assert json.loads((tmp_path / "out/analysis.json").read_text()) == report
    with h5py.File(tmp_path / "out/analysis.h5") as file:
        assert file["layer_003/gamma_eff"][()] == report["layers"][1]["gamma_eff"]
        assert list(file["model/gamma_ci"]) == report["model"]["gamma_ci"]
    page = (tmp_path / "out/analysis.md").read_text()
    assert "- layer 3: gamma_eff " in page and "a router without congestion would show" in page
    assert "- layer 3: NMI of domain and expert " in page and "random routers on the same hidden states" in page
    assert "`scores.taylor`" in page


def test_the_folder_of_a_run_is_not_written_into(call, layers, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("seed: 0\n")
    refused(call("analyze", write_trace(tmp_path / "trace.h5", layers), "-o", run), "holds a run", str(run / "analysis"))
    assert [one.name for one in run.iterdir()] == ["recipe.yaml"]


def test_an_analysis_of_something_else_is_not_replaced(call, layers, tmp_path):
    out, trace = tmp_path / "out", write_trace(tmp_path / "trace.h5", layers)
    call("analyze", trace, "-o", out, check=True)
    written = (out / "analysis.md").read_bytes()
    assert json.loads((out / "analysis.json").read_text())["model"]["source"] == str(trace)
    other = write_trace(tmp_path / "other.h5", {0: layers[0]})
    refused(call("analyze", other, "-o", out), "out", str(trace), "choose another folder")
    assert (out / "analysis.md").read_bytes() == written
    call("analyze", out / "../trace.h5", "-o", out, check=True)
    link = tmp_path / "link.h5"
    link.symlink_to(trace)
    call("analyze", link, "-o", out, check=True)
    link.unlink()
    link.symlink_to(other)
    refused(call("analyze", link, "-o", out), "out", str(trace), "choose another folder")
    (out / "analysis.json").write_text("{}")
    refused(call("analyze", trace, "-o", out), "do not name")
    (out / "analysis.json").unlink()
    refused(call("analyze", trace, "-o", out), "do not name")
    refused(call("analyze", trace, "-o", other), "is a file")


def test_a_csv_of_counts_is_read(call, tmp_path):
    file = tmp_path / "counts.csv"
    file.write_text("layer,domain,expert,count\n" + "".join(f"{layer},{domain},{expert},{count}\n" for layer in (0, 2)
                                                            for domain, row in (("code", (5, 1, 0)), ("prose", (1, 1, 4)))
                                                            for expert, count in enumerate(row)))
    report = json.loads(call("analyze", file, "--json", check=True).stdout)
    assert [layer["layer"] for layer in report["layers"]] == [0, 2]
    assert report["layers"][0]["imbalance"]["max_mean"] == pytest.approx(1.5)
    assert report["layers"][0]["gamma_eff"] is None
    assert "not in this trace" in report["layers"][0]["undefined"]["gamma_eff"]


def test_a_domain_name_that_is_not_utf8_is_no_reason_to_fail(call, tmp_path):
    (tmp_path / "counts.csv").write_bytes(b"layer,domain,expert,count\n0,\xff,0,3\n0,\xff,1,1\n0,b,0,1\n0,b,1,2\n")
    report = json.loads(call("analyze", tmp_path / "counts.csv", "--json", "-o", tmp_path / "out", check=True).stdout)
    assert report["layers"][0]["domains"][0]["domain"] == "\ufffd"
    assert report["layers"][0]["nmi"]["sqrt"] > 0


# ---- bad input: one line, exit 2 ----

def changed(**fields):
    """Replaces fields of layer 0; None removes one, a function of the array makes the new one."""
    def change(layer):
        for name, value in fields.items():
            if value is None:
                del layer[name]
            else:
                layer[name] = value(layer[name].copy()) if callable(value) else value
    return change


def at(index, value):
    def put(array):
        array[index] = value
        return array
    return put


def with_items(**fields):
    """The batches' domains become those of items, one per batch; then as `changed`."""
    def change(layer):
        layer.update(item_domain=layer.pop("domain"), item_count=layer["count"].copy(), item=layer["batch"].copy())
        changed(**fields)(layer)
    return change


BAD_FIELDS = {
    "negative count": (changed(count=at((0, 0), -1)), "count[0, 0]"),
    "count beyond tokens": (changed(count=at((1, 2), T + 1)), "count[1, 2]"),
    "counts do not sum to K tokens": (changed(tokens=lambda tokens: tokens + 1), "count[0]"),
    "zero tokens": (changed(tokens=lambda tokens: tokens * 0, count=lambda count: count * 0), "tokens[0]"),
    "no counts": (changed(count=None), "count"),
    "no tokens": (changed(tokens=None), "tokens"),
    "float counts": (changed(count=lambda count: count.astype(float)), "count"),
    "integer probabilities": (changed(sum_prob=lambda p: p.astype(int)), "sum_prob"),
    "other number of experts": (changed(sum_prob=lambda p: p[:, 1:]), "sum_prob"),
    "other number of batches": (changed(sum_logit=lambda z: z[1:]), "sum_logit"),
    "other number of dimensions": (changed(count=lambda count: count.ravel()), "count"),
    "probabilities do not sum to tokens": (changed(sum_prob=lambda p: p * 1.01), "sum_prob[0]"),
    "NaN": (changed(sum_logit=at((2, 1), np.nan)), "sum_logit[2, 1]"),
    "infinite logit": (changed(logits=at((0, 0), np.inf)), "logits"),
    "NaN in hidden": (changed(hidden=at((3, 1), np.nan)), "hidden[3, 1]"),
    "negative norm": (changed(sum_norm=at((0, 3), -1.0)), "sum_norm[0, 3]"),
    "squares too small": (changed(sum_logit_sq=lambda squares: squares * 1e-6), "sum_logit_sq"),
    "batch out of range": (changed(batch=at(4, B)), "batch[4]"),
    "domain out of range": (changed(domain=at(1, 2)), "domain[1]"),
    "negative domain": (changed(domain=at(1, -1)), "domain[1]"),
    "logits without batch": (changed(batch=None, hidden=None), "batch"),
    "hidden without logits": (changed(logits=None, batch=None), "logits"),
    "empty batches": (changed(tokens=np.zeros(0, np.int64)), "tokens"),
    "bias of wrong size": (changed(selection_bias=np.zeros(M + 1)), "selection_bias"),
    "negative damage": (changed(sum_rsd=np.full((B, M), -1.0)), "sum_rsd[0, 0]"),
    "NaN in Taylor sums": (changed(sum_taylor=np.full((B, M), np.nan)), "sum_taylor[0, 0]"),
    "items without counts": (with_items(item_count=None), "item_count"),
    "items of the sample missing": (with_items(item=None), "`item`"),
    "items of other counts": (with_items(item_count=at((0, 0), 0)), "item_count"),
    "item without tokens": (with_items(item_count=at(2, 0)), "item_count[2]"),
    "item out of range": (with_items(item=at(2, B)), "item[2]"),
    "item's domain out of range": (with_items(item_domain=at(1, 2)), "item_domain[1]"),
}


@pytest.mark.parametrize("change, word", BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_bad_field_is_named(call, layers, tmp_path, change, word):
    change(layers[0])
    done = call("analyze", write_trace(tmp_path / "trace.h5", layers, domains=["a", "b"]), "--json")
    assert len(refused(done, word, "trace.h5")) == 1


BAD_ATTRIBUTES = {"format": "other", "version": 2, "num_experts": 1, "top_k": M + 1, "scores": "hard", "aux_loss_coef": -1.0, "domains": ["a", ""]}


@pytest.mark.parametrize("name, value", BAD_ATTRIBUTES.items(), ids=BAD_ATTRIBUTES)
def test_a_bad_attribute_is_named(call, layers, tmp_path, name, value):
    refused(call("analyze", write_trace(tmp_path / "trace.h5", layers, **{name: value}), "--json"), name.removesuffix("s"))


def test_a_single_expert_is_outside_of_the_bounds_that_are_documented(call, repo, tmp_path):
    with h5py.File(tmp_path / "trace.h5", "w") as file:
        file.attrs.update({"format": "exfusion-trace", "version": 1, "num_experts": 1, "top_k": 1})
    refused(call("analyze", tmp_path / "trace.h5", "--json"), "num_experts: must be 2 to 65536, is 1")
    assert "| `num_experts` | integer | M, 2 to 65536 |" in (repo / "docs/formats.md").read_text()


def test_files_that_are_no_trace_are_refused(call, layers, tmp_path):
    refused(call("analyze", tmp_path / "absent.h5", "--json"), "absent.h5")
    for name, text, word in (("empty.h5", "", "is empty"), ("words.h5", "layer,domain", "no HDF5 file, though its name says so")):
        (tmp_path / name).write_text(text)
        refused(call("analyze", tmp_path / name, "--json"), f"{name}: {word}")
    refused(call("analyze", write_trace(tmp_path / "empty.h5", {}), "--json"), "no layers")
    whole = write_trace(tmp_path / "trace.h5", layers).read_bytes()
    for length in (10, 600, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.h5").write_bytes(whole[:length])
        refused(call("analyze", tmp_path / "cut.h5", "--json"), "cut.h5")
    with h5py.File(tmp_path / "trace.h5", "a") as file:
        counts = file["layer_000/count"][()]
        del file["layer_000/count"]
        file["layer_000"].create_dataset("count", data=counts, compression="gzip")
    refused(call("analyze", tmp_path / "trace.h5", "--json"), "contiguous")


def test_damage_is_refused_or_harmless(call, layers, tmp_path):
    whole = write_trace(tmp_path / "trace.h5", {0: layers[0]}).read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(25):
        damaged = bytearray(whole)
        for place in rng.integers(0, 3000, 6):  # headers and attributes
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "damaged.h5").write_bytes(damaged)
        assert call("analyze", tmp_path / "damaged.h5", "--json").returncode in (0, 2)


BAD_CSV = {
    "layer,domain,expert\n": "layer,domain,expert,count",
    "layer,domain,expert,count\n": "no counts",
    "layer,domain,expert,count\n0,a,0,1\n0,a,0,1\n": ":3",
    "layer,domain,expert,count\n0,a,0,-1\n": "count",
    "layer,domain,expert,count\n0,a,99999999,1\n": "expert",
    "layer,domain,expert,count\n0,a,0,nan\n": ":2",
    "layer,domain,expert,count\n0,a,0,1\n": "single expert",
    "layer,domain,expert,count\n0,a,0,0\n0,a,1,0\n": "layer 0",
    "layer,domain,expert,count\n0,\"a\",0,1\n": ":2",
    "layer,domain,expert,count\n0,,0,1\n0,a,1,1\n": "counts.csv:2: a domain's name is empty",
    "layer,domain,expert,count\n0,a,0,1\n\n0,a,1,1\n": "counts.csv:3: an empty line",
}


@pytest.mark.parametrize("text, word", BAD_CSV.items())
def test_a_bad_csv_is_refused(call, tmp_path, text, word):
    (tmp_path / "counts.csv").write_text(text)
    refused(call("analyze", tmp_path / "counts.csv", "--json"), word)


def test_empty_lines_may_end_a_csv_and_a_byte_order_mark_begin_it(call, tmp_path):
    (tmp_path / "counts.csv").write_text("\ufefflayer,domain,expert,count\r\n0,a,0,1\r\n0,a,1,1\r\n\r\n\n")
    assert json.loads(call("analyze", tmp_path / "counts.csv", "--json", check=True).stdout)["model"]["experts"] == 2


def test_it_needs_something_to_do(call, layers, tmp_path):
    refused(call("analyze", write_trace(tmp_path / "trace.h5", layers)), "--json")
    refused(call("analyze"), "trace")
    refused(call("analyze", tmp_path / "none.h5"), "none.h5: no such file")
