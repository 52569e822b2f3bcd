"""What llama.cpp must be able to rely on before it gets a file."""
from __future__ import annotations
from alignez_edge.errors import ModelFileError
from alignez_edge.gguffile import GGUFFile, printable
from alignez_edge.runtime.llama import cpp
STEERABLE_NOT: frozenset[str] = frozenset()
def check_model(gguf: GGUFFile) -> None:
    """x"""
def check_loaded(handle: int, gguf: GGUFFile) -> None:
    """x"""
