"""What one does with a trained latent space: encode, walk, project, fit, and measure how near it is to the prior.

Pure functions, NumPy in and NumPy out. Shapes: N images or points, L latents. Distances between distributions are in
nats where they are KLs.
"""

import warnings

import numpy as np
from scipy import stats
from scipy.linalg import orthogonal_procrustes
from scipy.special import logsumexp
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from utils.batches import brightness
from utils.dataset import evaluated_at_once, in_batches
from utils.size import most_at_once
from utils.start import keras

LOG_2_PI = float(np.log(2 * np.pi))
TINY = 1e-6  # vectors shorter than this, or this near to one line (in radians), have no arc between them
CHUNK_NUMBERS = 1_000_000  # how many numbers log_mixture works on at a time: 8 MB, near what a processor's cache holds
MIXTURE_ITERATIONS = 25  # of expectation maximisation at most; it has gained most of what there is by then
NEAR_CEILING = 0.2  # nats below log(images), from which on mutual information is taken to have reached it


# --- choose and encode ------------------------------------------------------------------------------------------------
def evenly(total: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 .. total - 1, evenly spaced, the first and the last among them: data may be
    sorted.
    """
    return np.linspace(0, total - 1, min(most, total)).astype(int)


def encode(encoder: keras.Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, H, W, C) -> z_mean and z_log_std of their posteriors, float32 (N, L) each."""
    at_once = min(evaluated_at_once(images.shape), most_at_once(encoder))
    return tuple(in_batches(lambda batch, start: encoder(brightness(batch)), images, at_once, "encoding"))


# --- fit --------------------------------------------------------------------------------------------------------------
def fit_mixture(z: np.ndarray, components: int, seed: int) -> GaussianMixture:
    """Fit a mixture of at most `components` Gaussians with full covariances to points (N, L)."""
    mixture = GaussianMixture(min(components, len(z)), max_iter=MIXTURE_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # mixture.converged_ has it
        return mixture.fit(np.float64(z))


def draw_mixture(mixture: GaussianMixture, count: int, seed: int) -> np.ndarray:
    """Draws (count, L) from a fitted mixture, float32, in random order; each seed gives others."""
    rng = np.random.default_rng(seed)
    mixture.random_state = int(rng.integers(2**31))
    return np.float32(rng.permutation(mixture.sample(count)[0]))  # which come component by component


# --- walk -------------------------------------------------------------------------------------------------------------
def straight(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Walk from a (L,) to b (L,) in a straight line: (steps, L), evenly spaced, both ends included and exact."""
    a, b = np.float64(a), np.float64(b)
    t = np.linspace(0, 1, steps)[:, np.newaxis]
    return (1 - t) * a + t * b  # a + t * (b - a) would miss b


def spherical(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Walk from a (L,) to b (L,) along an arc about the origin: (steps, L), evenly turned, both ends exact.

    Draws from N(0, I) in many dimensions all lie near the sphere of radius sqrt(L), which a straight line leaves
    (White 2016, arXiv 1609.04468). The direction follows Shoemake's slerp (SIGGRAPH 1985), the length goes linearly
    from that of a to that of b. Where no arc is singled out, since the two are (nearly) parallel or opposite or one is
    (nearly) zero, the walk is straight.
    """
    a, b = np.float64(a), np.float64(b)
    a_length, b_length = np.linalg.norm(a), np.linalg.norm(b)
    if min(a_length, b_length) < TINY:
        return straight(a, b, steps)
    a_unit, b_unit = a / a_length, b / b_length
    angle = 2 * np.arctan2(np.linalg.norm(a_unit - b_unit), np.linalg.norm(a_unit + b_unit))  # arccos: bad near 0, pi
    if np.sin(angle) < TINY:
        return straight(a, b, steps)
    t = np.linspace(0, 1, steps)[:, np.newaxis]
    length = (1 - t) * a_length + t * b_length
    a_weight, b_weight = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    return a_weight * (length / a_length) * a + b_weight * (length / b_length) * b  # the quotients: 1 at their own end


# --- project ----------------------------------------------------------------------------------------------------------
def project(z: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Show points (N, L), L at least 2, in the plane: (N, 2), by "pca", "tsne" or "umap"; the same for the same seed.

    PCA is linear, and shows true distances along two directions. t-SNE (van der Maaten & Hinton 2008) and UMAP (McInnes
    et al. 2018, arXiv 1802.03426) keep neighbours together: neither the size of a cluster nor the distance between two
    means anything in them. UMAP wants at least 5 points. Raises KeyError for another method.
    """
    z = np.float32(z)
    few = len(z) - 1  # other points: few of them get a perplexity and neighbours that they can have
    if method == "umap":
        import umap  # here, because it takes seconds, most of them numba's compiler

        return umap.UMAP(n_neighbors=min(15, few), random_state=seed, n_jobs=1).fit_transform(z)  # else it warns
    pca = PCA(2, random_state=seed)  # whose randomised solver, should it be chosen, draws
    tsne = TSNE(2, init="pca", perplexity=min(30, few / 3), random_state=seed)
    return {"pca": pca, "tsne": tsne}[method].fit_transform(z)


# --- what the latents know of the labels ------------------------------------------------------------------------------
def knn_accuracy_in(z: np.ndarray, labels: np.ndarray, seed: int, neighbours: int = 10) -> float:
    """The share of a cloud (N, L), as of a picture, whose label is that of most of their nearest neighbours in it.

    5-fold cross-validated, so that no point is its own neighbour; the folds are drawn by the seed.
    """
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(KNeighborsClassifier(neighbours), z, labels, cv=folds).mean())


# --- two latent spaces ------------------------------------------------------------------------------------------------
def align(moved: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Turn (and mirror, if it helps) points (N, L) about the origin to where they are nearest to `fixed` (N, L).

    Least squares over orthogonal matrices (Schoenemann 1966). Two runs of one VAE may differ by just that, for N(0, I)
    looks the same after a rotation or reflection. It does not after a shift or a stretch, so neither is made good.
    """
    rotation, _ = orthogonal_procrustes(moved, fixed)
    return moved @ rotation


# --- how far the latents of all images together are from the prior N(0, I) --------------------------------------------
def moments_kl(z_mean: np.ndarray, z_log_std: np.ndarray) -> float:
    """KL to N(0, I), in nats, of the Gaussian with the mean and the covariance of the aggregate posterior q(z).

    q(z) = mean_n N(z_mean_n, std_n^2), of z_mean and z_log_std (N, L). By the law of total covariance its covariance
    is that of the means plus the mean of the variances. The rest of KL(q(z) || N(0, I)), which is aggregate_kl -
    moments_kl, is KL(q(z) || that Gaussian) and never negative: what is not Gaussian about q(z).
    """
    z_mean, z_log_std = np.float64(z_mean), np.float64(z_log_std)
    mean, latents = z_mean.mean(axis=0), z_mean.shape[1]
    centred = z_mean - mean
    covariance = centred.T @ centred / len(z_mean) + np.diag(np.exp(2 * z_log_std).mean(axis=0))  # (L, L)
    return float((np.trace(covariance) + mean @ mean - latents - np.linalg.slogdet(covariance)[1]) / 2)


def mean_kl(z_mean: np.ndarray, z_log_std: np.ndarray) -> float:
    """The KL of posteriors (N, L) to N(0, I), mean over images, in nats."""
    z_mean, z_log_std = np.float64(z_mean), np.float64(z_log_std)
    return float(((np.exp(2 * z_log_std) + np.square(z_mean) - 1) / 2 - z_log_std).sum(axis=1).mean())


def mutual_information(z_mean: np.ndarray, z_log_std: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """I(x; z) of N images and their latents (N, L), and its standard error, in nats, by at least 2 samples.

    The mean of log q(z|x_n) - log q(z), for z from the posterior of a random image n and the mixture q(z) of all
    posteriors. No sample exceeds log N, as q(z) >= q(z|x_n) / N, and all are log N where no two posteriors overlap.
    So the information of all images that there are, for which these N stand, may be larger: see at_ceiling.

    Squares are expanded for the sake of matrix products, which loses about 1e-16 * (|z| / std)^2 nats: nothing, unless
    the posteriors are spikes.
    """
    z_mean, z_log_std = np.float64(z_mean), np.float64(z_log_std)
    rng = np.random.default_rng(seed)
    members = rng.integers(len(z_mean), size=samples)
    noise = rng.standard_normal((samples, z_mean.shape[1]))
    z = z_mean[members] + np.exp(z_log_std[members]) * noise  # (S, L)
    log_posterior = -(np.square(noise) / 2 + z_log_std[members] + LOG_2_PI / 2).sum(axis=1)
    log_ratio = log_posterior - log_mixture(z, z_mean, z_log_std)  # (S,)
    return float(log_ratio.mean()), float(log_ratio.std(ddof=1) / np.sqrt(samples))


def at_ceiling(information: float, images: int) -> bool:
    """Whether the mutual information of this many images and their latents is as large as so few can show.

    Then it is only a lower bound of what the latents tell of all images there are, and aggregate_kl an upper one.
    """
    return bool(information > np.log(images) - NEAR_CEILING)


def aggregate_kl(z_mean: np.ndarray, z_log_std: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """KL(q(z) || N(0, I)) of the aggregate posterior, and its standard error, in nats, by at least 2 samples of q(z).

    q(z) = mean_n N(z_mean_n, std_n^2) is the mixture of the posteriors of all N images, z_mean and z_log_std (N, L).
    It is one part of the mean KL of a VAE: mean_n KL(q(z|x_n) || p) = I(x; z) + KL(q(z) || p), the other being the
    mutual information of image and latents (Hoffman & Johnson 2016). It is taken as the difference of these two, which
    is less noisy than the mean of log q(z) - log p(z): much of that one's noise is how the KL differs from image to
    image, and the mean KL is known.

    N images stand for all there are, and that biases it upward: I(x; z) cannot exceed log N among N of them (9.2 nats
    for 10,000), so that this is at least the mean KL - log N, and about that wherever posteriors hardly overlap.
    """
    information, standard_error = mutual_information(z_mean, z_log_std, samples, seed)
    return mean_kl(z_mean, z_log_std) - information, standard_error


def log_mixture(z: np.ndarray, z_mean: np.ndarray, z_log_std: np.ndarray) -> np.ndarray:
    """log mean_n N(z; z_mean_n, std_n^2), in nats, of points z (S, L): (S,). Memory grows with N, but not with S."""
    precision = np.exp(-2 * z_log_std)  # (N, L)
    constant = (np.square(z_mean) * precision + 2 * z_log_std + LOG_2_PI).sum(axis=1)  # (N,)
    rows = max(1, CHUNK_NUMBERS // len(z_mean))
    parts = []
    for start in range(0, len(z), rows):
        chunk = z[start : start + rows]
        exponent = np.square(chunk) @ precision.T - 2 * chunk @ (z_mean * precision).T + constant  # (rows, N)
        parts.append(logsumexp(-exponent / 2, axis=1))
    return np.concatenate(parts) - np.log(len(z_mean))


# --- clouds of points -------------------------------------------------------------------------------------------------
def normality(z: np.ndarray) -> dict[str, float]:
    """How a cloud (N, L) differs from draws of N(0, I), dimension by dimension, averaged over the dimensions.

    "mean_abs" and "std" (of N(0, 1): 0 and 1), "skew_abs" and "excess_kurtosis_abs" (both 0), and "ks", the
    Kolmogorov-Smirnov statistic against N(0, 1): the largest distance of the distribution functions, 0 to 1. N draws of
    N(0, 1) are not quite there either: about 0.87 / sqrt(N) for "ks", 0.8 / sqrt(N) for "mean_abs", 2 / sqrt(N) for
    "skew_abs" and 4 / sqrt(N) for "excess_kurtosis_abs". A constant dimension has no skew: a warning, and NaN.
    """
    z = np.float64(z)
    values = {
        "mean_abs": np.abs(z.mean(axis=0)),
        "std": z.std(axis=0),
        "skew_abs": np.abs(stats.skew(z)),
        "excess_kurtosis_abs": np.abs(stats.kurtosis(z)),
        "ks": [stats.kstest(column, "norm", method="asymp").statistic for column in z.T],  # the p-value is not used
    }
    return {name: float(np.mean(value)) for name, value in values.items()}
