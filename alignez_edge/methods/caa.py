"""CAA (Panickssery et al. 2024): the difference of means at one layer, the same for every token.

It is read over the answer's tokens, where the raw difference is of the order of prompting: what is
read at the last prompt token is several times as long and, added to every token, breaks the text
(docs/method.md, section 9).
"""

from __future__ import annotations

from alignez_edge.directions.layers import best_layer
from alignez_edge.methods.displacement import Displacement
from alignez_edge.methods.mean import estimate

METHOD = Displacement(estimate, read=("answer", "answer"), gains=(1.0, 1.0), choose=best_layer)
