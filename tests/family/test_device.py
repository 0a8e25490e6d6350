"""Which device and dtype an opening means."""

import pytest
import torch

from omnipersona_cli.errors import MissingError, UsageError
from omnipersona_cli.family.device import choose_device, choose_dtype, has_bfloat16


@pytest.fixture(params=[False, True])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("torch.cuda.is_available", lambda: request.param)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2 * request.param)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    return bool(request.param)


def test_auto_is_the_best_that_is_here_or_the_backends_own(cuda: bool) -> None:
    assert choose_device("auto") == ("cuda" if cuda else "cpu")
    assert choose_device("auto", best="cpu") == "cpu"


def test_a_device_that_is_not_here_is_refused(cuda: bool) -> None:
    if cuda:
        assert choose_device("cuda:1") == "cuda:1"
        with pytest.raises(MissingError, match="no cuda:2 device here"):
            choose_device("cuda:2")
    else:
        with pytest.raises(MissingError, match="no cuda:0 device here"):
            choose_device("cuda:0")
    with pytest.raises(MissingError, match="no mps device"):
        choose_device("mps")


def test_a_processor_multiplies_in_bfloat16_where_torch_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for told, found in (({"avx512_bf16": True}, True), ({"amx_bf16": False, "avx2": True}, False)):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda told=told: told, raising=False)
        assert has_bfloat16() == found


@pytest.mark.parametrize("dtype", [None, "auto"])
@pytest.mark.parametrize(("capable", "own"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_own_dtype_is_half_where_that_is_no_slower(
    dtype: str | None, capable: bool, own: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnipersona_cli.family.device.has_bfloat16", lambda: capable)
    assert choose_dtype(dtype, "cpu", backend="x") == own
    assert choose_dtype(dtype, "cpu", backend="x", known=("float32",)) == torch.float32
    assert choose_dtype(dtype, "cuda", backend="x") == torch.bfloat16
    assert choose_dtype(dtype, "cuda", backend="x", known=("float32",)) == torch.float32


@pytest.mark.parametrize("recent", [False, True])
def test_apple_has_bfloat16_from_macos_14_on(recent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_macos_or_newer", lambda major, minor: recent)
    wanted = torch.bfloat16 if recent else torch.float32
    assert choose_dtype(None, "mps", backend="x") == wanted


def test_another_dtype_is_refused_with_those_that_it_runs_in() -> None:
    assert choose_dtype("float16", "cpu", backend="x") == torch.float16
    with pytest.raises(UsageError, match="x runs in float32 or bfloat16 or float16, not int8"):
        choose_dtype("int8", "cpu", backend="x")
    with pytest.raises(UsageError, match="x runs in float32, not bfloat16") as caught:
        choose_dtype("bfloat16", "cpu", backend="x", known=("float32",))
    assert caught.value.hint == "leave out --dtype"
