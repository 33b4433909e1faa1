"""utils/explore.py and its command: what the page has, which runs get none. test_explore_browser.py tests the page."""

import base64
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

import main
from experiments import explore as command
from tests.shared import full_disk, written
from tests.tiny import TINY
from utils import checkpoints, data, evaluation, explore, runs
from utils.dataset import Dataset, LazyImages
from utils.settings import from_params
from utils.start import keras

SHAPE = (3, 4, 1)
NAMES = ("</script><script>alert(1)</script>", "<!--<script>", '"two" & \\', "猫 \u2028", "half \ud83d")
CONV = {"architecture": "conv", "channels": (3,)}


def made(**overrides):
    """Settings, and a VAE in which no weight is zero."""
    s, rng = from_params(**TINY | overrides), np.random.default_rng(0)
    vae = main.build_vae(s, SHAPE)
    for weight in vae.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return s, vae


def images(count=7):
    pixels = np.random.default_rng(1).integers(256, size=(count, *SHAPE), dtype=np.uint8)
    labels = np.arange(count) % len(NAMES)
    return Dataset("digits", pixels, labels, pixels, labels, "nowhere", label_names=NAMES)


def page_of(s, vae, name="tiny", judged=None):
    return explore.make_page(name, vae, s, images(), (np.ones(7), np.ones((7, s.latent_dim))), 5, judged)


def element(page, name):
    """The content of the page's script element of this name, up to the first </script, where a browser ends it."""
    return re.search(rf'<script type="[a-z/]+" id="page-{name}">(.*?)</script', page, re.DOTALL)[1]


def about(page):
    return json.loads(element(page, "about"), parse_constant=pytest.fail)


# --- what is in the page ----------------------------------------------------------------------------------------------
def test_it_is_one_file_that_names_nothing_to_fetch_and_has_every_piece():
    page = page_of(*made())
    assert not re.search("{{\\w+}}", page)
    assert not re.search(r"""(src|href|action|fetch|import|url)\W{1,4}(https?:)?//""", page)
    assert "default-src 'none'" in page
    named = set(re.findall(r'(?:src|href)="([^"]*)"', page))
    assert {name[:1] for name in named} <= {"#", "d"}  # a place in the page, or data:
    for path in explore.PAGE.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if len(line) > 60 and "{{" not in line and "import" not in line][-1] in page


def test_each_script_stands_behind_all_that_it_imports():
    assert sorted(explore.SCRIPTS) == sorted(path.stem for path in explore.PAGE.glob("*.js"))
    for place, name in enumerate(explore.SCRIPTS):
        code = (explore.PAGE / f"{name}.js").read_text(encoding="utf-8")
        imported = re.findall(r'^import .*"\./(\w+)\.js"', code, re.MULTILINE)
        assert len(imported) == len(re.findall(r"^\s*import\b", code, re.MULTILINE))
        assert set(imported) <= set(explore.SCRIPTS[:place])
        wrapped = explore.wrapped(name)
        assert not re.search(r"^\s*(import|export)\b", wrapped, re.MULTILINE)
        assert all(f"= modules.{other};" in wrapped for other in imported)


def test_texts_are_what_they_were_and_cannot_end_the_script():
    s, vae = made()
    judged = {"test_reconstruction": 1.0, "remarks": [NAMES[0]], "problems": [NAMES[1]]}
    page = page_of(s, vae, name='a<b>&"', judged=judged)
    found = about(page)
    assert found["labels"] == {"names": list(NAMES), "of": [0, 1, 2, 3, 4, 0, 1]}
    assert found["run"] == 'a<b>&"'
    assert found["report"]["problems"] == [NAMES[1]]
    assert ["note", NAMES[0]] in found["report"]["rows"]
    assert "<" not in element(page, "about")  # neither </script nor <!--
    assert "<" not in re.search("<title>(.*)</title>", page)[1]
    assert page.encode(errors="backslashreplace").decode() == page  # UTF-8 cannot encode a lone surrogate


