"""explore.html in Chromium without a network: its numbers are Keras's; mouse, keyboard, files work; it is legible."""

import base64
import io
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm
from sklearn.decomposition import PCA

import main
from tests.tiny import TINY
from utils import chance, explore
from utils.batches import brightness
from utils.dataset import Dataset
from utils.settings import from_params
from utils.start import keras

pytestmark = pytest.mark.slow
NAMES = ("</script><b>", f'"quoted" & {"very " * 20}long', "猫", "d", "half \ud83d")
GREY = {"binarize": "none", "dataset": "folder", "encoder_layers": (16,), "decoder_layers": (16,)}
RESNET = {"architecture": "resnet", "channels": (4, 5), "residual_blocks": 2}
LEARNED = {"decoder_scale": "learned"}
MODELS = {  # by name: the shape of the images, and what differs from TINY
    "digits": ((28, 28, 1), {"encoder_layers": (512, 512), "decoder_layers": (512, 512), "activation": "silu",
                             "latent_dim": 20, "binarize": "dynamic", "dataset": "mnist"}),
    "colours": ((6, 8, 3), GREY | LEARNED | {"activation": "gelu", "latent_dim": 5, "loss": "mse"}),
    "conv": ((12, 8, 1), GREY | {"architecture": "conv", "channels": (4, 5), "activation": "elu", "noise_dim": 2,
                                 "binarize": "dynamic", "dataset": "folder"}),
    "conv colours": ((8, 24, 3), GREY | LEARNED | {"architecture": "conv", "channels": (4, 5), "loss": "logistic"}),
    "resnet": ((10, 6, 1), GREY | RESNET | {"activation": "silu", "loss": "ad", "prior": "mixture", "noise_dim": 1}),
    "resnet colours": ((7, 8, 3), GREY | RESNET | LEARNED | {"activation": "gelu", "loss": "ad",
                                                             "prior": "vampprior", "latent_dim": 3}),
    "flow": ((5, 6, 1), GREY | {"activation": "relu", "loss": "mse", "prior": "realnvp", "latent_dim": 5,
                                "noise_dim": 1}),
    "even flow": ((6, 5, 1), GREY | {"prior": "realnvp", "latent_dim": 6, "prior_layers": 5}),
    "plain": ((6, 6, 1), GREY | {"autoencoder": True, "latent_dim": 4}),
    "one latent": ((6, 4, 1), GREY | {"latent_dim": 1, "decoder_layers": ()}),
    "own layers": ((8, 6, 1), GREY),
    "corners": ((4, 4, 1), GREY | {"encoder_layers": (), "decoder_layers": (8,)}),
}  # fmt: skip
CORNERS = np.array([(2, 0), (0, 2), (-2, 0), (0, -1.9), (0.5, -0.25), (1, 1.5)])  # the codes of the images of "corners"
LABELS = np.array([0, 1, 2, 0, 1, 2])
NORMAL = """
let state = 1;
const uniform = () => (state = (state * 48271) % 2147483647) / 2147483647;
const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
normal.uniform = uniform;
"""
PIXELS = """(id) => {
  const canvas = document.getElementById(id), copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy.toDataURL();
}"""
CLOSE = 0.01  # in brightness
ROUNDED = CLOSE + 0.5 / 255  # for pixels of a canvas


# --- a model and its page ---------------------------------------------------------------------------------------------
def some_images(shape, count, binary):
    """Blobs of light."""
    rng, (rows, columns) = np.random.default_rng(7), np.indices(shape[:2])
    middles = rng.uniform(0.2, 0.8, (2, count, 1, 1)) * np.reshape(shape[:2], (2, 1, 1, 1))
    blobs = np.exp(-((rows - middles[0]) ** 2 + (columns - middles[1]) ** 2) / (0.05 * rows.size))
    images = np.uint8(255 * blobs[..., np.newaxis] * rng.uniform(0.6, 1, (count, 1, 1, shape[2])))
    return np.where(images > 127, 255, 0).astype(np.uint8) if binary else images


