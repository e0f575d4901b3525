"""What the Python benchmarks share: rows with a bar, their table and the JSON object, as bench.h has them for C++."""
import json
import os
import pathlib
import statistics


def quartiles(samples):
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [samples[0]] * 3


def machine():
    names = [line.split(": ", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name") and ": " in line]
    return {"cpu": names[0] if names else "unknown", "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}


class Report:
    """Prints each row as it comes and keeps the JSON file up to date: a long run that is stopped has its rows."""

    def __init__(self, versions, threads, file=None):
        self.whole = {"machine": machine(), "versions": versions, "threads": threads, "rows": []}
        self.file = file

    def add(self, name, samples, bar=None, sense="<=", **measured):
        """`samples`: the ratio of each round. `measured`: medians that the ratios were made of, or a word for each."""
        low, ratio, high = quartiles(samples)
        holds = None if bar is None else ratio >= bar if sense == ">=" else ratio <= bar
        self.whole["rows"].append({"name": name, "ratio": ratio, "bar": bar, "sense": bar and sense, "holds": holds,
                                   "samples": samples, "measured": measured})
        verdict = "" if bar is None else f"  {sense} {bar:.2f} {'holds' if holds else 'fails'}"
        figures = "".join(f"  {key} {value if isinstance(value, str) else f'{value:.5g}'}" for key, value in measured.items())
        print(f"{name:<42}{ratio:>7.3f} ({low:.3f}-{high:.3f}){verdict}{figures}", flush=True)
        if self.file:
            temporary = pathlib.Path(f"{self.file}.tmp")
            temporary.write_text(json.dumps(self.whole, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.file)
