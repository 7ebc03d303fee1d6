"""The times of kernels from a profile that was recorded on an H100: six programs of 30 calls."""

import gzip
import importlib.util
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location(
    "gpu_events", HERE.parent / "scripts" / "gpu_events.py"
)
assert SPEC and SPEC.loader
gpu_events = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu_events)


@pytest.fixture(scope="module")
def events():
    data = gzip.decompress((HERE / "data" / "gpu_profile.xplane.pb.gz").read_bytes())
    return gpu_events.events_of(jax.profiler.ProfileData.from_serialized_xspace(data).planes)


def test_events_are_in_order_and_each_has_its_program(events):
    assert len(events) == 1500
    assert all(a.start <= b.start for a, b in zip(events, events[1:], strict=False))
    assert {e.program for e in events} == {
        f"jit_case1_{name}"
        for name in ("packed", "bf16", "jax_xla", "jax_cudnn", "copy", "pallas_decode_attention")
    }


@pytest.mark.parametrize(
    "program, kernels, least, most",
    [
        ("copy", 1, 15, 19),  # 52 MB each way at 3 TB/s
        ("jax_cudnn", 4, 90, 110),  # 268 MB read at 2.8 TB/s
        ("packed", 24, 400, 500),
    ],
)
def test_a_call_takes_the_sum_of_its_kernels(events, program, kernels, least, most):
    own = [e for e in events if e.program == f"jit_case1_{program}"]
    assert len(own) == 30 * kernels
    times = gpu_events.per_call(events, f"case1_{program}", 30)
    assert len(times) == 30
    assert sum(times) == pytest.approx(sum(e.duration for e in own) / 1e3)
    # calls follow each other: the kernels of one lie before those of the next
    assert max(e.start for e in own[:kernels]) < min(e.start for e in own[kernels : 2 * kernels])
    assert times[0] == pytest.approx(sum(e.duration for e in own[:kernels]) / 1e3)
    assert least < gpu_events.median_us(events, f"case1_{program}", 30) < most


def test_a_lost_event_leaves_the_mean_and_an_unknown_program_nothing(events):
    fewer = [e for i, e in enumerate(events) if i != 700]
    program = events[700].program.removeprefix("jit_")
    (mean,) = gpu_events.per_call(fewer, program, 30)
    assert mean == pytest.approx(sum(gpu_events.per_call(events, program, 30)) / 30, rel=0.05)
    assert gpu_events.per_call(events, "nobody", 30) == []
    assert gpu_events.median_us(events, "nobody", 30) is None
