"""docs/recipes.md against the program: keys, defaults, ranges and words; the shipped recipes; every recipe shown in the docs.

The program's side is what it prints: the resolved recipe (every key it asked for, with the value used) and its messages about wrong values.
"""

import itertools
import re

import pytest
import yaml

NOT_SET = ["not set"]
# The smallest recipe, and the choices that decide which keys are asked for.
BASE = {"model": {"arch": "vit", "dim": 64, "depth": 4, "heads": 4}, "data": {"name": "synthetic"}, "train": {"steps": 2}}
FUSIONS = [
    "none",
    {"weights": "static"},
    {"weights": "static", "materialize": False},
    {"weights": "memory", "state": "shared_moments"},
    {"weights": "learned", "init": "copy_noise"},
    {"weights": "learned", "normalize": "none", "lr": 0.125},
    {"weights": "memory", "init": "drop"},
    {"weights": "memory", "from": "runs/dense", "init": "copy"},
]
# Keys that decide which others are asked for.
CHOICES = ("fusion.weights", "fusion.normalize", "fusion.init", "model.ffn.name", "control")
# Parts of a recipe that ask for keys of their own.
PARTS = [
    {"fusion": {}, "control": "dense_lr_scaled", "control_from": "runs/fused"},
    {"init_from": "runs/dense"},
    {"model": {"ffn": {"name": "topk"}}},
    {"model": {"ffn": {"name": "smear"}}},
    {"model": {"ffn": {"name": "ewa"}}},
]


