"""Raw tensors as numpy arrays, and what can be wrong with their values.

Apart from the rest because it is the part of `omnipersona_cli.concepts` that needs numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from omnipersona_cli.concepts.container import RawTensor
from omnipersona_cli.concepts.header import SLOT_TENSOR, TOKENS, PackHeader
from omnipersona_cli.errors import PackError

if TYPE_CHECKING:
    import numpy as np

_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}


def value_problems(
    header: PackHeader,
    tensors: Mapping[str, RawTensor],
    norm_limit: float | Mapping[str, float] | None,
) -> Iterator[str]:
    """Values that are not finite, rows that are too long."""
    import numpy as np

    limits = (
        norm_limit if isinstance(norm_limit, Mapping) else dict.fromkeys(header.slots, norm_limit)
    )
    for key, raw in sorted(tensors.items()):
        if raw.dtype == "U8":
            continue
        array = to_array(raw)
        if not np.isfinite(array).all():
            yield f"tensor {key} has values that are not finite"
            continue
        found = SLOT_TENSOR.fullmatch(key)
        limit = limits.get(found[1]) if found and TOKENS.fullmatch(found[2]) else None
        if limit is None or not array.size:
            continue
        longest = float(np.linalg.norm(array.astype(np.float64), axis=1).max())
        if longest > limit:
            yield f"tensor {key} has a row of norm {longest:.3g}; its base allows {limit:.3g}"


def to_array(raw: RawTensor) -> np.ndarray[Any, Any]:
    """A fresh writable array; bfloat16 widened to float32, which is exact."""
    import numpy as np

    array = np.frombuffer(raw.data, dtype=_NUMPY[raw.dtype]).reshape(raw.shape)
    if raw.dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=True)


def to_raw(array: np.ndarray[Any, Any], dtype: str, key: str) -> RawTensor:
    """The array in ``dtype``, or in its own: float32 or float16."""
    import numpy as np

    dtype = dtype or {"float32": "F32", "float16": "F16"}.get(str(array.dtype), str(array.dtype))
    if dtype not in {"F32", "F16", "BF16"} or array.dtype not in (np.float32, np.float16):
        raise PackError(
            f"tensor {key} has the type {array.dtype}",
            hint="float32 or float16, stored F32/F16/BF16",
        )
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
        finite = (bits & 0x7F800000) != 0x7F800000
        rounded = np.where(finite, bits + 0x7FFF + ((bits >> 16) & 1), bits)  # to nearest even
        data = (rounded >> 16).astype("<u2").tobytes()
    else:
        with np.errstate(over="ignore"):  # what overflows is refused as not finite
            data = array.astype(_NUMPY[dtype]).tobytes()
    return RawTensor(dtype=dtype, shape=tuple(array.shape), data=data)
