"""The config refuses every mistake in one line that names the key, and survives YAML unchanged."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from magi.config import Config, SamplingConfig, TrainingConfig, VaeTrainingConfig
from magi.config_files import RENAMED_KEYS, dump_config, load_config, parse_config


def test_defaults_are_the_papers() -> None:
    """Sections 3 and 4 of the paper, the numbers that its tables give."""
    config = Config()
    model, training = config.model, config.training
    assert (model.blocks, model.width, model.heads, model.width * model.mlp_ratio) == (20, 1280, 16, 5120)
    assert (model.head_blocks, model.head_width, model.interval_vocabulary, model.noise_levels) == (3, 1024, 25, 5)
    assert (model.noise_max, model.diffusion_steps, model.teacher_forcing) == (0.7, 1000, "complete")
    assert (training.beta1, training.beta2, training.weight_decay, training.gradient_clip) == (0.9, 0.95, 0.02, 3.0)
    assert (training.mask_ratio_mean, training.mask_ratio_std, training.mask_ratio_min) == (1.0, 0.25, 0.7)
    assert (training.ema_decay, training.warmup_steps, training.diffusion_batch_mul) == (0.9999, 10_000, 4)
    assert (config.data.frames, config.data.interval_min, config.data.interval_max) == (16, 1, 25)
    assert (config.sampling.iterations, config.sampling.steps) == (64, 100)


@settings(deadline=None)
@given(
    steps=st.integers(1, 10**6),
    rate=st.floats(1e-8, 1, allow_nan=False),
    root=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
def test_yaml_round_trip(steps: int, rate: float, root: str) -> None:
    values = {"data": {"root": root}, "training": {"steps": steps, "learning_rate": rate}}
    config = parse_config(values, "test")
    assert parse_config(yaml.safe_load(dump_config(config)), "test") == config


def test_dump_names_every_field() -> None:
    dumped = yaml.safe_load(dump_config(Config()))
    for section, model in Config.model_fields.items():
        assert list(dumped[section]) == list(model.annotation.model_fields)  # type: ignore[union-attr]


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().training.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("older", "precision"),
    [
        ({"head_precision": "model"}, "auto"),
        ({"head_precision": "model", "pass_precision": "model"}, "auto"),
        ({"head_precision": "bf16", "pass_precision": "bf16"}, "bf16"),
    ],
)
def test_older_configs_have_two_precisions_that_agree(older: dict[str, str], precision: str) -> None:
    assert parse_config({"sampling": {"steps": 7} | older}, "f").sampling == SamplingConfig(
        steps=7, precision=precision
    )


def test_an_older_config_names_the_solver_that_is_left() -> None:
    assert parse_config(
        {"sampling": {"steps": 7, "solver": "ancestral", "last_steps": 0}}, "f"
    ).sampling == SamplingConfig(steps=7)


def test_older_names_of_keys_are_read() -> None:
    """All of them, with their values; a file that has both names is refused."""
    for section, names in RENAMED_KEYS.items():
        for older, name in names.items():
            value = getattr(getattr(Config(), section), name) + 1
            assert parse_config({section: {older: value}}, "f") == parse_config({section: {name: value}}, "f")
            with pytest.raises(ValueError, match=rf"^f: {section}\.{older}: unknown key"):
                parse_config({section: {older: value, name: value}}, "f")


def test_settings_are_changed_by_name() -> None:
    base = SamplingConfig(steps=7)
    assert base.changed() == base and base.changed(guidance=2, longer="window") == SamplingConfig(
        steps=7, guidance=2.0, longer="window"
    )
    for changes, message in (
        ({"guidence": 2}, r"^sampling: guidence: unknown key; did you mean 'guidance'\?$"),
        ({"steps": 0}, r"^sampling: steps: .* greater than or equal to 1 \(got 0\)$"),
        ({"steps": 0, "longer": "ever"}, r"(?m)^sampling: longer: .*\(got 'ever'\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            base.changed(**changes)


MISTAKES: list[tuple[Any, str]] = [
    ({"sampling": {"last_steps": 5}}, r"last_steps 5: is gone.*; remove it and run"),
    ({"sampling": {"solver": "dpm++"}}, r"solver dpm\+\+: is gone.*; remove it and run 'magi tune-steps'"),
    (
        {"sampling": {"pass_precision": "bf16", "head_precision": "model"}},
        r"pass_precision and head_precision: replace with precision, which is auto, bf16 or fp32",
    ),
    ({"sampling": {"pass_precision": "bf16"}}, r"pass_precision: replace with precision"),
    ({"sampling": {"precision": "bf16", "head_precision": "bf16"}}, r"head_precision: replace with precision"),
    ({"training": {"learning_rte": 1e-4}}, r"^f: training\.learning_rte: unknown key; did you mean 'learning_rate'\?$"),
    ({"trainin": {}}, r"^f: trainin: unknown key; did you mean 'training'\?$"),
    ({"training": {"zzz": 1}}, r"^f: training\.zzz: unknown key; known keys: steps, "),
    ({"training": {"batch": -1}}, r"^f: training\.batch: .* greater than or equal to 1 \(got -1\)$"),
    ({"training": {"learning_rate": "3e-4 x"}}, r"^f: training\.learning_rate: .*\(got '3e-4 x'\)$"),
    ({"training": {"mask_ratio_min": 1.5}}, r"mask_ratio_min: .*\(got 1\.5\)"),
    ({"vae": {"name": "huge"}}, r"^f: vae\.name: .*'pixel', 'small', .*\(got 'huge'\)$"),
    ({"model": {"width": 190}}, r"^f: model: .*width 190 must be divisible by heads 16"),
    ({"data": {"interval_min": 5, "interval_max": 3}}, r"^f: data: .*interval_max 3 is below interval_min 5"),
    ({"data": {"fps": 12}, "model": {"actions": 3}}, r"^f: config: .*data\.fps 12: actions are a row a stored frame"),
    ({"data": {"interval_max": 30}}, r"^f: config: .*interval_max 30 exceeds model\.interval_vocabulary 25"),
    ({"data": None}, r"^f: data: .*\(got None\)$"),
    ([1], r"^f: expected a mapping of sections, got list$"),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistake_is_one_line_that_names_the_key(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(values, "f")
    assert "\n" not in str(caught.value)


def test_two_mistakes_are_two_lines() -> None:
    with pytest.raises(ValueError, match=r"f: training\.steps") as caught:
        parse_config({"training": {"steps": 0, "batch": 0}}, "f")
    assert len(str(caught.value).splitlines()) == 2


def test_yaml_reads_exponents(tmp_path: Path) -> None:
    """YAML reads 1e-4 as a string; the config reads it as the number that was meant."""
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  learning_rate: 1e-4\n")
    assert load_config(path).training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not readable as YAML"),
        ("!!python/object/apply:os.system ['touch owned']", "not readable as YAML"),
        ("", "expected a mapping of sections, got NoneType"),
        ("training: {steps: 3.5}", r"training\.steps: .*\(got 3\.5\)"),
    ],
)
def test_bad_file(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(tmp_path / "c.yaml")
    assert "c.yaml" in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="not readable as YAML"):
        load_config(tmp_path / "c.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
HOSTILE = {
    "alias bomb": (BOMB, r"line 2 has an alias \(\*a\)"),
    "merge": ("a: &a {}\nmodel:\n  <<: *a\n", r"line 3 has an alias \(\*a\)"),
    "alias to itself": ("&a [*a]", "line 1 has an alias"),
    "deep flow": ("[" * 200_000, "line 1 is nested deeper than 20 levels"),
    "deep block": ("".join(f"{' ' * depth}a:\n" for depth in range(1000)), "line 21 is nested deeper than 20 levels"),
    "deep mapping": ("{a: " * 200_000, "line 1 is nested deeper than 20 levels"),
    "deep tag": ("!!pairs [" * 5000, "not readable as YAML|nested deeper"),
    "big": ("# " + "x" * 1_000_000, r"1,000,002 bytes, above 1,000,000"),
    "slow number": ("training: {steps: 1" + ":59" * 300_000 + "}", "line 1 has a value of more than 10,000 characters"),
    "long number": ("training: {steps: " + "9" * 9_000 + "}", "not readable as YAML: .*limit"),
    "date that is none": ("training: {steps: 2024-99-99}", "not readable as YAML: month must be in 1..12"),
    "key that is a list": ("? [a, b]\n: c", "not readable as YAML"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_one_line_at_once(what: str, tmp_path: Path) -> None:
    text, expected = HOSTILE[what]
    (tmp_path / "c.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ValueError, match=rf"c\.yaml: .*({expected})") as refused:
        load_config(tmp_path / "c.yaml")
    assert "\n" not in str(refused.value) and time.process_time() - began < 10


def test_twenty_levels_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: " + "[" * 19 + "]" * 19)
    with pytest.raises(ValueError, match="data: Input should be a valid dictionary"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("rate", [0.0, -1.0, 3.0, float("inf"), float("nan")])
@pytest.mark.parametrize("section", [TrainingConfig, VaeTrainingConfig])
def test_an_absurd_learning_rate_is_refused(section: type[TrainingConfig], rate: float) -> None:
    with pytest.raises(ValidationError, match="learning_rate"):
        section(learning_rate=rate)