def number(text):
    """The number that a word stands for, or the word: YAML 1.1 takes 1e-08 for a string."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return [number(item) for item in text] if isinstance(text, list) else text


def flat(tree, prefix=""):
    """{"train.clip": 1.0, ...}"""
    keys = {}
    for key, value in tree.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: number(value)}
    return keys


def merged(base, over):
    both = isinstance(base, dict) and isinstance(over, dict)
    return {key: merged(base.get(key, over.get(key)), over.get(key, base.get(key))) for key in {**base, **over}} if both else over


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def tables(text):
    """[(heading above it, rows)] of each table; a row is {column: cell}."""
    found, heading, header = [], "", None
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells(line)
            found.append((heading, []))
        elif not line.startswith("|---"):
            assert len(cells(line)) == len(header), line
            found[-1][1].append(dict(zip(header, cells(line))))
    return found


def quoted(text):
    return re.findall(r"`([^`]*)`", text)


@pytest.fixture(scope="module")
def reference(repo):
    """{dotted key: row} of docs/recipes.md."""
    keys = {}
    for heading, rows in tables((repo / "docs/recipes.md").read_text()):
        for section in [""] if heading == "Top level" else quoted(heading):
            for row in rows:
                if "key" in row:
                    (key,) = quoted(row["key"])
                    assert f"{section}.{key}".lstrip(".") not in keys
                    keys[f"{section}.{key}".lstrip(".")] = row
    return keys


@pytest.fixture(scope="module")
def resolve(run, bin_dir, tmp_path_factory):
    """resolve(recipe): the keys and values that the program uses for it."""
    folder = tmp_path_factory.mktemp("recipes")
    count = itertools.count()

    def resolved(recipe):
        file = folder / f"{next(count)}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        done = run([bin_dir / "exfusion-train", file, "--print-recipe"], check=True)
        return flat(yaml.safe_load(done.stdout))

    return resolved


@pytest.fixture(scope="module")
def variants(reference, resolve):
    """[(recipe, what the program makes of it)] such that together they ask for every key."""
    data_sets, schedules = (quoted(reference[key]["type and range"]) for key in ("data.name", "optim.schedule.name"))
    recipes = [merged(BASE, {"data": {"name": name}}) for name in data_sets]
    recipes += [merged(BASE, {"fusion": fusion}) for fusion in FUSIONS] + [merged(BASE, part) for part in PARTS]
    recipes += [merged(BASE, {"fusion": {"schedule": {"name": name}}, "optim": {"schedule": {"name": name}}}) for name in schedules]
    recipes.append(merged(BASE, {"train": {"epochs": 3}, "optim": {"schedule": {"warmup_steps": 5}},
                                 "fusion": {"schedule": {"warmup_steps": 6}}}))
    return [(recipe, resolve(recipe)) for recipe in recipes]


def default_of(row, recipe):
    """The value that a row promises for a recipe that does not give the key; NOT_SET where there is none."""
    text = row["default"]
    if text in ("required", "not set"):
        return NOT_SET
    if as_other := re.fullmatch(r"as `(\w+)`", text):
        return as_other.group(1)
    for value, word in re.findall(r"\(`([^`]*)` for `(\w+)`\)", text):
        if word == recipe["data"]["name"]:
            return number(yaml.safe_load(value))
    return number(yaml.safe_load(quoted(text)[0]))


def test_the_tables_name_every_key_of_the_program_and_no_other(reference, variants):
    asked = set().union(*(resolved for _, resolved in variants)) - {"fusion"}  # fusion: none
    assert sorted(reference) == sorted(asked)


def test_the_defaults_are_those_of_the_program(reference, variants):
    for recipe, resolved in variants:
        given = flat(recipe)
        for key, value in resolved.items():
            if key in given:
                assert value == given[key]
                continue
            expected = default_of(reference[key], recipe)
            if isinstance(expected, str) and f"train.{expected}" in resolved:
                expected = resolved[f"train.{expected}"]
            assert value == expected, key


def test_the_sizes_preset_what_the_table_says(repo, resolve):
    (rows,) = [rows for _, rows in tables((repo / "docs/recipes.md").read_text()) if "size" in rows[0]]
    assert len(rows) == 4
    for row in rows:
        resolved = resolve({**BASE, "model": {"arch": "vit", "size": quoted(row["size"])[0]}})
        assert {key: resolved[f"model.{key}"] for key in ("dim", "depth", "heads")} == {
            key: float(row[key]) for key in ("dim", "depth", "heads")}


@pytest.fixture(scope="module")
def complaints(run, bin_dir, tmp_path_factory):
    """complaints({key: wrong value}): {key: what must be there instead, in the program's words}"""
    file = tmp_path_factory.mktemp("wrong") / "recipe.yaml"
    wsd = {"schedule": {"name": "wsd"}}
    # Together they ask for every key; each is asked for those that it has, and other keys are refused for another reason.
    recipes = [{"fusion": {"init": "copy_noise", **wsd}, "optim": wsd}, {"fusion": {"weights": "memory", "init": "drop", **wsd}}, *PARTS]

    def said(wrong):
        messages = {}
        choices = ("warmup_steps", "warmup_epochs"), ((), CHOICES)  # of the two warm-ups a recipe may have one
        for part, absent, kept in itertools.product(recipes, *choices):
            file.write_text(yaml.safe_dump(merged(BASE, part)))
            sets = [f"--set={key}={value}" for key, value in wrong.items()
                    if not key.endswith(absent) and key not in kept]
            if not sets:
                continue
            done = run([bin_dir / "exfusion-train", file, "--print-recipe", *sets])
            assert done.returncode == 2, done.stderr
            messages |= dict(re.findall(r": (\S+) must be (.*), got ", done.stderr))
        return messages

    return said


def keys_of(reference, *kinds):
    return {key: row["type and range"] for key, row in reference.items() if row["type and range"].startswith(kinds)}


def bounds(text):
    """[low, high] of "number, 0 to 1e9"; of ">= 0", the text."""
    low, _, high = text.split(", ", 1)[1].partition(" to ")
    return [float(low), 256.0 if high == "`global_batch`" else float(high)] if high else low


def test_the_ranges_are_those_of_the_program(reference, complaints):
    numeric = keys_of(reference, "integer", "number")
    said = complaints(dict.fromkeys(numeric, -7))
    for key, text in numeric.items():
        interval = re.fullmatch(r"in \[(.*), (.*)\]", said[key])
        assert ([float(bound) for bound in interval.groups()] if interval else said[key]) == bounds(text), key


def test_whole_numbers_are_those_that_the_tables_call_integers(reference, complaints):
    numeric = keys_of(reference, "integer", "number")
    said = complaints(dict.fromkeys(numeric, "word"))
    assert {key: said[key] for key in numeric} == {
        key: "an integer" if text.startswith("integer") else "a number" for key, text in numeric.items()}


def test_the_words_are_those_of_the_program(reference, complaints):
    words = {key: text for key, text in keys_of(reference, "`").items() if not key.endswith(".layers")}
    said = complaints(dict.fromkeys(words, "xyzzy"))
    assert {key: said[key] for key in words} == {key: f"one of {{{', '.join(quoted(text))}}}" for key, text in words.items()}


def test_an_unknown_key_is_refused(resolve):
    with pytest.raises(AssertionError, match="did you mean 'train.steps'"):
        resolve(merged(BASE, {"train": {"stpes": 3}}))


def shipped(repo):
    return sorted((repo / "recipes").rglob("*.yaml"))


def test_every_recipe_parses_and_names_its_command(run, bin_dir, repo):
    assert len(shipped(repo)) >= 3
    for file in shipped(repo):
        run([bin_dir / "exfusion-train", file, "--print-recipe"], check=True)
        header = "".join(itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines(keepends=True)))
        assert f"exfusion-train {file.relative_to(repo)}" in header or f"dev train {file.relative_to(repo)}" in header, file


def blocks(repo):
    for file in [repo / "README.md", *sorted((repo / "docs").glob("*.md"))]:
        if file.exists():
            for block in re.findall(r"^```yaml\n(.*?)^```", file.read_text(), re.M | re.S):
                yield file.relative_to(repo), block


def test_every_recipe_in_the_docs_parses(run, bin_dir, repo, tmp_path):
    """A block may be a part of a recipe: what it lacks comes from the smallest one. Its includes are the shipped recipes."""
    for file in shipped(repo):
        copy = tmp_path / file.relative_to(repo / "recipes")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    (tmp_path / "smallest.yaml").write_text(yaml.safe_dump(BASE))
    found = list(blocks(repo))
    assert len(found) >= 2
    for file, block in found:
        base = "" if re.search("^include:", block, re.M) else "include: smallest.yaml\n"
        (tmp_path / "block.yaml").write_text(base + block)
        done = run([bin_dir / "exfusion-train", tmp_path / "block.yaml", "--print-recipe"])
        assert done.returncode == 0, f"{file}:\n{block}{done.stderr}"