def own_networks(shape, s):
    """Layers that a user may write; the padding of both convolutions is odd."""
    layers, x, z = keras.layers, keras.Input(shape), keras.Input((s.latent_dim,))
    maps = layers.Conv2D(3, (5, 3), 2, "same", activation="sigmoid")(x)
    maps = layers.Activation("elu")(layers.Conv2D(4, 2, use_bias=False)(maps))
    posterior = layers.Dense(2 * s.latent_dim, name="posterior")(layers.Flatten()(maps))
    maps = layers.Reshape((4, 3, 2))(layers.Dense(24, "tanh")(z))
    logits = layers.Conv2DTranspose(1, (5, 3), 2, "same")(maps)
    return {"encoder": keras.Model(x, keras.ops.split(posterior, 2, axis=1)), "decoder": keras.Model(z, logits)}


def make(name):
    """A VAE with random weights that are as large as trained ones, and images."""
    shape, overrides = MODELS[name]
    few = {"prior_components": 7, "prior_layers": 4, "prior_units": 16}
    s, rng = from_params(**TINY | few | overrides), np.random.default_rng(3)
    vae = main.build_vae(s, shape)
    if name == "own layers":
        vae = vae._replace(**own_networks(shape, s))
    for weight in vae.encoder.weights + vae.decoder.weights:
        inputs = np.prod(weight.shape[:-1]) if weight.path.endswith("kernel") else 25
        weight.assign(rng.normal(0, 1.5 / np.sqrt(inputs), weight.shape))
    for weight in vae.prior.weights:
        weight.assign(weight + rng.normal(0, 0.3, weight.shape))
    count = {"digits": 60, "flow": 1}.get(name, 12)  # one image: its code may be far from all draws
    images = some_images(shape, count, s.binarize == "dynamic")
    posterior = vae.encoder.get_layer("posterior")
    narrow = np.repeat([1, 0.2], s.latent_dim)
    posterior.set_weights([posterior.kernel * narrow, posterior.bias * narrow - (1 - narrow)])
    *_, last = (layer for layer in vae.decoder.layers if hasattr(layer, "kernel"))
    z = rng.normal(size=(99, s.latent_dim + s.noise_dim))
    last.kernel.assign(last.kernel * 2 / np.std(vae.decoder(z)))
    if vae.log_scale is not None:
        vae.log_scale.assign(vae.log_scale - 0.7)
    labels = np.arange(len(images)) % (10 if name == "digits" else 5)
    if name == "one latent":
        last.kernel.assign(np.where(np.arange(24) == 5, 3e-5, last.kernel))
    if name == "corners":  # one white pixel each, from which the encoder reads the code
        images, labels = np.uint8(255 * np.eye(6, 16)).reshape(6, *shape), LABELS
        kernel = np.concatenate([np.concatenate([CORNERS, np.zeros((6, 2))], axis=1), np.zeros((10, 4))])
        posterior.set_weights([kernel, np.float32([0, 0, -1, -1])])
    names = NAMES if name == "colours" else ()
    return s, vae, Dataset(f"{name} & more", images, labels, images, labels, "nowhere", label_names=names)


@pytest.fixture(scope="module")
def browser():
    missing = pytest.fail if os.environ.get("VAE_BROWSER") == "required" else pytest.skip
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install -r requirements-browser.txt")
    if not program:
        missing("Chromium is not installed")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def models():
    return {}


@pytest.fixture
def show(browser, models, tmp_path_factory):
    """A function: the name of a model -> the model, with its freshly loaded `page`, in a browser without network.

    When the test ends, it checks that the page had no errors and requested nothing but itself.
    """

    def show(name):
        if name not in models:
            s, vae, data = make(name)
            noise = np.random.default_rng(5).standard_normal((len(data.test_images), s.latent_dim + s.noise_dim))
            noise = np.float32(noise)
            costs = [part.numpy() for part in main.loss_terms(vae, brightness(data.test_images), noise, s)]
            file = tmp_path_factory.mktemp("page") / "explore.html"
            html = explore.make_page(f"{name}-run", vae, s, data, costs, 1_000, None)
            file.write_bytes(html.encode(errors="backslashreplace"))
            context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
            page, complaints, url = context.new_page(), [], file.as_uri()
            page.set_default_timeout(10_000)
            page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda asked: asked.url.startswith((url, "data:")) or complaints.append(asked.url))
            x = brightness(data.test_images).numpy()
            z_mean = vae.encoder(x)[0].numpy()
            models[name] = SimpleNamespace(
                s=s, vae=vae, data=data, images=data.test_images, x=x, z_mean=z_mean, noise=noise, costs=costs,
                page=page, complaints=complaints, url=url, decode=lambda z: main.decode(vae, np.float32([z]))[0],
            )  # fmt: skip
        model = models[name]
        shown.append(model)
        model.page.goto("about:blank")
        model.page.goto(model.url)
        until(model.page, lambda: model.page.evaluate("'vae' in window"))
        frames(model.page)
        return model

    shown = []
    yield show
    assert [model.complaints for model in shown] == [[]] * len(shown)


