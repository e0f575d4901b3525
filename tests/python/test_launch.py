"""Ranks as their launchers start them: --nproc, torchrun, mpirun, srun. What they run is --check-cluster."""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from programs import settings, write_recipe
from ranks import LAUNCHERS, alive, bare_environment, free_port  # noqa: F401 (bare_environment is a fixture)

COLLECTIVES = ("all_reduce", "all_to_all", "broadcast", "all_gather", "send, receive")


@pytest.fixture
def program(bin_dir):
    return bin_dir / "exfusion-train"


@pytest.fixture
def quick(program, repo):
    """--check-cluster that waits for nobody longer than 4 s."""
    return [program, repo / "recipes/quickstart.yaml", "--set", "dist.timeout=4s", "--check-cluster"]


def checked(done, ranks):
    """--check-cluster of so many ranks went well; returns their process ids in order."""
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^ +(\d+)  (\S+) +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(ranks)), done.stdout
    assert {row[1] for row in rows} == {socket.gethostname()}
    assert {row[3] for row in rows} == {"1"}
    for name in COLLECTIVES:
        numbers = re.search(rf"^{name} +(.*)$", done.stdout, re.MULTILINE)[1].split()
        assert len(numbers) == 5 and all(float(number) > 0 for number in numbers), done.stdout
    return [int(row[2]) for row in rows]


def until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return value


