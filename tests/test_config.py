"""Laws of the study file: it says what it means, and says where it does not."""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from medisent.config import SCANNER_FACTORS, Study, TrainingSettings, dump_study, load_study, parse_study, schema
from medisent.errors import StudyError

RECIPES = sorted((Path(__file__).parent.parent / "examples" / "recipes").glob("*.toml"))
STUDY = """\
[cohort]
table = "cohort.tsv"
split = "split"

[grid]
spacing_mm = 6.0
shape = [32, 32, 24]

[scanner]
factors = ["brightness", "contrast", "bias_field"]

[[factors]]
name = "tumour_volume"
role = "anatomy"
kind = "positive"
unit = "mL"
column = "tumour_ml"
mask = "tumour_mask"

[[factors]]
name = "brightness"
role = "nuisance"
kind = "positive"
column = "gain"

[[factors]]
name = "grade"
role = "anatomy"
kind = "ordinal"
column = "grade"
levels = ["low", "middle", "high"]

[[supervision]]
kind = "groups"
by = "subject"
share = "anatomy"

[training]
minutes = 5
seed = 7

[gate]
leakage = 0.2
"""
SMALLEST = '[cohort]\ntable = "a.csv"\n[grid]\nspacing_mm = 2\nshape = [8, 8, 8]\n'


def refusal(text: str) -> str:
    with pytest.raises(StudyError) as caught:
        parse_study(text, "study.toml")
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert old in STUDY
    return STUDY.replace(old, new, 1)


def line_of(part: str, text: str = STUDY) -> int:
    return text[: text.index(part)].count("\n") + 1


def test_a_study_says_what_its_file_says():
    study = parse_study(STUDY, "study.toml")
    assert study.cohort.table == Path("cohort.tsv")
    assert study.cohort.subject == "subject"
    assert study.grid.shape == (32, 32, 24)
    assert [f.name for f in study.factors] == ["tumour_volume", "brightness", "grade"]
    assert [f.kind for f in study.factors] == ["positive", "positive", "ordinal"]
    assert study.factors[2].levels == ("low", "middle", "high")
    assert study.supervision[0].share == ("anatomy",)
    assert study.training.minutes == 5
    assert study.training.seed == 7
    assert study.gate is not None
    assert study.gate.leakage == 0.2


def test_everything_optional_has_a_default():
    study = parse_study(SMALLEST, "study.toml")
    assert study.scanner.factors == SCANNER_FACTORS
    assert (study.training.minutes, study.training.epochs, study.training.steps) == (5.0, None, None)
    assert (study.network.width, study.network.rest) == (16, 16)
    assert study.weights.mask == 1
    assert study.factors == ()
    assert study.gate is None


@pytest.mark.parametrize("text", [STUDY, SMALLEST], ids=["full", "smallest"])
def test_a_study_written_out_reads_back_equal(text):
    study = parse_study(text, "study.toml")
    assert parse_study(dump_study(study), "again") == study
    assert dump_study(parse_study(dump_study(study), "again")) == dump_study(study)


def test_the_table_is_found_beside_the_study_file(tmp_path):
    folder = tmp_path / "a place with ümlauts"
    folder.mkdir()
    (folder / "study.toml").write_text(STUDY, encoding="utf-8")
    assert load_study(folder / "study.toml").cohort.table == folder / "cohort.tsv"


