"""experiments/hf_trace on tiny random models of transformers: every field against a loop over single tokens, padding, what analyze and prune read."""

import importlib.util
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from programs import call  # noqa: F401

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_mixtures import DIM, EXPERTS, MIXTURES, TOP_K, make_mixture, routed_blocks, token_batch  # noqa: E402


@pytest.fixture(scope="module")
def hf_trace(repo):
    spec = importlib.util.spec_from_file_location("hf_trace", repo / "experiments" / "hf_trace" / "hf_trace.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fields(path):
    """{layer: {field: values}}, {attribute: value}"""
    with h5py.File(path) as file:
        return {int(name[6:]): {field: data[()] for field, data in group.items()} for name, group in file.items()}, dict(file.attrs)


def batches(count=4):
    return [(*token_batch(seed), seed % 2) for seed in range(count)]


def token_by_token(model, ids, mask):
    """What the trace must say of one batch, by a loop over tokens: router and experts written out from their tensors."""
    inputs = {}
    hooks = [block.register_forward_pre_hook(lambda block, args, layer=layer: inputs.update({layer: args[0].reshape(-1, DIM)}))
             for layer, block in routed_blocks(model).items()]
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    config, sums = model.config, {}
    sigmoid = config.model_type == "deepseek_v3"
    renormalised = config.model_type == "mixtral" or getattr(config, "norm_topk_prob", False)
    scale = getattr(config, "routed_scaling_factor", None) or 1.0
    for layer, block in routed_blocks(model).items():
        of = {name: np.zeros(EXPERTS) for name in
              "count sum_prob sum_logit sum_logit_sq sum_gate sum_norm sum_norm_sq sum_gate_norm sum_gate_norm_sq sum_rsd".split()}
        weight, up, down = (part.detach().double().numpy() for part in (block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj))
        bias = block.gate.e_score_correction_bias.double().numpy() if sigmoid else 0.0
        for x in inputs[layer].double().numpy()[mask.flatten().bool().numpy()]:
            z = weight @ x
            score = 1 / (1 + np.exp(-z)) if sigmoid else np.exp(z) / np.exp(z).sum()
            chosen = np.argsort(-(score + bias))[:TOP_K]
            gates = scale * score[chosen] / (score[chosen].sum() if renormalised else 1.0)
            of["sum_prob"] += score / score.sum()
            of["sum_logit"] += z
            of["sum_logit_sq"] += z * z
            outputs = []
            for e in chosen:
                a, b = np.split(up[e] @ x, 2)
                outputs.append(down[e] @ (a / (1 + np.exp(-a)) * b))
            for k, (e, g, f) in enumerate(zip(chosen, gates, outputs)):
                n, others = np.linalg.norm(f), np.where(np.arange(TOP_K) == k, 0, gates)
                damage = np.linalg.norm((others * gates.sum() / others.sum() - gates) @ outputs)
                for name, value in (("count", 1), ("sum_gate", g), ("sum_norm", n), ("sum_norm_sq", n * n), ("sum_gate_norm", g * n),
                                    ("sum_gate_norm_sq", (g * n)**2), ("sum_rsd", damage)):
                    of[name][e] += value
        sums[layer] = of
    return sums


@pytest.mark.parametrize("name", MIXTURES)
def test_every_sum_is_that_of_a_loop_over_tokens(hf_trace, tmp_path, name):
    model = make_mixture(name)
    hf_trace.record(model, batches(), tmp_path / "trace.h5", ["a", "b"])
    layers, attributes = fields(tmp_path / "trace.h5")
    assert list(layers) == list(routed_blocks(model))
    assert attributes["num_experts"] == EXPERTS and attributes["top_k"] == TOP_K
    assert attributes["scores"] == ("sigmoid" if name == "deepseek_v3" else "softmax")
    for b, (ids, mask, domain) in enumerate(batches()):
        for layer, expected in token_by_token(model, ids, mask).items():
            assert layers[layer]["tokens"][b] == mask.sum() and layers[layer]["domain"][b] == domain
            for field, values in expected.items():
                assert layers[layer][field][b] == pytest.approx(values, rel=1e-4, abs=1e-5), (layer, field)
            assert (layers[layer]["count"][b] == expected["count"]).all()
    assert ("selection_bias" in layers[2]) == (name == "deepseek_v3")
    if name == "deepseek_v3":
        assert layers[2]["selection_bias"] == pytest.approx(routed_blocks(model)[2].gate.e_score_correction_bias.numpy())


def test_the_sample_holds_logits_and_the_routers_input(hf_trace, tmp_path):
    model = make_mixture("olmoe")
    hf_trace.record(model, batches(), tmp_path / "trace.h5", sample=5)
    for layer, of in fields(tmp_path / "trace.h5")[0].items():
        assert of["batch"].tolist() == np.repeat(range(4), 5).tolist()
        assert of["logits"] == pytest.approx(of["hidden"] @ routed_blocks(model)[layer].gate.weight.detach().numpy().T, abs=1e-4)
        assert len(np.unique(of["hidden"], axis=0)) == 20


def test_padding_changes_nothing(hf_trace, tmp_path):
    model = make_mixture("mixtral")
    ids, mask = token_batch(texts=1)
    hf_trace.record(model, [(ids, mask, 0)], tmp_path / "short.h5")
    more = torch.full((1, 6), 7)
    hf_trace.record(model, [(torch.cat([ids, more], 1), torch.cat([mask, 0 * more], 1), 0)], tmp_path / "padded.h5")
    short, padded = (fields(tmp_path / name)[0] for name in ("short.h5", "padded.h5"))
    for layer in short:
        for field, values in short[layer].items():
            assert padded[layer][field] == pytest.approx(values, rel=1e-5, abs=1e-5), (layer, field)


def test_masked_tokens_do_not_count(hf_trace, tmp_path):
    """The vector of a public observer of router-weighted activations: expert 0's outputs are (3,4), (1,0), (5,12), the middle token is padding."""
    class Experts(torch.nn.Module):
        def forward(self, hidden, chosen, gates):
            return torch.where(chosen == 0, hidden, 0 * hidden) * gates

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = torch.nn.Linear(2, 2, bias=False), Experts()

        def forward(self, input_ids, attention_mask, use_cache):
            hidden = torch.tensor([[3., 4.], [1., 0.], [5., 12.]])
            self.gate(hidden)
            return self.experts(hidden, torch.tensor([[0], [1], [0]]), torch.ones(3, 1))

    hf_trace.record(Block(), [(torch.zeros(1, 3), torch.tensor([[1, 0, 1]]), 0)], tmp_path / "trace.h5")
    layer = fields(tmp_path / "trace.h5")[0][0]
    assert layer["count"].tolist() == [[2, 0]] and layer["tokens"].tolist() == [2]
    assert layer["sum_norm"][0] == pytest.approx([18, 0], abs=1e-6)
    assert layer["sum_norm"][0, 0] / layer["count"][0, 0] == pytest.approx(9, abs=1e-6)


@pytest.mark.parametrize("name, scores", [("qwen3_moe", "softmax"), ("olmoe", "softmax"), ("deepseek_v3", "sigmoid")])
def test_bf16_models_with_large_logits_are_recorded(hf_trace, call, tmp_path, name, scores):
    model = make_mixture(name, torch.bfloat16)
    with torch.no_grad():
        for block in routed_blocks(model).values():
            block.gate.weight *= 6
    hf_trace.record(model, batches(), tmp_path / "trace.h5")
    layers, attributes = fields(tmp_path / "trace.h5")
    assert attributes["scores"] == scores and abs(layers[2]["logits"]).max() > 10
    call("analyze", tmp_path / "trace.h5", "--json", check=True)


def test_gates_that_follow_no_scores_are_refused(hf_trace, tmp_path):
    model = make_mixture("olmoe")
    routed_blocks(model)[0].experts.register_forward_pre_hook(lambda module, args: (args[0], args[1], args[2].flip(1)), prepend=True)
    with pytest.raises(ValueError, match="proportional"):
        hf_trace.record(model, batches(), tmp_path / "trace.h5")


def test_models_without_experts_and_without_data_are_refused(hf_trace, tmp_path):
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="experts"):
        hf_trace.record(llama, batches(), tmp_path / "trace.h5")
    with pytest.raises(ValueError, match="no batches"):
        hf_trace.record(make_mixture("olmoe"), [], tmp_path / "trace.h5")


