"""The benchmarks' tools, in seconds: tiny runs write rows of the promised shape, and --report renders them. No time is judged."""
import json
import operator
import statistics
import subprocess
import sys

import pytest

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
RUNS = {  # what a name's rows have to contain at least
    "update": (["--sizes", "24x100x2", "--experts", "1,3", "--rounds", "2"],
               {"update/24x100x2/n1/fp32", "update/24x100x2/n3/added/fp32", "update/24x100x2/static_n3/fp32"}),
    "step": (["--models", "quickstart", "--batch", "8", "--arms", "dense,learned:2,memory:2", "--rounds", "2"],
             {"step/quickstart/b8/learned_n2/fp32", "step/quickstart/b8/memory_n2/bf16", "step/quickstart/b8/dense/fp32/memory"}),
    "loader": (["--recipes", "quickstart", "--sources", "synthetic,idx,hdf5", "--images", "512", "--rounds", "2"],
               {"loader/quickstart/idx", "loader/quickstart/hdf5/shared", "loader/quickstart/synthetic"}),
    "peers": (["--models", "quickstart", "--batch", "4", "--arms", "dense,learned:4", "--configurations", "eager_math", "--rounds", "1"],
              {"peers/quickstart/b4/best/fp32", "peers/quickstart/b4/eager/bf16", "peers/quickstart/b4/learned_n4/fp32",
               "peers/quickstart/b4/naive_n4/bf16", "peers/quickstart/b4/gemm/fp32"}),
    "dist": (["--models", "quickstart", "--batch", "4", "--precisions", "fp32", "--memory-models", "quickstart", "--rounds", "1"],
             {"dist/bytes/quickstart/memory_n16/ranks2", "dist/bytes/quickstart/learned_n4/all/ranks4",
              "dist/memory/quickstart/learned_n2/experts/ranks3", "dist/memory/quickstart/learned_n2/all/ranks4/stated",
              "dist/memory/quickstart/learned_n2/experts/ranks3/process",
              "dist/quickstart/b4/ranks2/dense/fp32", "dist/quickstart/b4/ranks2/learned_n4/experts/fp32",
              "dist/quickstart/b4/efficiency/ddp/fp32", "dist/quickstart/b4/reduce/learned_n4/fp32"}),
}
BARS = {  # name: (bar, side); every other row of these runs has none
    "update/": (0.90, ">="), "added": (1.2, "<="), "loader/": (1.0, ">="), "shared": (0.25, "<="),
    "peers/quickstart/b4/best/": (0.85, "<="), "peers/quickstart/b4/learned_n4/fp32": (1.02, "<="),
    "peers/quickstart/b4/learned_n4/bf16": (1.04, "<="),
    "dist/bytes/": (1.0, "=="), "dist/bytes/quickstart/dense/": (None, None), "n4/experts/ranks": (1.02, "<="), "n4/all/ranks": (1.02, "<="),
    "dist/memory/": (1.02, "<="), "/process": (1.05, "<="), "ranks2/dense/": (1.0, "<="),
}


BESIDE_PYTORCH = {"peers", "dist"}  # scripts; the others are programs
BAR_HOLDS = {">=": operator.ge, "<=": operator.le, "==": operator.eq}


@pytest.fixture(scope="module")
def command(repo, bin_dir):
    return lambda name: [sys.executable, repo / f"experiments/bench/{name}.py"] if name in BESIDE_PYTORCH else [bin_dir / f"bench_{name}"]


@pytest.fixture(scope="module")
def results(run, command, build, tmp_path_factory):
    """A folder with one JSON file for each benchmark, and what was printed."""
    folder = tmp_path_factory.mktemp("bench")
    printed = {}
    for name, (arguments, _) in RUNS.items():
        done = run([*command(name), *arguments, "--json", folder / f"{name}.json"], check=True,
                   env={**ONE_THREAD, "EXFUSION_BUILD": str(build)})
        assert done.stderr == ""
        printed[name] = done.stdout
    return folder, printed


def content(results, name):
    return json.loads((results[0] / f"{name}.json").read_text(encoding="utf-8"))


def expected_bar(name):
    found = [bar for part, bar in BARS.items() if part in name]
    return found[-1] if found else (None, None)


@pytest.mark.parametrize("name", RUNS)
def test_rows_have_the_promised_shape_and_say_whether_their_bar_holds(results, name):
    whole = content(results, name)
    assert list(whole) == ["machine", "versions", "threads", "rows"] and whole["threads"] == 1
    assert list(whole["machine"]) == ["cpu", "cores", "memory_bytes"] and whole["machine"]["memory_bytes"] > 2**28
    assert list(whole["versions"]) == (["exfusion", "torch", "timm"] if name == "peers" else
                                      ["exfusion", "libtorch", *(["torch", "timm"] if name == "dist" else [])])
    rows = whole["rows"]
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) and RUNS[name][1] <= set(names)
    for row in rows:
        assert list(row) == ["name", "ratio", "bar", "sense", "holds", "samples", "measured"]
        assert row["ratio"] == pytest.approx(statistics.median(row["samples"]), rel=1e-12)
        assert (row["bar"], row["sense"]) == expected_bar(row["name"])
        if row["bar"] is None:
            assert row["holds"] is None
        else:
            assert row["holds"] == BAR_HOLDS[row["sense"]](row["ratio"], row["bar"])
        assert f"\n{row['name']} " in results[1][name]


def test_each_round_is_a_sample(results):
    for name, rounds in {"update": 2, "step": 2, "loader": 2, "peers": 1}.items():
        rows = [row for row in content(results, name)["rows"] if not row["name"].endswith(("/memory", "/shared"))]
        assert {len(row["samples"]) for row in rows if "/first/" not in row["name"]} == {rounds}


