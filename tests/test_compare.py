"""experiments/compare.py, comparable.py and comparison.py: rows, comparable runs, their order, what is shown."""

import csv
import json
import math
import statistics

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import comparable, compare, comparison
from experiments.load import Run
from tests.shared import opened
from tests.tiny import TINY
from utils import known, pictures, runs
from utils.settings import from_params

SHAPE = (4, 6, 1)
REPORT = {
    "kind": "likelihood", "test_elbo": -100.0, "test_nll": 95.0, "test_reconstruction": 80.0, "test_kl": 20.0,
    "test_log_density": None, "active_units": 2, "healthy": True, "nll_samples": 8, "standard_error_images": 0.25,
    "standard_error_sampling": 0.01,
}  # fmt: skip
SPEEDS = (50, 25, 100)  # images a second


@pytest.fixture
def make_run(tmp_path):
    """Write a finished run's files; return its folder. `tested` are its test images; other arguments are settings."""

    def make(name, judged=None, tested=(1, 2, 3), finished=True, evaluated=None, step=40, **settings):
        given = TINY | {"dataset": "mnist", "binarize": "dynamic", "batch_size": 10}
        s = from_params(**given | settings | {"output_dir": str(tmp_path), "run_name": name})
        folder = runs.create(s, "CPU", SHAPE)
        known.save(folder, {"tested": np.array(tested, np.uint64)})
        judged = REPORT | (judged or {})
        if finished:
            (folder / "report.json").write_text(json.dumps(judged))
        about = {"objective": 1.0, "reconstruction": 80.0, "kl": judged["test_kl"], "elbo": judged["test_elbo"]}
        lines = [{"step": at, "epoch": at / 20, "split": "test", "kl_weight": 1.0} | about for at in (20, step)]
        train = [{"step": at, "epoch": at / 20, "split": "train"} for at in (10, 30, step)]
        lines += [line | about | {"images_per_second": speed} for line, speed in zip(train, SPEEDS, strict=True)]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if evaluated:
            nll, samples = evaluated
            likely = {"log_likelihood": -nll, "samples": samples}
            likely |= {"standard_error_images": 0.5, "standard_error_sampling": 0.1}
            frechet = {"frechet": {"samples from the prior": 7.5}}
            (folder / "evaluation.json").write_text(json.dumps({"step": 40, "likelihood": likely, "samples": frechet}))
        grid = np.full((100, *SHAPE), 9, np.uint8)
        grid[44], grid[45], grid[54] = 200, 100, 100  # the last image of the corner that is shown, and two beside it
        pictures.save_png(folder / "samples_002.png", pictures.captioned(pictures.grid(grid, 10), "a caption"))
        return folder

    return make


def tables(folders, sort=None, say=None):
    said = []
    rows = comparable.rows_of([Run(folder, say=pytest.fail) for folder in folders], say or said.append)
    return comparable.tables_of(rows, sort), said


def names(table):
    return [[run.folder.name for run in row.runs] for row in table.rows]


def shown(tmp_path, *words):
    return compare.main(compare.read_command_line([*map(str, words), "--output-dir", str(tmp_path)]))


# --- rows -------------------------------------------------------------------------------------------------------------
def test_runs_that_differ_in_the_seed_alone_are_one_row_of_mean_and_deviation(make_run, tmp_path, capsys):
    elbos = [-101.0, -103.0, -108.0]
    for seed, elbo in zip((2, 0, 1), elbos, strict=True):
        judged = {"test_elbo": elbo, "test_nll": -elbo - 5, "healthy": seed > 0}
        make_run(f"a{seed}", judged | {"standard_error_images": (seed + 1) / 4}, seed=seed)
    make_run("b", {"test_elbo": -90.5}, seed=7, kl_weight_end=4.0)
    assert shown(tmp_path) == 0
    told = capsys.readouterr().out
    first, second = (line.split() for line in told.splitlines() if line.startswith(("1 ", "2 ")))
    assert first[1:5] == ["-90.50", "95.00", "(0.25)", "80.00"]
    mean, deviation = f"{sum(elbos) / 3:.2f}", f"{statistics.stdev(elbos):.2f}"
    assert second[1:8] == [mean, "±", deviation, "99.00", "±", deviation, "(0.50)"]
    assert "2 of 3" in " ".join(second)
    assert " ".join(second).endswith("a0 and 2 more kl_weight_end 1.5, seed 0 1 2")
    (_, line) = csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines())
    assert float(line["elbo_sd"]) == pytest.approx(statistics.stdev(elbos))
    assert line["seeds"] == "0;1;2"
    assert line["runs"].split(";") == [str(tmp_path / f"a{seed}") for seed in range(3)]
    assert line["kl_weight_end"] == "1.5"
    assert float(line["seconds"]) == pytest.approx(10 * (10 / 50 + 20 / 25 + 10 / 100))
    assert float(line["nll_error_images"]) == pytest.approx((0.25 + 0.5 + 0.75) / 3)
    assert {"±: the standard deviation over seeds"} < set(told.splitlines())
    assert "train with HELD_OUT" in told
    picture = opened(tmp_path / "comparison.png")
    assert picture.shape[1] == 1430
    assert picture.std() > 10


