"""The demo model tuned on labelled pairs by DPO, as small LoRA adapters for llama.cpp.

Direct preference optimization (Rafailov et al. 2023, equation 7) of a low-rank change of the
matrices that write to the residual stream. It starts from the F16 file of the repository, so that
it needs nothing of the long run that made the model. What comes out is the neighbour that AlignEZ
is measured against (its figure 3): a model tuned on a little preference data, to be steered on top.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignez_edge.demo.bundled import demo_queries
from alignez_edge.files.gguffile import GGUFFile, read_gguf
from alignez_edge.files.writing import write_atomic
from alignez_edge.interventions.exact import adapter_bytes
from alignez_edge.runtime.model import Model
from demo_model import corpus
from demo_model.model import Llama
from demo_model.settings import DEFAULT, DEFAULT_TUNING, Settings, Tuning

HERE = Path(__file__).parent
SOURCE = HERE / "demo-model-f16.gguf"
ADAPTED = ("attn_output", "ffn_down")
"""What a LoRA is put on: the two matrices of a layer that write to the residual stream."""


@dataclass(frozen=True)
class LabelledPair:
    """A query with an answer at the wanted side of an axis and one at the other side."""

    query: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class TokenPair:
    """A pair as tokens: the prompt's, and those of either answer with the end token."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """How a training went. The losses (before, and of the weights kept) are of the held-out pairs,
    and so is `accuracy`, the share of them whose chosen answer gained more than the rejected."""

    pairs: int
    held_out: int
    steps: int
    kept_step: int
    loss_before: float
    loss: float
    accuracy: float
    seconds: float


class LoRA(nn.Module):
    """A frozen matrix plus `b @ a`, of shapes (n_out, rank) and (rank, n_in); at first b is 0."""

    def __init__(self, frozen: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        n_out, n_in = frozen.weight.shape
        self.frozen = frozen
        self.a = nn.Parameter(torch.randn(rank, n_in, generator=generator) * n_in**-0.5)
        self.b = nn.Parameter(torch.zeros(n_out, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) to (..., n_out)."""
        return self.frozen(x) + F.linear(F.linear(x, self.a), self.b)


