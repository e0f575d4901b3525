"""Our ViT against timm's VisionTransformer: keys, logits, gradients, initial values, exported config.json."""

import json

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

# dim, depth, heads, mlp_ratio, patch, image, channels, classes, pool
CONFIGS = {
    "fashion-tiny": (64, 2, 4, 4.0, 7, 28, 1, 10, "token"),
    "patch4": (48, 2, 3, 4.0, 4, 28, 1, 10, "token"),
    "head12-avg": (36, 3, 3, 2.5, 7, 28, 1, 10, "avg"),
    "head20-rgb": (60, 2, 3, 2.5, 7, 28, 3, 17, "token"),
    "patch14-avg-rgb": (40, 2, 2, 4.0, 14, 56, 3, 11, "avg"),
    "patch14-token": (40, 2, 2, 3.0, 14, 42, 1, 5, "token"),
    "one-head-one-block": (32, 1, 1, 1.0, 16, 32, 3, 2, "token"),
    "vit-ti-shape": (192, 3, 3, 4.0, 16, 64, 3, 100, "token"),
}
KEYS = ("dim", "depth", "heads", "mlp_ratio", "patch", "image", "channels", "classes", "pool")


def recipe_text(config):
    values = {"arch": "vit", **dict(zip(KEYS, config))}
    return "model: {" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}\n"


def timm_arguments(config):
    dim, depth, heads, ratio, patch, image, channels, classes, pool = config
    return dict(img_size=image, patch_size=patch, in_chans=channels, num_classes=classes, embed_dim=dim, depth=depth,
                num_heads=heads, mlp_ratio=ratio, global_pool=pool, class_token=pool == "token")


def randomise(model):
    """Values that hide nothing: biases far from 0, norms far from 1, activations of order 1."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)


class Probe:
    """Runs vit_probe on a timm model's weights and a batch of images."""

    def __init__(self, bin_dir, run, folder):
        self.bin_dir, self.run, self.folder = bin_dir, run, folder

    def __call__(self, config, model, images, labels, drop_path=None, precision=None):
        recipe, given, result = (self.folder / name for name in ("model.yaml", "in.safetensors", "out.safetensors"))
        recipe.write_text(recipe_text(config))
        tensors = {"model." + name: value.contiguous() for name, value in model.state_dict().items()}
        tensors |= {"images": images, "labels": labels}
        if drop_path is not None:
            tensors["drop_path"] = drop_path
        save_file(tensors, given)
        self.run([self.bin_dir / "vit_probe", recipe, given, result, *([precision] if precision else [])], check=True)
        with safe_open(result, "pt") as opened:
            metadata = opened.metadata()
        return load_file(result), metadata


@pytest.fixture
def probe(bin_dir, run, tmp_path):
    return Probe(bin_dir, run, tmp_path)


def batch(config, n=6):
    generator = torch.Generator().manual_seed(3)
    _, _, _, _, _, image, channels, classes, _ = config
    return (torch.randn(n, channels, image, image, generator=generator),
            torch.randint(0, classes, (n,), generator=generator))


def backward(model, images, labels):
    model.zero_grad()
    logits = model(images)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    return logits.detach(), loss.detach()


def expect_same(ours, model, logits, loss, tolerance=1e-5):
    assert (ours["logits"] - logits).abs().max() <= tolerance
    assert (ours["loss"] - loss).abs() <= tolerance
    for name, parameter in model.named_parameters():
        difference = (ours["grad." + name] - parameter.grad).abs().max()
        assert difference <= tolerance, f"gradient of {name}: {difference}"


class Case:
    """One configuration: timm's model with random values, a batch, and what both sides make of it."""

    def __init__(self, config, probe):
        self.config = config
        self.model = VisionTransformer(**timm_arguments(config))
        randomise(self.model)
        self.images, labels = batch(config)
        self.logits, self.loss = backward(self.model, self.images, labels)
        self.ours, self.metadata = probe(config, self.model, self.images, labels)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, bin_dir, run, tmp_path_factory):
    return Case(CONFIGS[request.param], Probe(bin_dir, run, tmp_path_factory.mktemp("case")))


def test_logits_and_gradients_are_timms(case):
    assert case.logits.std() > 0.1  # otherwise the tolerance would say nothing
    expect_same(case.ours, case.model, case.logits, case.loss)


