"""Our dense training step against PyTorch's with the same model (timm), interleaved A B A B in two processes that wait for each other.

    .venv/bin/python experiments/bench/peers.py [--model quickstart|vit_s] [--batch 64] [--precision fp32|bf16] [--threads 2] [--rounds 15]

PyTorch runs eagerly with math attention (in bf16 on a CPU the flash backward is several times slower) and its fused AdamW, under
autocast for bf16; the better known options are left for the reader to try. Medians and ratios; peak resident memory of each process.
"""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "python"))
import conftest  # noqa: E402,F401  (torchvision's missing operators beside a CPU build of torch)
import timm.layers  # noqa: E402
import torch  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

MODELS = {
    "quickstart": dict(embed_dim=64, depth=4, num_heads=4, patch_size=7),
    "vit_s": dict(embed_dim=384, depth=12, num_heads=6, patch_size=4),
}


def torch_step(model, batch, precision):
    timm.layers.set_fused_attn(False)
    net = VisionTransformer(img_size=28, in_chans=1, num_classes=10, **MODELS[model])
    decay = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, weight_decay=0.05, fused=True)
    images, labels = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))

    def step():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(images)
        torch.nn.functional.cross_entropy(logits.float(), labels, label_smoothing=0.1).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return (time.perf_counter() - start) * 1e3

    return step


def our_process(model, batch, precision, threads):
    arguments = [str(REPO / "build/bin/bench_step"), str(REPO / f"recipes/{model}.yaml"), "--serve", "dense"]
    for item in (f"train.global_batch={batch}", f"train.micro_batch={batch}", f"train.precision={precision}", f"train.threads={threads}",
                 "train.clip=1.0", "model.drop_path=0.0"):
        arguments += ["--set", item]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit_s")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args()

    torch.set_num_threads(given.threads)
    theirs = torch_step(given.model, given.batch, given.precision)
    ours = our_process(given.model, given.batch, given.precision, given.threads)

    def ask():
        ours.stdin.write("step\n")
        ours.stdin.flush()
        return [float(x) for x in ours.stdout.readline().split()]

    theirs(), ask()
    times = [(ask()[0], theirs()) for _ in range(given.rounds)]
    our_memory = ask()[1]
    their_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ours.stdin.close()
    ours.wait()

    mine, peer = (statistics.median(column) for column in zip(*times))
    ratio = statistics.median(a / b for a, b in times)
    quartiles = statistics.quantiles([a / b for a, b in times], n=4)
    print(f"{given.model}, batch {given.batch}, {given.precision}, {given.threads} threads, {given.rounds} interleaved rounds")
    print(f"exfusion dense step {mine:.1f} ms, PyTorch eager {peer:.1f} ms, ratio {ratio:.3f} (quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f})")
    print(f"peak resident memory: exfusion {our_memory:.0f} MB, PyTorch {their_memory:.0f} MB")
    if given.json:
        row = {"name": f"peers/{given.model}/b{given.batch}/eager/{given.precision}", "ratio": ratio, "samples": [a / b for a, b in times]}
        given.json.write_text(json.dumps({"threads": given.threads, "versions": {"torch": torch.__version__}, "rows": [row]}, indent=1))


if __name__ == "__main__":
    main()
