"""Text to tokens and back, with control tokens only where they may be.

llama.cpp's tokenizer either reads control tokens (`<|im_end|>`) everywhere in a text or nowhere.
A prompt needs them in the template's own text and must not have them in what a user wrote, while
the words around the border still have to be tokenized together (`Question: ` + `Why` is not
`Question:` + ` ` + `Why`). So the trusted spans are searched for control tokens here, as llama.cpp
does it, and each run of text between two of them goes through the tokenizer as a whole, with
control tokens switched off.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import cached_property

from alignez_edge.chat.template import Span
from alignez_edge.errors import BadInputError, RuntimeFailure
from alignez_edge.runtime.llama import cpp

_UNKNOWN, _CONTROL, _LSTRIP, _RSTRIP = 1 << 0, 1 << 3, 1 << 7, 1 << 8
_SPACE = " \t\n\v\f\r"  # C's isspace, which llama.cpp uses


class Vocabulary:
    """The tokenizer of one model, given its `llama_vocab *`, which must outlive this."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._size: int = cpp.llama_vocab_n_tokens(handle)
        self._bos: int = cpp.llama_vocab_bos(handle)
        self._wants_bos = bool(cpp.llama_vocab_get_add_bos(handle)) and self._bos >= 0
        self.bos_text = self._text(self._bos)
        self.eos_text = self._text(cpp.llama_vocab_eos(handle))

    @cached_property
    def end(self) -> int | None:
        """The token that ends a turn, else the one that ends a text; None where there is none."""
        ends = (cpp.llama_vocab_eot(self._handle), cpp.llama_vocab_eos(self._handle))
        return next((token for token in ends if token >= 0), None)

    def _text(self, token: int) -> str:
        raw: bytes | None = cpp.llama_vocab_get_text(self._handle, token) if token >= 0 else None
        return (raw or b"").decode("utf-8", "replace")

    @cached_property
    def _controls(self) -> dict[str, tuple[int, int]]:
        """Control tokens: text -> (token, attributes)."""
        found = {}
        for token in range(self._size):
            attributes = cpp.llama_vocab_get_attr(self._handle, token)
            if attributes & (_CONTROL | _UNKNOWN) and (text := self._text(token)):
                found[text] = (token, attributes)
        return found

    def controls(self) -> list[str]:
        """The texts of all control tokens."""
        return list(self._controls)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        texts = sorted(self._controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def with_bos(self, tokens: list[int]) -> list[int]:
        """`tokens` after exactly one begin-of-text token, where the model wants one."""
        if self._wants_bos and tokens[:1] != [self._bos]:
            return [self._bos, *tokens]
        return tokens

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of `text`, no begin-of-text token added. `special` reads control tokens in it.

        Raises `BadInputError` for text that is not valid Unicode.
        """
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raise BadInputError("the text is not valid Unicode") from None
        if not raw:
            return []
        room = len(raw) + 8
        for _ in range(2):
            tokens = (cpp.llama_token * room)()
            n = cpp.llama_tokenize(self._handle, raw, len(raw), tokens, room, False, special)
            if n >= 0:
                return list(tokens[:n])
            room = -n
        raise RuntimeFailure("llama.cpp cannot tokenize this text")

    def tokenize_spans(self, spans: Sequence[Span]) -> list[int]:
        """Tokens of the joined spans, control tokens read in the trusted ones only."""
        tokens: list[int] = []
        run = ""
        strip_next = False

        def add(text: str) -> None:
            nonlocal run, strip_next
            if strip_next and not run:
                text = text.lstrip(_SPACE)
            run += text

        for span in spans:
            at = 0
            for match in self._pattern.finditer(span.text) if span.trusted else ():
                add(span.text[at : match.start()])
                token, attributes = self._controls[match.group()]
                tokens += self.tokenize(run.rstrip(_SPACE) if attributes & _LSTRIP else run)
                tokens.append(token)
                run, strip_next, at = "", bool(attributes & _RSTRIP), match.end()
            add(span.text[at:])
        return tokens + self.tokenize(run)

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of one token; those of control tokens only if `special`."""
        room = 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            n = cpp.llama_token_to_piece(self._handle, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n
        raise RuntimeFailure(f"llama.cpp has no text for token {token}")

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` without control tokens; half characters become U+FFFD."""
        if not tokens:
            return ""
        given = (cpp.llama_token * len(tokens))(*tokens)
        room = 8 * len(tokens) + 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(room)
            n = cpp.llama_detokenize(self._handle, given, len(tokens), buffer, room, False, False)
            if n >= 0:
                return buffer.raw[:n].decode("utf-8", "replace")
            room = -n
        raise RuntimeFailure("llama.cpp cannot detokenize these tokens")