def test_the_memory_of_an_arm_is_that_of_its_state_and_more(results):
    rows = {row["name"]: row["measured"] for row in content(results, "step")["rows"] if row["name"].endswith("/memory")}
    dense, fused = rows["step/quickstart/b8/dense/fp32/memory"], rows["step/quickstart/b8/learned_n2/fp32/memory"]
    ffn = 4 * (2 * 64 * 256 + 64 + 256) * 4 / 1e6  # 4 layers, fp32
    assert fused["weights_MB"] - dense["weights_MB"] == pytest.approx(2 * ffn)  # W stays, two experts come to it
    assert fused["gradients_MB"] == dense["gradients_MB"]
    assert fused["moments_MB"] - dense["moments_MB"] == pytest.approx(2 * ffn)
    for row in rows.values():
        assert sum(row[f"{part}_MB"] for part in ("weights", "gradients", "moments", "bf16")) == pytest.approx(row["state_MB"], rel=0.05)
        assert row["before_MB"] + row["state_MB"] < row["peak_MB"]


def test_fused_ranks_send_what_dense_ones_do_and_shards_no_more(results):
    rows = {row["name"]: row for row in content(results, "dist")["rows"]}
    sent = {name: row for name, row in rows.items() if name.startswith("dist/bytes/")}
    assert len(sent) == 1 + 5 * 3 + 3 * 3 * 2 and all(row["holds"] in (True, None) for row in sent.values())
    assert all(rows[f"dist/memory/quickstart/learned_n2/experts/ranks{ranks}"]["holds"] for ranks in (3, 4))


def report(run, repo, folder):
    return run([sys.executable, repo / "experiments/bench/report.py", folder])


def test_the_report_has_a_table_for_each_file_and_a_line_for_each_row(results, run, repo):
    done = report(run, repo, results[0])
    assert done.returncode == 0 and done.stderr == ""
    for name in RUNS:
        assert f"### {name}\n" in done.stdout
        for row in content(results, name)["rows"]:
            line, = [line for line in done.stdout.splitlines() if line.startswith(f"| `{row['name']}` |")]
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 8 and cells[1] == f"{row['ratio']:.3f}" and cells[5:7] == [str(len(row["samples"])), "1"]
            assert cells[4] == {True: "yes", False: "**no**", None: ""}[row["holds"]]


def test_the_report_refuses_what_is_no_result_and_says_when_there_is_none(run, repo, tmp_path):
    none = report(run, repo, tmp_path)
    assert none.returncode == 2 and "run ./dev bench first" in none.stderr and len(none.stderr.splitlines()) == 1
    for text in ("", "{}", "[]", '{"rows": 1}'):
        (tmp_path / "step.json").write_text(text)
        bad = report(run, repo, tmp_path)
        assert bad.returncode == 2 and "step.json" in bad.stderr and len(bad.stderr.splitlines()) == 1 and bad.stdout == ""


WRONG = [
    ("update", ["--sizes", "3x4"]), ("update", ["--sizes", "0x4x4"]), ("update", ["--experts", "65"]), ("update", ["--experts", "1,,2"]),
    ("update", ["--weights", "memory"]), ("update", ["--rounds", "0"]), ("update", ["more"]),
    ("step", ["--models", "vit"]), ("step", ["--arms", "dense,learned:x"]), ("step", ["--arms", "dense,dense"]),
    ("step", ["--precisions", "fp16"]), ("step", ["--batch", "0"]), ("step", ["--threads", ""]), ("step", ["--rounds", ""]),
    ("step", ["--set", "train.clip=-1"]), ("step", ["--json", "no folder/a.json"]), ("step", ["--serve"]),
    ("loader", ["--recipes", "none"]), ("loader", ["--sources", "imagenet"]), ("loader", ["--images", "x"]),
    ("peers", ["--models", "vit"]), ("peers", ["--rounds", ""]), ("peers", ["--configurations", "jit"]), ("peers", ["--arms", "learned:4"]),
    ("peers", ["--json", "no folder/a.json"]),
    ("dist", ["--models", "vit"]), ("dist", ["--batch", "3"]), ("dist", ["--memory-models", ""]), ("dist", ["--configuration", "jit"]),
    ("dist", ["--json", "no folder/a.json"]),
]


@pytest.mark.parametrize("name, arguments", WRONG, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_bad_arguments_are_answered_with_one_line(run, command, build, name, arguments):
    done = run([*command(name), *arguments], env={"EXFUSION_BUILD": str(build)})
    program = name if name in BESIDE_PYTORCH else f"bench_{name}"
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"{program}: "), done.stderr


@pytest.mark.parametrize("name", RUNS)
def test_help_describes_every_option_that_is_used_here(run, command, build, name):
    done = run([*command(name), "--help"], check=True, env={"EXFUSION_BUILD": str(build)})
    for option in (*RUNS[name][0][::2], "--json"):
        assert option in done.stdout


def test_served_steps_answer_each_request_and_a_bad_one_ends_them(command):
    start = [*command("step"), "--serve", "--models", "quickstart", "--precisions", "fp32", "--batch", "4", "--arms", "dense,learned:2",
             "--threads", "1"]

    def serve(requests):
        return subprocess.run(start, input=requests, capture_output=True, text=True, timeout=60)

    done = serve("dense 1\nlearned:2 3\n")
    ready, *answers = done.stdout.splitlines()
    assert done.returncode == 0 and json.loads(ready)["threads"] == 1 and len(answers) == 2
    assert all(float(word) > 0 for answer in answers for word in answer.split())
    for wrong in ("static:2 1\n", "dense\n", "dense 0\n", "\n"):
        done = serve(wrong)
        assert done.returncode == 2 and len(done.stdout.splitlines()) == 1 and done.stderr.startswith("bench_step: --serve")
