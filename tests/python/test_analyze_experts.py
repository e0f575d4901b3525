"""What the loss would choose, the landscape around fused experts and how alike experts are, against PyTorch and scipy on the stored weights."""

import numpy
import pytest

from programs import call, checkpoints, tensors  # noqa: F401
from test_analyze_run import BATCH, BATCHES, CLASSES, DEPTH, held_out, logits, mlp, reports, runs, weights  # noqa: F401

torch = pytest.importorskip("torch")
scipy_optimize = pytest.importorskip("scipy.optimize")
F = torch.nn.functional

NAMES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
M, K, N = 4, 2, 3


# ---- top-k layers


def chosen_gates(w, i, x):
    scores = x @ w[f"blocks.{i}.mlp.router.weight"].T
    values, chosen = scores.topk(K)
    return chosen, values.softmax(-1)


def all_outputs(w, i, x):
    return torch.stack([mlp(x, *(w[f"blocks.{i}.mlp.experts.{name}"][k] for name in NAMES)) for k in range(M)], -2)


def mixed(outputs, chosen, gates):
    return (outputs.gather(-2, chosen[..., None].expand(*chosen.shape, outputs.shape[-1])) * gates[..., None]).sum(-2)


@pytest.fixture(scope="module")
def scores(runs):
    """[block]: what each token chose, and s_k(t) = -<dL/dy, f_k - y> of all experts, by autograd in double precision."""
    w, (images, labels), seen, outputs = weights(runs["topk"]), held_out(runs), {}, []

    def ffn(i, x):
        chosen, gates = chosen_gates(w, i, x)
        all_of_them = all_outputs(w, i, x)
        y = mixed(all_of_them, chosen, gates)
        if not y.requires_grad:
            y.requires_grad_()
        outputs.append(y)
        seen[i] = {"chosen": chosen, "gates": gates, "all": all_of_them.detach(), "y": y.detach()}
        return y

    loss = F.cross_entropy(logits(w, images, ffn), labels, reduction="sum")
    for i, delta in enumerate(torch.autograd.grad(loss, outputs)):
        difference = seen[i]["all"] - seen[i]["y"][..., None, :]
        seen[i]["scores"] = -(difference * delta[..., None, :]).sum(-1)
        seen[i]["sizes"] = difference.norm(dim=-1)
        seen[i]["seen"] = delta.ne(0).any(-1)
    return seen


def test_virtual_scores_and_the_agreement_with_the_router_are_pytorchs(reports, runs, scores):
    labels = held_out(runs)[1]
    for i, layer in enumerate(reports["topk"]["layers"]):
        found, one = layer["virtual"], scores[i]
        seen = one["seen"]
        s, first, chosen = one["scores"][seen], one["chosen"][seen][:, 0], one["chosen"][seen]
        label = labels[:, None].expand(seen.shape)[seen]
        best = s.argmax(1)
        assert found["tokens"] == len(s) == (BATCH * BATCHES * 5 if i == 0 else BATCH * BATCHES)  # in the last block the class token alone
        assert found["ties"] == 0
        share = lambda of: (numpy.bincount(of, minlength=M) / len(s)).tolist()  # noqa: E731
        assert found["load"] == pytest.approx(share(best), abs=2e-3)
        assert found["unit_load"] == pytest.approx(share((s / one["sizes"][seen]).argmax(1)), abs=2e-3)
        soft = (s / s.std(1, correction=0, keepdim=True)).softmax(1).mean(0)
        assert found["soft_load"] == pytest.approx(soft.tolist(), abs=1e-3)
        assert sum(found["random_load"]) == pytest.approx(1) and sum(found["random_soft_load"]) == pytest.approx(1)
        assert found["agreement"] == pytest.approx((best == first).double().mean().item(), abs=2e-3)
        assert found["among_chosen"] == pytest.approx((chosen == best[:, None]).any(1).double().mean().item(), abs=2e-3)
        assert found["agreement_chance"] == 1 / M and found["among_chosen_chance"] == K / M
        assert found["agreement_independent"] == pytest.approx(numpy.dot(share(best), share(first)), abs=2e-3)
        majority = torch.stack([torch.bincount(first[label == c], minlength=M).argmax() for c in range(CLASSES)])[label]
        assert found["agreement_majority"] == pytest.approx((best == majority).double().mean().item(), abs=2e-3)
        for name in ("agreement", "agreement_majority", "among_chosen"):
            low, high = found[f"{name}_ci"]
            assert low <= found[name] <= high
        table = torch.zeros(M, CLASSES, dtype=torch.long).index_put_((best, label), torch.ones_like(best), accumulate=True)
        assert numpy.abs(numpy.array(found["table"]) - table.numpy()).sum() <= 4
        by_class = [s[label == c].mean(0).tolist() for c in range(CLASSES)]
        assert numpy.array(found["class_score"]).T == pytest.approx(numpy.array(by_class), abs=1e-5)
        assert found["nmi_random_sd"] > 0 and found["nmi_shuffle_sd"] > 0 and 0 <= found["nmi"] <= 1