def test_what_has_no_part_in_a_result_makes_no_row_and_a_repetition_is_left_out(make_run):
    folders = [make_run("a", log_every=2), make_run("b", log_every=3, seed=5), make_run("c", {"test_elbo": -1.0})]
    (table,), said = tables(folders)
    assert names(table) == [["a", "b"]]
    assert said == ["note       c is left out: it has the settings and the seed of a"]


def test_what_is_not_finished_or_damaged_costs_a_line(make_run):
    folders = [make_run("a"), make_run("b", finished=False, seed=9), make_run("c", seed=8), make_run("d", seed=7)]
    (folders[2] / "data.npz").write_bytes(b"x" * 50)
    (folders[3] / "params.json").write_text("[]")
    odd = ("{", "[]", "{}", json.dumps(REPORT | {"test_elbo": "abc"}))
    for number, text in enumerate(odd):
        folders.append(make_run(f"report_{number}", seed=20 + number))
        (folders[-1] / "report.json").write_text(text)
    for number, text in enumerate(("{", "[1]", '{"step": 40}', '{"step": 40, "likelihood": {}, "samples": {}}')):
        folders.append(make_run(f"evaluation_{number}", seed=30 + number))
        (folders[-1] / "evaluation.json").write_text(text)
    (table,), said = tables(folders)
    assert names(table) == [["a"]]
    assert [line.split(":")[0] for line in said] == [f"note       {path.name} is left out" for path in folders[1:]]


# --- which runs are compared ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"tested": (1, 2)}, "other images"),
        ({"binarize": "none", "loss": "logistic", "decoder_scale": "learned"}, "other pixels"),
        ({"loss": "mse", "judged": {"kind": "none", "test_nll": None}}, "other losses"),
        ({"autoencoder": True, "judged": {"kind": "none", "test_nll": None, "test_elbo": None}}, "other losses"),
    ],
)
def test_numbers_of_other_images_pixels_or_losses_are_not_ranked(make_run, tmp_path, capsys, other, why):
    (first, second), _ = tables([make_run("a"), make_run("b", **other)])
    assert (names(first), names(second)) == ([["a"]], [["b"]])
    assert shown(tmp_path) == 0
    assert f"The tables are of {why}: no number compares between them." in capsys.readouterr().out


def test_images_compare_that_are_the_same_whatever_they_are_called(make_run):
    folders = [make_run("a", labels=(1, 7)), make_run("b", labels=(7, 1)), make_run("c", dataset="fashion_mnist")]
    assert len(tables(folders)[0]) == 1
    cut = {"dataset": "folder", "image_crop": 0}
    assert len(tables([make_run("d", **cut), make_run("e", **cut | {"image_crop": 8})])[0]) == 2


def test_two_densities_of_the_same_pixels_compare(make_run):
    density = {"decoder_scale": "learned", "binarize": "none"}
    judged = {"kind": "density", "test_nll": None, "test_log_density": 300.0}
    folders = [make_run("a", judged, loss="mse", **density)]
    folders += [make_run("b", judged | {"test_elbo": 250.0}, loss="ad", **density, tested=(3, 1, 2))]
    (table,), _ = tables(folders)
    assert names(table) == [["b"], ["a"]]
    assert comparable.heading("nll", table) == "-log-density (K 8)"
    assert table.rows[0].mean("nll") == -300


