"""The rows of the benchmarks as Markdown tables on stdout, one for each JSON file that ./dev bench left in a folder.

    ./dev bench --report
"""
import json
import pathlib
import sys

from rows import quartiles


def figure(value):
    return value if isinstance(value, str) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def table(name, content):
    machine, threads = content["machine"], content["threads"]
    versions = ", ".join(f"{program} {version}" for program, version in content["versions"].items())
    lines = [f"### {name}", "",
             f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB; {versions}.", "",
             "| name | ratio | quartiles | bar | holds | rounds | threads | measured |", "|---|---|---|---|---|---|---|---|"]
    for row in content["rows"]:
        low, _, high = quartiles(row["samples"])
        bar, holds = ("", "") if row["bar"] is None else (f"{row['sense']} {row['bar']:.2f}", "yes" if row["holds"] else "**no**")
        measured = ", ".join(f"{key} {figure(value)}" for key, value in row["measured"].items())
        lines.append(f"| `{row['name']}` | {row['ratio']:.3f} | {low:.3f} to {high:.3f} | {bar} | {holds} | {len(row['samples'])} | {threads} | {measured} |")
    return "\n".join(lines)


def main():
    folder = pathlib.Path(sys.argv[1])
    files = sorted(folder.glob("*.json"))
    if not files:
        print(f"dev: no results in {folder}; run ./dev bench first", file=sys.stderr)
        return 2
    tables = []
    for file in files:
        try:
            tables.append(table(file.stem, json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            print(f"dev: {file}: not the rows of a benchmark ({type(error).__name__}: {error}); remove it", file=sys.stderr)
            return 2
    print("\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
