"""Laws of strange model files: each is refused in one sentence with exit code 3, and none of them runs anything."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from medisent.checkpoints import load_model, load_tensors, save_tensors
from medisent.cli import main
from medisent.errors import ModelError, StudyError
from medisent.training import CHECKPOINT, Loop

CANARY = "exploded"


class Bomb:
    """Leaves a folder where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (CANARY,)


def parts(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def assembled(header: dict | bytes, weights: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights


def in_memory(save: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def archive(stream: io.BytesIO) -> None:
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("../outside", "data.pkl"):
            raw = pickle.dumps(Bomb())
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))


def zipped(stream: io.BytesIO) -> None:
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb()))
        file.writestr("../outside", "x")


def foreign() -> Iterator[tuple[str, bytes]]:
    """Files of other kinds, which others would run."""
    yield "pickle", pickle.dumps(Bomb())
    yield "text pickle", pickle.dumps(Bomb(), protocol=0)
    yield "torch", in_memory(lambda f: torch.save({"w": Bomb()}, f))
    yield "old torch", in_memory(lambda f: torch.save({"w": Bomb()}, f, _use_new_zipfile_serialization=False))
    yield "tar", in_memory(archive)
    yield "zip", in_memory(zipped)
    yield "numpy", in_memory(lambda f: np.save(f, np.array([Bomb()], dtype=object), allow_pickle=True))
    yield "numpy archive", in_memory(lambda f: np.savez(f, w=np.array([Bomb()], dtype=object)))
    yield "joblib", in_memory(lambda f: joblib.dump(Bomb(), f))
    yield "yaml", f"!!python/object/apply:os.mkdir ['{CANARY}']".encode()
    yield "python", f"import os; os.mkdir('{CANARY}')".encode()
    yield "length and pickle", struct.pack("<Q", 64) + pickle.dumps(Bomb())
    yield "header and pickle", assembled(pickle.dumps(Bomb()), b"")
    yield "huge length", struct.pack("<Q", 2**64 - 1) + b"{}"
    yield "nothing", b""


def forged(header: dict, weights: bytes) -> Iterator[tuple[str, bytes]]:
    """Files that begin as ours do."""
    text = json.dumps(header)
    name, other = [key for key in header if key != "__metadata__"][:2]
    entry = header[name]

    def with_entry(**changes: object) -> bytes:
        return assembled({**header, name: {**entry, **changes}}, weights)

    yield "offset beyond", with_entry(data_offsets=[0, 1 << 60])
    yield "offset before", with_entry(data_offsets=[-8, 0])
    yield "overlap", with_entry(data_offsets=header[other]["data_offsets"])
    yield "overflow", with_entry(shape=[1 << 40, 1 << 40])
    yield "other shape", with_entry(shape=[*entry["shape"], 1])
    yield "other type", with_entry(dtype="U32" if entry["dtype"] == "F32" else "F32")
    yield "unknown type", with_entry(dtype="PICKLE")
    yield "tensor twice", assembled(f"{text[:-1]},{json.dumps(name)}:{json.dumps(entry)}}}".encode(), weights)
    yield "header twice", assembled((text[:-1] + ',"__metadata__":{}}').encode(), weights)
    yield "deep header", assembled(b'{"a":' + b"[" * 100_000, weights)
    yield "half a letter", assembled(text.encode().replace(b"medisent model", b"medisent \xed\xa0\x80"), weights)
    yield "no number", assembled(header, struct.pack("<f", float("nan")) + weights[4:])
    yield "infinity", assembled(header, struct.pack("<f", float("inf")) + weights[4:])
    yield "short", assembled(header, weights[:-4])
    yield "less", assembled({k: v for k, v in header.items() if k != name}, weights)


def studied(header: dict, weights: bytes) -> Iterator[tuple[str, bytes]]:
    """Files whose study or card is not what it should be."""

    def with_study(pattern: str, text: str) -> bytes:
        told = header["__metadata__"]["study"]
        changed = re.sub(pattern, lambda _: text, told, count=1, flags=re.DOTALL)
        assert changed != told
        return assembled({**header, "__metadata__": {**header["__metadata__"], "study": changed}}, weights)

    def with_card(text: str) -> bytes:
        return assembled({**header, "__metadata__": {**header["__metadata__"], "card": text}}, weights)

    name = '"tumour_volume"'
    yield "name above", with_study(name, '"../../tumour"')
    yield "name at the root", with_study(name, '"/tumour"')
    yield "name with a dot", with_study(name, '".."')
    yield "name of a class", with_study(name, '"__class__.__init__"')
    yield "long name", with_study(name, '"' + "a" * 200 + '"')
    yield "turned name", with_study(name, '"tumour\\u202evolume"')
    yield "unit that steers", with_study('"mL"', '"\\u001b]0;mL\\u0007"')
    yield "expression", with_study('"mL"', '"mL"\n_target_ = "os.mkdir"\n"$run" = "import os"')
    yield "import path", with_study('kind = "positive"', f'kind = "os:mkdir:{CANARY}"')
    yield "wide network", with_study("width = 4", "width = 400000000")
    yield "long rest", with_study("\nrest = 4", "\nrest = 4000000000")
    yield "endless rest", with_study("\nrest = 4", "\nrest = " + "9" * 4000)
    yield "large grid", with_study(r"shape = \[.*?\]", "shape = [100000, 100000, 100000]")
    yield "tiny voxels", with_study(r"spacing_mm = [\d.]+", "spacing_mm = 1e-300")
    yield "deep study", with_study("^", "a = " + "[" * 100_000 + "\n")
    yield "long key", with_study("^", ".".join(["a"] * 20_000) + " = 1\n")
    yield "long study", with_study("^", "# " + "\U0001f469\u200d" * 200_000 + "\n")
    yield "deep card", with_card("[" * 100_000)
    yield "two cards", with_card(header["__metadata__"]["card"] + "," + header["__metadata__"]["card"])
    yield "other card", with_card(header["__metadata__"]["card"].replace('"level": ', '"level": "0.9", "x": '))


