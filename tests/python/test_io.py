"""The files that lib/io writes, opened by the libraries that others read them with; and the other way round."""

import json
import signal
import struct
import subprocess
import warnings

import h5py
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch


@pytest.fixture(scope="session")
def probe(bin_dir):
    return bin_dir / "io_probe"


class Writer:
    """A probe that writes one row per line it is sent, and says so when the row is there."""

    def __init__(self, *args):
        self.process = subprocess.Popen([str(arg) for arg in args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def expect(self, reply):
        assert self.process.stdout.readline().strip() == reply

    def send(self, line, reply):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        self.expect(reply)

    def finish(self):
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def kill(self):
        self.process.kill()
        assert self.process.wait(60) == -signal.SIGKILL


@pytest.fixture
def start():
    """start(args...): a Writer, killed at the end of the test if it still runs."""
    writers = []

    def started(*args):
        writers.append(Writer(*args))
        return writers[-1]

    yield started
    for writer in writers:
        writer.process.kill()
        writer.process.wait()
        writer.process.stdin.close()
        writer.process.stdout.close()


# --- files


def test_a_kill_leaves_the_old_file_or_the_new_one(run, probe, tmp_path):
    path = tmp_path / "file"
    run([probe, "write", path, "old"], check=True)
    for fault, seen in (("file-written:1", "old"), ("file-renamed:1", "new")):
        done = run([probe, "write", path, "new"], env={"EXFUSION_FAULT": fault})
        assert done.returncode == -signal.SIGKILL
        assert path.read_text() == seen
    run([probe, "write", path, "newest"], env={"EXFUSION_FAULT": "file-renamed:2"}, check=True)  # only one passage
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_kill_leaves_no_half_folder(run, probe, tmp_path):
    path = tmp_path / "step"

    def commit(text, fault):
        return run([probe, "commit", path, text], env={"EXFUSION_FAULT": fault}).returncode

    assert commit("first", "folder-synced:1") == -signal.SIGKILL
    assert not path.exists()
    assert commit("first", "folder-renamed:1") == -signal.SIGKILL
    assert (path / "inner" / "file").read_text() == "first"
    assert commit("second", "folder-synced:1") == -signal.SIGKILL
    assert (path / "inner" / "file").read_text() == "first"
    assert commit("third", "folder-renamed:1") == -signal.SIGKILL
    assert (path / "inner" / "file").read_text() == "third"
    assert commit("fourth", "another-point:1") == 0
    assert (path / "inner" / "file").read_text() == "fourth"
    assert [entry.name for entry in tmp_path.iterdir()] == ["step"]  # what the kills left is cleared away


@pytest.mark.parametrize("fault", ["name", "name:", "name:0", "name:x", "name:-1", "name:1 "])
def test_a_misspelt_fault_is_refused(run, probe, tmp_path, fault):
    done = run([probe, "write", tmp_path / "file", "x"], env={"EXFUSION_FAULT": fault})
    assert done.returncode == 2 and "name:n" in done.stderr


# --- safetensors


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def test_safetensors_opens_what_we_write(run, probe, tmp_path):
    path = tmp_path / "ours.safetensors"
    run([probe, "safetensors", path], check=True)
    values = torch.arange(-3, 9).reshape(3, 4)
    expected = {"Double": values.double(), "Float": values.float(), "Half": values.half(), "BFloat16": values.bfloat16(),
                "Long": values, "Int": values.int(), "Short": values.short(), "Char": values.char(),
                "Byte": values.abs().byte(), "flag": values > 0, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3),
                "transposed": values.float().t(), 'name "\\/\t\u20ac': torch.ones(1)}
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "arch": "vit"}
        assert set(file.keys()) == set(expected)
        for name, tensor in expected.items():
            assert same(file.get_tensor(name), tensor), name


def example_tensors():
    generator = torch.Generator().manual_seed(1)
    tensors = {f"blocks.{i}.w": torch.randn(3, 5, generator=generator) for i in range(12)}
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        tensors[f"t.{dtype}"] = torch.randint(0, 100, (7,), generator=generator).to(dtype)
    tensors |= {"flag": torch.tensor([True, False, True]), "scalar": torch.tensor(1e-45), "empty": torch.empty(2, 0),
                "nan": torch.tensor([float("nan"), -0.0]), "\u00e9\"\n": torch.ones(1)}
    return tensors


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_we_write_what_safetensors_writes_byte_for_byte(run, probe, tmp_path, metadata):
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    safetensors.torch.save_file(example_tensors(), theirs, metadata=metadata)
    run([probe, "rewrite", theirs, ours], check=True)
    assert ours.read_bytes() == theirs.read_bytes()


def test_no_tensors_at_all(run, probe, tmp_path):
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    safetensors.numpy.save_file({}, theirs)
    run([probe, "rewrite", theirs, ours], check=True)
    assert safetensors.numpy.load_file(ours) == {}


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin, end, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


