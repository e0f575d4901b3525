"""The shape of the code: who may include whom, sizes, formatting, names, and that nothing is left uncompiled.

Each check is a function from a root folder to a list of complaints, "file:line: what is wrong". It runs on the repository, where
the list has to be empty, and on a made-up tree with a mistake in it, where it must not be.
"""

import fnmatch
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

# Which layer may include which others besides itself. A new folder in lib/ needs a row here.
ARROWS = {
    "core": "",
    "io": "core",
    "nn": "core",
    "optim": "core io",
    "data": "core io",
    "dist": "core",
    "fusion": "core io nn optim dist",
    "models": "core io nn data",
    "analysis": "core io nn optim data dist",
    "observe": "core io nn data fusion models analysis",
    "train": "core io nn optim data dist fusion models analysis observe",
    "prune": "core io models analysis train",
    "compare": "core io optim data train",
    "inspect": "core io nn data models analysis observe train",
    "trainers": "core io nn optim data dist fusion models analysis observe train prune compare inspect",
}

# Headers that are slow to compile or belong to one owner: where each may be included.
HEAVY_HEADERS = {
    r"(hdf5|hdf5_hl|H5\w+)\.h": ["lib/io/metrics_*", "lib/data/hdf5_dataset.cpp", "lib/analysis/*_hdf5.cpp"],
    r"yaml-cpp/.*": ["lib/core/*.cpp"],
    r"spdlog/.*": ["lib/core/log.cpp"],
    r"boost/(?!math/).*": ["trainers/*"],
    r"boost/math/.*": ["lib/compare/statistics.cpp"],
    r"torch/torch\.h": ["*.cpp"],
    r"cuda.*|cub/.*|thrust/.*": ["*.cu", "*.cuh"],
    r"(torch|ATen|c10)/.*": [f"lib/{layer}/*.{suffix}" for layer in ARROWS if layer != "core" for suffix in ("h", "cpp")]
                            + ["lib/cmake/*", "trainers/*", "tests/*", "experiments/*"],
}

# Lines; the first pattern that fits counts. Everything else may have 600.
SIZES = {"lib/*.h": 120, "lib/*.cuh": 120, "lib/*.cpp": 300, "lib/*.cu": 300, "trainers/*.cpp": 150, "*": 600}

# file: (lines, why it may be longer)
SIZE_EXCEPTIONS = {}

CODE = (".h", ".cpp", ".cu", ".cuh")
SOURCE = CODE + (".py", ".cmake", ".sh")
TEXT = SOURCE + (".md", ".txt", ".yaml", ".yml", ".json", "")
WITHOUT_SUFFIX = {"dev", "run", ".clang-format", ".gitignore"}  # the others without one may be data
TOP_LEVEL = ("lib", "trainers", "recipes", "data", "tests", "experiments", "docs", ".ci")
GENERATED = {"__pycache__", ".pytest_cache"}

# What a build without CUDA leaves out (a .cu file it leaves out anyway).
CUDA_ONLY = {"lib/dist/nccl.cpp"}

# Spelled with a class in each, so that this file passes its own check.
FORBIDDEN_TEXT = {
    r"(?<![\w.])/([w]ork|[r]oot|tmp/[b]uild)\b": "a path of one machine",
    r"\b(py[p]i\.org|python[h]osted\.org|download[.]pytorch\.org|[a]naconda\.org|crates[.]io|npm[j]s\.(org|com)|"
    r"deb[.]debian\.org|[g]hcr\.io|docker[.]io|proxy[.]golang\.org)\b": "the host name of a package registry",
}


def files(root, suffixes):
    """The repository's files with one of these endings: those of the root and of the top-level folders, nothing generated."""
    found = [path for path in root.iterdir() if path.is_file()]
    for folder in TOP_LEVEL:
        for parent, folders, names in os.walk(root / folder):
            folders[:] = sorted(set(folders) - GENERATED)
            found += [pathlib.Path(parent, name) for name in sorted(names)]
    return [path for path in found
            if path.suffix in suffixes and (path.suffix or path.name in WITHOUT_SUFFIX) and not path.is_symlink()]


def lines(root, suffixes):
    """(path relative to root, line number, line) of every line of these files."""
    for path in files(root, suffixes):
        name = path.relative_to(root).as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            yield name, number, line


