"""Our training step against PyTorch's with the same model (timm), batch, precision and threads.

    ./dev bench peers [--models vit_s,vit_ti,quickstart] [--precisions fp32,bf16] [--batch N] [--threads N] [--rounds 50]

PyTorch runs in this process, ours in a bench_step that waits for its turn. A first pass of a few rounds finds PyTorch's best dense
configuration; the long one interleaves it, eager math attention and naive experts under autograd with our arms. docs/benchmarks.md
says what each row means.
"""
import argparse
import itertools
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

from rows import Report

REPO = pathlib.Path(__file__).resolve().parents[2]
BENCH_STEP = pathlib.Path(os.environ.get("EXFUSION_BUILD", REPO / "build")) / "bin" / "bench_step"
BATCHES = {"vit_s": 64, "vit_ti": 64, "quickstart": 128}
CONFIGURATIONS = ("eager_math", "eager_flash", "compile_math", "compile_flash")
ARMS = "dense,learned:4,learned:8,memory:4,memory:8"
FIRST_ROUNDS = 3  # compiling takes a minute or two and bf16 flash is very slow: enough to see which is best
DENSE_BARS = {("vit_s", "fp32"): 0.97, ("vit_s", "bf16"): 0.90, ("vit_ti", "bf16"): 0.90,
              ("quickstart", "fp32"): 0.85, ("quickstart", "bf16"): 0.85}
FUSED_BARS = {("fp32", 4): 1.02, ("fp32", 8): 1.04, ("bf16", 4): 1.04, ("bf16", 8): 1.08}
STEPS = {"quickstart": 5}  # a turn's steps in a row where one is short: otherwise 1
PAUSE = 0.05  # seconds before the other process's turn: until then this one's idle OpenMP threads spin on its cores


class OurProcess:
    """bench_step --serve: a step of any of its arms on demand."""

    def __init__(self, model, batch, precision, arms, threads):
        command = [BENCH_STEP, "--serve", "--models", model, "--batch", batch, "--precisions", precision, "--arms", ",".join(arms),
                   "--threads", threads]
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = json.loads(self.answer())

    def answer(self):
        line = self.process.stdout.readline()
        if not line:  # it has said why on stderr
            sys.exit(2 if self.process.wait() == 2 else 1)
        return line

    def milliseconds(self, arm, steps):
        self.process.stdin.write(f"{arm} {steps}\n")
        self.process.stdin.flush()
        return float(self.answer().split()[0])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def interleave(ours, theirs, rounds):
    """{name: milliseconds of each round}. `ours` and `theirs` map names to functions; turns alternate between the two processes."""
    times = {name: [] for name in (*ours, *theirs)}
    order = random.Random(0)
    for _ in range(rounds):
        pairs = itertools.zip_longest(*(order.sample(list(side.items()), len(side)) for side in (ours, theirs)))
        for turn in itertools.chain.from_iterable(pairs):
            if turn is not None:
                time.sleep(PAUSE)
                times[turn[0]].append(turn[1]())
    return times


def ratios(times, above, below):
    return [a / b for a, b in zip(times[above], times[below])]


def row_name(arm):
    return arm.replace(":", "_n")


