"""Several ranks: what they send, what they hold, and two ranks with one thread each against PyTorch's DistributedDataParallel.

    ./dev bench dist [--models quickstart,vit_ti] [--precisions fp32,bf16] [--batch N] [--rounds 12] [--configuration eager_math]

bench_dist counts bytes; then two ranks of ours and two of PyTorch, a process each, take turns. docs/benchmarks.md says what each
row means.
"""
import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

from peers import CONFIGURATIONS, interleave, ratios, row_name
from rows import Report

REPO = pathlib.Path(__file__).resolve().parents[2]
BENCH_DIST = pathlib.Path(os.environ.get("EXFUSION_BUILD", REPO / "build")) / "bin" / "bench_dist"
RANKS = 2
BATCHES = {"quickstart": 128, "vit_ti": 16, "vit_s": 16}  # of both ranks
STEPS = {"quickstart": 5}  # a turn's steps in a row where one is short: otherwise 1
ARMS = ("dense", "learned:4", "learned:4/experts", "learned:4/all")
DENSE_BAR = 1.0
MEMORY_ARM, MEMORY_RANKS = "learned:2/experts", (3, 4)
PROCESS_BAR = 1.05


class Ranks:
    """Processes of one command, which take a step of any of their arms on demand."""

    def __init__(self, command, count=RANKS):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        self.processes = []
        for rank in range(count):
            environment = {key: str(value) for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
            self.processes.append(subprocess.Popen([str(word) for word in command], env={**os.environ, **environment},
                                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        self.exchange = {}  # by arm, for each round: milliseconds of the phase `reduce`
        self.ready = [json.loads(self.answer(process)) for process in self.processes][0]

    def answer(self, process):
        line = process.stdout.readline()
        if not line:  # it has said why on stderr; the other one waits for it in a collective
            self.end()
            sys.exit(1)
        return line

    def milliseconds(self, arm, steps, processes=None):
        processes = processes or self.processes
        for process in processes:
            process.stdin.write(f"{arm} {steps}\n")
            process.stdin.flush()
        answers = [[float(word) for word in self.answer(process).split()] for process in processes]
        if len(answers[0]) > 1:
            self.exchange.setdefault(arm, []).append(statistics.mean(answer[1] for answer in answers))
        return max(answer[0] for answer in answers)

    def close(self):
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()

    def end(self):
        for process in self.processes:
            process.kill()
            process.wait()


def turns(ranks, who, arms, steps):
    """By name: the ranks together in each arm, one rank by itself while the other core is idle, and each by itself side by side."""
    return {**{f"{who}/{arm}": lambda arm=arm: ranks.milliseconds(arm, steps) for arm in arms},
            f"{who}/alone": lambda: ranks.milliseconds("alone", steps, ranks.processes[:1]),
            f"{who}/apart": lambda: ranks.milliseconds("alone", steps)}


def compare(report, ours, ddp, case, precision, steps, rounds):
    our_turns, ddp_turns = turns(ours, "ours", ARMS, steps), turns(ddp, "ddp", ("dense",), steps)
    interleave(our_turns, ddp_turns, 1)  # first touch
    ours.exchange.clear()
    times = interleave(our_turns, ddp_turns, rounds)
    middle = {key: statistics.median(values) for key, values in times.items()}
    for arm in ARMS:
        key = f"ours/{arm}"
        report.add(f"dist/{case}/ranks{RANKS}/{row_name(arm)}/{precision}", ratios(times, key, "ddp/dense"),
                   DENSE_BAR if arm == "dense" else None, ms=middle[key], ddp_ms=middle["ddp/dense"])
    for who in ("ours", "ddp"):
        report.add(f"dist/{case}/efficiency/{who}/{precision}", ratios(times, f"{who}/alone", f"{who}/dense"),
                   alone_ms=middle[f"{who}/alone"], apart_ms=middle[f"{who}/apart"], ranks2_ms=middle[f"{who}/dense"])
    for arm in ARMS:
        reduce = ours.exchange[arm]
        report.add(f"dist/{case}/reduce/{row_name(arm)}/{precision}", [part / whole for part, whole in zip(reduce, times[f"ours/{arm}"])],
                   reduce_ms=statistics.median(reduce), ms=middle[f"ours/{arm}"])


def process_memory(model, arm, count):
    """MB of each of `count` ranks after five steps of an image per rank, what they share divided among them (Pss)."""
    ranks = Ranks([BENCH_DIST, "--serve", "--models", model, "--batch", count, "--arms", arm], count)
    ranks.milliseconds(arm, 5)
    rollups = [pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8") for process in ranks.processes]
    ranks.close()
    return [1024e-6 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) for rollup in rollups]


def add_process_memory(report, model):
    """What a process holds of sharded experts beside dense training, and what the formula of the state says."""
    for count in MEMORY_RANKS:
        name = f"dist/memory/{model}/{row_name(MEMORY_ARM)}/ranks{count}"
        state = next(row["measured"] for row in report.whole["rows"] if row["name"] == name)
        dense, sharded = process_memory(model, "dense", count), process_memory(model, MEMORY_ARM, count)
        more = 1e-6 * state["ffn_parameters"] * (state["formula"] - state["dense"])
        expected = statistics.mean(dense) + more
        report.add(f"{name}/process", [max(sharded) / expected], PROCESS_BAR, dense_MB=statistics.mean(dense), MB=max(sharded),
                   more_MB=max(sharded) - statistics.mean(dense), formula_more_MB=more)


def counted_rows(memory_models):
    """The rows of bytes and memory, which bench_dist prints by itself."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "rows.json"
        done = subprocess.run([BENCH_DIST, "--memory-models", ",".join(memory_models), "--json", file])
        if done.returncode != 0:
            sys.exit(done.returncode)
        return json.loads(file.read_text(encoding="utf-8"))


def parse_arguments():
    parser = argparse.ArgumentParser(prog="dist", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: sys.exit(print(f"dist: {message}; see --help", file=sys.stderr) or 2)

    def listed(*allowed):
        def parse(text):
            words = text.split(",")
            if not set(words) <= set(allowed) or len(set(words)) < len(words):
                raise argparse.ArgumentTypeError(f"{text}: choose of {', '.join(allowed)}, each once")
            return words
        return parse

    def count(low):
        def parse(text):
            if not text.isascii() or not text.isdigit() or not low <= int(text) <= 100_000:
                raise argparse.ArgumentTypeError(f"'{text}' is no whole number of {low} to 100000")
            return int(text)
        return parse

    parser.add_argument("--models", type=listed(*BATCHES), default=["quickstart", "vit_ti"], metavar="LIST", help=", ".join(BATCHES))
    parser.add_argument("--memory-models", type=listed(*BATCHES), default=["vit_s"], metavar="LIST", help="whose memory is measured")
    parser.add_argument("--precisions", type=listed("fp32", "bf16"), default=["fp32", "bf16"], metavar="LIST", help="fp32, bf16")
    parser.add_argument("--batch", type=count(RANKS), metavar="N", help="images of a step of both ranks (default: 16, quickstart 128)")
    parser.add_argument("--rounds", type=count(1), default=12, metavar="N", help="interleaved rounds (default: 12)")
    parser.add_argument("--configuration", choices=CONFIGURATIONS, default="eager_math", metavar="NAME",
                        help=f"of PyTorch: {', '.join(CONFIGURATIONS)} (default: eager_math)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows as one JSON object")
    given = parser.parse_args()
    if given.json and not given.json.absolute().parent.is_dir():
        parser.error(f"--json {given.json}: there is no folder {given.json.absolute().parent}")
    if given.batch and given.batch % RANKS:
        parser.error(f"--batch {given.batch}: {RANKS} ranks share it evenly")
    if not BENCH_DIST.exists():
        parser.error(f"{BENCH_DIST} is missing: ./dev build")
    return given


def main():
    given = parse_arguments()
    counted = counted_rows(given.memory_models)
    report = Report(counted["versions"], 1, given.json)
    report.whole["rows"] = counted["rows"]
    for model in given.memory_models:
        add_process_memory(report, model)
    for model in given.models:
        for precision in given.precisions:
            batch = given.batch or BATCHES[model]
            ours = Ranks([BENCH_DIST, "--serve", "--models", model, "--batch", batch, "--precision", precision, "--arms", ",".join(ARMS)])
            ddp = Ranks([sys.executable, pathlib.Path(__file__).with_name("ddp_rank.py"), model, batch, precision, given.configuration])
            report.whole["versions"].update(ddp.ready["versions"])
            compare(report, ours, ddp, f"{model}/b{batch}", precision, STEPS.get(model, 1), given.rounds)
            ours.close(), ddp.close()


if __name__ == "__main__":
    main()