def includes(root):
    for name, number, line in lines(root, CODE):
        if match := re.match(r'\s*#\s*include\s*[<"]([^>"]+)[>"]', line):
            yield name, number, match[1]


def check_arrows(root):
    complaints = []
    for folder in sorted(path.name for path in (root / "lib").iterdir() if path.is_dir() and path.name != "cmake"):
        if folder not in ARROWS:
            complaints.append(f"lib/{folder}:1: a layer without a row in the table ARROWS")
    for name, number, header in includes(root):
        folders = name.split("/")
        layer = folders[1] if folders[0] == "lib" else folders[0]
        target = header.split("/")[0]
        if layer in ARROWS and target in ARROWS and target != layer and target not in ARROWS[layer].split():
            complaints.append(f'{name}:{number}: {layer} includes "{header}", but may only use: {ARROWS[layer] or "nothing"}')
        if folders[0] == "lib" and (root / name).parent.joinpath(header).is_file():
            complaints.append(f'{name}:{number}: "{header}" hides its layer: write "{layer}/{header}"')
    return complaints


def check_heavy_headers(root):
    return [f"{name}:{number}: <{header}> belongs in {', '.join(allowed)} only"
            for name, number, header in includes(root) if not name.startswith(("tests/", "experiments/")) or name.endswith(".h")
            for pattern, allowed in HEAVY_HEADERS.items()
            if re.fullmatch(pattern, header) and not any(fnmatch.fnmatch(name, place) for place in allowed)]


def check_sizes(root):
    complaints = []
    for path in files(root, SOURCE + ("",)):
        name = path.relative_to(root).as_posix()
        limit = next(lines for pattern, lines in SIZES.items() if fnmatch.fnmatch(name, pattern))
        limit, _ = SIZE_EXCEPTIONS.get(name, (limit, ""))
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > limit:
            complaints.append(f"{name}:{count}: {count} lines, at most {limit}")
    return complaints


def check_white_space(root):
    return [f"{name}:{number}: a tab or white space at the end" for name, number, line in lines(root, TEXT)
            if "\t" in line or line != line.rstrip()]


def without_comments(code):
    """C++ code with comments, literals and #include lines blanked, line for line."""
    token = r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|^[ \t]*#[ \t]*include[^\n]*'
    return re.sub(token, lambda match: "\n" * match[0].count("\n"), code, flags=re.S | re.M)


def check_names(root):
    complaints = []
    forbidden = re.compile(r"utils?(?![a-z])|manager|helper", re.I)
    for path in files(root, CODE):
        name = path.relative_to(root).as_posix()
        if forbidden.search(name):
            complaints.append(f"{name}:1: a file name that says nothing")
        for number, line in enumerate(without_comments(path.read_text(encoding="utf-8")).split("\n"), 1):
            if match := forbidden.search(line):
                complaints.append(f"{name}:{number}: '{match[0]}' in a name says nothing")
    return complaints


def check_text(root):
    return [f"{name}:{number}: {what}: {match[0]}" for name, number, line in lines(root, TEXT)
            for pattern, what in FORBIDDEN_TEXT.items() if (match := re.search(pattern, line))]


def check_format(root):
    code = [path.relative_to(root) for path in files(root, CODE)]
    done = subprocess.run(["clang-format", "--dry-run", "-Werror", *code], cwd=root, capture_output=True, text=True)
    complaints = sorted({f"{match}: not formatted, run ./dev format"
                         for match in re.findall(r"^(.+?:\d+):\d+: error:", done.stderr, re.M)})
    return complaints or ([done.stderr] if done.returncode != 0 else [])


def each_file(compile_commands):
    """The build's list of what it compiles, with the files of a group (CMAKE_UNITY_BUILD) one by one."""
    for entry in compile_commands:
        path = pathlib.Path(entry["file"])
        members = re.findall(r'^#include "(.+)"$', path.read_text(), re.M) if path.parent.name == "Unity" else [entry["file"]]
        yield from ({**entry, "file": member} for member in members)


def check_compiled(root, compile_commands):
    """Every .cpp is in the build's list of what it compiles: no dead file, no test that never runs."""
    compiled = {pathlib.Path(entry["file"]).resolve() for entry in compile_commands}
    return [f"{path.relative_to(root)}:1: in no CMakeLists.txt" for path in files(root, (".cpp",))
            if path.resolve() not in compiled and path.relative_to(root).as_posix() not in CUDA_ONLY]