def test_a_loaded_study_written_elsewhere_still_finds_its_table(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    study = load_study(tmp_path / "study.toml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.toml").write_text(dump_study(study), encoding="utf-8")
    assert load_study(tmp_path / "run" / "study.toml") == study


def test_a_wrong_key_is_named_with_its_line_and_the_nearest_setting():
    line = line_of("minutes = 5")
    assert refusal(changed("minutes = 5", "minuts = 5")) == (
        f"study.toml line {line}: [training] has no setting 'minuts'. Did you mean 'minutes'?"
    )


def test_a_wrong_key_like_no_other_is_answered_with_all_there_are():
    text = changed("seed = 7", "zzz = 7")
    known = ", ".join(field.name for field in fields(TrainingSettings))
    assert refusal(text) == (
        f"study.toml line {line_of('zzz', text)}: [training] has no setting 'zzz'. Known: {known}."
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[training]", "[trainig]", "there is no section [trainig]. Did you mean [training]?"),
        ("[training]", "[[training]]", "[training] is one section"),
        ("[[supervision]]", "[supervision]", "write [[supervision]]"),
        ("minutes = 5", 'minutes = "5"', 'minutes is "5", but has to be a number.'),
        ("minutes = 5", "minutes = true", "minutes is true, but has to be a number."),
        ("minutes = 5", "minutes = 0", "minutes is 0, but has to be greater than 0."),
        ("minutes = 5", "minutes = 5\nsteps = 4", "gives minutes and steps"),
        ("seed = 7", "seed = 1.5", "seed is 1.5, but has to be a whole number."),
        ("seed = 7", "seed = -1", "seed is -1, but has to be greater than or equal to 0."),
        ("seed = 7", "learning_rate = nan", "learning_rate is NaN, but has to be a finite number."),
        ("spacing_mm = 6.0", "spacing_mm = 0.0", "spacing_mm is 0.0, but has to be greater than 0."),
        ("shape = [32, 32, 24]", "shape = [32, 0, 24]", "shape[1] is 0, but has to be greater than 0."),
        ("shape = [32, 32, 24]", 'shape = [32, "a", 24]', 'shape[1] is "a", but has to be a whole number.'),
        ('"bias_field"]', '"bias"]', "factors[2] is \"bias\", but has to be 'brightness', 'contrast' or 'bias_field'."),
        ('"contrast", "bias_field"]', '"contrast", "contrast"]', "names contrast twice"),
        ('role = "anatomy"', 'role = "anatmy"', "role is \"anatmy\", but has to be 'anatomy' or 'nuisance'."),
        ('kind = "positive"', 'kind = "positiv"', "kind is 'positiv'. Did you mean 'positive'?"),
        ('kind = "positive"', "kind = [1]", "kind is [1]."),
        ('kind = "positive"\n', "", "needs 'kind': real, positive, ordinal, categorical, circular."),
        ('kind = "positive"', 'kind = "real"', "a mask measures a volume in mL"),
        ('kind = "positive"', 'kind = "circular"', "needs 'period'."),
        ('levels = ["low", "middle", "high"]', 'levels = ["low"]', "needs at least two"),
        ('levels = ["low", "middle", "high"]', "levels = [1, 2]", "levels[0] is 1, but has to be a string."),
        ('name = "brightness"', 'name = "tumour_volume"', "two factors of that name"),
        ('name = "brightness"', 'name = "tumour volume"', "letters, digits and underscores"),
        ('name = "brightness"', 'name = "lambda"', "letters, digits and underscores"),
        ('name = "brightness"', 'name = "anatomy_rest"', "that name is taken"),
        ('role = "nuisance"', 'role = "anatomy"', "the scanner's own factors have role 'nuisance'"),
        ('share = "anatomy"', 'share = ["tumor_volume"]', "Did you mean 'tumour_volume'?"),
        ('share = "anatomy"', "share = 3", "share is 3"),
        ('share = "anatomy"', "share = []", "share is []"),
        (
            'kind = "groups"',
            'kind = "group"',
            "kind is \"group\", but has to be 'groups', 'pairs', 'clamp' or 'ranks'.",
        ),
        ('share = "anatomy"\n', "", "either what its rows share ('share') or what varies ('vary')"),
        ('share = "anatomy"', 'share = "anatomy"\nvary = "nuisance"', "either what its rows share"),
        ('share = "anatomy"', 'vary = "anatmy"', "vary names 'anatmy', which is not a factor or a role. Did you mean"),
        ('share = "anatomy"', 'share = "anatomy"\norder = "rank"', "belongs to kind 'ranks' and no other"),
        ('kind = "groups"', 'kind = "ranks"', "'order', the column with the numbers"),
        ('kind = "groups"', 'kind = "ranks"\norder = "rank"', "'anatomy', which is not a factor with an order"),
        ('kind = "groups"', 'kind = "clamp"\npool = "mean"', "Kind 'clamp' pools no posteriors"),
        ('kind = "groups"', 'kind = "groups"\npool = "sum"', "pool is \"sum\", but has to be 'product' or 'mean'."),
        ('kind = "groups"', 'kind = "groups"\nbatches = 0', "batches is 0, but has to be greater than 0."),
        ("leakage = 0.2", "leakage = 2", "leakage is 2, but has to be less than or equal to 1."),
        ('table = "cohort.tsv"\n', "", "[cohort] needs 'table'."),
        ("shape = [32, 32, 24]\n", "", "[grid] needs 'shape'."),
    ],
)
def test_what_cannot_be_meant_is_refused_on_its_line(old, new, said):
    message = refusal(changed(old, new))
    assert said in message
    line = int(message.split("study.toml line ")[1].split(":")[0])
    headers = [i for i, text in enumerate(STUDY.splitlines(), 1) if text.startswith("[")]
    first = max(i for i in headers if i <= line_of(old))
    last = min((i for i in headers if i > line_of(old)), default=len(STUDY.splitlines()))
    assert first <= line <= last, "the line lies in the setting's own section"