def test_the_nll_is_the_evaluated_one_where_all_runs_have_it_by_as_many_draws(make_run):
    folders = [make_run("a", evaluated=(93, 50)), make_run("b", evaluated=(92, 50), kl_weight_end=2.0)]
    (table,), _ = tables(folders, "nll")
    assert [row.mean("nll") for row in table.rows] == [92, 93]
    assert comparable.cell(table.rows[0], "nll") == "92.00 (0.50)"
    assert comparable.heading("nll", table) == "NLL (K 50)"
    assert table.rows[0].mean("frechet") == 7.5
    folders += [make_run("c", kl_weight_end=3.0), make_run("d", evaluated=(1, 50), step=60, kl_weight_end=5.0)]
    (table,), _ = tables(folders)
    assert {row.mean("nll") for row in table.rows} == {95}  # the evaluation of d is of an earlier step
    assert {row.runs[0].folder.name for row in table.rows if row.mean("frechet") is None} == {"c", "d"}
    assert table.notes == ["Not all runs were evaluated with the same K, so the NLL is that of the reports."]


def test_an_nll_by_other_draws_is_not_ranked_with_the_rest(make_run):
    more = {"nll_samples": 100}
    folders = [
        make_run("a", {"test_nll": 94.0}), make_run("b", more | {"test_nll": 96.0}, nll_samples=100),
        make_run("c", more | {"test_nll": 95.0}, nll_samples=100, kl_weight_end=2.0),
    ]  # fmt: skip
    (table,), _ = tables(folders, "nll")
    assert names(table) == [["c"], ["b"], ["a"]]
    assert table.notes == [
        "The NLL is by K = 8 and K = 100 draws. More draws give a lower NLL, so only rows with the same K compare."
    ]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (None, "bca"), ("elbo", "bca"), ("nll", "abc"), ("kl", "cab"), ("active_units", "cba"), ("healthy", "bac"),
        ("kl_weight_end", "abc"), ("encoder_layers", "cba"), ("seed", "cab"), ("kl_schedule", "bca"),
    ],
)  # fmt: skip
def test_a_table_is_sorted_by_the_column_or_setting_that_is_named(make_run, sort, order):
    def judged(elbo, nll, kl, active, healthy):
        found = elbo, nll, kl, active, healthy
        return dict(zip(("test_elbo", "test_nll", "test_kl", "active_units", "healthy"), found, strict=True))

    folders = [
        make_run("a", judged(-9.0, 1.0, 2.0, 0, False), kl_weight_end=1.0, encoder_layers=(20, 1), seed=5,
                 kl_schedule="sigmoid"),
        make_run("b", judged(-7.0, 2.0, 3.0, 1, True), kl_weight_end=2.0, encoder_layers=(3, 300), seed=9,
                 kl_schedule="cosine"),
        make_run("c", judged(-8.0, None, 1.0, 2, None), kl_weight_end=10.0, encoder_layers=(3,), seed=1),
    ]  # fmt: skip
    (table,), _ = tables(folders, sort)
    assert "".join(name for (name,) in names(table)) == order


# --- in words ---------------------------------------------------------------------------------------------------------
def test_many_differences_are_told_from_what_most_rows_have(make_run):
    common = {"latent_dim": 3, "epochs": 7, "activation": "relu", "encoder_layers": (4, 5)}
    folders = [make_run(name, **common, kl_weight_end=float(weight)) for weight, name in enumerate("abc", 2)]
    folders += [make_run("d", latent_dim=2, epochs=2, activation="tanh", kl_weight_end=2.0)]
    (table,), _ = tables(folders)
    rows = {row.runs[0].folder.name: row for row in table.rows}
    words = {name: comparable.in_words(row, table.rows) for name, row in rows.items()}
    assert words["a"] == "as most"
    assert words["b"] == "kl_weight_end 3"
    assert set(words["d"].split(", ")) == {"latent_dim 2", "epochs 2", "activation tanh", "encoder_layers 3"}
    assert comparable.in_words(rows["a"], [rows["a"]]) == ""


