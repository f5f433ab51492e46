"""Factors for scikit-learn: a transformer from scans to numbers, to stand at the head of a pipeline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from medisent.cohorts import SPLITS
from medisent.config import Study, load_study
from medisent.errors import CohortError, MedisentError, UsageError
from medisent.images import Scan, scans_of, volume_of
from medisent.models import Model, load
from medisent.readings import read_factors
from medisent.training import train

Scans = pd.DataFrame | pd.Series | np.ndarray | Iterable[Scan]
"""A table with a column of paths, or scans in a list, a column or an array of objects."""


class FactorEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Reads the factors of scans: a row a scan, a column a factor (or a latent).

    ``fit`` loads a model; nothing is learned from the scans, so nothing can leak between folds. With a ``study`` it
    trains one instead, on the rows that it is given and no others: then X is a table with the columns that the study
    names.

    Args:
        model: A loaded model, a run folder, a model file or the name of a packaged model; None is what
            ``medisent.load`` takes without a name.
        output: ``estimates``, factors in their units (a factor with levels by the number of its level), or ``latents``,
            columns named BLOCK.INDEX.
        role: Only ``anatomy`` or only ``nuisance``; None is both.
        scan: Column of a table with the scans.
        folder: What relative paths are relative to; None is the working directory.
        study: A study, or the path of a study file, to train from in ``fit``.
        run: Where ``fit`` trains to; None is a folder that is removed once the model is loaded.
        device: Where to compute.

    Attributes:
        model_: The model.
        n_features_in_: Columns of X: 1 for scans, those of the table otherwise.
        feature_names_in_: Their names, for a table whose columns have names.

    Example:
        ``make_pipeline(FactorEncoder("rendered-heads", role="anatomy"), LogisticRegression()).fit(paths, labels)``
    """

    def __init__(
        self,
        model: Model | Path | str | None = None,
        *,
        output: Literal["estimates", "latents"] = "estimates",
        role: Literal["anatomy", "nuisance"] | None = None,
        scan: str = "scan",
        folder: Path | str | None = None,
        study: Study | Path | str | None = None,
        run: Path | str | None = None,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.output = output
        self.role = role
        self.scan = scan
        self.folder = folder
        self.study = study
        self.run = run
        self.device = device

    def fit(self, X: Scans, y: object = None) -> FactorEncoder:
        """Load the model, or train it on these rows where there is a study.

        Raises:
            UsageError: A setting is none that there is, or X holds no scan.
            MedisentError: There is no such model, or nothing to train from.
        """
        self._check_settings()
        self._scans(X)
        self.n_features_in_ = X.shape[1] if isinstance(X, pd.DataFrame) else 1
        if isinstance(X, pd.DataFrame) and all(isinstance(name, str) for name in X.columns):
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
        elif "feature_names_in_" in vars(self):
            del self.feature_names_in_
        if self.study is not None:
            self.model_ = self._trained(X)
        else:
            self.model_ = self.model if isinstance(self.model, Model) else load(self.model, self.device)
        return self

    def transform(self, X: Scans) -> Float[np.ndarray, "scans columns"]:
        """The numbers of each scan, in the order of ``get_feature_names_out``.

        Raises:
            NotFittedError: ``fit`` was not called.
            MedisentError: A scan is refused; the message says which.
        """
        check_is_fitted(self, "model_")
        names = self.get_feature_names_out()
        rows = []
        for number, scan in enumerate(self._scans(X)):
            try:
                found = self._numbers(scan)
            except MedisentError as error:
                raise type(error)(f"Scan {number} of X (counted from 0): {error}", error.code) from error
            rows.append([found[name] for name in names])
        return np.array(rows, np.float64)

    def get_feature_names_out(self, input_features: object = None) -> Shaped[np.ndarray, " columns"]:
        """The names of the columns that ``transform`` gives, whatever those of X are called."""
        check_is_fitted(self, "model_")
        network = self.model_.trained.network
        if self.output == "latents":
            blocks = network.partition.items()
            kept = {name for name, block in blocks if self.role in (None, block.role)}
            return _names(column for column in network.partition.columns if column.rsplit(".", 1)[0] in kept)
        return _names(name for name, factor in network.factors.items() if self.role in (None, factor.role))

    def __sklearn_is_fitted__(self) -> bool:
        return "model_" in vars(self)

    def __sklearn_tags__(self) -> Any:  # noqa: ANN401 - scikit-learn has no types
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags

    def _check_settings(self) -> None:
        for name, allowed in (("output", ("estimates", "latents")), ("role", (None, "anatomy", "nuisance"))):
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{name} is {value!r}. Choose one of {', '.join(map(repr, allowed))}.")
        if self.model is not None and self.study is not None:
            raise UsageError("Both a model and a study were given. Give the model to load, or the study to train from.")

    def _scans(self, X: Scans) -> list[Scan]:
        """What X holds, relative paths found."""
        if isinstance(X, pd.DataFrame):
            if self.scan not in X.columns:
                raise UsageError(
                    f"X has no column {self.scan!r}, only {', '.join(map(str, X.columns))}. "
                    "Name the column with the scans: scan='...'."
                )
            X = X[self.scan]
        if isinstance(X, np.ndarray):
            X = _column(X)
        found = scans_of(X)
        if not found:
            raise UsageError("X holds no scan. Give at least one.")
        folder = Path(self.folder or "")
        return [folder / scan if isinstance(scan, str | os.PathLike) else scan for scan in found]

    def _numbers(self, scan: Scan) -> dict[str, float]:
        """By name, all that can be asked for of one scan."""
        trained = self.model_.trained
        reading = read_factors(trained, volume_of(scan))
        if self.output == "latents":
            return dict(zip(trained.network.partition.columns, reading.abduction.q.loc[0].tolist(), strict=True))
        return {name: readout.estimate for name, readout in reading.readouts.items()}

    def _trained(self, X: Scans) -> Model:
        """A model that has learned from the rows of a table."""
        if not isinstance(X, pd.DataFrame):
            raise CohortError("To train from a study, X has to be a table with the columns that the study names.")
        assert self.study is not None
        study = self.study if isinstance(self.study, Study) else load_study(Path(self.study))
        with tempfile.TemporaryDirectory() as scratch:
            table = Path(scratch) / "cohort.tsv"
            _absolute(X, study, Path(self.folder or "")).to_csv(table, sep="\t", index=False)
            split = study.cohort.split
            told = split is not None and split in X.columns and {SPLITS[0]} <= set(X[split])
            study = replace(study, cohort=replace(study.cohort, table=table, split=split if told else None))
            run = Path(self.run) if self.run is not None else Path(scratch) / "run"
            return Model(train(study, run, device=self.device, fresh=True))


def _names(names: Iterable[str]) -> Shaped[np.ndarray, " names"]:
    return np.array(list(names), dtype=object)


def _column(X: Shaped[np.ndarray, "..."]) -> list[Scan]:
    """The scans of an array of objects or of texts, one-dimensional or of one column."""
    if X.dtype.kind not in "OU" or X.ndim > 2 or (X.ndim == 2 and X.shape[1] != 1):
        size = " x ".join(map(str, X.shape))
        raise UsageError(
            f"X is an array of {X.dtype} ({size}), but scans are expected: a list of paths or images, or a table. "
            "An array of voxels needs its affine: [(array, affine), ...]."
        )
    return list(X.ravel())


def _absolute(X: pd.DataFrame, study: Study, folder: Path) -> pd.DataFrame:
    """The table with full paths of scans and masks."""
    paths = [study.cohort.scan, *(factor.mask for factor in study.factors if factor.mask)]
    absolute = {
        column: [str((folder / cell).resolve()) if isinstance(cell, str) and cell else "" for cell in X[column]]
        for column in paths
        if column in X.columns
    }
    return X.assign(**absolute)
