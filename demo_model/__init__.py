"""The recipe of the demo model: corpus, tokenizer, trainer, exporter, report.

Nothing here is installed. `python -m demo_model all` rebuilds the model that ships with the
package; it needs the `demo-model` extra (PyTorch, tokenizers).
"""
