"""What the C++ data layer reads, against h5py, gzip and numpy reading the same files."""

import gzip
import pathlib
import struct
import zlib

import numpy
import pytest

FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def probe(run, bin_dir, tmp_path):
    """probe(data, shape, ...): the arrays that data_probe reads for the `data` section given as YAML."""
    program = bin_dir / "data_probe"
    if not program.exists():
        pytest.skip(f"{program} is not built")

    def read(data, shape, seed=1, global_batch=4, step=0):
        channels, size, classes = shape
        out = tmp_path / "out"
        out.mkdir()
        done = run([program, f"data: {data}\n", channels, size, classes, seed, global_batch, step, out])
        assert done.returncode == 0, done.stderr
        image = (-1, channels, size, size)
        arrays = {"checksum": done.stdout.strip()}
        for path in out.iterdir():
            kind = path.suffix[1:]
            values = numpy.fromfile(path, {"pixels": "u1", "labels": "<i8", "samples": "<i8"}.get(kind, "<f4"))
            shapes = {"pixels": image, "images": image, "targets": (-1, classes)}
            arrays[path.name] = values.reshape(shapes.get(kind, (-1,)))
        return arrays

    return read


def normalised(pixels, mean, std):
    """As torchvision's ToTensor and Normalize: fp32 throughout."""
    shape = (1, -1, 1, 1)
    mean, std = (numpy.asarray(values, "f4").reshape(shape) for values in (mean, std))
    return (pixels.astype("f4") / numpy.float32(255) - mean) / std


def checksum(*splits):
    crc = 0
    for pixels, labels in splits:
        crc = zlib.crc32(pixels.tobytes(), zlib.crc32(labels.astype("<i8").tobytes(), crc))
    return f"{crc:08x}"


def documented_program(repo):
    """The Python of docs/data.md that writes an HDF5 data set."""
    text = (repo / "docs" / "data.md").read_text()
    (block,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert "h5py" in block and len(block.strip().splitlines()) == 5, block
    return block


def test_documented_hdf5_is_read_back_equal(repo, probe, tmp_path):
    rng = numpy.random.default_rng(0)
    splits = {name: (rng.integers(0, 256, (count, 3, 8, 8), "u1"), rng.integers(0, 5, count))
              for name, count in (("train", 30), ("test", 11))}
    root = tmp_path / "set"
    root.mkdir()
    exec(documented_program(repo), {"splits": splits, "root": root})

    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    read = probe(f"{{name: hdf5, root: {root}, mean: {mean}, std: {std}}}", (3, 8, 5))
    for name, (pixels, labels) in splits.items():
        numpy.testing.assert_array_equal(read[f"{name}.pixels"], pixels)
        numpy.testing.assert_array_equal(read[f"{name}.labels"], labels)
    assert read["checksum"] == checksum(splits["train"], splits["test"])

    numpy.testing.assert_array_equal(read["evaluation.images"], normalised(splits["test"][0], mean, std))
    numpy.testing.assert_array_equal(read["evaluation.targets"], numpy.eye(5, dtype="f4")[splits["test"][1]])
    samples = read["batch.samples"]
    assert len(set(samples)) == 4
    numpy.testing.assert_array_equal(read["batch.images"], normalised(splits["train"][0][samples], mean, std))
    numpy.testing.assert_array_equal(read["batch.targets"], numpy.eye(5, dtype="f4")[splits["train"][1][samples]])


def test_smoothed_targets_are_timms(probe):
    torch = pytest.importorskip("torch")
    mixup_target = pytest.importorskip("timm.data.mixup").mixup_target
    read = probe("{name: synthetic, train_samples: 40, test_samples: 4, augment: {smoothing: 0.1}}", (1, 8, 7), step=3)
    labels = torch.from_numpy(read["train.labels"][read["batch.samples"]])
    expected = mixup_target(labels, 7, lam=1.0, smoothing=0.1)
    numpy.testing.assert_allclose(read["batch.targets"], expected.numpy(), rtol=1e-6)


def read_idx(name):
    content = gzip.decompress((FASHION_MNIST / f"{name}.gz").read_bytes())
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4:4 + 4 * dimensions])
    return numpy.frombuffer(content, "u1", offset=4 + 4 * dimensions).reshape(shape)


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="the package dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_what_gzip_and_numpy_read(probe):
    read = probe("{name: fashion_mnist}", (1, 28, 10))
    splits = []
    for name, prefix in (("train", "train"), ("test", "t10k")):
        pixels, labels = read_idx(f"{prefix}-images-idx3-ubyte"), read_idx(f"{prefix}-labels-idx1-ubyte")
        numpy.testing.assert_array_equal(read[f"{name}.pixels"][:, 0], pixels)
        numpy.testing.assert_array_equal(read[f"{name}.labels"], labels)
        splits.append((pixels, labels))
    assert read["checksum"] == checksum(*splits)
    train = splits[0][0] / 255.0
    expected = normalised(splits[1][0][:, None], [round(train.mean(), 4)], [round(train.std(), 4)])
    numpy.testing.assert_array_equal(read["evaluation.images"], expected)  # the default mean and std