def unpermuted(weight: Tensor, n_head: int) -> Tensor:
    """The inverse of `export.permuted`: within each head from neighbouring pairs to halves."""
    rows, columns = weight.shape
    pairs = weight.view(n_head, rows // n_head // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def base_model(gguf: GGUFFile, settings: Settings = DEFAULT) -> Llama:
    """The PyTorch model with the weights of a file that `export.write_f16` wrote."""
    heads = {"attn_q.weight": settings.n_head, "attn_k.weight": settings.n_head_kv}
    weights = {}
    for name in gguf.tensors:
        weight = torch.from_numpy(gguf.tensor(name))
        n_head = heads.get(name.partition(".")[2].partition(".")[2])
        weights[name] = weight if n_head is None else unpermuted(weight, n_head)
    model = Llama(settings)
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


def adapted(model: Llama, rank: int, seed: int) -> Llama:
    """A copy of the model with an untrained LoRA on the matrices `ADAPTED` of every layer."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    for layer in model.blk:
        for name in ADAPTED:
            setattr(layer, name, LoRA(getattr(layer, name), rank, generator))
    return model


def labelled_pairs(axis: str, count: int, seed: int) -> list[LabelledPair]:
    """Pairs from the corpus' generator: the same levels on both sides but for that of `axis`.

    The queries are neither the unseen ones nor those that profiles are built from. A smaller count
    gives the first pairs of a larger one.
    """
    taken = {entry["query"] for name in ("unseen", "build") for entry in demo_queries(name)}
    queries = [pair for pair in corpus.all_queries() if pair[0] not in taken]
    rng = random.Random(f"{seed} {axis}")
    rng.shuffle(queries)
    pairs = []
    for query, topic in queries[:count]:
        levels = corpus.draw_levels(rng, {})
        sides = (corpus.answer(rng, topic, {**levels, axis: side}) for side in (1, -1))
        pairs.append(LabelledPair(query, *sides))
    return pairs


def tokens_of(model: Model, pairs: Sequence[LabelledPair]) -> list[TokenPair]:
    """Pairs as the runtime puts them to the model: its prompt form, then the answer and the end."""
    end = int(model.gguf.metadata["tokenizer.ggml.eos_token_id"])

    def answer(text: str) -> tuple[int, ...]:
        return (*model.tokenize(text, begin=False), end)

    return [
        TokenPair(
            model.ask_tokens(pair.query),
            answer(pair.chosen),
            answer(pair.rejected),
        )
        for pair in pairs
    ]


def log_probs(model: nn.Module, pairs: Sequence[TokenPair]) -> Tensor:
    """Log-probabilities of the answers in nats, summed over their tokens: (pairs, 2), the chosen
    first."""
    texts = [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    longest = max(len(prompt) + len(answer) for prompt, answer in texts)
    tokens = torch.zeros((len(texts), longest), dtype=torch.int64)
    counted = torch.zeros((len(texts), longest))
    for row, (prompt, answer) in enumerate(texts):
        end = len(prompt) + len(answer)
        # What follows the end changes nothing before it: the attention is causal.
        tokens[row, :end] = torch.tensor(prompt + answer)
        counted[row, len(prompt) : end] = 1
    logits = model(tokens[:, :-1])
    each = -F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return (each.view(len(texts), -1) * counted[:, 1:]).sum(dim=1).view(-1, 2)


def gains(ours: Tensor, reference: Tensor) -> Tensor:
    """How much more the chosen answer has gained than the rejected one, in nats: (pairs,)."""
    change = ours - reference
    return change[:, 0] - change[:, 1]


def dpo_loss(ours: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Equation 7 of Rafailov et al. (2023): the mean over pairs, of `log_probs` (pairs, 2)."""
    return -F.logsigmoid(beta * gains(ours, reference)).mean()


def train(base: Llama, pairs: Sequence[TokenPair], tuning: Tuning) -> tuple[Llama, Outcome]:
    """Train a LoRA of `base` on the pairs but for the held-out ones, which say when to stop.

    The weights kept are those of the lowest held-out loss.
    """
    started = time.monotonic()
    n_held_out = max(1, round(tuning.held_out_share * len(pairs)))
    held_out, trained_on = pairs[:n_held_out], pairs[n_held_out:]
    model = adapted(base, tuning.rank, tuning.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, tuning.lr)

    def in_batches(of: nn.Module, some: Sequence[TokenPair]) -> Tensor:
        starts = range(0, len(some), tuning.batch_pairs)
        with torch.no_grad():
            return torch.cat([log_probs(of, some[i : i + tuning.batch_pairs]) for i in starts])

    reference, held_out_reference = in_batches(base, trained_on), in_batches(base, held_out)

    def held_out_figures() -> tuple[float, float]:
        ours = in_batches(model, held_out)
        loss = dpo_loss(ours, held_out_reference, tuning.beta)
        accuracy = (gains(ours, held_out_reference) > 0).float().mean()
        return float(loss), float(accuracy)

    before, accuracy = held_out_figures()
    best, kept, kept_step, step = before, copy.deepcopy(model.state_dict()), 0, 0
    for batch in _batches(len(trained_on), tuning):
        chosen = [trained_on[i] for i in batch]
        loss = dpo_loss(log_probs(model, chosen), reference[batch], tuning.beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % tuning.evaluate_every:
            continue
        found, share = held_out_figures()
        print(f"step {step}: loss {loss.item():.4f}, held out {found:.4f}", flush=True)
        if found < best:
            best, accuracy, kept_step = found, share, step
            kept = copy.deepcopy(model.state_dict())
        elif step - kept_step >= tuning.patience:
            break
    model.load_state_dict(kept)
    return model, Outcome(
        pairs=len(pairs),
        held_out=n_held_out,
        steps=step,
        kept_step=kept_step,
        loss_before=round(before, 4),
        loss=round(best, 4),
        accuracy=round(accuracy, 4),
        seconds=round(time.monotonic() - started, 1),
    )


def _batches(count: int, tuning: Tuning) -> Iterator[list[int]]:
    """The pairs of each step, in a seeded order that is new in every epoch."""
    rng = random.Random(tuning.seed)
    order: list[int] = []
    for _ in range(tuning.most_steps):
        if len(order) < min(count, tuning.batch_pairs):
            order = rng.sample(range(count), count)
        yield [order.pop() for _ in range(min(count, tuning.batch_pairs))]


def adapter(gguf: GGUFFile, model: Llama) -> bytes:
    """The LoRA of an `adapted` model as a llama.cpp adapter in F16 that belongs to `gguf`."""
    pairs = [
        (f"blk.{number}.{name}.weight", lora.a.detach().numpy(), lora.b.detach().numpy())
        for number, layer in enumerate(model.blk)
        for name in ADAPTED
        for lora in (getattr(layer, name),)
    ]
    return adapter_bytes(gguf, pairs, "F16")


def adapter_path(axis: str, percent: int, folder: Path = HERE) -> Path:
    """Where the adapter lies that was trained on that share of the pairs."""
    return folder / f"dpo-{axis}-{percent}.gguf"


def run(axis: str, tuning: Tuning = DEFAULT_TUNING, folder: Path = HERE) -> dict[int, Outcome]:
    """Train and write the adapters of an axis, one for each share of the pairs, and a note on
    how they were made (`dpo-<axis>.json`)."""
    torch.set_num_threads(1)  # a sum's order, and with it the result, depends on the threads
    gguf = read_gguf(SOURCE)
    base = base_model(gguf)
    with Model.load(SOURCE, threads=1, gpu_layers=0) as model:
        pairs = tokens_of(model, labelled_pairs(axis, tuning.pairs, tuning.seed))
    outcomes = {}
    for percent in tuning.percents:
        print(f"{axis}: DPO on {percent} % of {len(pairs)} pairs", flush=True)
        trained, outcomes[percent] = train(base, pairs[: len(pairs) * percent // 100], tuning)
        path = adapter_path(axis, percent, folder)
        write_atomic(path, adapter(gguf, trained))
        print(f"{path.name}  {path.stat().st_size / 1e3:.0f} kB  {outcomes[percent]}", flush=True)
    note = {"axis": axis, "tuning": asdict(tuning)}
    note["outcomes"] = {str(percent): asdict(outcome) for percent, outcome in outcomes.items()}
    (folder / f"dpo-{axis}.json").write_text(json.dumps(note, indent=1) + "\n")
    return outcomes