def check_tests_run(compile_commands, ctest):
    """Every program that holds a *_test.cpp is one that ctest starts."""
    started = {pathlib.Path(test["command"][0]).name for test in ctest["tests"] if "command" in test}
    programs = {(re.search(r" -o \S*CMakeFiles/([^/]+)\.dir/", entry["command"])[1], entry["file"])
                for entry in compile_commands if entry["file"].endswith("_test.cpp")}
    return [f"{file}:1: in {program}, which is not built or not started by ctest" for program, file in sorted(programs) if program not in started]


CHECKS = [check_arrows, check_heavy_headers, check_sizes, check_white_space, check_names, check_text]


@pytest.mark.parametrize("check", CHECKS)
def test_the_repository_passes(check, repo):
    complaints = check(repo)
    assert not complaints, "\n" + "\n".join(complaints)


def test_every_cpp_file_is_formatted(repo):
    if not shutil.which("clang-format"):
        pytest.fail("clang-format is missing: ./dev setup installs it")
    version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True, check=True).stdout
    if " 14." not in version:
        pytest.skip(f"releases of clang-format differ; the code is formatted with Debian 12's 14, here is {version.strip()}")
    complaints = check_format(repo)
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.fixture(scope="module")
def compile_commands(build):
    if not (build / "compile_commands.json").exists():
        pytest.skip(f"needs a configured build folder, $EXFUSION_BUILD; {build} is none")
    return list(each_file(json.loads((build / "compile_commands.json").read_text())))


def test_every_cpp_file_is_compiled(repo, compile_commands):
    complaints = check_compiled(repo, compile_commands)
    assert not complaints, "\n" + "\n".join(complaints)


def test_every_cpp_test_is_started_by_ctest(run, build, compile_commands):
    listing = run(["ctest", "--test-dir", build, "--show-only=json-v1"], check=True)
    complaints = check_tests_run(compile_commands, json.loads(listing.stdout))
    assert not complaints, "\n" + "\n".join(complaints)


# ---- each check finds the mistake that it is there for ----

def tree(root, content):
    for name, text in {"lib/core/error.h": "int error;\n", **content}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MISTAKES = [
    (check_arrows, "lib/core/a.h", '#pragma once\n#include "nn/b.h"\n', 2),
    (check_arrows, "lib/io/a.cpp", "# include <optim/b.h>\n", 1),
    (check_arrows, "lib/optim/a.h", '#include "data/b.h"\n', 1),
    (check_arrows, "lib/models/a.h", '#include "fusion/b.h"\n', 1),
    (check_arrows, "lib/fusion/a.h", '#include "train/b.h"\n', 1),
    (check_arrows, "lib/train/a.cpp", '#include "trainers/b.h"\n', 1),
    (check_arrows, "lib/core/a.cpp", '#include "error.h"\n', 1),
    (check_heavy_headers, "lib/core/a.cpp", "#include <ATen/core/Tensor.h>\n", 1),
    (check_heavy_headers, "lib/core/a.h", "#include <torch/types.h>\n", 1),
    (check_heavy_headers, "lib/nn/a.h", "#include <torch/torch.h>\n", 1),
    (check_heavy_headers, "tests/nn/a.h", "#include <torch/torch.h>\n", 1),
    (check_heavy_headers, "lib/data/loader.cpp", "#include <hdf5.h>\n", 1),
    (check_heavy_headers, "lib/train/a.cpp", "#include <yaml-cpp/yaml.h>\n", 1),
    (check_heavy_headers, "lib/core/a.h", "#include <yaml-cpp/yaml.h>\n", 1),
    (check_heavy_headers, "lib/core/recipe.cpp", "#include <spdlog/spdlog.h>\n", 1),
    (check_heavy_headers, "lib/train/a.cpp", "#include <boost/program_options.hpp>\n", 1),
    (check_heavy_headers, "lib/compare/statistics.cpp", "#include <boost/program_options.hpp>\n", 1),
    (check_heavy_headers, "lib/compare/a.cpp", "#include <boost/math/distributions/normal.hpp>\n", 1),
    (check_sizes, "lib/nn/a.h", "int a;\n" * 121, 121),
    (check_sizes, "lib/nn/a.cpp", "int a;\n" * 301, 301),
    (check_sizes, "trainers/a.cpp", "int a;\n" * 151, 151),
    (check_sizes, "tests/nn/a_test.cpp", "int a;\n" * 601, 601),
    (check_sizes, "tests/python/a.py", "a = 1\n" * 601, 601),
    (check_white_space, "lib/nn/a.cpp", "int a;\n\tint b;\n", 2),
    (check_white_space, "recipes/a.yaml", "a: 1 \n", 1),
    (check_names, "lib/nn/utils.h", "int a;\n", 1),
    (check_names, "lib/nn/a.cpp", "// fine\nclass ExpertManager;\n", 2),
    (check_names, "lib/nn/a.cpp", "/* a\nb */ void fused_helper();\n", 2),
    (check_text, "docs/a.md", "\nsee /" + "work/main/lib\n", 2),
    (check_text, "dev", 'cd "/' + 'root/x"\n', 1),
    (check_text, "tests/a/CMakeLists.txt", "set(A /tmp/" + "build-a)\n", 1),
    (check_text, "docs/a.md", "https://py" + "pi.org/simple\n", 1),
    (check_arrows, "lib/nn/a.cu", '#include "optim/b.h"\n', 1),
    (check_heavy_headers, "lib/core/a.cuh", "#include <cuda_runtime.h>\n#include <ATen/ATen.h>\n", 2),
    (check_heavy_headers, "lib/nn/a.cu", "#include <ATen/ATen.h>\n", 1),
    (check_format, "lib/nn/a.cpp", "int a;\nint   b;\n", 2),
]


