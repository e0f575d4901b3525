"""What the build promises: one OpenMP runtime in a process, and programs that run from an installed prefix without the environment."""

import re
import subprocess


def test_a_process_has_exactly_one_openmp_runtime(bin_dir):
    libraries = subprocess.run(["ldd", bin_dir / "exfusion-train"], capture_output=True, text=True, check=True).stdout
    runtimes = set(re.findall(r"=> (\S*/lib(?:gomp|iomp5|omp)[^/\s]*)", libraries))
    assert len(runtimes) == 1, runtimes


def test_installed_programs_run_in_an_empty_environment(build, tmp_path):
    subprocess.run(["cmake", "--install", build, "--prefix", tmp_path], check=True, capture_output=True)
    for program in ("exfusion-train", "exfusion-export", "exfusion-eval", "exfusion-upcycle", "exfusion-compare", "exfusion-analyze", "exfusion-prune"):
        done = subprocess.run([tmp_path / "bin" / program, "--version"], env={}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"exfusion \d+\.\d+\.\d+, libtorch 2\.1[34]\.\d+\n", done.stdout), done.stdout
