"""The first principal direction of the differences, the same for every token (repeng).

Uncentred, as in llama.cpp and repeng's `pca_center`; centring the differences (`pca_diff`) would
remove the shift. Their vectors have unit length and go into every layer whole.
"""

from __future__ import annotations

from alignez_edge.methods.alignez import estimate
from alignez_edge.methods.displacement import Displacement

METHOD = Displacement(estimate, read=("answer", "answer"), gains=(1.0, 1.0))
