"""Types of arrays, by what their numbers are."""

from typing import Literal

import numpy as np
import numpy.typing as npt

HalfArray = npt.NDArray[np.float16]
FloatArray = npt.NDArray[np.float32]
"""As llama.cpp computes."""
DoubleArray = npt.NDArray[np.float64]
"""As figures are worked out."""
AnyFloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
TensorName = Literal["l_out", "ffn_out", "kqv_out"]
"""The residual stream after a layer, its MLP's output, its attention heads' outputs."""
