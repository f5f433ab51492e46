"""Model files and checkpoints: weights in safetensors, the study and the card in its header, nothing that runs code."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from pydantic import ConfigDict, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from medisent.config import Study, dump_study, parse_study
from medisent.errors import MedisentError, ModelError
from medisent.factors import SCANNER_FACTORS, Factor, Positive
from medisent.files import file_digest, whole_file
from medisent.model import PartitionedVAE
from medisent.plurals import several

SCHEMA = 3
MODEL_FILE = "model.safetensors"
STUDY_FILE = "study.toml"
_HEADER_LIMIT = 16 << 20
_STUDY_LIMIT = 1 << 18
_MOST_DOTS = 40  # in a line of a study; keys of many parts take tomllib their number squared
_QUANTILES = 101


PACKAGED_MODEL = Path(__file__).parent / "pretrained" / "rendered-heads.safetensors"
"""The model that the package carries. It learned from rendered heads and shows what medisent does, on such heads."""


@dataclass(frozen=True)
class FactorCard:
    """What is known of a factor in the training cohort.

    Attributes:
        quantiles: Of its readouts over the training scans, at 0, 1, ... 100 percent.
        low: Smallest value that training saw.
        high: Largest value that training saw.
        conformal: By how many standard deviations of the readout an interval reaches out at the stated level.
        calibrated: On how many subjects that was measured; 0 where there were no labels, and the readout's own
            standard deviation is all there is.
    """

    quantiles: tuple[float, ...]
    low: float
    high: float
    conformal: float
    calibrated: int


@dataclass(frozen=True)
class Card:
    """What a model file says about its model.

    Attributes:
        factors: By name.
        level: Of the intervals.
        scans: In training.
        subjects: In training.
        steps: Of training.
        typical_error: Root mean squared error of the canonical reconstruction, at 0, 1, ... 100 percent of the
            validation scans (of the training scans, where there is no validation split).
        typical_distance: Distance of the latents from the training cohort's, in the same way.
        centre: Mean latents of the training cohort, without the scanner's.
        precision: Their inverse covariance.
        figures: What was measured on the validation split.
    """

    factors: Mapping[str, FactorCard]
    level: float
    scans: int
    subjects: int
    steps: int
    typical_error: tuple[float, ...]
    typical_distance: tuple[float, ...]
    centre: tuple[float, ...]
    precision: tuple[tuple[float, ...], ...]
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def learned_from(self) -> str:
        """How much it learned from, such as ``42 scans of 40 subjects``."""
        return f"{several(self.scans, 'scan')} of {several(self.subjects, 'subject')}"


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with everything that is known about it.

    Attributes:
        study: What it was made from.
        network: The weights.
        card: What training saw.
        digest: SHA-256 of its file.
    """

    study: Study
    network: PartitionedVAE
    card: Card
    digest: str = ""


_CARDS = TypeAdapter(list[Card], config=ConfigDict(extra="forbid", strict=True))


def study_factors(study: Study) -> tuple[Factor, ...]:
    """The factors of a study, the scanner's own among them whether the study names them or not."""
    named = {factor.name for factor in study.factors}
    implied = [
        Positive(name=name, role="nuisance")
        for name in SCANNER_FACTORS
        if name in study.scanner.factors and name not in named
    ]
    return (*study.factors, *implied)


def build_model(study: Study) -> PartitionedVAE:
    """A model of a study, its weights not yet learned."""
    return PartitionedVAE(
        study_factors(study),
        study.scanner.factors,
        study.grid.shape,
        study.grid.spacing_mm**3 / 1000,
        family=study.network.family,
        width=study.network.width,
        rest=study.network.rest,
        mirror=study.training.mirror,
        nuisance_rest=study.network.nuisance_rest,
        counts=study.network.counts,
        remainders=study.network.remainders,
    )