def test_keys_and_shapes_are_timms_in_its_order(case):
    state = case.model.state_dict()
    assert case.metadata["parameters"].split() == list(state)
    for key, value in state.items():
        assert case.ours["initial." + key].shape == value.shape, key


def test_drop_path_is_timms(probe):
    config = CONFIGS["head12-avg"]
    model = VisionTransformer(**timm_arguments(config), drop_path_rate=0.3)
    randomise(model)
    images, labels = batch(config)
    rates = [block.drop_path1.drop_prob if index else 0.0 for index, block in enumerate(model.blocks)]
    keep = 1 - torch.tensor(rates).repeat_interleave(2)
    factors = torch.bernoulli(keep.expand(6, -1), generator=torch.Generator().manual_seed(1)) / keep
    assert (factors == 0).any()

    class Scale(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return x * self.factor[:, None, None]

    for index, block in enumerate(model.blocks):
        block.drop_path1, block.drop_path2 = Scale(factors[:, 2 * index]), Scale(factors[:, 2 * index + 1])
    logits, loss = backward(model, images, labels)
    ours, _ = probe(config, model, images, labels, drop_path=factors.contiguous())
    expect_same(ours, model, logits, loss)


def test_bf16_is_as_near_to_fp32_as_timms_bf16(probe):
    config = CONFIGS["vit-ti-shape"]
    model = VisionTransformer(**timm_arguments(config))
    randomise(model)
    images, labels = batch(config)
    exact, _ = backward(model, images, labels)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        theirs = model(images)
    ours, _ = probe(config, model, images, labels, precision="bf16")
    assert 0 < (ours["logits"] - exact).norm() <= 1.5 * (theirs.float() - exact).norm()
    for name, gradient in gradients.items():
        assert (ours["grad." + name] - gradient).norm() <= 0.1 * gradient.norm(), name


@pytest.mark.parametrize("name", ["vit-ti-shape", "patch14-avg-rgb"])
def test_initial_values_are_distributed_as_timms(name, probe):
    config = CONFIGS[name]
    model = VisionTransformer(**timm_arguments(config))
    ours, _ = probe(config, model, *batch(config))
    for key, theirs in model.state_dict().items():
        mine = ours["initial." + key]
        if theirs.numel() == 1 or theirs.std() == 0:
            assert torch.equal(mine, theirs), key  # biases 0, norms 1
            continue
        n, std = theirs.numel(), theirs.std().item()
        assert abs(mine.std().item() / std - 1) < 5 / n**0.5, key
        assert abs(mine.mean().item() - theirs.mean().item()) < 6 * std / n**0.5, key
        assert abs(mine.abs().max().item() / theirs.abs().max().item() - 1) < 0.5, key


def test_timm_builds_and_loads_an_export(case, tmp_path):
    (tmp_path / "config.json").write_text(case.metadata["config.json"])
    save_file(case.model.state_dict(), tmp_path / "model.safetensors")
    document = json.loads(case.metadata["config.json"])
    with torch.no_grad():
        expected = case.model(case.images)
        loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, pretrained_strict=True).eval()
        assert torch.equal(loaded(case.images), expected)
        again = timm.create_model(document["architecture"], checkpoint_path=tmp_path / "model.safetensors",
                                  **document["model_args"]).eval()  # loads strictly
        assert torch.equal(again(case.images), expected)
    assert type(loaded) is VisionTransformer
    assert list(loaded.state_dict()) == list(case.model.state_dict())
    data = timm.data.resolve_data_config(model=loaded)
    image, channels = (case.config[KEYS.index(key)] for key in ("image", "channels"))
    assert tuple(data["input_size"]) == (channels, image, image)
    assert tuple(data["mean"]) == (0.25,) * channels and tuple(data["std"]) == (0.5,) * channels


def test_every_hidden_size_survives_timms_truncation(probe):
    """timm takes int(dim * mlp_ratio), and 60 * (123 / 60) is less than 123 in floating point."""
    config = (60, 1, 3, 2.05, 14, 28, 1, 4, "token")
    assert int(60 * (123 / 60)) == 122
    model = VisionTransformer(**timm_arguments(config) | {"mlp_ratio": 123.5 / 60})
    _, metadata = probe(config, model, *batch(config))
    exported = json.loads(metadata["config.json"])["model_args"]
    assert int(exported["embed_dim"] * exported["mlp_ratio"]) == 123