@pytest.mark.parametrize("check, name, text, line", MISTAKES)
def test_a_mistake_is_found(check, name, text, line, tmp_path, repo):
    shutil.copy(repo / ".clang-format", tree(tmp_path, {}))
    assert check(tmp_path) == []
    complaints = check(tree(tmp_path, {name: text}))
    assert len(complaints) == 1 and complaints[0].startswith(f"{name}:{line}:"), complaints


def test_a_layer_without_arrows_is_found(tmp_path):
    assert check_arrows(tree(tmp_path, {"lib/newcomer/a.h": ""})) == ["lib/newcomer:1: a layer without a row in the table ARROWS"]


def test_what_is_allowed_passes(tmp_path):
    tree(tmp_path, {
        "lib/optim/a.cpp": '#include "optim/a.h"\n#include "io/b.h"\n#include <ATen/ATen.h>\n// utils, no name\nauto a = "helper";\n',
        "lib/core/log.cpp": "#include <spdlog/spdlog.h>\n",
        "lib/data/hdf5_dataset.cpp": "#include <hdf5.h>\n",
        "trainers/a.cpp": "#include <boost/program_options.hpp>\n#include \"train/loop.h\"\n",
        "tests/io/a_test.cpp": "#include <hdf5.h>\n",
        "docs/a.md": "in frame/work/x, /usr/share/datasets, ~/build\n",
        "lib/nn/a.h": "int a;\n" * 120,
    })
    assert [complaint for check in CHECKS for complaint in check(tmp_path)] == []


def test_a_file_that_nobody_compiles_is_found(tmp_path):
    tree(tmp_path, {"lib/nn/a.cpp": "", "tests/nn/a_test.cpp": ""})
    assert len(check_compiled(tmp_path, [{"file": f"{tmp_path}/lib/nn/a.cpp"}])) == 1


def test_a_group_of_files_counts_as_its_files(tmp_path):
    group = tmp_path / "nn.dir/Unity/unity_0_cxx.cxx"
    tree(tmp_path, {"nn.dir/Unity/unity_0_cxx.cxx": '/* by CMake */\n#include "/x/a.cpp"\n\n#include "/x/b.cpp"\n'})
    entries = [{"file": str(group), "command": "c++"}, {"file": "/x/c.cpp", "command": "c++"}]
    assert [entry["file"] for entry in each_file(entries)] == ["/x/a.cpp", "/x/b.cpp", "/x/c.cpp"]


def test_a_test_program_that_ctest_does_not_start_is_found():
    entries = [{"file": f"/x/{name}_test.cpp", "command": f"c++ -include lib/CMakeFiles/pre.dir/a.hxx -o tests/CMakeFiles/{name}_test.dir/a.o"}
               for name in "ab"]
    complaints = check_tests_run(entries, {"tests": [{"command": ["/bin/a_test"]}, {"name": "disabled"}]})
    assert complaints == ["/x/b_test.cpp:1: in b_test, which is not built or not started by ctest"]
