"""ViTs whose FFNs hold their experts against timm's VisionTransformer with such FFNs written in PyTorch; what their exports are
to PyTorch and timm."""

import gzip
import json

import numpy
import pytest
from programs import RECIPE, call, refused, settings, tensors, write_recipe

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
from safetensors.torch import load_file  # noqa: E402
from test_data import FASHION_MNIST  # noqa: E402
from test_vit_parity import Probe, backward, batch, expect_same, timm_arguments  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

CONFIG = (24, 3, 3, 2.5, 7, 28, 1, 10, "token")  # as in test_vit_parity
HIDDEN = 60
FFNS = {
    "topk": {"name": "topk", "experts": 5, "top_k": 2},
    "topk-plain": {"name": "topk", "experts": 5, "top_k": 3, "renormalize": False},
    "switch-some-blocks": {"name": "topk", "experts": 4, "top_k": 1, "layers": "last:2"},
    "smear": {"name": "smear", "experts": 4},
}


class Named(torch.nn.Module):
    """Parameters `weight` and maybe `bias` of these shapes."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(weight))
        if bias:
            self.bias = torch.nn.Parameter(torch.zeros(bias))


class ExpertFfn(torch.nn.Module):
    """Every expert on every token, then the weights that the kind gives them: wasteful, and short."""

    def __init__(self, ffn, dim, hidden):
        super().__init__()
        self.ffn, n = ffn, ffn["experts"]
        self.router = Named((n, dim))
        self.experts = torch.nn.Module()
        self.experts.fc1, self.experts.fc2 = Named((n, hidden, dim), (n, hidden)), Named((n, dim, hidden), (n, dim))

    def forward(self, x):
        fc1, fc2 = self.experts.fc1, self.experts.fc2
        if self.ffn["name"] == "smear":
            p = (x.mean(1) @ self.router.weight.T).softmax(-1)
            merged = [torch.einsum("bk,k...->b...", p, tensor) for tensor in (fc1.weight, fc1.bias, fc2.weight, fc2.bias)]
            z = torch.nn.functional.gelu(torch.einsum("btd,bhd->bth", x, merged[0]) + merged[1][:, None])
            return torch.einsum("bth,bdh->btd", z, merged[2]) + merged[3][:, None]
        p = (x @ self.router.weight.T).softmax(-1)
        gates = p * torch.zeros_like(p).scatter(-1, p.topk(self.ffn["top_k"]).indices, 1.0)
        if self.ffn.get("renormalize", True) and self.ffn["top_k"] > 1:
            gates = gates / gates.sum(-1, keepdim=True)
        z = torch.nn.functional.gelu(torch.einsum("btd,khd->btkh", x, fc1.weight) + fc1.bias)
        return torch.einsum("btk,btkd->btd", gates, torch.einsum("btkh,kdh->btkd", z, fc2.weight) + fc2.bias)


def reference(config, ffn, hidden):
    model = VisionTransformer(**timm_arguments(config))
    first = len(model.blocks) - int(ffn["layers"].removeprefix("last:")) if "layers" in ffn else 0
    for block in model.blocks[first:]:
        block.mlp = ExpertFfn(ffn, config[0], hidden)
    return model


def randomise(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5 * (3 if "router" in name else 1), generator=generator)
            else:
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)


@pytest.mark.parametrize("name", FFNS)
def test_logits_and_gradients_are_those_of_pytorch(name, bin_dir, run, tmp_path, monkeypatch):
    ffn = FFNS[name]
    monkeypatch.setattr("test_vit_parity.recipe_text", lambda config: json.dumps({"model": {
        "arch": "vit", "ffn": ffn, **dict(zip(("dim", "depth", "heads", "mlp_ratio", "patch", "image", "channels", "classes", "pool"),
                                              config))}}))
    model = reference(CONFIG, ffn, HIDDEN)
    randomise(model)
    images, labels = batch(CONFIG)
    logits, loss = backward(model, images, labels)
    assert logits.std() > 0.1
    ours, _ = Probe(bin_dir, run, tmp_path)(CONFIG, model, images, labels)
    expect_same(ours, model, logits, loss, tolerance=2e-5)


@pytest.fixture(scope="module")
def images():
    """The first 1000 test images of Fashion-MNIST as the model sees them."""
    with gzip.open(FASHION_MNIST / "t10k-images-idx3-ubyte.gz") as file:
        pixels = numpy.frombuffer(file.read(), numpy.uint8, offset=16)[:1000 * 784].reshape(1000, 1, 28, 28).astype("f4") / 255
    return torch.from_numpy((pixels - numpy.float32(0.2860)) / numpy.float32(0.3530))


@pytest.fixture
def trained(call, tmp_path):
    """trained(ffn): a run of a few steps on Fashion-MNIST, and its first 1000 test logits."""

    def train(ffn):
        recipe = write_recipe(tmp_path, RECIPE.replace("fusion: {experts: 3, weights: learned, lr: 0.05}\n", "").replace(
            "name: synthetic, train_samples: 160, test_samples: 64, validation: 32", "name: fashion_mnist"))
        call("train", recipe, "--out", tmp_path / "run", "--set", "model.ffn=" + json.dumps(ffn),
             *settings(train__steps=10, train__eval_every_steps=0, train__ema=0), check=True)
        call("eval", tmp_path / "run", "--threads", "1", "--logits", tmp_path / "logits.safetensors", check=True)
        return tmp_path / "run", torch.from_numpy(tensors(tmp_path / "logits.safetensors")["logits"][:1000])

    return train


def logits_of(model, images):
    torch.set_num_threads(1)
    with torch.no_grad():
        return model.eval()(images)


def test_averaged_experts_are_a_dense_model_in_timm(call, trained, images):
    folder, expected = trained({"name": "ewa", "experts": 3, "share_rate": 0.5})
    model = timm.create_model(f"local-dir:{folder}/export", pretrained=True, pretrained_strict=True)
    assert (logits_of(model, images) - expected).abs().max() <= 1e-5
    experts = tensors(folder / "checkpoints/latest/model.safetensors")["blocks.1.mlp.experts.fc2.weight"]
    mean = tensors(folder / "export/model.safetensors")["blocks.1.mlp.fc2.weight"]
    assert abs(experts.astype("f8").mean(0) - mean).max() < 1e-7 < abs(experts[0] - experts[1]).max()


@pytest.mark.parametrize("name", ["topk", "smear"])
def test_a_mixtures_export_is_all_that_its_forward_pass_needs(name, call, trained, images):
    folder, expected = trained(FFNS[name])
    config = json.loads((folder / "export/config.json").read_text(encoding="utf-8"))
    model = VisionTransformer(**config["model_args"])
    for block in model.blocks:
        block.mlp = ExpertFfn(config["exfusion"]["ffn"], 16, 64)
    model.load_state_dict(load_file(folder / "export/model.safetensors"), strict=True)
    assert expected.std() > 0.01
    assert (logits_of(model, images) - expected).abs().max() <= 1e-5
    with pytest.raises(RuntimeError, match="exfusion_vit"):
        timm.create_model(f"local-dir:{folder}/export", pretrained=True)
    refused(call("export", folder, "--to", "timm", "-o", folder.parent / "dense"), "no dense model", "--to moe")
    call("export", folder, "--to", "moe", "-o", folder.parent / "moe", check=True)
    assert (folder.parent / "moe/config.json").read_bytes() == (folder / "export/config.json").read_bytes()