def until(page, holds):
    """Wait until something holds; wait_for_function needs eval, which the page forbids."""
    for _ in range(500):
        if holds():
            return
        page.wait_for_timeout(20)
    pytest.fail("ten seconds were not enough")


def frames(page):
    """Wait until the page has finished its next frame."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixels(model, name):
    """The uint8 pixels (H, W, C) of a canvas."""
    frames(model.page)
    content = base64.b64decode(model.page.evaluate(PIXELS, name).partition(",")[2])
    with Image.open(io.BytesIO(content)) as picture:
        found = np.asarray(picture.convert("RGB"))
    if model.images.shape[3] == 3:
        return found
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, axis=2))
    return found[..., :1]


def still(model, name):
    """The pixels of a canvas after they have stopped changing."""
    found = ["", model.page.evaluate(PIXELS, name)]
    while found[-1] != found[-2]:
        model.page.wait_for_timeout(60)
        found.append(model.page.evaluate(PIXELS, name))
    return pixels(model, name)


def shows(model, name, z):
    """Check that a canvas shows what Keras decodes from z."""
    np.testing.assert_allclose(pixels(model, name) / 255, model.decode(z), atol=ROUNDED)


def which(model, name):
    """The number of the test image that a canvas shows, pixel by pixel; None if it is none of them."""
    same = (pixels(model, name) == model.images).all(axis=(1, 2, 3))
    return int(same.argmax()) if same.any() else None


def number(model, name):
    """The first number in a text, without its sign."""
    frames(model.page)
    return float(re.search(r"[\d.]+", model.page.locator(f"#{name}").inner_text())[0])


def middle(model, name):
    """The middle of an element, scrolled into view."""
    place = model.page.locator(f"#{name}")
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


# --- numbers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_keras_does(show, name):
    model = show(name)
    s, vae, x, noise, page = model.s, model.vae, model.x[:4], model.noise[:4], model.page
    z = np.random.default_rng(4).standard_normal((4, noise.shape[1]), np.float32)
    found = page.evaluate(
        """([x, noise, z, hasPrior]) => ({
          posteriors: x.map((one) => vae.encode(one)), kl: x.map((one) => vae.kl(one)),
          costs: x.map((one, i) => vae.costs(one, noise[i])), decoded: z.map((one) => vae.decode(one)),
          prior: hasPrior && z.map((one) => vae.logPrior(one)),
        })""",
        [x.tolist(), noise.tolist(), z.tolist(), not s.autoencoder],
    )
    check_numbers(model, found, x, noise, z, CLOSE, 0.005)
    halves = vae.encoder.weights + vae.decoder.weights + (vae.prior.weights if s.prior == "realnvp" else [])
    for weight in halves:  # the page has float16: with the same weights, hardly any difference is left
        weight.assign(np.float16(weight))
    # But a VampPrior's components come from the encoder before it was rounded.
    check_numbers(model, found, x, noise, z, 1e-4, 0.005 if s.prior == "vampprior" else 1e-4)


def test_numbers_below_the_smallest_normal_float16_are_read(show):
    model = show("one latent")
    kernel = model.vae.decoder.get_layer("pixels").kernel.numpy()
    tiny = np.unravel_index(np.abs(kernel).argmin(), kernel.shape)[1]
    assert 1e-5 < abs(kernel[0, tiny]) < 2.0**-14
    z = 2 / abs(kernel[0, tiny])
    found = np.reshape(model.page.evaluate("(z) => vae.decode([z])", float(z)), model.images.shape[1:])
    np.testing.assert_allclose(found.ravel()[tiny], model.decode([z]).ravel()[tiny], atol=CLOSE)


def check_numbers(model, found, x, noise, z, close, share):
    """Compare what a page found with Keras: brightness within `close`, nats within a share of them and of 1."""
    s, vae = model.s, model.vae

    def same(name, part, expected):
        near = {"rtol": share, "atol": 5 * share}
        np.testing.assert_allclose([one[part] if part else one for one in found[name]], expected, **near)

    means, log_stds = (part.numpy() for part in vae.encoder(x))
    assert np.ptp(means) > 0.2  # so that closeness below is no accident
    same("posteriors", "z_mean", means)
    if s.autoencoder:  # its widths are never trained
        assert {tuple(one) for one in found["posteriors"]} == {("z_mean",)}
    else:
        same("posteriors", "z_log_std", log_stds)
    np.testing.assert_allclose(np.reshape(found["decoded"], (4, *x.shape[1:])), main.decode(vae, z), atol=close)
    loss, kl = (part.numpy() for part in main.loss_terms(vae, x, noise, s))
    same("costs", "loss", loss)
    if s.autoencoder:
        assert {one["kl"] for one in found["costs"]} == {one["elbo"] for one in found["costs"]} == {None}
        return
    same("costs", "kl", kl.sum(axis=1))
    same("costs", "elbo", -(loss + kl.sum(axis=1)))
    if s.prior == "standard":
        same("kl", None, kl)
    else:
        assert set(found["kl"]) == {None}
    rest = norm.logpdf(z[:, s.latent_dim :]).sum(axis=1)  # noise latents are N(0, 1) under any prior
    same("prior", None, vae.prior.log_density(z) - rest)


@pytest.mark.parametrize("name", ["conv", "resnet", "resnet colours", "flow", "even flow"])
def test_draws_are_the_priors(show, name):
    model = show(name)
    draw = "([count, width]) => {" + NORMAL + "return Array.from({ length: count }, () => vae.draw(normal, width)); }"
    z, count = np.array(model.page.evaluate(draw, [4_000, 1])), 4_000
    expected = model.vae.prior.sample(20 * count, chance.random_key(1, chance.GRID_LATENTS, 0)).numpy()
    assert z.shape[1] == expected.shape[1] == model.s.latent_dim + model.s.noise_dim

    def moments(draws):
        far = draws - draws.mean(axis=0)
        together = np.einsum("ni,nj->nij", far, far).reshape(len(draws), -1)  # their mean is the covariance
        return np.concatenate([draws, together], axis=1)

    ours, theirs = moments(z), moments(expected)
    errors = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * errors).all()
    narrow = np.array(model.page.evaluate(draw, [50, 0]))
    if model.s.prior in ("mixture", "vampprior"):  # without noise the draws are the components' means, and 0
        assert len(np.unique(narrow, axis=0)) == 7
        if model.s.prior == "mixture":
            assert set(np.unique(narrow[:, 0])) == set(np.unique(model.vae.prior.weights[0][:, 0]))
    else:
        np.testing.assert_array_equal(narrow, narrow[:1].repeat(50, axis=0))


# --- views ------------------------------------------------------------------------------------------------------------
def test_the_map_decodes_what_is_under_the_cursor_and_selects_what_is_near(show):
    model = show("corners")
    page = model.page
    assert which(model, "selected-thumb") == which(model, "near-image") == 0
    x, y = middle(model, "plane")
    page.mouse.move(x, y)
    shows(model, "under-cursor", (0, 0))
    page.locator("#plane").focus()
    page.keyboard.press("Enter")
    assert which(model, "selected-thumb") == np.linalg.norm(CORNERS, axis=1).argmin() == 4
    assert page.locator("#selected-label").inner_text() == "1"

    for step in range(20):  # to the right, until it reaches the point of an image
        page.mouse.move(x + 15 * step, y)
        if which(model, "near-image") == 0:
            break
    shown = pixels(model, "under-cursor") / 255
    assert np.abs(shown - model.decode((2, 0))).max() < np.abs(shown - model.decode((1.5, 0))).max()
    shows(model, "near-reconstruction", (2, 0))
    assert which(model, "selected-thumb") == 4
    page.mouse.click(x + 15 * step, y)
    assert which(model, "selected-thumb") == which(model, "latents-original") == which(model, "walk-a") == 0

    page.mouse.move(x, y)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    frames(page)
    there = pixels(model, "under-cursor") / 255
    way = np.arange(-1, 1, 0.01)
    errors = [np.abs(there - model.decode((0, up))).max() for up in way]
    assert min(errors) < 2 * ROUNDED
    assert 0.02 < way[np.argmin(errors)] < 0.5
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 100, steps=3)
    moved = pixels(model, "under-cursor")
    page.mouse.up()
    assert np.abs(moved / 255 - there).max() > 0.02


def test_the_legend_shows_and_hides_labels(show):
    model = show("corners")
    buttons, found = model.page.locator("#legend button"), []
    for choose, label in ((buttons.nth(1).click, 1), (buttons.nth(0).dblclick, 0), (buttons.nth(0).dblclick, None)):
        choose()
        model.page.mouse.move(*middle(model, "plane"))
        model.page.locator("#plane").focus()
        model.page.keyboard.press("Enter")
        pressed = [button.get_attribute("aria-pressed") for button in buttons.all()]
        found.append((label, which(model, "selected-thumb"), pressed.count("true")))
    assert found == [(1, 5, 2), (0, 3, 1), (None, 4, 3)]  # the shown image that is nearest to zero


def test_names_of_labels_are_texts_and_nothing_else(show):
    model = show("colours")
    told = model.page.locator("#legend button").all_inner_texts()
    assert all(name.strip() in text for name, text in zip(NAMES[:4], told, strict=False))
    assert told[5:] == ["Show all"]
    assert which(model, "selected-thumb") == 0
    assert model.page.locator("#selected-label").inner_text() == NAMES[0]


def test_the_middle_of_a_plane_by_pca_is_zero_projected(show):
    model = show("digits")
    model.page.mouse.move(*middle(model, "plane"))
    ways = PCA(2).fit(model.z_mean).components_
    shows(model, "under-cursor", model.z_mean[0] - model.z_mean[0] @ ways.T @ ways)


@pytest.mark.parametrize("name", ["digits", "colours", "plain", "one latent"])
def test_a_slider_changes_one_latent_and_a_double_click_goes_back(show, name):
    model = show(name)
    sliders = model.page.locator("#sliders input")
    assert sliders.count() == model.s.latent_dim
    shows(model, "latents-decoded", model.z_mean[0])
    slider, z = sliders.first, model.z_mean[0].copy()
    latent = int(slider.get_attribute("id").removeprefix("slider-"))
    slider.focus()
    model.page.keyboard.press("End")
    z[latent] = float(slider.get_attribute("max"))
    shows(model, "latents-decoded", z)
    assert z[latent] >= model.z_mean[:, latent].max() or model.s.latent_dim == 20  # there a few are beyond all sliders
    slider.dblclick()
    shows(model, "latents-decoded", model.z_mean[0])
    model.page.keyboard.press("Home")
    model.page.locator("#latents-back").click()
    shows(model, "latents-decoded", model.z_mean[0])


# --- paper ------------------------------------------------------------------------------------------------------------
def draw(model, *places):
    """A stroke on the paper, from place to place, in parts of its width and height."""
    mouse, box = model.page.mouse, model.page.locator("#paper").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    mouse.move(*points[0])
    mouse.down()
    for point in points[1:]:
        mouse.move(*point, steps=5)
    mouse.up()


def test_a_drawn_digit_is_centred_encoded_and_costed(show):
    model = show("digits")
    assert which(model, "draw-input") == 0
    told = number(model, "draw-loss")
    middle(model, "paper")
    before = [model.page.locator(f"#{name}").bounding_box() for name in ("paper", "sliders", "draw-loss", "walk")]
    draw(model, (0.1, 0.1), (0.35, 0.1), (0.35, 0.3), (0.1, 0.45))
    after = [model.page.locator(f"#{name}").bounding_box() for name in ("paper", "sliders", "draw-loss", "walk")]
    assert after == before  # nothing moves
    found = pixels(model, "draw-input")
    assert set(np.unique(found)) == {0, 255}
    ink = np.argwhere(found[..., 0])
    assert 17 <= np.ptp(ink, axis=0).max() + 1 <= 21  # in a box of 20 x 20, like MNIST's digits
    np.testing.assert_allclose(ink.mean(axis=0), 13.5, atol=1.5)
    mean, log_std = (part[0].numpy() for part in model.vae.encoder(brightness(found[np.newaxis])))
    shows(model, "draw-mean", mean)
    kl = main.kl_to_standard_normal(mean, log_std).numpy().sum()
    assert number(model, "draw-kl") == pytest.approx(kl, rel=0.005, abs=0.06)
    assert number(model, "draw-elbo") == pytest.approx(number(model, "draw-loss") + number(model, "draw-kl"), abs=0.2)
    assert number(model, "draw-loss") != told

    sample = pixels(model, "draw-sample")
    model.page.locator("#again").click()
    assert (pixels(model, "draw-sample") != sample).any()
    shows(model, "draw-mean", mean)
    model.page.locator("#clear").click()
    assert not pixels(model, "draw-input").any()
    model.page.locator("#take").click()
    assert which(model, "draw-input") == 0


def test_colour_is_drawn_where_the_pen_is(show):
    model = show("colours")
    model.page.locator("#brush").fill("#ff8000")
    middle(model, "paper")
    draw(model, (0.1, 0.5), (0.9, 0.5))
    found = pixels(model, "draw-input").astype(int)
    assert (found[[0, -1]] == 0).all()
    np.testing.assert_allclose(found[:, 4].sum(axis=0) / found[:, 4, 0].sum(), [1, 0.5, 0], atol=0.01)


def as_png(image):
    Image.fromarray(image.squeeze()).save(content := io.BytesIO(), format="PNG")
    return content.getvalue()


DROP = """([bytes, name]) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([Uint8Array.from(bytes)], name));
  const dropped = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
  document.getElementById("paper").dispatchEvent(dropped);
}"""


@pytest.mark.parametrize("name", ["digits", "colours"])
def test_a_picture_of_the_right_size_is_taken_as_it_is_and_what_is_none_is_refused(show, name):
    model = show(name)
    page, rng = model.page, np.random.default_rng(8)
    first, second = both = rng.integers(256, size=(2, *model.images.shape[1:]), dtype=np.uint8)
    both[:, [0, -1]] = both[:, :, [0, -1]] = 0  # light on dark, or it would be inverted
    binary = model.s.binarize == "dynamic"

    def wanted(image):
        return np.where(image >= 127.5, 255, 0) if binary else image

    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": as_png(first)})
    page.locator("#draw-note", has_text="a.png").wait_for()
    np.testing.assert_array_equal(pixels(model, "draw-input"), wanted(first))
    page.evaluate(DROP, [list(b"no picture"), "notes.txt"])
    page.locator("#draw-note", has_text="notes.txt").wait_for()
    np.testing.assert_array_equal(pixels(model, "draw-input"), wanted(first))
    page.evaluate(DROP, [list(as_png(second)), "b.png"])
    page.locator("#draw-note", has_text="b.png").wait_for()
    np.testing.assert_array_equal(pixels(model, "draw-input"), wanted(second))


def test_a_photo_of_ink_on_paper_becomes_light_ink_in_the_middle(show):
    model = show("digits")
    photo = np.full((90, 160), 200, np.uint8)  # grey paper
    photo[50:80, 20:26] = 40  # a stroke, low on the left
    upload = {"name": "photo.png", "mimeType": "image/png", "buffer": as_png(photo)}
    model.page.locator("#file").set_input_files(upload)
    model.page.locator("#draw-note", has_text="photo.png").wait_for()
    rows, columns, _ = pixels(model, "draw-input").nonzero()
    assert (rows.min(), rows.max()) == pytest.approx((4, 23), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((12, 15), abs=1)

    small = np.full((28, 28), 255, np.uint8)  # of the right size, but dark on light
    small[4:14, 2:4] = 0
    upload = {"name": "small.png", "mimeType": "image/png", "buffer": as_png(small)}
    model.page.locator("#file").set_input_files(upload)
    model.page.locator("#draw-note", has_text="small.png").wait_for()
    rows, columns, _ = pixels(model, "draw-input").nonzero()
    assert (rows.min(), rows.max()) == pytest.approx((4, 23), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((12, 15), abs=1)


def test_a_tap_is_a_dot_and_a_second_finger_draws_nothing(show):
    model = show("colours")
    middle(model, "paper")
    model.page.locator("#clear").click()
    model.page.mouse.move(*middle(model, "paper"))
    model.page.mouse.down()
    dot = pixels(model, "draw-input")
    assert dot.any()
    finger = """(id) => {
      const paper = document.getElementById("paper"), box = paper.getBoundingClientRect();
      for (const [type, x] of [["pointerdown", 10], ["pointermove", 90]]) {
        const at = { clientX: box.left + x, clientY: box.top + 10, pointerId: id, button: 0 };
        paper.dispatchEvent(new PointerEvent(type, at));
      }
    }"""
    model.page.evaluate(finger, 77)
    np.testing.assert_array_equal(pixels(model, "draw-input"), dot)
    model.page.mouse.up()


# --- walk and samples -------------------------------------------------------------------------------------------------
def test_a_walk_goes_from_one_image_to_another_and_its_arc_keeps_the_length(show):
    model = show("corners")
    page, handle = model.page, model.page.locator("#walk-t")
    assert (which(model, "walk-a"), which(model, "walk-b")) == (0, 1)  # (2, 0) and (0, 2)
    turned = 2 * np.sin([3 * np.pi / 8, np.pi / 8])  # a quarter of a right angle
    for t, straight, arc in ((0, (2, 0), (2, 0)), (0.25, (1.5, 0.5), turned), (1, (0, 2), (0, 2))):
        handle.fill(str(t))
        shows(model, "walk-straight-now", straight)
        shows(model, "walk-arc-now", arc)
        assert number(model, "arc-length") == pytest.approx(2, abs=0.01)
        assert number(model, "straight-length") == pytest.approx(np.linalg.norm(straight), abs=0.01)
    strip = still(model, "walk-arc")
    np.testing.assert_allclose(strip[:, 10:14] / 255, model.decode(turned), atol=ROUNDED)  # the third of nine
    page.locator("#swap").click()
    assert (which(model, "walk-a"), which(model, "walk-b"), which(model, "selected-thumb")) == (1, 0, 1)
    shows(model, "walk-straight-now", (0, 2))
    page.locator("#other-end").click()
    assert LABELS[which(model, "walk-b")] != LABELS[1]

    page.locator("#play").click()
    before = handle.input_value()
    until(page, lambda: handle.input_value() != before)
    page.wait_for_timeout(150)
    page.locator("#play").click()
    frames(page)
    stopped = handle.input_value()
    assert float(stopped) > 0
    page.wait_for_timeout(150)
    assert handle.input_value() == stopped


def tiles_of(sheet):
    """The images (64, 28, 28) of a sheet of 8 x 8, a pixel apart."""
    return np.pad(sheet[..., 0], (0, 1)).reshape(8, 29, 8, 29)[:, :28, :, :28].swapaxes(1, 2).reshape(64, 28, 28)


def test_samples_change_by_dice_and_narrow_to_the_middle(show):
    model = show("digits")
    page, grids = model.page, ("prior-grid", "posterior-grid")
    page.locator("#samples").scroll_into_view_if_needed()  # they are not drawn before
    page.wait_for_timeout(300)
    first = [still(model, name) for name in grids]
    assert len(np.unique(tiles_of(first[0]), axis=0)) == 64
    page.locator("#dice").click()
    second = [still(model, name) for name in grids]
    assert all((one != other).any() for one, other in zip(first, second, strict=True))
    page.locator("#width").fill("0")
    tiles = tiles_of(still(model, "prior-grid"))
    np.testing.assert_allclose(tiles / 255 - model.decode(np.zeros(20))[..., 0], 0, atol=ROUNDED)
    np.testing.assert_array_equal(still(model, "posterior-grid"), second[1])


@pytest.mark.parametrize(
    ("name", "true"),
    [
        ("digits", {"vae", "standard", "pulled", "likelihood", "labelled"}),
        ("colours", {"vae", "standard", "pulled", "likelihood", "labelled"}),  # a density counts too
        ("flow", {"vae", "learned", "pulled", "unlike", "noise"}),  # squared error; one image has one label
        ("corners", {"vae", "standard", "pulled", "unlike", "labelled"}),  # cross-entropy of grey pixels
        ("plain", {"autoencoder", "labelled"}),
    ],
)
def test_sentences_stand_in_pages_that_they_are_true_of(show, name, true):
    parts = show(name).page.evaluate(
        "[...document.querySelectorAll('[data-if]')].map((part) => [part.dataset.if, part.hidden])"
    )
    assert {what for what, hidden in parts if not hidden} == true
    assert not {what for what, hidden in parts if hidden} & true


def test_a_plain_autoencoder_shows_neither_samples_nor_kl(show):
    page = show("plain").page
    for name in ("prior-grid", "dice", "width", "draw-kl", "draw-elbo", "draw-sample", "again"):
        assert page.locator(f"#{name}").is_hidden()
    for name in ("plane", "sliders", "paper", "draw-loss", "walk-arc", "about"):
        assert page.locator(f"#{name}").is_visible()


# --- how it looks -----------------------------------------------------------------------------------------------------
FAULTS = """() => {
  const faults = [], context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const say = (what, part) => faults.push(`${what}: ${part.tagName} #${part.id} ${part.textContent.slice(0, 40)}`);
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`${root.scrollWidth} pixels wide`);
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = ([r, g, b, alpha], ground) => [r, g, b].map((value, i) => alpha * value + (1 - alpha) * ground[i]);
  const ground = (part) => {
    const behind = part.parentElement ? ground(part.parentElement) : rgba("Canvas").slice(0, 3);
    return over(rgba(getComputedStyle(part).backgroundColor), behind);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  for (const part of document.body.querySelectorAll("*:not(script, option, noscript)")) {
    if (!part.checkVisibility() || part.closest("noscript")) continue;
    const style = getComputedStyle(part), box = part.getBoundingClientRect();
    if (part.matches("canvas, svg") && !part.ariaHidden && !part.ariaLabel) say("no label", part);
    if (part.matches("button, select, label.button") && box.height < 24) say("low", part);
    if (![...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const chart = part.ownerSVGElement, mayCut = chart || style.display === "inline" || style.overflowX !== "visible";
    if (!mayCut && part.scrollWidth > part.clientWidth + 1) say("cut", part);
    const within = (chart ?? root).getBoundingClientRect();
    if (box.right > within.right + 1 || (chart && box.left < within.left - 1)) say("not within", part);
    const ink = rgba(chart ? style.fill : style.color);
    for (let other = part; other; other = other.parentElement) ink[3] *= getComputedStyle(other).opacity;
    const lights = [light(over(ink, ground(part))), light(ground(part))].sort((a, b) => b - a);
    if (lights[0] / lights[1] < 4.5) say(`contrast ${(lights[0] / lights[1]).toFixed(2)}`, part);
  }
  return faults;
}"""


@pytest.mark.parametrize("name", ["digits", "colours", "plain", "conv colours"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_is_legible_named_and_within_the_window(show, name, scheme):
    page = show(name).page
    page.emulate_media(color_scheme=scheme)
    try:
        page.locator("#legend button").first.click()
        for width, height in ((1400, 900), (400, 800)):
            page.set_viewport_size({"width": width, "height": height})
            frames(page)
            assert page.evaluate(FAULTS) == []
    finally:
        page.set_viewport_size({"width": 1400, "height": 900})
        page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("name", ["digits", "colours", "plain"])
def test_every_control_has_a_name_and_is_reached_by_tab(show, name):
    page = show(name).page
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "combobox", "radio", "checkbox", "ColorWell", "image", "link", "application", "img"}
    known = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    assert {"button", "slider", "radio", "link"} <= {node["role"]["value"] for node in known}
    assert not [node for node in known if not node["name"]["value"].strip()]

    number = "(part) => [...document.querySelectorAll('*')].indexOf(part)"
    wanted = "a[href], button, select, input:not([type=radio]), input[type=radio]:checked, [tabindex='0']"
    controls = {part.evaluate(number) for part in page.locator(wanted).all() if part.is_visible()}
    page.locator("body").press("Tab")
    for _ in range(len(controls) + 5):
        controls.discard(page.evaluate(f"({number})(document.activeElement)"))
        page.keyboard.press("Tab")
    assert not controls
