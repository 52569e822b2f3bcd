"""AlignEZ, version 2's own edit, without its activation: states are doubled along the first
direction of the pairs' differences. The control vector is that edit's mean."""

from __future__ import annotations

from functools import partial

from alignez_edge.methods.displacement import Displacement
from alignez_edge.methods.mlp_edits import amplify, mean_field

METHOD = Displacement(partial(mean_field, amplify), tensor="ffn_out", edit=amplify)
