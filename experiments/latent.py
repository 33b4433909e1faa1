"""Use a trained latent space: encode, walk, project, fit, and measure how near it is to the prior.

Pure functions, NumPy in and NumPy out. Shapes: N images or points, L latents. Distances that are KLs are in nats.
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
TINY = 1e-6  # no arc between two vectors shorter than this, or nearer than this (in radians) to one line
CHUNK_NUMBERS = 1_000_000  # log_mixture handles so many numbers at a time: 8 MB, about a processor's cache
MIXTURE_ITERATIONS = 25  # of expectation maximisation, at most; most of the gain comes before
NEAR_CEILING = 0.2  # nats; mutual information this near to log(images) counts as at its ceiling


# --- choose and encode ------------------------------------------------------------------------------------------------
def evenly(total: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 .. total - 1, evenly spaced, with the first and the last.

    Evenly spaced rows represent the data even if these are sorted.
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
        warnings.simplefilter("ignore", ConvergenceWarning)  # mixture.converged_ says so
        return mixture.fit(np.float64(z))


def draw_mixture(mixture: GaussianMixture, count: int, seed: int) -> np.ndarray:
    """Draws (count, L) from a fitted mixture, float32, in random order; each seed gives other draws."""
    rng = np.random.default_rng(seed)
    mixture.random_state = int(rng.integers(2**31))
    return np.float32(rng.permutation(mixture.sample(count)[0]))  # sample() sorts them by component


# --- walk -------------------------------------------------------------------------------------------------------------
def straight(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Walk from a (L,) to b (L,) in a straight line: (steps, L), evenly spaced, both ends included and exact."""
    a, b = np.float64(a), np.float64(b)
    t = np.linspace(0, 1, steps)[:, np.newaxis]
    return (1 - t) * a + t * b  # a + t * (b - a) would miss b by rounding


