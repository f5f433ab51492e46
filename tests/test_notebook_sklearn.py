"""Laws of the encoder for scikit-learn: what its users expect of any transformer holds for one that reads scans."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)

from medisent.cohorts import read_table
from medisent.errors import CohortError, FormatError, UsageError
from medisent.formats import read
from medisent.models import Model, load
from medisent.sklearn import FactorEncoder

APPLICABLE = (
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)  # the others fit arrays of numbers; what they ask is asked of scans below


@pytest.fixture(scope="module")
def table(cohort_table):
    return read_table(cohort_table).iloc[:4]


@pytest.fixture(scope="module")
def paths(table, cohort_table):
    return [cohort_table.parent / name for name in table["scan"]]


@pytest.fixture(scope="module")
def encoder(model_file):
    return FactorEncoder(model_file)


@pytest.fixture(scope="module")
def numbers(encoder, paths):
    return clone(encoder).fit_transform(paths)


@pytest.mark.parametrize("check", APPLICABLE, ids=lambda check: check.__name__)
def test_the_checks_of_scikit_learn_that_need_no_array_of_numbers_hold(check):
    check("FactorEncoder", FactorEncoder())


def test_it_reads_what_the_model_reads(numbers, encoder, paths, model_file):
    model = load(model_file)
    fitted = clone(encoder).fit(paths)
    assert list(fitted.get_feature_names_out()) == list(model.factors)
    readouts = model.explain(paths[0]).reading.readouts
    assert numbers[0].tolist() == [readouts[name].estimate for name in model.factors]
    latents = clone(encoder).set_params(output="latents").set_output(transform="pandas").fit_transform(paths)
    assert latents.equals(model.encode(paths))


def test_the_same_scans_give_the_same_numbers_however_they_are_given(numbers, encoder, table, paths, cohort_table):
    fitted = clone(encoder).set_params(folder=cohort_table.parent).fit(table)
    texts = [str(path) for path in paths]
    given = [
        table,
        table["scan"],
        list(table["scan"]),
        np.array(texts),
        np.array(texts, dtype=object)[:, None],
        paths,
        tuple(paths),
        [read(path) for path in paths],
        [(read(path).voxels, read(path).affine) for path in paths],
    ]
    for X in given:
        assert np.array_equal(fitted.transform(X), numbers)


def test_fitting_again_transforming_twice_and_one_by_one_change_nothing(numbers, encoder, paths):
    fitted = clone(encoder).fit(paths)
    before = dict(vars(fitted))
    assert fitted.fit(paths) is fitted
    assert np.array_equal(fitted.transform(paths), numbers)
    assert set(vars(fitted)) == set(before), "transform sets nothing"
    assert np.array_equal(np.vstack([fitted.transform([path]) for path in paths]), numbers)
    assert np.array_equal(fitted.transform(paths[::-1]), numbers[::-1])
    assert np.array_equal(clone(fitted).fit(paths[:1], [0]).transform(paths), numbers), "nothing is learned from scans"


def test_set_output_gives_a_table_with_the_rows_of_x(encoder, table, cohort_table):
    named = clone(encoder).set_params(folder=cohort_table.parent, role="anatomy").set_output(transform="pandas")
    found = named.fit_transform(table.set_index("subject", drop=False))
    assert list(found.columns) == ["tumour_volume", "head_size"]
    assert list(found.index) == list(table["subject"])
    assert named.n_features_in_ == table.shape[1]
    assert list(named.feature_names_in_) == list(table.columns)
    assert not hasattr(named.fit(list(table["scan"])), "feature_names_in_")


def test_roles_divide_factors_and_latents(encoder, paths):
    for output in ("estimates", "latents"):
        named = [
            list(clone(encoder).set_params(output=output, role=role).fit(paths).get_feature_names_out())
            for role in ("anatomy", "nuisance", None)
        ]
        assert set(named[0]).isdisjoint(named[1])
        assert sorted(named[0] + named[1]) == sorted(named[2])


def test_it_stands_in_a_pipeline_and_in_cross_validation_with_a_path_and_with_a_model(model_file, paths):
    labels = [0, 1, 0, 1]
    for model in (model_file, str(model_file), load(model_file)):
        pipeline = make_pipeline(FactorEncoder(model), StandardScaler(), LogisticRegression())
        scores = cross_val_score(pipeline, np.array(paths, dtype=object), labels, cv=2, error_score="raise")
        assert np.isfinite(scores).all()
    names = pipeline.fit(paths, labels)[:-1].get_feature_names_out()
    assert len(names) == pipeline[-1].coef_.shape[1]


def test_a_fitted_encoder_is_pickled_and_comes_back_equal(numbers, encoder, paths):
    again = pickle.loads(pickle.dumps(clone(encoder).fit(paths)))
    assert np.array_equal(again.transform(paths), numbers)


def test_fit_trains_from_a_study_on_the_rows_it_is_given(study, table, cohort_table, tmp_path):
    told = table.assign(split=["train", "train", "train", "validation"])
    learned = FactorEncoder(study=study, folder=cohort_table.parent, run=tmp_path / "run").fit(told)
    assert isinstance(learned.model_, Model)
    assert learned.model_.card.scans == 3
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert learned.transform(told).shape == (4, len(learned.model_.factors))
    with pytest.raises(CohortError, match="X has to be a table"):
        FactorEncoder(study=study).fit(list(told["scan"]))


def test_what_cannot_be_read_is_refused_in_a_sentence(encoder, paths, tmp_path):
    with pytest.raises(NotFittedError):
        FactorEncoder().transform(paths)
    with pytest.raises(NotFittedError):
        FactorEncoder().get_feature_names_out()
    refused = {
        "X is an array of float64 (3 x 2)": np.zeros((3, 2)),
        "X holds no scan": [],
        "X has no column 'scan', only image": pd.DataFrame({"image": paths}),
    }
    for words, X in refused.items():
        with pytest.raises(UsageError) as refusal:
            clone(encoder).fit(X)
        assert words in str(refusal.value)
    with pytest.raises(FormatError, match=r"Scan 1 of X.*does not exist"):
        clone(encoder).fit(paths).transform([paths[0], tmp_path / "none.nii"])
    with pytest.raises(UsageError, match="output is 'codes'"):
        FactorEncoder().set_params(output="codes").fit(paths)
    with pytest.raises(UsageError, match="Both a model and a study"):
        FactorEncoder("rendered-heads", study="study.toml").fit(paths)