def test_the_corner_is_the_first_five_rows_and_columns_in_whatever_size(make_run):
    path = make_run("a") / "samples_002.png"
    for scale in (2, 5):
        if scale == 5:  # like large images, drawn smaller or larger
            with Image.open(path) as picture:
                larger = picture.resize((picture.width * 5 // 2, picture.height * 5 // 2), resample=0)
            larger.save(path)
        corner = comparison.corner(path, SHAPE, of_ten=True)
        assert corner.shape == (scale * (2 + 5 * 6), scale * (2 + 5 * 8))
        assert corner.min() == 9
        assert (corner == 200).sum() == pytest.approx(scale**2 * 24, rel=0.2)  # the last image, and no other
        assert not (corner == 100).any()


def test_a_table_of_many_rows_is_drawn_in_part_and_with_one_number_swept_by_that(make_run):
    folders = [make_run(f"r{n}", {"test_elbo": -float(n)}, kl_weight_end=float(n)) for n in range(14)]
    (table,), _ = tables(folders)
    assert comparison.swept(table.rows) == "kl_weight_end"
    figure = Figure(figsize=(13, 12), layout="constrained")
    comparison.draw_table(figure.subfigures(1, 1), table)
    (title,) = (part.get_suptitle() for part in figure.subfigs)
    assert title.endswith("; the first 12 of 14 rows")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "kl_weight_end"
    shown = sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == ".")
    assert shown == [float(n) for n in range(12)]
    drawn = [image.get_array() for axes in figure.axes for image in axes.get_images()]
    assert len(drawn) == 12
    np.testing.assert_array_equal(drawn[0], comparison.corner(folders[0] / "samples_002.png", SHAPE, of_ten=True))
    (other,), _ = tables([*folders[:1], make_run("tanh", activation="relu", kl_weight_end=0.0)])
    assert comparison.swept(other.rows) is None


# --- the command line -------------------------------------------------------------------------------------------------
def test_runs_are_named_by_name_folder_or_pattern_and_what_is_none_is_left_out(make_run, tmp_path, capsys):
    one, two, three = (make_run(name, seed=seed) for seed, name in enumerate(("ab", "ac", "b")))

    def found(*words):
        return compare.read_command_line([*words, "--output-dir", str(tmp_path)]).folders

    assert found() == [one, two, three]
    assert found("a*") == [one, two]
    assert found(str(tmp_path / "?b"), "b", str(three)) == [one, three]
    (tmp_path / "comparison.png").touch()
    assert found(*map(str, sorted(tmp_path.iterdir()))) == [one, two, three]
    assert f"note       {tmp_path / 'comparison.png'} is no run, and left out\n" in capsys.readouterr().out


def test_a_mistake_is_one_line(make_run, tmp_path, capsys):
    make_run("a", finished=False)
    for argv, told in (
        (["nothing"], f"RUN nothing: no such run in {tmp_path}; there is a"),
        (["z*"], f"RUN z*: no such run in {tmp_path}; there is a"),
        (["--sort", "elb"], "--sort: 'elb' is not allowed; elbo, nll,"),
    ):
        with pytest.raises(SystemExit) as stopped:
            shown(tmp_path, *argv)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(f"compare: error: {told}")
    assert shown(tmp_path) == 2
    told = capsys.readouterr()
    assert told.out == "note       a is left out: it has no report yet\n"
    assert told.err == "compare: error: there is no finished run to compare\n"
    assert not (tmp_path / "comparison.png").exists()
    with pytest.raises(SystemExit):
        shown(tmp_path, "--help")
    assert "python -m experiments.compare" in capsys.readouterr().out


def test_numbers_that_are_missing_are_shown_as_that(make_run, tmp_path, capsys):
    nothing = dict.fromkeys(("test_nll", "standard_error_images", "active_units", "healthy"))
    nothing["verdict"] = "not finished"
    make_run("a", nothing)
    make_run("b", kl_weight_end=9.0)
    assert shown(tmp_path) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "kl_weight_end 1.5" in line)
    assert "not finished" in line
    assert line.split().count("-") == 2
    lines = [*csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines())]
    assert [line["nll"] for line in lines if line["kl_weight_end"] == "1.5"] == [""]
    assert math.isclose(float(lines[0]["elbo"]), -100)


def test_a_column_that_no_row_has_sorts_nothing_and_a_note_says_so(make_run):
    folders = [make_run("a", {"test_elbo": -9.0}), make_run("b", {"test_elbo": -8.0}, kl_weight_end=2.0)]
    (table,), _ = tables(folders, "frechet")
    assert names(table) == [["b"], ["a"]]
    assert table.notes == ["No row has frechet, so the order is that of elbo."]


def test_a_picture_that_cannot_be_read_costs_no_comparison_and_of_many_tables_some_are_drawn(
    make_run, tmp_path, capsys
):
    (make_run("a", tested=(0,)) / "samples_002.png").write_bytes(b"no picture")
    for number in range(1, 9):
        make_run(f"r{number}", tested=(number,))
    assert shown(tmp_path) == 0
    assert "note       comparison.png has the first 6 of 9 tables\n" in capsys.readouterr().out
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 10
    assert opened(tmp_path / "comparison.png").std() > 10
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        shown(tmp_path, "--to", tmp_path / "file")
    assert f"compare: error: --to {tmp_path / 'file'}: {tmp_path / 'file'} is not a folder\n" in capsys.readouterr().err
