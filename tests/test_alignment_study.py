"""The study of rotation against alignment: what it measures, and as its users run it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.alignment import __main__ as alignment
from experiments.alignment.measure import bound, measure
from experiments.alignment.report import hidden
from isojax import transforms
from isojax.report import Stamp, read_rows, select

pytestmark = pytest.mark.slow

OWN = f"{__name__}:stretched"
GIVEN = ("--tensors", "key", "weight:q_proj", "--layers", 2, "--bits", 2, 4, "--seeds", 2,
         "--coordinates", "identity", "haar", "pca", OWN, "--windows", 1,
         "--calibration-windows", 2)  # fmt: skip
DIM = 16


def stretched(key, samples):
    """Coordinates of someone's own, which are no isometry: errors still count in the input."""
    return transforms.Diagonal(jnp.linspace(1, 3, samples.dim))


@pytest.fixture(scope="module")
def gaussian():
    """Vectors of very uneven variances, to fit on and to test on."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12000, DIM), np.float32) * np.geomspace(8, 0.5, DIM, dtype=np.float32)
    x = jnp.asarray(x @ np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32))
    return x[None, :8000], x[None, 8000:]


@pytest.fixture(scope="module")
def distance(gaussian):
    """DB above the bound at 5 bits, of the first `dim` coordinates."""

    @functools.cache
    def measured(name, dim):
        pair = [x[..., :dim] for x in gaussian]
        return measure(jax.random.key(0), *pair, name, (5,)), float(bound(*pair, 5))

    def distance(name, coding, dim=DIM):
        found, least = measured(name, dim)
        return 10 * np.log10(float(found[coding, 5]["nmse"]) / least)

    return distance


def test_entropy_coded_principal_axes_stay_at_the_known_distance_from_the_bound(distance):
    # 1.53 dB at high rate (Gish and Pierce 1968), and a little for fitting on other vectors
    assert 1.4 < distance("pca", "entropy") < 1.7


def test_the_lattice_gains_what_its_cells_are_rounder_by(distance):
    # 0.65 dB for E8 at high rate (Conway and Sloane, chapter 2)
    gain = distance("pca", "entropy") - distance("pca", "lattice")
    assert 0.45 < gain < 0.75
    # 0.37 dB for D4, where blocks of eight do not divide the vector
    gain = distance("pca", "entropy", 12) - distance("pca", "lattice_d4", 12)
    assert 0.25 < gain < 0.45


@pytest.mark.parametrize("dim, lattice", [(64, ["lattice"]), (20, ["lattice_d4"]), (22, [])])
def test_the_longest_blocks_that_divide_a_vector_are_its_lattice(dim, lattice):
    x = jax.ShapeDtypeStruct((1, 256, dim), jnp.float32)
    found = jax.eval_shape(
        functools.partial(measure, name="haar", bits=(2,)), jax.random.key(0), x, x
    )
    assert [coding for coding, _ in found if "lattice" in coding] == lattice
    assert len(found) == 4 + len(lattice)


def test_alignment_wins_entropy_coded_and_rotation_at_one_fixed_rate(distance):
    spread = np.square(np.geomspace(8, 0.5, DIM))
    gain = 10 * np.log10(spread.mean() / np.exp(np.log(spread).mean()))
    lost = distance("haar", "entropy") - distance("pca", "entropy")
    assert lost == pytest.approx(gain, abs=1.2)  # a rotation does not flatten wholly
    assert distance("haar", "fixed") < distance("pca", "fixed") - 1


def test_clusters_with_axes_of_their_own_are_found():
    x = np.random.default_rng(1).standard_normal((12000, DIM)).astype(np.float32)
    own = np.arange(12000) % 2
    x[own == 0, : DIM // 2] *= 20  # two subspaces, one mean
    x[own == 1, DIM // 2 :] *= 20
    x[own == 0, 0] += 200
    pair = jnp.asarray(x)[None, :8000], jnp.asarray(x)[None, 8000:]
    gains = {
        name: float(measure(jax.random.key(0), *pair, name, (5,))["", 0]["coding_gain_db"])
        for name in ("pca", "local_pca")
    }
    assert gains["local_pca"] > gains["pca"] + 2


@pytest.fixture(scope="module")
def study(call):
    return call(alignment, *GIVEN)


def test_every_point_is_there_and_random_ones_with_every_seed(study):
    found = select(read_rows(study / "rows.jsonl"), "nmse")
    for tensor in ("key", "weight:q_proj"):
        for layer in (0, 1):
            for coding in ("fixed", "allocated", "entropy", "lattice"):
                for bits in (2, 4):
                    here = select(found, tensor=tensor, layer=layer, coding=coding, bits=bits)
                    seeds = [(r.config["coordinates"], r.seed) for r in here]
                    want = [("haar", 0), ("haar", 1), ("identity", None), ("pca", None)]
                    want += [(OWN, 0), (OWN, 1)]
                    assert sorted(seeds, key=str) == sorted(want, key=str)


def test_more_bits_lose_less(study):
    rows = read_rows(study / "rows.jsonl")
    for row in select(rows, "nmse", bits=4, coding=("fixed", "allocated")):
        (less,) = [
            r for r in select(rows, "nmse", **row.config | {"bits": 2}) if r.seed == row.seed
        ]
        assert row.value < less.value


def test_it_goes_on_and_says_what_it_found(call, study):
    before = (study / "rows.jsonl").read_bytes()
    call(alignment, *GIVEN, out=study)
    assert (study / "rows.jsonl").read_bytes() == before
    report = (study / "table.md").read_text()
    assert "Alignment concentrates" in report and "## weight:q_proj" in report
    assert "measured errors are beyond these rates" in report
    assert (study / "figure.png").stat().st_size > 10_000


def test_measured_errors_that_no_column_rests_on_are_counted():
    stamp, units = Stamp("alignment"), {"nmse": "1", "rate_bits": "bits per element"}
    rows = [
        row
        for bits, rate in ((1, 1.5), (2, 2.5), (3, 3.5), (4, 4.5))
        for row in stamp.rows(
            {"coordinates": "haar", "coding": "fixed", "layer": 0, "bits": bits}, 0,
            {"nmse": 0.1**bits, "rate_bits": rate}, units,
        )
    ]  # fmt: skip
    assert hidden(rows, "fixed", [2, 3, 4]) == ""
    assert hidden(rows, "fixed", [3, 4]).startswith("`fixed`: 1 of 4 measured errors")
    assert "from 1.50 bits per element" in hidden(rows, "fixed", [])
    assert "4 of 4" in hidden(rows, "fixed", [])


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--coordinates", "dct"), ("--bits", 9), ("--tensors", "soul"), ("--layers", 0)],
)
def test_it_refuses_what_it_does_not_know(call, capsys, flag, value):
    with pytest.raises(SystemExit) as stop:
        call(alignment, flag, value)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(value) in error and error.count("\n") == 1