def children(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def local_ranks(command, count):
    """The command under --nproc, once all ranks run and have met; yields the process and the ranks' pids. Nothing outlives the block.

    The ranks have a process group of their own, so a terminal's Ctrl-C reaches the parent alone, which passes it on once.
    """
    process = subprocess.Popen([str(word) for word in (*command, "--nproc", count)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    pids = []
    try:
        pids = until(lambda: len(children(process.pid)) == count and children(process.pid), 10, "all ranks run")
        line = process.stdout.readline()  # the table of ranks: they have met
        assert line.split() == ["rank", "host", "process", "threads"], line + process.stderr.read()
        assert {os.getpgid(pid) for pid in pids} == {pids[0]} != {os.getpgid(process.pid)}
        yield process, pids
    finally:
        process.kill()
        process.communicate()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_nproc_starts_local_ranks(run, program):
    pids = checked(run([program, "--nproc=3", "--check-cluster"]), 3)
    assert len(set(pids)) == 3 and not any(alive(pid) for pid in pids)


def test_torchrun_starts_and_starts_anew(run, program, tmp_path):
    """Rank 1 fails in the first attempt; the second meets over the same agent's store, and reads none of the first one's words."""
    script = tmp_path / "rank.sh"
    script.write_text(f'if [ "$TORCHELASTIC_RESTART_COUNT$RANK" = 01 ]; then sleep 1; exit 3; fi; exec {program} --check-cluster\n',
                      encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", 2, "--max-restarts", 1]
    checked(run([*torchrun, "sh", script]), 2)


def test_mpirun(run, program):
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is missing: apt-get install openmpi-bin")
    checked(run(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", 2, program, "--check-cluster"]), 2)


def in_parallel(command, environments):
    """Runs the command once per environment, side by side; returns (exit code, stdout, stderr) of each."""
    running = [subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, **{name: str(value) for name, value in environment.items()}})
               for environment in environments]
    outputs = [process.communicate(timeout=120) for process in running]
    return [(process.returncode, *output) for process, output in zip(running, outputs)]


def plain(rank, world, port):
    return {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def test_plain_variables_and_an_interface_that_one_rank_is_told(program):
    port = free_port()
    environments = [{**plain(0, 2, port), "GLOO_SOCKET_IFNAME": "lo"}, plain(1, 2, port)]
    for code, out, err in in_parallel([program, "--check-cluster"], environments):
        assert code == 0, err
        assert "(median)" in out or out == ""


def test_the_variables_of_srun_on_two_nodes(program):
    """SLURM's variables without SLURM: two tasks that believe to be on two nodes."""
    port = free_port()
    environments = [{"SLURM_PROCID": rank, "SLURM_NTASKS": 2, "SLURM_LOCALID": 0, "SLURM_NODEID": rank, "SLURM_STEP_ID": 0,
                     "SLURM_JOB_ID": 77, "SLURM_STEP_NODELIST": "n[01-02]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(2)]
    assert [code for code, _, _ in in_parallel([program, "--check-cluster"], environments)] == [0, 0]


# Two nodes on this machine; nobody else can reach it, so nobody has to prove who he is.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/linear
ReturnToService=2
NodeName=n01 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs={cores} State=UNKNOWN
NodeName=n02 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM cluster of two nodes, both on this machine; the environment in which srun and sbatch find it."""
    if not all(shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin") for tool in ("slurmctld", "slurmd", "srun")):
        pytest.skip("SLURM is missing: apt-get install slurm-wlm")
    if os.getuid() != 0:
        pytest.skip("slurmd starts tasks as their user, which only root may")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text(SLURM_CONF.format(
        host=socket.gethostname(), user="root", folder=folder, controller=free_port(), first=free_port(), second=free_port(),
        cores=os.cpu_count()))
    env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": os.environ["PATH"] + ":/usr/sbin"}
    bare = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    with open(folder / "daemons.out", "w", encoding="utf-8") as output:
        daemons = [subprocess.Popen(words, env={**bare, **env}, stdout=output, stderr=output)
                   for words in (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n01"], ["slurmd", "-D", "-N", "n02"])]
    try:
        nodes = ["sinfo", "-h", "-o", "%D %t"]
        started = time.monotonic()
        while subprocess.run(nodes, env={**bare, **env}, capture_output=True, text=True).stdout.split() != ["2", "idle"]:
            if time.monotonic() > started + 20:
                pytest.skip(f"SLURM did not start here: {(folder / 'daemons.out').read_text()[-500:]}")
            time.sleep(0.2)
        yield env
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def test_srun_on_two_nodes(run, program, slurm):
    """2 tasks on n01, 1 on n02. Their names mean nothing here, so MASTER_ADDR says where rank 0 is."""
    checked(run(["srun", "-N2", "-n3", program, "--check-cluster"], env={**slurm, "MASTER_ADDR": "127.0.0.1"}, timeout=120), 3)


def test_a_batch_script_is_one_process_and_its_job_step_is_two(run, program, slurm, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\n{program} --check-cluster\necho step\nsrun -N1 -n2 {program} --check-cluster\n", encoding="utf-8")
    run(["sbatch", "--wait", "-N2", "-n2", "-o", tmp_path / "out", script], env=slurm, timeout=120, check=True)
    alone, step = (tmp_path / "out").read_text(encoding="utf-8").split("step\n")
    assert "one rank: there is nothing to connect" in alone
    checked(subprocess.CompletedProcess([], 0, step, ""), 2)


@pytest.fixture
def two_hosts(run):
    """Two network namespaces that a pair of veth devices joins; returns how a command starts in each. Host names differ too."""
    if os.getuid() != 0 or not shutil.which("ip", path=os.environ["PATH"] + ":/usr/sbin"):
        pytest.skip("network namespaces need root and ip (apt-get install iproute2)")
    hosts = [f"exf{os.getpid()}{side}" for side in "ab"]
    try:
        for host in hosts:
            if run(["ip", "netns", "add", host]).returncode != 0:
                pytest.skip("this machine makes no network namespaces")
        run(["ip", "link", "add", "veth", "netns", hosts[0], "type", "veth", "peer", "name", "veth", "netns", hosts[1]], check=True)
        for number, host in enumerate(hosts, 1):
            run(["ip", "-n", host, "addr", "add", f"10.99.7.{number}/24", "dev", "veth"], check=True)
            for device in ("lo", "veth"):
                run(["ip", "-n", host, "link", "set", device, "up"], check=True)
        yield [["ip", "netns", "exec", host, "unshare", "-u", "sh", "-c", f'hostname {host}; exec "$@"', "sh"] for host in hosts]
    finally:
        for host in hosts:
            run(["ip", "netns", "del", host])


def test_two_hosts_by_address(two_hosts, program):
    """Gloo takes the interface that routes to MASTER_ADDR: over loopback the two could not meet."""
    running = [subprocess.Popen([*host, program, "--check-cluster"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.99.7.1"})
               for rank, host in enumerate(two_hosts)]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    hosts = re.findall(r"^ +\d  (\S+)", outputs[0][0], re.MULTILINE)
    assert [host[-1] for host in hosts] == ["a", "b"], outputs


# Starts that go wrong.


def side_by_side(commands, world):
    """Ranks 0, 1 ... of so many, each with a command of its own; returns (exit code, lines of the program on stderr) of each."""
    port = free_port()
    running = [subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, **{name: str(value) for name, value in plain(rank, world, port).items()}})
               for rank, command in enumerate(commands)]
    outputs = [process.communicate(timeout=60) for process in running]
    return [(process.returncode, [line for line in err.splitlines() if line.startswith("exfusion-train: ")])
            for process, (_, err) in zip(running, outputs)]


@pytest.fixture
def purposes(tmp_path):
    """{what a rank may have been started for: its arguments}, all with the same recipe."""
    recipe = write_recipe(tmp_path)
    (tmp_path / "earlier").mkdir()
    write_recipe(tmp_path / "earlier")
    out = ["--out", tmp_path / "run"]
    return {"training": [recipe, *out], "--resume auto": [recipe, *out, "--resume", "auto"], "--dry-run": [recipe, "--dry-run"],
            "--check-cluster": ["--check-cluster"], "--resume RUN": ["--resume", tmp_path / "earlier"]}


@pytest.mark.parametrize("first, second", [("training", "--check-cluster"), ("--dry-run", "training"), ("--resume auto", "--resume RUN")])
def test_ranks_started_for_different_things_say_so_at_once(program, purposes, tmp_path, first, second):
    """Though a third one has not come yet, and would be waited for 10 minutes."""
    ends = side_by_side([[program, *purposes[first]], [program, *purposes[second]]], 3)
    line = f"exfusion-train: rank 1 on host {socket.gethostname()} differs in purpose: it has {second}, rank 0 has {first}"
    assert ends == [(1, [line])] * 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("culprit, words, reason", [(0, ["nowhere.yaml"], "nowhere.yaml: no such file"),
                                                    (1, ["--set", "train.stpes=3"], "--set train.stpes=3: unknown key 'train.stpes'")])
def test_a_rank_that_cannot_start_tells_the_others(program, purposes, culprit, words, reason):
    commands = [[program, *purposes["training"]] for _ in range(2)]
    commands[culprit] = [program, *words] if words[0] != "--set" else [*commands[culprit], *words]
    ends = side_by_side(commands, 2)
    code, (line,) = ends[culprit]
    assert code == 2 and line.startswith(f"exfusion-train: {reason}")
    code, (line,) = ends[1 - culprit]
    assert code == 1 and line.startswith(f"exfusion-train: rank {culprit} on host {socket.gethostname()} could not start: {reason}")


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_without_its_interface_is_named_by_the_others_at_once(program, culprit):
    port = free_port()
    environments = [plain(rank, 2, port) for rank in range(2)]
    environments[culprit]["GLOO_SOCKET_IFNAME"] = "nosuch0"
    reason = "GLOO_SOCKET_IFNAME is 'nosuch0': this machine has no such interface"
    for rank, (code, _, err) in enumerate(in_parallel([program, "--check-cluster"], environments)):
        assert code == (2 if rank == culprit else 1), err
        assert (reason if rank == culprit else f"rank {culprit} on host {socket.gethostname()} could not start: {reason}") in err


def test_what_all_ranks_of_nproc_say_is_said_once(run, program):
    done = run([program, "nowhere.yaml", "--nproc", 3])
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "exfusion-train: ranks 0-2: nowhere.yaml: no such file\n")


def test_a_dry_run_tells_ranks_threads_and_memory(run, program, tmp_path):
    done = run([program, write_recipe(tmp_path), "--dry-run", "--nproc", 2, *settings(train__threads=0)], check=True)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["ranks"] == ("2, 2 of them on this machine; each with 1 threads (OMP_NUM_THREADS=1) and 16 of a step's 32 images; "
                             "dist.shard: none")
    assert " of state per rank: weights " in rows["memory"] and "available to the 2 ranks of this machine together" in rows["memory"]
    assert rows["measured"].endswith("on 1 threads, of one rank that does the work of all")


def test_who_is_waited_for_is_said_and_named_in_the_end(quick):
    """Two groups at once, since all they do is wait: of one ranks 1 and 3 are missing, of the other rank 0."""
    port, other = free_port(), free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        gaps = pool.submit(in_parallel, quick, [plain(rank, 4, port) for rank in (0, 2)])
        alone = pool.submit(in_parallel, quick, [plain(1, 2, other)])
    for code, _, err in gaps.result():
        assert code == 1
        assert "2 of 4 ranks did not come within 4 s: ranks 1, 3" in err
    assert "waiting for ranks 1, 3 of 4 (3 s of dist.timeout, 4 s)\n" in gaps.result()[0][2]
    [(code, _, err)] = alone.result()
    assert code == 1
    assert f"rank 0 did not come: nothing answers at 127.0.0.1:{other}" in err
    assert re.search(rf"waiting for rank 0: nothing answers at 127.0.0.1:{other} \(.*\) \(3 s of dist.timeout, 4 s\)\n", err)


@pytest.mark.parametrize("words, environment, complaint", [
    (["--nproc", "0"], {}, "--nproc is a number of ranks, 1 to 1024, got 0"),
    (["--nproc", "1025"], {}, "--nproc is a number of ranks, 1 to 1024, got 1025"),
    (["--nproc", "2"], plain(0, 1, 29500), "this process is already rank 0 of 1 (RANK is set)"),
    ([], plain(2, 2, 29500), "RANK is '2': a whole number from 0 to 1 was expected"),
    ([], {"WORLD_SIZE": 2}, "WORLD_SIZE is 2, but RANK is not set"),
    (["--set", "dist.timeout=4s"], {}, "--set overrides values of a recipe"),
    (["--out", "x"], {}, "--check-cluster trains nothing"),
])
def test_a_wrong_start_is_refused(program, words, environment, complaint):
    [(code, out, err)] = in_parallel([program, "--check-cluster", *words], [environment])
    assert (code, out) == (2, "")
    assert complaint in err and err.count("\n") == 1


def test_nccl_on_a_cpu_is_refused(quick):
    port = free_port()
    [(code, _, err)] = in_parallel([*quick, "--set", "dist.backend=nccl"], [plain(0, 2, port)])
    assert code == 2
    assert "dist.backend: nccl moves GPU memory, but train.device is cpu" in err


LOST = [(signal.SIGKILL, 0), (signal.SIGKILL, 2), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)]


@pytest.fixture(scope="module")
def lost(bin_dir, repo):
    """{(signal, rank that gets it): (exit code, stderr, ranks left over)}; all at once, since nearly all that they do is wait."""

    def lose(case):
        how, rank = case
        with local_ranks([bin_dir / "exfusion-train", repo / "recipes/quickstart.yaml", "--set", "dist.timeout=6s", "--check-cluster"],
                         3) as (process, pids):
            os.kill(pids[rank], how)
            process.wait(timeout=60)
            return process.returncode, process.stderr.read(), [pid for pid in pids if alive(pid)]

    with pytest.MonkeyPatch.context() as environment, concurrent.futures.ThreadPoolExecutor() as pool:
        environment.setenv("OMP_NUM_THREADS", "1")
        return dict(zip(LOST, pool.map(lose, LOST)))


@pytest.mark.parametrize("how, rank", LOST)
def test_after_a_lost_rank_nobody_is_left(lost, rank, how):
    code, errors, left = lost[how, rank]
    assert (code, left) == (1, [])
    assert f"no answer from rank {rank} " in errors


def test_a_stopped_rank_does_not_outlive_a_parent_that_is_told_to_end(program):
    with local_ranks([program, "--check-cluster"], 2) as (process, pids):
        os.kill(pids[1], signal.SIGSTOP)
        time.sleep(0.5)
        process.terminate()
        process.wait(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM
        assert not any(alive(pid) for pid in pids)


def test_ctrl_c_reaches_every_rank(program):
    with local_ranks([program, "--check-cluster"], 2) as (process, pids):
        process.send_signal(signal.SIGINT)
        process.wait(timeout=10)
        assert process.returncode == 128 + signal.SIGINT
        assert not any(alive(pid) for pid in pids)


def test_ranks_die_with_their_parent_even_if_stopped(program):
    with local_ranks([program, "--check-cluster"], 2) as (process, pids):
        os.kill(pids[0], signal.SIGSTOP)
        process.kill()
        until(lambda: not any(alive(pid) for pid in pids), 5, "the ranks are gone")
