"""utils/quiet.py: TensorFlow's chatter is dropped and everything else is shown; garbage is not collected."""

import contextlib
import gc
import os

import pytest

from utils import quiet

CHATTER = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795348089.636801   15772 port.cc:153] oneDNN custom operations are on. You may see slightly ...",
    "2026-11-22 11:48:15.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
    "2026-11-22 11:48:15.123456: E external/local_xla/cuda_fft.cc:467] Unable to register cuFFT factory: ...",
    "2026-11-22 11:48:15.123456: E tensorflow/cuda_diagnostics.cc:1] failed call to cuInit: INTERNAL: CUDA error: ...",
    "To enable the following instructions: AVX2 AVX512F, in other operations, rebuild TensorFlow with the ...",
)
NEWS = ("E0000 00:00:1795348089.636801   1 gpu.cc:1] out of memory", "Traceback (most recent call last):", "In doubt")


@pytest.mark.parametrize("error", [None, ImportError])
def test_chatter_is_dropped_and_all_else_comes_through(error, capfd):
    lines = [line for pair in zip(CHATTER, NEWS * 2, strict=True) for line in pair]
    with pytest.raises(error) if error else contextlib.nullcontext(), quiet.quiet_start():
        os.write(2, "".join(f"{line}\n" for line in lines).encode())  # as C++ writes, not through sys.stderr
        if error:
            raise error
    os.write(2, b"afterwards I0000 \n")
    assert capfd.readouterr().err.splitlines() == [*NEWS, *NEWS, "afterwards I0000 "]


def test_what_is_made_before_the_end_is_never_collected_and_the_rest_is_as_before():
    before, enabled = gc.get_freeze_count(), gc.isenabled()
    with quiet.uncollected():
        assert not gc.isenabled()
        made = [{} for _ in range(1_000)]
    assert gc.get_freeze_count() >= before + 1_000
    assert not any(each is made for each in gc.get_objects())
    assert gc.isenabled() == enabled