@pytest.mark.parametrize("overrides", [{"noise_dim": 1}, CONV, {"prior": "realnvp"}])
def test_every_weight_is_there_as_float16(overrides):
    s, vae = made(**overrides)
    page = page_of(s, vae)
    found, content = about(page), base64.b64decode(element(page, "numbers"), validate=True)

    def read(place):
        kind = "<f2" if place["half"] else "<f4"
        assert place["at"] % 4 == 0  # a Float32Array needs this
        return np.frombuffer(content, kind, place["size"], place["at"])

    networks = [found["encoder"], found["decoder"], *found["prior"].get("couplings", [])]
    steps = [step for network in networks for step in network["steps"] if "kernel" in step]
    places = [step[name] for step in steps for name in ("kernel", "bias")]
    for place, weight in zip(places, vae.weights, strict=True):
        assert place["half"]
        np.testing.assert_array_equal(read(place), np.float16(weight).ravel())
    codes = [read(found[name]).reshape(7, -1) for name in ("z_mean", "z_log_std")]  # of all images, as float32
    np.testing.assert_allclose(codes, vae.encoder(images().test_images / np.float32(255)), atol=1e-5)


def test_the_settings_are_there_with_no_path_of_this_machine(tmp_path):
    home = {"data_dir": f"{tmp_path}/data", "output_dir": f"{tmp_path}/out", "start_from": f"{tmp_path}/out/older"}
    page = page_of(*made(**home))
    found = about(page)["settings"]
    assert str(tmp_path) not in page
    assert [found[name] for name in ("DATA_DIR", "OUTPUT_DIR", "START_FROM")] == ["data", "out", "older"]
    assert explore.settings_in_page(from_params(data_dir="~/a/b/", start_from="x/y"))["DATA_DIR"] == "b"
    assert explore.settings_in_page(from_params(start_from="x/y", dataset="tfds:a/b"))["DATASET"] == "tfds:a/b"
    assert found["ENCODER_LAYERS"] == "(3,)"


def test_an_old_report_that_lacks_most_numbers_is_shown_and_none_is_none():
    assert explore.report_in_page(None) is None
    old = {"kind": "likelihood", "test_elbo": -99.5, "test_reconstruction": 74.25, "test_kl": 25.25, "of": "x"}
    assert explore.report_in_page({**old, "healthy": False, "problems": ["Collapsed."]}) == {
        "answer": "No.", "problems": ["Collapsed."],
        "rows": [("test ELBO", "-99.50 nats   = -(74.25 reconstruction + 25.25 KL), x")],
    }  # fmt: skip
    assert explore.report_in_page({**old, "healthy": True})["answer"] == "Yes."