def test_a_factor_may_be_told_about_by_what_rows_share():
    study = parse_study(changed('column = "grade"\n', ""), "study.toml")
    assert study.factors[2].column is None


def test_a_factor_may_be_told_about_by_what_varies():
    study = parse_study(changed('column = "grade"\n', "").replace("share =", "vary ="), "study.toml")
    assert study.supervision[0].vary == ("anatomy",)


def test_a_factor_that_nothing_tells_about_is_refused():
    without = changed('column = "grade"\n', "").replace('share = "anatomy"', 'share = "nuisance"')
    assert "[[factors]] grade: nothing tells its values" in refusal(without)


def test_settings_outside_every_section_are_refused():
    assert "study.toml line 1: there is no section [minutes]." in refusal("minutes = 3\n" + STUDY)


@pytest.mark.parametrize("section", ["cohort", "grid"])
def test_a_study_needs_a_cohort_and_a_grid(section):
    start = SMALLEST.index(f"[{section}]")
    end = SMALLEST.find("[grid]", start + 1)
    assert f"no section [{section}]" in refusal(SMALLEST[:start] + (SMALLEST[end:] if end > 0 else ""))


@pytest.mark.parametrize(
    ("broken", "line"), [("a = = 3\n", 2), ("[unclosed\n", 2), ('a = "text\nb = 3\n', 2), ("a = [1,\n", 2)]
)
def test_what_is_not_toml_is_refused_with_its_line(broken, line):
    assert refusal("\n" + broken).startswith(f"study.toml line {line}: this is not TOML: ")


def test_lines_are_counted_through_lists_and_texts_of_several_lines():
    text = STUDY.replace('["low", "middle", "high"]', '[\n  "low",  # the least\n  "middle",\n  """high""",\n]')
    text = text.replace("seed = 7", "sead = 7")
    assert f"line {line_of('sead', text)}: " in refusal(text)


def test_several_faults_are_told_together_and_never_at_length():
    text = STUDY.replace("minutes = 5\nseed = 7", "\n".join(f"wrong{i} = 1" for i in range(9)))
    lines = refusal(text).splitlines()
    assert len(lines) == 5
    assert lines[-1] == "... and 5 more."


def test_a_missing_study_file_is_refused_with_how_to_get_one(tmp_path):
    with pytest.raises(StudyError, match="medisent init"):
        load_study(tmp_path / "none.toml")


def test_what_is_no_text_is_no_study_file(tmp_path):
    (tmp_path / "study.toml").write_bytes(b"\xff\xfe\x00\x01")
    for path in (tmp_path, tmp_path / "study.toml"):
        with pytest.raises(StudyError, match="not a study file"):
            load_study(path)


OBJECTIVE = (
    STUDY
    + """
[objective]
beta = { anatomy_rest = 4.0, nuisance = 0.5, brightness = 2.0 }
free_nats = 1.0
"""
)


def test_the_rate_of_a_block_goes_by_its_name_else_its_role_else_what_is_said_of_all():
    objective = parse_study(OBJECTIVE, "study.toml").objective
    found = {name: objective.rate_of(name, role) for name, role in (
        ("anatomy_rest", "anatomy"), ("tumour_volume", "anatomy"), ("nuisance_rest", "nuisance"),
        ("brightness", "nuisance"),
    )}  # fmt: skip
    assert [rate.beta for rate in found.values()] == [4.0, 1.0, 0.5, 2.0]
    assert {rate.free_nats for rate in found.values()} == {1.0}
    assert {rate.capacity for rate in found.values()} == {0.0}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("anatomy_rest = 4.0", "anatomy_rst = 4.0", "beta names 'anatomy_rst', which is no block. Did you mean"),
        ("anatomy_rest = 4.0", "anatomy_rest = -4.0", "beta.anatomy_rest is -4.0, but has to be greater than or equal"),
        ("free_nats = 1.0", 'free_nats = "few"', 'free_nats is "few", but has to be a number.'),
        ("free_nats = 1.0", "free_nats = { brightness = 1.0 }", "'brightness', which is a setting of the scanner"),
        (
            "free_nats = 1.0",
            "free_nats = 1.0\ncapacity = { anatomy = 2.0 }",
            "tumour_volume both capacity and free_nats",
        ),
    ],
)
def test_rates_that_cannot_be_meant_are_refused_on_their_line(old, new, said):
    with pytest.raises(StudyError, match=re.escape(said)) as refusal:
        parse_study(OBJECTIVE.replace(old, new), "study.toml")
    assert re.match(r"study.toml line \d+: ", str(refusal.value))