@pytest.mark.parametrize("change, words", [
    ({"model": "/nowhere/olmoe"}, "/nowhere/olmoe: no such folder"),
    ({"model": "EMPTY"}, "neither a folder with a model"),
    ({"text": "none.txt"}, "none.txt: no such text file"),
    ({"out": "/nowhere/trace.h5"}, "/nowhere/trace.h5: is a folder, or its folder does not exist"),
    ({"out": "EMPTY"}, "EMPTY: is a folder"),
    ({"python": "NONE"}, "needs transformers 5"),
])
def test_what_cannot_be_recorded_is_one_line(run, repo, tmp_path, change, words):
    (tmp_path / "code.txt").write_text("a text")
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "NONE").mkdir()
    (tmp_path / "NONE/transformers.py").write_text("raise ImportError(name='transformers')")
    of = {"model": "EMPTY", "text": "code.txt", "out": "trace.h5", "python": "EMPTY", **change}
    done = run([sys.executable, repo / "experiments/hf_trace/hf_trace.py", tmp_path / of["model"], tmp_path / of["text"], "-o", tmp_path / of["out"]],
               env={"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tmp_path / of["python"])})
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("hf_trace: ") and words in done.stderr and "Traceback" not in done.stderr


def test_from_text_to_a_pruned_model(run, repo, call, tmp_path):
    """The commands of docs/pruning.md: text files, a trace, its analysis, half of the experts."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = make_mixture("olmoe")
    model.save_pretrained(tmp_path / "model")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    for name, low in (("code", 3), ("prose", 20)):
        texts = [" ".join(f"w{i}" for i in rng.integers(low, low + 25, rng.integers(3, 20))) for _ in range(13)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts) + "\n")
    run([sys.executable, repo / "experiments/hf_trace/hf_trace.py", tmp_path / "model", tmp_path / "code.txt", tmp_path / "prose.txt", "-o",
         tmp_path / "trace.h5", "--texts", 2, "--tokens", 10], check=True, env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    layers, attributes = fields(tmp_path / "trace.h5")
    assert attributes["domains"].tolist() == ["code", "prose"] and attributes["aux_loss_coef"] == model.config.router_aux_loss_coef
    assert layers[0]["domain"].tolist() == [0] * 7 + [1] * 7 and layers[0]["tokens"].max() <= 20
    report = json.loads(call("analyze", tmp_path / "trace.h5", "--json", check=True).stdout)
    means = layers[1]["sum_norm_sq"].sum(0) / np.maximum(layers[1]["count"].sum(0), 1)
    assert report["layers"][1]["scores"]["msan"]["values"] == pytest.approx(means.tolist())
    done = call("prune", tmp_path / "model", "--score", "msan", "--keep", 0.5, "--scores", tmp_path / "trace.h5", "-o", tmp_path / "half", "--json", check=True)
    assert json.loads(done.stdout)["kept"]["1"] == sorted(np.argsort(means, kind="stable")[-3:].tolist())
    done = call("prune", tmp_path / "model", "--score", "rsd", "--keep", 0.5, "--scores", tmp_path / "trace.h5", "-o", tmp_path / "rsd", "--json", check=True)
    assert json.loads(done.stdout)["kept"]["0"] == sorted(np.argsort(layers[0]["sum_rsd"].sum(0), kind="stable")[-3:].tolist())
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "half")("w4 w5")["input_ids"] == [4, 5]