def test_strange_files_are_refused_in_a_sentence_and_run_nothing(model_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    header, weights = parts(model_file)
    renamed = [(label, raw, "model.pt") for label, raw in foreign()]
    ours = [(label, raw, "x.safetensors") for label, raw in (*forged(header, weights), *studied(header, weights))]
    files = [*renamed, *((label, raw, "x.safetensors") for label, raw in foreign()), *ours]
    assert len(files) >= 60
    for label, raw, name in files:
        Path(name).write_bytes(raw)
        assert main(["info", name, "--json"]) == 3, label
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1, (label, said.err)
        assert len(said.err) < 300, label
        assert json.loads(said.out)["error"]["code"] == "model", label
        Path(name).unlink()
        assert list(Path.cwd().iterdir()) == [], label


def test_an_untouched_file_is_not_refused(model_file, tmp_path):
    header, weights = parts(model_file)
    (tmp_path / "x").write_bytes(assembled(header, weights))
    assert load_model(tmp_path / "x").card == load_model(model_file).card


def test_where_a_model_finds_its_cohort_is_not_its_headers_to_say(model_file, tmp_path):
    header, weights = parts(model_file)
    said = header["__metadata__"]
    said["study"] = re.sub(r'table = ".*?"', 'table = "../../secret/cohort.tsv"', said["study"])
    (tmp_path / "x").write_bytes(assembled(header, weights))
    assert load_model(tmp_path / "x").study.cohort.table == Path("cohort.tsv")


def test_a_study_file_with_control_characters_is_refused_without_printing_them(tmp_path):
    from medisent.config import load_study

    (tmp_path / "study.toml").write_text(
        '[cohort]\ntable = "a\\u001b[2Jb.tsv"\n[grid]\nspacing_mm = 1.0\nshape = [8, 8, 8]\n'
    )
    with pytest.raises(StudyError, match=r"control characters in 'a\\x1b"):
        load_study(tmp_path / "study.toml")


# Checkpoints


@pytest.fixture
def checkpoint(study, shown, tmp_path) -> Callable[[], Loop]:
    """A loop that has saved a checkpoint after two steps, and others that resume it."""
    from medisent.checkpoints import build_model

    def loop() -> Loop:
        torch.manual_seed(0)
        network = build_model(study)
        network.fit(shown)
        return Loop(study, network, shown, tmp_path)

    first = loop()
    first.take_step()
    first.take_step()
    first.save()
    return loop


def test_a_strange_checkpoint_is_refused_in_a_sentence_and_runs_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / CHECKPOINT
    good = path.read_bytes()
    checkpoint().resume()
    tensors, header = load_tensors(path, kind="medisent checkpoint")
    moment = next(name for name in tensors if name.endswith("exp_avg") and tensors[name].ndim > 1)
    changes = {
        "other moments": {moment: torch.zeros(1, 1)},
        "moments of nothing": {"optimiser.9999.exp_avg": torch.zeros(1)},
        "other entry": {"optimiser.0.code": torch.zeros(())},
        "no clock": {"clock.step": torch.zeros(0, dtype=torch.long)},
        "endless clock": {"clock.seconds": torch.tensor(float("inf"))},
        "a step and a half": {"clock.step": torch.tensor(1.5)},
        "other chance": {"chance.own": torch.zeros(3, dtype=torch.uint8)},
        "broken chance": {"chance.own": torch.full_like(tensors["chance.own"], 255)},
        "chance of floats": {"chance.torch": torch.zeros(5056)},
        "scans there are not": {"sampler.plain": torch.tensor([10_000])},
        "scans before the first": {"sampler.plain": torch.tensor([-1])},
        "another network": {next(iter(tensors)): torch.zeros(2, 2)},
    }
    for label, changed in changes.items():
        save_tensors({**tensors, **changed}, header, path)
        with pytest.raises(ModelError, match=r"is damaged\. Begin anew with --fresh\.$"):
            pytest.fail(f"{label} was taken: {checkpoint().resume()}")
    save_tensors(tensors, {key: text for key, text in header.items() if key != "log"}, path)
    with pytest.raises(ModelError, match="is damaged"):
        checkpoint().resume()
    for _, raw in foreign():
        path.write_bytes(raw)
        with pytest.raises(ModelError, match="is damaged"):
            checkpoint().resume()
    assert not (tmp_path / CANARY).exists()
    path.write_bytes(good)
    checkpoint().resume()


def test_a_checkpoint_does_not_say_where_the_cohort_lies(checkpoint, study, tmp_path):
    assert study.cohort.table.is_absolute()
    assert str(study.cohort.table.parent).encode() not in (tmp_path / CHECKPOINT).read_bytes()