def test_other_routes_cost_what_pytorch_says(reports, runs, scores):
    w, (images, labels) = weights(runs["topk"]), held_out(runs)
    losses = []

    def loss(block=None):
        def ffn(i, x):
            chosen, gates = chosen_gates(w, i, x)
            if i == block:
                chosen = scores[i]["scores"].topk(K).indices
            return mixed(all_outputs(w, i, x), chosen, gates)
        return F.cross_entropy(logits(w, images, ffn), labels).item()

    for i, layer in enumerate(reports["topk"]["layers"]):
        losses.append(loss(i) - loss())
        assert layer["oracle_route"]["loss"] == pytest.approx(losses[-1], abs=2e-4)
        low, high = layer["oracle_route"]["loss_ci"]
        assert low <= layer["oracle_route"]["loss"] <= high
        assert layer["random_route"]["loss"] > layer["oracle_route"]["loss"]
    assert max(map(abs, losses)) > 1e-3


# ---- fused sets


@pytest.fixture(scope="module")
def fused(runs):
    """The weights, and of each block the experts' stacked tensors and a."""
    experts = weights(runs["memory"], "experts.safetensors")
    return weights(runs["memory"]), [([experts[f"blocks.{i}.mlp.{name}"] for name in NAMES], experts[f"blocks.{i}.mlp.a"]) for i in range(DEPTH)]


def dense(w, changed=None):
    """`changed`: (block, its FFN's tensors)."""
    def ffn(i, x):
        return mlp(x, *(changed[1] if changed and changed[0] == i else [w[f"blocks.{i}.mlp.{name}"] for name in NAMES]))
    return ffn


def sum_of(stacked, a):
    return [torch.tensordot(a, one, 1) for one in stacked]


def test_prices_and_their_slopes_are_autograds(reports, runs, fused):
    w, sets = fused
    images, labels = held_out(runs)
    for i, layer in enumerate(reports["memory"]["layers"]):
        stacked, a = sets[i]
        a = a.double()

        def loss(weights_now, first=0, last=BATCH * BATCHES):
            return F.cross_entropy(logits(w, images[first:last], dense(w, (i, sum_of(stacked, weights_now)))), labels[first:last])

        price = torch.autograd.functional.jacobian(loss, a)
        assert layer["fused"]["price"] == pytest.approx(price.tolist(), abs=1e-5)
        assert layer["fused"]["alpha_saliency"] == pytest.approx((-a * price).tolist(), abs=1e-5)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # it has second derivatives
            halves = [torch.autograd.functional.hessian(lambda x, b=b: loss(x, b * BATCH, (b + 1) * BATCH), a) for b in (0, 1)]
        gamma = (halves[0] + halves[1]) / 2
        scale = gamma.abs().max().item()
        found = layer["curvature"]
        assert numpy.array(found["gamma"]) == pytest.approx(gamma.numpy(), abs=1e-4 * scale)
        assert found["asymmetry"] < 1e-3
        centred = torch.eye(N, dtype=torch.float64) - 1 / N
        expected = [torch.trace(centred @ one @ centred).item() / (N - 1) for one in (gamma, *halves)]
        assert [found["gamma_fus"], *found["gamma_fus_halves"]] == pytest.approx(expected, abs=1e-4 * scale)
        assert len(found["random"]) == 3 and found["random_sd"] > 0
    assert {"rho", "ci"} == set(reports["memory"]["model"]["rank_correlations"]["alpha_saliency"])