def compare(report, pytorch, ours, model, batch, precision, given):
    """The rows of one case. `pytorch`: the module pytorch_steps."""
    steps = STEPS.get(model, 1)

    def their_turn(step):
        step()  # a first, uncounted one: it compiles and allocates
        return lambda: pytorch.average_milliseconds(step, steps)

    def name(what):
        return f"peers/{model}/b{batch}/{what}/{precision}"

    our_turns = {arm: lambda arm=arm: ours.milliseconds(arm, steps) for arm in given.arms}
    dense = given.arms[0]
    tried = {}
    for configuration in given.configurations:
        try:
            tried[configuration] = their_turn(pytorch.training_step(model, batch, precision, configuration))
        except Exception as error:  # torch.compile has its own types; without a C++ compiler there still is eager
            if not configuration.startswith("compile"):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"peers: left out: {configuration}: {reason}", file=sys.stderr)
    if not tried:
        sys.exit("peers: no configuration of PyTorch is left")
    times = interleave({dense: our_turns[dense]}, tried, FIRST_ROUNDS)
    middle = {key: statistics.median(values) for key, values in times.items()}
    for configuration in tried:
        report.add(name(f"first/{configuration}"), ratios(times, dense, configuration), ms=middle[dense], torch_ms=middle[configuration])
    best = min(tried, key=middle.get)

    naive = {f"naive:{arm.split(':')[1]}": arm for arm in given.arms if arm.startswith("learned:")}
    theirs = {key: turn for key, turn in tried.items() if key in (best, "eager_math")}
    for key in naive:
        step = pytorch.training_step(model, batch, precision, f"eager_{best.split('_')[1]}", int(key.split(":")[1]))
        theirs[key] = their_turn(step)
    theirs["gemm"] = their_turn(pytorch.matrix_products(model, batch, precision))
    times = interleave(our_turns, theirs, given.rounds)
    middle = {key: statistics.median(values) for key, values in times.items()}

    def add(what, above, below, bar=None, **words):
        report.add(name(what), ratios(times, above, below), bar, ms=middle[above], peer_ms=middle[below], **words)

    add("best", dense, best, DENSE_BARS.get((model, precision)), best=best)
    if "eager_math" in theirs:
        add("eager", dense, "eager_math")
    for arm in given.arms[1:]:
        experts = int(arm.split(":")[1])
        add(row_name(arm), arm, best, None if arm.startswith("static") else FUSED_BARS.get((precision, experts)), best=best)
    for key, arm in naive.items():
        add(row_name(key), arm, key)
        add(f"{row_name(key)}_over_best", key, best, best=best)
    report.add(name("gemm"), ratios(times, "gemm", dense), gemm_ms=middle["gemm"], step_ms=middle[dense])


def parse_arguments():
    parser = argparse.ArgumentParser(prog="peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: sys.exit(print(f"peers: {message}; see --help", file=sys.stderr) or 2)

    def listed(*allowed):
        def parse(text):
            words = text.split(",")
            for word in words:
                if allowed and word not in allowed:
                    raise argparse.ArgumentTypeError(f"'{word}': choose of {', '.join(allowed)}")
            if len(set(words)) < len(words):
                raise argparse.ArgumentTypeError(f"{text}: one of them twice")
            return words
        return parse

    def count(text):
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100_000:
            raise argparse.ArgumentTypeError(f"'{text}' is no whole number of 1 to 100000")
        return int(text)

    def arms(text):
        words = listed()(text)
        if words[0] != "dense" or any(len(word.split(":")) != 2 or not word.split(":")[1].isdigit() for word in words[1:]):
            raise argparse.ArgumentTypeError(f"{text}: give dense first, then WEIGHTS:N, as learned:4")
        return words

    parser.add_argument("--models", type=listed(*BATCHES), default=list(BATCHES), metavar="LIST", help=", ".join(BATCHES))
    parser.add_argument("--precisions", type=listed("fp32", "bf16"), default=["fp32", "bf16"], metavar="LIST", help="fp32, bf16")
    parser.add_argument("--batch", type=count, metavar="N", help="images of a step (default: 64, quickstart 128)")
    parser.add_argument("--threads", type=count, metavar="N", help="of both sides (default: PyTorch's own)")
    parser.add_argument("--rounds", type=count, default=50, metavar="N", help="of the long comparison (default: 50)")
    parser.add_argument("--arms", type=arms, default=ARMS.split(","), metavar="LIST", help=f"of ours (default: {ARMS})")
    parser.add_argument("--configurations", type=listed(*CONFIGURATIONS), default=list(CONFIGURATIONS), metavar="LIST",
                        help=f"of PyTorch, the first pass chooses among them (default: {','.join(CONFIGURATIONS)})")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows as one JSON object")
    given = parser.parse_args()
    if given.json and not given.json.absolute().parent.is_dir():
        parser.error(f"--json {given.json}: there is no folder {given.json.absolute().parent}")
    if not BENCH_STEP.exists():
        parser.error(f"{BENCH_STEP} is missing: ./dev build")
    return given


def main():
    given = parse_arguments()
    import pytorch_steps as pytorch  # seconds, which bad arguments need not wait for
    torch = pytorch.torch
    threads = given.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    report = None
    for model in given.models:
        for precision in given.precisions:
            batch = given.batch or BATCHES[model]
            ours = OurProcess(model, batch, precision, given.arms, threads)
            if report is None:
                versions = {"exfusion": ours.ready["versions"]["exfusion"], "torch": torch.__version__, "timm": pytorch.timm.__version__}
                report = Report(versions, threads, given.json)
                print(f"{threads} threads, {given.rounds} rounds; ratio: median (quartiles)")
            compare(report, pytorch, ours, model, batch, precision, given)
            ours.close()
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