REFUSED = {
    "empty": b"",
    "length above the limit": struct.pack("<Q", 1 << 40) + b"{}",
    "length beyond the file": struct.pack("<Q", 100) + b"{}",
    "not an object": file_of(b"[]"),
    "hole": file_of({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
    "overlap": file_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "size": file_of({"a": entry(0, 4)}, bytes(4)),
    "overflow": file_of({"a": entry(0, 8, shape=(1 << 62, 4))}, bytes(8)),
    "data too short": file_of({"a": entry(0, 8)}, bytes(7)),
    "data too long": file_of({"a": entry(0, 8)}, bytes(9)),
    "dtype": file_of({"a": entry(0, 8, dtype="F99")}, bytes(8)),
    "metadata": file_of({"__metadata__": {"k": 1}}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_safetensors_refuses_we_refuse_in_one_line(run, probe, tmp_path, name):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(REFUSED[name])
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(path, framework="np")
    done = run([probe, "rewrite", path, tmp_path / "out"])
    assert done.returncode == 2
    assert done.stderr.startswith(f"{path}: ") and done.stderr.count("\n") == 1


# --- metrics.h5


def check_metrics(file, steps):
    steps = np.array(steps)
    assert file["train/step"].dtype == np.int64 and file["train/loss"].dtype == np.float64
    np.testing.assert_array_equal(file["train/step"][:], steps)
    np.testing.assert_array_equal(file["train/loss"][:], 1 / steps)
    np.testing.assert_array_equal(file["train/samples"][:], 64 * steps)
    np.testing.assert_array_equal(file["fusion/step"][:], steps)
    np.testing.assert_array_equal(file["fusion/a"][:], steps[:, None, None] + np.arange(6.0).reshape(2, 3))


def test_h5py_follows_a_live_file(start, probe, tmp_path):
    path = tmp_path / "metrics.h5"
    writer = start(probe, "metrics", path, -1)
    writer.expect("open")
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        assert len(file["train/step"]) == 0
        for step in (1, 2, 3):
            writer.send(str(step), str(step))
            for group in file.values():
                for dataset in group.values():
                    dataset.refresh()
            check_metrics(file, range(1, step + 1))
    for step in range(4, 1201):  # beyond a chunk, with a reader that comes and goes
        writer.send(str(step), str(step))
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        check_metrics(file, range(1, 1201))
    writer.finish()
    with h5py.File(path, "r") as file:
        check_metrics(file, range(1, 1201))


@pytest.mark.parametrize("rows", [0, 1, 1025])
def test_a_killed_run_keeps_its_rows_and_goes_on(start, probe, tmp_path, rows):
    path = tmp_path / "metrics.h5"
    writer = start(probe, "metrics", path, -1)
    writer.expect("open")
    for step in range(1, rows + 1):
        writer.send(str(step), str(step))
    writer.kill()
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        check_metrics(file, range(1, rows + 1))
    kept = rows // 2
    resumed = start(probe, "metrics", path, kept)
    resumed.expect("open")
    resumed.send(str(kept + 1), str(kept + 1))
    resumed.finish()
    with h5py.File(path, "r") as file:
        check_metrics(file, range(1, kept + 2))


def test_a_foreign_metrics_file_is_refused_in_one_line(run, probe, tmp_path):
    path = tmp_path / "metrics.h5"
    with h5py.File(path, "w") as file:
        file["train/step"] = np.arange(3)
    done = run([probe, "metrics", path, 1], stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{path}: ") and done.stderr.count("\n") == 1
    path.write_bytes(b"garbage")
    done = run([probe, "metrics", path, 1], stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert path.read_bytes() == b"garbage"


def test_a_filtered_copy_is_refused(run, probe, tmp_path):
    path = tmp_path / "metrics.h5"
    with h5py.File(path, "w") as file:  # decompression could grow without bound
        for name, dtype in (("loss", "f8"), ("samples", "i8"), ("step", "i8")):
            file.create_dataset(f"train/{name}", shape=(3,), maxshape=(None,), chunks=(1024,), dtype=dtype, compression="gzip")
    done = run([probe, "metrics", path, 1], stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "plain chunks" in done.stderr


# --- TensorBoard


def scalars(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        accumulator = EventAccumulator(str(folder))
        accumulator.Reload()
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
            for tag in accumulator.Tags()["scalars"]}


def test_tensorboard_reads_a_live_run(start, probe, tmp_path):
    writer = start(probe, "events", tmp_path, -1)
    writer.send("train/loss 1 0.5", "1")
    writer.send("train/loss 200 -0.25", "200")
    writer.send("eval/accuracy 5000000000 0.125", "5000000000")
    expected = {"train/loss": [(1, 0.5), (200, -0.25)], "eval/accuracy": [(5000000000, 0.125)]}
    assert scalars(tmp_path) == expected
    writer.kill()
    assert scalars(tmp_path) == expected


def test_tensorboard_drops_what_a_resumed_run_repeats(start, probe, tmp_path):
    first = start(probe, "events", tmp_path, -1)
    for step in range(1, 6):
        first.send(f"loss {step} {step}", str(step))
    first.kill()
    resumed = start(probe, "events", tmp_path, 3)
    resumed.send("loss 4 40", "4")
    resumed.finish()
    assert scalars(tmp_path) == {"loss": [(1, 1), (2, 2), (3, 3), (4, 40)]}


def test_tensorboards_own_reader_checks_the_framing(start, probe, tmp_path):
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    writer = start(probe, "events", tmp_path, -1)
    writer.send("loss 7 1.5", "7")
    writer.finish()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    reader = PyRecordReader_New(str(path))
    events = []
    while True:
        try:
            reader.GetNext()
        except Exception:  # its end-of-file error
            break
        events.append(event_pb2.Event.FromString(reader.record()))
    assert [event.file_version for event in events] == ["brain.Event:2", ""]
    assert events[1].step == 7 and events[1].wall_time > 1.7e9
    assert events[1].summary.value[0].tag == "loss" and events[1].summary.value[0].simple_value == 1.5