def spherical(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Walk from a (L,) to b (L,) along an arc about the origin: (steps, L), in equal angles, both ends exact.

    In many dimensions draws from N(0, I) lie near the sphere of radius sqrt(L), and a straight line leaves it (White
    2016, arXiv 1609.04468). The direction follows Shoemake's slerp (SIGGRAPH 1985). The length changes linearly from
    that of a to that of b. The walk is straight if there is no unique arc: the two are (nearly) parallel or opposite,
    or one is (nearly) zero.
    """
    a, b = np.float64(a), np.float64(b)
    a_length, b_length = np.linalg.norm(a), np.linalg.norm(b)
    if min(a_length, b_length) < TINY:
        return straight(a, b, steps)
    a_unit, b_unit = a / a_length, b / b_length
    # arccos of the dot product would be inexact near 0 and pi.
    angle = 2 * np.arctan2(np.linalg.norm(a_unit - b_unit), np.linalg.norm(a_unit + b_unit))
    if np.sin(angle) < TINY:
        return straight(a, b, steps)
    t = np.linspace(0, 1, steps)[:, np.newaxis]
    length = (1 - t) * a_length + t * b_length
    a_weight, b_weight = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    return a_weight * (length / a_length) * a + b_weight * (length / b_length) * b  # each quotient is 1 at its own end


# --- project ----------------------------------------------------------------------------------------------------------
def project(z: np.ndarray, method: str, seed: int) -> np.ndarray:
    """Show points (N, L), L at least 2, in the plane: (N, 2), by "pca", "tsne" or "umap"; the same for the same seed.

    PCA is linear, and shows true distances along two directions. t-SNE (van der Maaten & Hinton 2008) and UMAP (McInnes
    et al. 2018, arXiv 1802.03426) keep neighbours together. In their pictures the size of a cluster and the distance
    between two clusters mean nothing. UMAP needs at least 5 points. Raises KeyError for another method.
    """
    z = np.float32(z)
    few = len(z) - 1  # the other points; they limit the perplexity and the number of neighbours
    if method == "umap":
        import umap  # here, because it takes seconds, most of them numba's compiler

        return umap.UMAP(n_neighbors=min(15, few), random_state=seed, n_jobs=1).fit_transform(z)  # else it warns
    pca = PCA(2, random_state=seed)  # a seed because PCA may choose its randomised solver
    tsne = TSNE(2, init="pca", perplexity=min(30, few / 3), random_state=seed)
    return {"pca": pca, "tsne": tsne}[method].fit_transform(z)


# --- what the latents know of the labels ------------------------------------------------------------------------------
def knn_accuracy_in(z: np.ndarray, labels: np.ndarray, seed: int, neighbours: int = 10) -> float:
    """The share of points (N, L) whose label is that of most of their nearest neighbours.

    It is 5-fold cross-validated, so that no point is its own neighbour; the seed draws the folds.
    """
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(KNeighborsClassifier(neighbours), z, labels, cv=folds).mean())


# --- two latent spaces ------------------------------------------------------------------------------------------------
def align(moved: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Rotate (and mirror, if it helps) points (N, L) about the origin, as near as possible to `fixed` (N, L).

    Least squares over orthogonal matrices (Schoenemann 1966). Two runs of one VAE may differ by a rotation or
    reflection, because these do not change N(0, I). A shift or a stretch changes it, so neither is undone here.
    """
    rotation, _ = orthogonal_procrustes(moved, fixed)
    return moved @ rotation


# --- how far the latents of all images together are from the prior N(0, I) --------------------------------------------
def moments_kl(z_mean: np.ndarray, z_log_std: np.ndarray) -> float:
    """KL to N(0, I), in nats, of the Gaussian with the mean and the covariance of the aggregate posterior q(z).

    q(z) = mean_n N(z_mean_n, std_n^2), with z_mean and z_log_std (N, L). By the law of total covariance its covariance
    is the covariance of the means plus the mean of the variances. The rest, aggregate_kl - moments_kl, is KL(q(z) ||
    that Gaussian). It is never negative, and measures how far q(z) is from a Gaussian.
    """
    z_mean, z_log_std = np.float64(z_mean), np.float64(z_log_std)
    mean, latents = z_mean.mean(axis=0), z_mean.shape[1]
    centred = z_mean - mean
    covariance = centred.T @ centred / len(z_mean) + np.diag(np.exp(2 * z_log_std).mean(axis=0))  # (L, L)
    return float((np.trace(covariance) + mean @ mean - latents - np.linalg.slogdet(covariance)[1]) / 2)


def mean_kl(z_mean: np.ndarray, z_log_std: np.ndarray) -> float:
    """The KL from posteriors (N, L) to N(0, I), mean over images, in nats."""
    z_mean, z_log_std = np.float64(z_mean), np.float64(z_log_std)
    return float(((np.exp(2 * z_log_std) + np.square(z_mean) - 1) / 2 - z_log_std).sum(axis=1).mean())


def mutual_information(z_mean: np.ndarray, z_log_std: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """I(x; z) of N images and their latents (N, L), and its standard error, in nats, from at least 2 samples.

    It is the mean of log q(z|x_n) - log q(z), with z from the posterior of a random image n, and q(z) the mixture of
    all posteriors. No sample exceeds log N, because q(z) >= q(z|x_n) / N. All samples are log N if no two posteriors
    overlap. So the information for all possible images may be larger: see at_ceiling.

    Squares are expanded so that matrix products can compute them. This loses about 1e-16 * (|z| / std)^2 nats, which
    only matters if the posteriors are spikes.
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
    """Whether the mutual information is as large as this number of images can show.

    Then it is only a lower bound of the information for all possible images, and aggregate_kl is an upper bound.
    """
    return bool(information > np.log(images) - NEAR_CEILING)


def aggregate_kl(z_mean: np.ndarray, z_log_std: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """KL(q(z) || N(0, I)) of the aggregate posterior, and its standard error, in nats, from at least 2 samples of q(z).

    q(z) = mean_n N(z_mean_n, std_n^2) is the mixture of the posteriors of all N images, z_mean and z_log_std (N, L).
    The mean KL of a VAE has two parts: mean_n KL(q(z|x_n) || p) = I(x; z) + KL(q(z) || p). The first is the mutual
    information of image and latents (Hoffman & Johnson 2016), the second is returned here. It is computed as the mean
    KL minus the information. This is less noisy than the mean of log q(z) - log p(z): much of the noise of that mean
    comes from how the KL differs between images, and the mean KL is known exactly.

    The value is too large because N images represent all possible ones. Among N images I(x; z) cannot exceed log N (9.2
    nats for 10,000). So the value is at least the mean KL - log N, and close to it if posteriors hardly overlap.
    """
    information, standard_error = mutual_information(z_mean, z_log_std, samples, seed)
    return mean_kl(z_mean, z_log_std) - information, standard_error


def log_mixture(z: np.ndarray, z_mean: np.ndarray, z_log_std: np.ndarray) -> np.ndarray:
    """log mean_n N(z; z_mean_n, std_n^2), in nats, at points z (S, L): (S,). Memory grows with N, but not with S."""
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
    """How points (N, L) differ from draws of N(0, I), measured in each dimension and averaged over the dimensions.

    "mean_abs" and "std" (for N(0, 1): 0 and 1), "skew_abs" and "excess_kurtosis_abs" (both 0), and "ks", the
    Kolmogorov-Smirnov statistic against N(0, 1): the largest distance of the distribution functions, 0 to 1. Even N
    true draws of N(0, 1) give about 0.87 / sqrt(N) for "ks", 0.8 / sqrt(N) for "mean_abs", 2 / sqrt(N) for "skew_abs"
    and 4 / sqrt(N) for "excess_kurtosis_abs". A constant dimension has no skew: the result is NaN, with a warning.
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