def test_the_schema_knows_every_section_and_refuses_others():
    found = schema()
    assert list(found["properties"]) == list(Study.__dataclass_fields__)
    assert found["additionalProperties"] is False
    assert all(found["properties"][s]["additionalProperties"] is False for s in ("cohort", "grid", "training", "gate"))
    kinds = {one["properties"]["kind"]["const"] for one in found["properties"]["factors"]["items"]["oneOf"]}
    assert kinds == {"real", "positive", "ordinal", "categorical", "circular"}
    json.dumps(found)


def checked(text):
    """What an editor says of a study."""
    return [fault.message for fault in Draft7Validator(schema()).iter_errors(tomllib.loads(text))]


@pytest.mark.parametrize("text", [STUDY, OBJECTIVE, *(path.read_text(encoding="utf-8") for path in RECIPES)])
def test_editors_find_no_fault_with_studies_that_are_understood(text):
    parse_study(text, "study.toml")
    assert checked(text) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("spacing_mm = 6.0", "spacing = 6.0"),
        ("spacing_mm = 6.0", 'spacing_mm = "six"'),
        ("shape = [32, 32, 24]", "shape = [32, 32]"),
        ("shape = [32, 32, 24]", "shape = [32, 32, 24.5]"),
        ('kind = "positive"', 'kind = "negative"'),
        ('role = "anatomy"', 'role = "body"'),
        ("[grid]", "[gird]"),
        ('factors = ["brightness", "contrast", "bias_field"]', 'factors = ["brightnes"]'),
    ],
)
def test_editors_find_the_faults_that_are_refused(old, new):
    text = STUDY.replace(old, new, 1)
    with pytest.raises(StudyError, match=r"^study.toml line \d+: "):
        parse_study(text, "study.toml")
    assert checked(text)


def test_every_key_in_the_schema_is_described():
    for name, part in schema()["properties"].items():
        inner = part.get("items", part)
        for one in inner.get("oneOf", [inner]):
            assert one["description"].endswith((".", "``.")), name
            for key, said in one["properties"].items():
                assert said["description"].endswith("."), f"{name}: {key}"
                assert said.get("default", "") is not None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (STUDY + "\n[grid]\nspacing_mm = 2\n", 45, "there is a section [grid] already."),
        (
            STUDY.replace("spacing_mm = 6.0", "spacing_mm = 6.0\nspacing_mm = 7.0"),
            7,
            "this key or section is there already. Write it once",
        ),
        (STUDY.replace("spacing_mm = 6.0", "spacing_mm = six"), 6, "this is not TOML: invalid value"),
        (STUDY.replace("[grid]", "[grid"), 5, "this is not TOML: "),
        (STUDY.replace('split = "split"', 'split = "split'), 3, "this is not TOML: "),
        (
            STUDY.replace("[grid]", "[[grid]]"),
            5,
            "[grid] is one section with settings: write it once, in single brackets.",
        ),
        (STUDY.replace("[[factors]]", "[factors]", 1), 20, "lists of sections stand in [[double brackets]]."),
        (STUDY.replace('kind = "positive"', 'kind = "positve"', 1), 15, "kind is 'positve'. Did you mean 'positive'?"),
        (
            STUDY.replace('role = "anatomy"', 'role = "anatomi"', 1),
            14,
            "role is \"anatomi\", but has to be 'anatomy' or",
        ),
        (STUDY.replace("spacing_mm = 6.0", "spacing_mm = true"), 6, "spacing_mm is true, but has to be a number."),
        (
            STUDY.replace("shape = [32, 32, 24]", "shape = [32, 32, 2.5]"),
            7,
            "shape[2] is 2.5, but has to be a whole number",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, line, words):
    with pytest.raises(StudyError) as refusal:
        parse_study(text, "study.toml")
    assert str(refusal.value).startswith(f"study.toml line {line}: ")
    assert words in str(refusal.value)


def test_every_setting_that_is_written_out_is_in_the_schema():
    properties = schema()["properties"]
    for section, settings in tomllib.loads(dump_study(parse_study(STUDY, "study.toml"))).items():
        if isinstance(settings, dict):
            assert set(settings) <= set(properties[section]["properties"])