def save_model(study: Study, network: PartitionedVAE, card: Card, path: Path) -> None:
    """Write a model file: the weights, and in the header the study and the card.

    Raises:
        MachineError: It cannot be written.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    header = {
        "schema": str(SCHEMA),
        "kind": "medisent model",
        "study": dump_study(without_place(study)),
        "card": json.dumps(asdict(card)),
    }
    save_tensors(weights, header, path)


def load_model(path: Path, device: str = "cpu") -> Trained:
    """The model in a model file.

    Raises:
        ModelError: The file is missing, damaged, of another version, or does not hold a medisent model.
    """
    weights, header = load_tensors(path, kind="medisent model")
    try:
        study = _study(header["study"], path)
        _hold_against(study, weights)
        card = _card(header["card"], study)
    except (ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # whatever a stranger's header makes the parts say
        raise ModelError(
            f"{path} is a medisent model, but its study, card and weights do not fit together. Train it anew."
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise ModelError(f"{path} holds weights that are not numbers: its training went astray. Train it anew.")
    network = build_model(study)
    network.load_state_dict(weights)
    digest = file_digest(path)
    return Trained(_located(study, path.parent), network.to(device).eval(), card, digest)


def without_place(study: Study) -> Study:
    """The study without the folder of its table, which is nobody's business but the run folder's."""
    return replace(study, cohort=replace(study.cohort, table=Path(study.cohort.table.name)))


def _study(text: str, path: Path) -> Study:
    """The study in a header; where its table lies is not the header's to say.

    Raises:
        MedisentError: It cannot be meant.
        ValueError: It is too long to be one.
    """
    if len(text) > _STUDY_LIMIT or any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
        raise ValueError("this is no study")
    return without_place(parse_study(text, f"the study in {path.name}"))


def _hold_against(study: Study, weights: Mapping[str, Tensor]) -> None:
    """Hold weights against a network of a study that takes no memory.

    Raises:
        ValueError: They are those of another.
    """
    with torch.device("meta"):
        wanted = build_model(study).state_dict()
    if _outline(wanted) != _outline(weights):
        raise ValueError("these are the weights of another network")


def _outline(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _located(study: Study, run: Path) -> Study:
    """The study with its table where the run folder says that it lies, if the model still is in its run folder."""
    resolved = run / STUDY_FILE
    if not resolved.is_file():
        return study
    try:
        table = parse_study(resolved.read_text(encoding="utf-8"), STUDY_FILE).cohort.table
    except (MedisentError, UnicodeDecodeError):
        return study
    return replace(study, cohort=replace(study.cohort, table=table))


def find_model(name: str | Path | None = None) -> Path:
    """The model file that a name stands for.

    Arguments:
        name: A run folder, a model file or a model that the package carries. None: what MEDISENT_MODEL names, else the
            newest run in ``./runs``, else ``PACKAGED_MODEL``.

    Raises:
        ModelError: There is no such model.
    """
    name = name or os.environ.get("MEDISENT_MODEL") or None
    if name is None:
        runs = sorted(Path("runs").glob(f"*/{MODEL_FILE}"), key=lambda p: (p.stat().st_mtime, p.name))
        return runs[-1] if runs else PACKAGED_MODEL
    path = Path(name)
    packaged = PACKAGED_MODEL.with_stem(path.name)
    if str(name) == path.name and not path.exists() and packaged.is_file():
        return packaged
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise ModelError(f"{path} holds no {MODEL_FILE}: its training has not ended. Run `medisent train` again.")
        return path / MODEL_FILE
    if not path.is_file():
        raise ModelError(f"The model {path} does not exist. Name a run folder or a {MODEL_FILE}.")
    return path


def save_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str], path: Path) -> None:
    """Write named tensors and named texts as one safetensors file; the same give the same bytes.

    Raises:
        MachineError: It cannot be written.
    """
    raw = save(dict(tensors), metadata=dict(header))
    with whole_file(path) as temporary:
        temporary.write_bytes(_in_order(raw))


def _in_order(raw: bytes) -> bytes:
    """The safetensors file with its header sorted; safetensors itself writes texts in an order that chance decides."""
    size = struct.unpack("<Q", raw[:8])[0]
    text = json.dumps(json.loads(raw[8 : 8 + size]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


def load_tensors(path: Path, *, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of a safetensors file of ours.

    Raises:
        ModelError: The file is damaged, not of that kind, or of another version.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            # A header that claims more than any of ours could need is refused before it is parsed.
            if len(start) < 8 or struct.unpack("<Q", start)[0] > min(_HEADER_LIMIT, path.stat().st_size):
                raise ModelError(f"{path} is not a model file: it does not begin like a safetensors file.")
            json.loads(file.read(struct.unpack("<Q", start)[0]), object_pairs_hook=_each_once)
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as a model file: it is damaged or something else.") from error
    if header.get("kind") != kind:
        raise ModelError(f"{path} is a safetensors file, but not a {kind}.")
    if header.get("schema") != str(SCHEMA):
        raise ModelError(
            f"{path} has format {header.get('schema')}, but this medisent reads format {SCHEMA}. "
            "Use the version that made it, or train it anew."
        )
    return tensors, header


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object no name of which comes twice: readers differ in which of them counts.

    Raises:
        ValueError: One does.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in the header")
    return found


def _card(text: str, study: Study) -> Card:
    """The card in a header.

    Raises:
        ValueError: It is none, or not that of the study's network.
    """
    with torch.device("meta"):
        network = build_model(study)
    (card,) = _CARDS.validate_json(f"[{text}]")
    square = len(card.centre) == len(card.precision) and all(len(row) == len(card.centre) for row in card.precision)
    whole = all(len(entry.quantiles) == _QUANTILES for entry in card.factors.values())
    if not (square and whole and len(card.centre) == network.code_size and card.factors.keys() == set(network.factors)):
        raise ValueError("this is the card of another network")
    return card