# --- which images and labels, and the plane ---------------------------------------------------------------------------
@given(st.integers(1, 20_000), st.integers(1, 1_024), st.integers(1, 1_024), st.integers(1, 4_096))
def test_the_images_shown_are_spread_over_all_and_never_too_many(count, height, width, latents):
    s = from_params(**TINY | {"latent_dim": latents, "noise_dim": 2})
    found = explore.chosen(LazyImages(pytest.fail, np.arange(count), (height, width, 3)), s)  # it reads no image
    each = 3 * height * width + 2 * 4 * (latents + 2)  # bytes, including a posterior's means and widths
    assert len(found) == min(count, max(10, min(2_000, 8 * 2**20 // each)))
    assert (found[0], found[-1]) == (0, count - 1)
    if len(found) > 1:
        steps = np.diff(found)
        assert steps.min() > 0
        assert np.ptp(steps) <= 1


def test_of_many_labels_the_rarer_ones_share_a_name():
    labels = np.repeat(np.arange(100, 130), np.r_[1, np.full(28, 2), 3])  # 100 once, 129 three times
    found = explore.labels_of(labels, ())
    assert found["names"] == [*map(str, range(101, 119)), "129", "other labels"]
    assert [found["names"][of] for of in found["of"]] == [
        str(label) if 100 < label < 119 or label == 129 else "other labels" for label in labels
    ]
    assert explore.labels_of(np.array([2, 0, 2]), ("a", "b", "c")) == {"names": ["a", "c"], "of": [1, 0, 1]}
    twenty = explore.labels_of(np.arange(20), ())
    assert (twenty["names"], twenty["of"]) == ([*map(str, range(20))], [*range(20)])


@pytest.mark.parametrize("shape", [(300, 20), (3, 3), (4, 5), (10, 40)])
def test_the_plane_is_the_one_of_pca(shape):
    codes = np.float32(np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1))
    tensors = explore.Tensors()
    found, pca = explore.plane_of(codes, tensors), PCA(2, svd_solver="full").fit(np.float64(codes))
    content = b"".join(tensors.parts)
    centre, *ways = (np.frombuffer(content, "<f4", shape[1], found[name]["at"]) for name in ("centre", "across", "up"))
    np.testing.assert_allclose(centre, pca.mean_, atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(ways * pca.components_, axis=1)), 1, atol=1e-5)
    assert found["share"] == pytest.approx(pca.explained_variance_ratio_.sum(), abs=1e-6)
    assert all(way[np.abs(way).argmax()] > 0 for way in ways)  # so that the same run always has the same map


def test_there_is_a_page_of_codes_that_are_all_the_same_and_no_plane_of_few():
    s, vae = made(latent_dim=3)
    vae.encoder.get_layer("posterior").set_weights([np.zeros((3, 6)), np.zeros(6)])
    assert about(page_of(s, vae))["z_mean"]["size"] == 7 * 3
    for shape in ((9, 2), (2, 9)):
        assert explore.plane_of(np.float32(np.random.default_rng(0).normal(size=shape)), explore.Tensors()) is None


# --- what gets no page ------------------------------------------------------------------------------------------------
class OwnDense(keras.layers.Dense):
    pass


class OwnLayer(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def decoder_with(layer):
    z = keras.Input((2,))
    return keras.Model(z, keras.layers.Reshape(SHAPE)(keras.layers.Dense(12)(layer(z))))


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (OwnLayer(name="mine"), "layer mine (OwnLayer) is of a kind that the page does not know"),
        (OwnDense(4, name="mine"), "layer mine (OwnDense) is of a kind that the page does not know"),
        (keras.layers.Dense(4, "softplus", name="soft"),
         "layer soft has the activation softplus, which the page does not know"),
        (keras.layers.BatchNormalization(name="norm"),
         "layer norm (BatchNormalization) is of a kind that the page does not know"),
        (lambda z: (twice := keras.layers.Dense(2, name="twice"))(twice(z)),
         "layer twice is used more than once, which the page does not know"),
        (lambda z: keras.layers.Flatten()(keras.layers.Conv2D(2, 1, groups=2, name="two")(
            keras.layers.Reshape((1, 1, 2))(z))), "layer two is a convolution of a kind that the page does not know"),
    ],
)  # fmt: skip
def test_a_layer_that_the_page_does_not_know_is_named(layer, told):
    s, vae = made()
    with pytest.raises(explore.NoPage) as refused:
        page_of(s, vae._replace(decoder=decoder_with(layer)))
    assert str(refused.value) == told


@pytest.mark.parametrize("operation", [lambda z: keras.ops.elu(z, alpha=0.5), lambda z: z + 1.0, keras.ops.gelu])
def test_an_operation_that_the_page_computes_otherwise_is_refused(operation):
    s, vae = made()
    with pytest.raises(explore.NoPage, match="is of a kind that the page does not know"):
        page_of(s, vae._replace(decoder=decoder_with(operation)))


def test_a_weight_beyond_float16_and_a_model_of_too_many_parameters_are_told(monkeypatch):
    s, vae = made()
    bias = vae.decoder.layers[1].bias
    large, broken = "a weight of 7e+04 is too large for the page's float16", "a number of the model is not finite"
    for value, told in ((65_504, None), (70_000, large), (np.nan, broken), (-np.inf, broken)):
        bias.assign([0, value, 0])
        if told is None:
            assert page_of(s, vae)
        else:
            with pytest.raises(explore.NoPage, match=f"^{re.escape(told)}$"):
                page_of(s, vae)
    s, vae = made()
    count = vae.encoder.count_params() + vae.decoder.count_params()
    monkeypatch.setattr(explore, "MOST_PARAMETERS", count)
    assert page_of(s, vae)
    monkeypatch.setattr(explore, "MOST_PARAMETERS", count - 1)
    with pytest.raises(explore.NoPage, match=r"M parameters; a page takes .* M at most$"):
        page_of(s, vae)