def test_barriers_are_those_of_the_line_between_two_experts(reports, runs, fused):
    w, sets = fused
    images, labels = (of[:4 * BATCH] for of in held_out(runs))
    for i, layer in enumerate(reports["memory"]["layers"]):
        found = layer["barrier"]
        assert found["pairs"] == [[0, 1], [1, 2], [0, 2]] and found["images"] == 4 * BATCH
        for pair, barrier in zip(found["pairs"], found["loss"]):
            loss = []
            for part in (0, 0.25, 0.5, 0.75, 1):
                tensors_at = [part * one[pair[0]] + (1 - part) * one[pair[1]] for one in sets[i][0]]
                loss.append(F.cross_entropy(logits(w, images, dense(w, (i, tensors_at))), labels).item())
            line = numpy.linspace(loss[0], loss[4], 5)
            assert barrier == pytest.approx(max(0, (numpy.array(loss) - line).max()), abs=2e-5)
        assert len(found["random_loss"]) == 3 and min(found["random_loss"]) >= 0


def cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return ((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def aligned(one, other):
    """The largest cosine of two experts over orders of the hidden units, and how many of them stay."""
    rows = [torch.cat([w1, w2.T], 1) for w1, _, w2, _ in (one, other)]
    gain = (rows[0] @ rows[1].T).numpy()
    order = scipy_optimize.linear_sum_assignment(gain, maximize=True)
    return gain[order].sum() / (rows[0].norm() * rows[1].norm()).item(), (order[0] == order[1]).mean()


@pytest.mark.parametrize("kind", ["topk", "memory"])
def test_experts_are_as_alike_as_numpy_and_scipy_find_them(reports, runs, fused, scores, kind):
    w, inputs = weights(runs[kind]), {}
    if kind == "topk":
        def ffn(i, x):
            inputs[i] = x
            return mixed(all_outputs(w, i, x), *chosen_gates(w, i, x))
    else:
        def ffn(i, x):
            inputs[i] = x
            return dense(w)(i, x)
    logits(w, held_out(runs)[0], ffn)
    for i, layer in enumerate(reports[kind]["layers"]):
        found, x = layer["similarity"], inputs[i].flatten(0, 1)
        count = M if kind == "topk" else N
        stacked = [w[f"blocks.{i}.mlp.experts.{name}"] for name in NAMES] if kind == "topk" else fused[1][i][0]
        expert = lambda k: [one[k] for one in stacked]  # noqa: E731
        y = ffn(i, inputs[i]).flatten(0, 1)
        assert found["tokens"] == len(x) and found["p_over_n"] == pytest.approx(x.shape[1] / len(x))
        assert len(found["pairs"]) == count * (count - 1) // 2
        for p, (j, k) in enumerate(found["pairs"]):
            outputs = [mlp(x, *expert(one)) for one in (j, k)]
            assert found["cka"][p] == pytest.approx(cka(*outputs), abs=1e-4)
            assert found["cka_offset"][p] == pytest.approx(cka(*(one - y for one in outputs)), abs=1e-4)
            cosine, stay = aligned(expert(j), expert(k))
            assert found["aligned_cosine"][p] == pytest.approx(cosine, abs=1e-6)
            assert found["aligned_cosine_in_place"][p] == pytest.approx(stay, abs=1e-9)
            assert 0 < found["aligned_random"][p] < 1
        assert found["cka_shuffled_mean"] < 0.3
        assert found["aligned_cosine_mean"] == pytest.approx(numpy.mean(found["aligned_cosine"]))


def test_the_summary_says_it_in_sentences(call, runs, tmp_path):  # noqa: F811
    for kind, words in (("topk", ("the loss would choose the router's first expert for", "random experts cost", "CKA of experts' outputs")),
                        ("memory", ("price rises by", "Highest barrier between two experts", "weight cosine with matched units"))):
        call("analyze", checkpoints(runs[kind])[-1], "--batches", "4", "-o", tmp_path / kind, check=True, env={"OMP_NUM_THREADS": "1"})
        page = (tmp_path / kind / "analysis.md").read_text()
        for word in words:
            assert word in page, page
