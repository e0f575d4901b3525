"""The PyTorch side of peers.py and dist.py: training steps of timm's model as users write them, and the model's matrix products alone."""
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "python"))
import conftest  # noqa: E402,F401  (torchvision's missing operators beside a CPU build of torch)
import timm  # noqa: E402
import timm.layers  # noqa: E402
import torch  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

IMAGE, CHANNELS, CLASSES = 28, 1, 10
MODELS = {
    "vit_s": dict(embed_dim=384, depth=12, num_heads=6, patch_size=4),
    "vit_ti": dict(embed_dim=192, depth=12, num_heads=3, patch_size=4),
    "quickstart": dict(embed_dim=64, depth=4, num_heads=4, patch_size=7),
}


class NaiveExperts(torch.nn.Module):
    """An FFN with N experts fused by autograd in every forward pass: W = sum_k softmax(z)_k W_k."""

    def __init__(self, mlp, experts):
        super().__init__()
        self.z = torch.nn.Parameter(torch.zeros(experts))
        self.act = mlp.act
        self.fc1, self.bias1, self.fc2, self.bias2 = (
            torch.nn.Parameter(tensor.detach()[None] + 0.01 * torch.randn(experts, *tensor.shape))
            for tensor in (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias))

    def forward(self, x):
        a = torch.softmax(self.z, 0)

        def fused(w):
            return sum(a[k] * w[k] for k in range(len(a)))

        x = self.act(torch.nn.functional.linear(x, fused(self.fc1), fused(self.bias1)))
        return torch.nn.functional.linear(x, fused(self.fc2), fused(self.bias2))


def average_milliseconds(step, steps):
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) * 1e3 / steps


def training_step(model, batch, precision, configuration, experts=0, parallel=False):
    """A function that takes one step. `configuration`: eager_math, eager_flash, compile_math or compile_flash. `parallel`: one of
    the ranks of torch.distributed, each with `batch` images."""
    mode, attention = configuration.split("_")
    timm.layers.set_fused_attn(attention == "flash")  # read when a model is made
    net = VisionTransformer(img_size=IMAGE, in_chans=CHANNELS, num_classes=CLASSES, **MODELS[model])
    if experts:
        for block in net.blocks:
            block.mlp = NaiveExperts(block.mlp, experts)
    decay = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, weight_decay=0.05, fused=True)
    images, labels = torch.randn(batch, CHANNELS, IMAGE, IMAGE), torch.randint(0, CLASSES, (batch,))
    trained = torch.nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True) if parallel else net
    forward = torch.compile(trained) if mode == "compile" else trained

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(images)
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step


def faster(*ways):
    """The one of several functions that takes the least time, each at its best of five."""
    def best_time(way):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        return min(times)

    return min(ways, key=best_time)


def matrix_products(model, batch, precision):
    """A function that multiplies what a step's forward and backward pass multiply, and nothing else: each linear product by the
    faster of torch.mm and oneDNN."""
    shape = MODELS[model]
    dim, heads, patch = shape["embed_dim"], shape["num_heads"], shape["patch_size"]
    patches = (IMAGE // patch) ** 2
    tokens = patches + 1
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def linear(rows, inputs, outputs, input_gradient=True):
        x, w, g = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
        y, dx, dw = torch.empty_like(g), torch.empty_like(x), torch.empty_like(w)
        onednn = torch.ops.mkldnn._linear_pointwise
        products = [faster(lambda: torch.mm(x, w.t(), out=y), lambda: onednn(x, w, None, "none", [], "")),
                    faster(lambda: torch.mm(g.t(), x, out=dw), lambda: onednn(g.t(), x.t(), None, "none", [], ""))]
        if input_gradient:
            products.append(faster(lambda: torch.mm(g, w, out=dx), lambda: onednn(g, w.t(), None, "none", [], "")))

        def multiply():
            for product in products:
                product()

        return multiply

    def attention():
        q, k, v, g = (torch.randn(batch * heads, tokens, dim // heads).to(dtype) for _ in range(4))
        p = torch.randn(batch * heads, tokens, tokens).to(dtype)
        scores, values = torch.empty_like(p), torch.empty_like(q)

        def multiply():
            torch.bmm(q, k.transpose(1, 2), out=scores)
            torch.bmm(p, v, out=values)
            torch.bmm(g, v.transpose(1, 2), out=scores)  # of the attention, then of v, q and k
            torch.bmm(p.transpose(1, 2), g, out=values)
            torch.bmm(p, k, out=values)
            torch.bmm(p.transpose(1, 2), q, out=values)

        return multiply

    block = [linear(batch * tokens, dim, 3 * dim), attention(), linear(batch * tokens, dim, dim),
             linear(batch * tokens, dim, 4 * dim), linear(batch * tokens, 4 * dim, dim)]
    products = [linear(batch * patches, CHANNELS * patch * patch, dim, input_gradient=False), *(block * shape["depth"]),
                linear(batch, dim, CLASSES)]

    def step():
        for multiply in products:
            multiply()

    return step