# --- a run and the command --------------------------------------------------------------------------------------------
def make_run(parent):
    s, vae = made(output_dir=str(parent), run_name="tiny")
    folder = runs.create(s, "CPU", SHAPE)
    checkpoints.save(checkpoints.checkpoint(vae), folder, 7)
    return folder, vae, s


def test_what_goes_wrong_at_the_end_of_a_run_costs_a_line_and_not_the_run(tmp_path, monkeypatch):
    folder, vae, s = make_run(tmp_path)
    dataset, said = images(), []
    written(folder, [7], "test")
    monkeypatch.setattr(evaluation.curves, "save_curves", lambda *_: None)  # nobody looks at it

    def judge():
        said.clear()
        evaluate = evaluation.compile_evaluation(vae, s, main.loss_terms)
        return evaluation.judge(vae, s, dataset, folder, evaluate, None, main.decode, said.append)

    for patched, raised, told in (
        ("MOST_PARAMETERS", 1, "M at most"), ("write_whole", full_disk, "No space left on device"),
        ("sprite", lambda *_: 1 / 0, "division by zero"),
    ):  # fmt: skip
        judged = judge()
        assert judged == json.loads((folder / "report.json").read_text())
        assert not [line for line in said if "no page" in line]
        found = about((folder / "explore.html").read_text(encoding="utf-8"))
        assert found["step"] == 7
        assert f"{judged['test_kl']:.2f} KL" in str(found["report"]["rows"])
        with monkeypatch.context() as patch:
            patch.setattr(explore, patched, raised)
            assert judge() == judged
        assert len([line for line in said if line.startswith("explore    no page: ") and told in line]) == 1
        assert not (folder / "explore.html").exists()  # the old page is of another checkpoint


def test_the_command_writes_the_page_of_a_run(tmp_path, monkeypatch, capsys):
    folder, *_ = make_run(tmp_path)
    monkeypatch.setattr(data, "prepare", lambda s, say, folder: images())
    opened = []
    monkeypatch.setattr(command, "webbrowser", SimpleNamespace(open=opened.append))  # as if there were no browser
    assert command.main(command.read_command_line(["tiny", "--output-dir", str(tmp_path), "--open"])) == 0
    told = capsys.readouterr().out
    assert explore.link(folder) == f"explore    {(folder / 'explore.html').as_uri()}"
    assert explore.link(folder) in told.splitlines()
    assert explore.link(tmp_path) == ""
    assert "no browser was found" in told
    assert opened == [(folder / "explore.html").as_uri()]
    found = about((folder / "explore.html").read_text(encoding="utf-8"))
    assert (found["run"], found["step"], found["report"]) == ("tiny", 7, None)
    monkeypatch.setattr(explore, "MOST_PARAMETERS", 1)
    monkeypatch.setattr(command.Run, "terms", pytest.fail)  # it is refused before any slow step
    assert command.main(command.read_command_line([str(folder)])) == 1
    assert capsys.readouterr().err.startswith("explore: error: ")


def test_a_mistake_is_one_line_and_help_says_what_it_does(tmp_path, capsys):
    make_run(tmp_path)
    for argv, told in (
        (["nothing", "--output-dir", str(tmp_path)], f"RUN nothing: no such run in {tmp_path}; there is tiny"),
        ([], "the following arguments are required: RUN"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command.read_command_line(argv)
        assert stopped.value.code == 2
        assert capsys.readouterr().err == f"explore: error: {told}\n"
    with pytest.raises(SystemExit) as stopped:
        command.read_command_line(["--help"])
    assert stopped.value.code == 0
    assert command.__doc__.splitlines()[0] in capsys.readouterr().out
