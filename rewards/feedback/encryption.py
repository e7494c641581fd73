"""The keys of a study: one for pseudonyms, and those that seal texts, the newest first."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from textrl_env.utils.files import new_file
from textrl_env.utils.optional_imports import optional_import

with optional_import("feedback", "feedback from people needs the extra"):
    from cryptography.fernet import Fernet, InvalidToken, MultiFernet

VARIABLE = "TEXTRL_FEEDBACK_KEYS"
OPENED = 512  # texts and cookies that are kept as they were decrypted last: one page needs the same ones several times


class WrongKeyError(ValueError):
    """Data was sealed with another key, or is damaged."""


@dataclass(frozen=True)
class Keys:
    """What turns names into pseudonyms and texts into sealed bytes (Fernet: AES-128-CBC with HMAC-SHA256).

    Attributes:
        pseudonym: 32 bytes.
        seals: Fernet keys; the first seals, all of them open.
    """

    pseudonym: bytes
    seals: tuple[bytes, ...]

    def __post_init__(self) -> None:
        box = MultiFernet([Fernet(key) for key in self.seals])
        object.__setattr__(self, "_box", box)
        object.__setattr__(self, "_opened", lru_cache(OPENED)(box.decrypt))

    def __repr__(self) -> str:
        return f"Keys({len(self.seals)} seals)"  # never the keys: they would end in logs

    @classmethod
    def new(cls) -> Keys:
        """Draw fresh keys."""
        return cls(secrets.token_bytes(32), (Fernet.generate_key(),))

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Read keys from the environment variable TEXTRL_FEEDBACK_KEYS, which holds what the file would, or from the file.

        Raises:
            FileNotFoundError: There is neither.
            ValueError: It holds no keys.
        """
        text = os.environ.get(VARIABLE)
        where = f"the variable {VARIABLE}" if text is not None else str(path)
        if text is None:
            if not path.is_file():
                raise FileNotFoundError(f"{path}: the study's key file is not there; put it back, or set {VARIABLE} to what it holds")
            text = path.read_text(encoding="utf-8")
        try:
            data = json.loads(text)
            return cls(bytes.fromhex(data["pseudonym"]), tuple(key.encode() for key in data["seals"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} holds no keys of a study: it must be the JSON that `textrl feedback create` wrote") from error

    def save(self, path: Path) -> None:
        """Write the file, readable by its owner alone."""
        with new_file(path, mode=0o600) as file:
            json.dump({"pseudonym": self.pseudonym.hex(), "seals": [key.decode() for key in self.seals]}, file)
            file.flush()
            os.fsync(file.fileno())

    def with_new_seal(self) -> Keys:
        """Return these keys with a fresh one that seals from now on."""
        return replace(self, seals=(Fernet.generate_key(), *self.seals))

    def with_newest_seal_only(self) -> Keys:
        """Return these keys without those that seal no longer."""
        return replace(self, seals=self.seals[:1])

    def name(self, person: str) -> str:
        """Return a person's pseudonym: the same for the same name, whatever its case or spacing, and nothing else without the key."""
        plain = " ".join(unicodedata.normalize("NFKC", person).casefold().split())
        return f"p-{self.digest('person', plain)[:12]}"

    def digest(self, purpose: str, text: str) -> str:
        """Return HMAC-SHA256 as 64 hex digits, to recognise a text without storing it."""
        return hmac.new(self.pseudonym, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def seal(self, text: str) -> bytes:
        """Encrypt."""
        return self._box.encrypt(text.encode("utf-8", "surrogatepass"))  # type: ignore[attr-defined]

    def open(self, sealed: bytes) -> str:
        """Decrypt.

        Raises:
            WrongKeyError: None of the keys fits, or the bytes are damaged.
        """
        try:
            return self._opened(bytes(sealed)).decode("utf-8", "surrogatepass")  # type: ignore[attr-defined]
        except InvalidToken as error:
            raise WrongKeyError("this was sealed with another key, or is damaged: use the key file the study was created with") from error
