"""The affine edit: along the first direction of the pairs' differences every state is moved to the
mean of the wanted side. The control vector is that edit's mean."""

from __future__ import annotations

from functools import partial

from alignez_edge.methods.displacement import Displacement
from alignez_edge.methods.mlp_edits import mean_field, move

METHOD = Displacement(partial(mean_field, move), tensor="ffn_out", edit=move)
