"""An exported PEFT adapter in the packages transformers and peft, against the exact edit here.

Both sides get the very same file: transformers reads the small random GGUF model itself (in single
precision), llama.cpp runs it. Needs torch, transformers, peft.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignez_edge.exchange.peft import export_peft
from alignez_edge.interventions.control_vector import ControlVector
from alignez_edge.interventions.exact_form import ExactForm
from alignez_edge.interventions.mlp_edit import Edit, LayerEdit
from alignez_edge.preferences.axes import Axis
from alignez_edge.profile.profile import Profile
from alignez_edge.runtime.model import Model
from alignez_edge.runtime.score import Scorer, log_softmax
from tests.tinymodels import tiny_model

ARCHITECTURES: dict[str, dict[str, int]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32},
    "phi3": {"pad_token_id": 0},
    "gpt2": {"n_inner": 128, "n_positions": 512},
}
"""What is compared, and what transformers does not take from the GGUF's keys."""
LAYERS = (1, 2, 3)
TEXT = "How do I bake bread? With flour, water and salt."


@dataclass(frozen=True)
class Agreement:
    """Largest differences of log-probabilities over all tokens of a text: of the plain models, of
    the edited ones, and the edit's own effect in llama.cpp."""

    architecture: str
    plain: float
    edited: float
    effect: float


def profile_for(model: Model) -> Profile:
    """A profile that does the same random edit of rank 2 at every token."""
    rng = np.random.default_rng(0)
    edit = Edit({i: LayerEdit.swap(*rng.standard_normal((2, model.n_embd))) for i in LAYERS})
    return Profile(
        Axis("planted", positive="one", negative="other"),
        ControlVector.zeros(model.n_layer, model.n_embd),
        LAYERS,
        model.fingerprint,
        intervention=ExactForm(edit, edit, unit=4.0),
    )


def agreement(architecture: str, folder: Path) -> Agreement:
    """Both sides on one architecture; files go into `folder`, which exists and is empty."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = tiny_model(folder, architecture, n_layer=5, file_type="F16")
    with Model.load(path, threads=1) as model, Scorer(model) as scorer:
        profile = profile_for(model)
        export_peft(profile, model, folder / "adapter")
        tokens = model.tokenize(TEXT, begin=True)
        # The first token is the whole prompt, so that all are edited, as PEFT does it.
        injections = [None, (profile * 1.0).by("exact").injection(model)]
        ours = list(scorer.log_probs(tokens[:1], tokens[1:], injections))
    same = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=path.name, dtype=torch.float32, **ARCHITECTURES[architecture]
    )

    def theirs(network: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            logits = network(torch.tensor([tokens])).logits
        return log_softmax(logits[0, :-1].float().numpy())

    plain = theirs(same)
    edited = theirs(PeftModel.from_pretrained(same, str(folder / "adapter")))
    return Agreement(
        architecture,
        plain=float(np.abs(plain - ours[0]).max()),
        edited=float(np.abs(edited - ours[1]).max()),
        effect=float(np.abs(ours[1] - ours[0]).max()),
    )
