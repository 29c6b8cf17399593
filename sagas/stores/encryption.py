"""Payloads encrypted with AES-GCM. Needs the extra `encryption`."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sagas.errors import ConfigurationError, PayloadUnreadable
from sagas.stores.codecs import MARK
from sagas.text import quoted

__all__ = ["AesGcm"]

_PREFIX = f"{MARK}aesgcm:"
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,40}")
_NONCE = 12  # bytes


class AesGcm:
    """Encrypts payloads with the current of its keys, and reads what any of them wrote.

    `keys`: 16, 24 or 32 random bytes each, by an id that is stored with each value. `current`: the id of the one that
        encrypts. `reads_plain`: also read what was stored before there was encryption; for as long as it takes to
        encrypt that, see `sagas.stores.reencryption.reencrypt`.

    A value is bound to its saga and its field: moved to another row it cannot be read. Replace a key before it has
    encrypted 4 billion values (2**32), which is what random nonces are good for.

    >>> codec = AesGcm({"2026-11": bytes(32)}, current="2026-11")
    >>> stored = codec.encode('{"card": "4111"}', "id-1:input")
    >>> stored[:16], codec.decode(stored, "id-1:input")
    ('~aesgcm:2026-11:', '{"card": "4111"}')
    """

    def __init__(self, keys: Mapping[str, bytes], *, current: str, reads_plain: bool = False) -> None:
        if current not in keys:
            raise ConfigurationError(f"current={current!r} is none of the keys: {quoted(sorted(keys))}")
        self._keys: dict[str, AESGCM] = {}
        for key_id, key in keys.items():
            if not _KEY_ID.fullmatch(key_id):
                raise ConfigurationError(f"key id {key_id!r} must be 1 to 40 letters, digits, dots, - and _")
            try:
                self._keys[key_id] = AESGCM(key)
            except (TypeError, ValueError) as error:  # neither says what the key is
                raise ConfigurationError(f"key {key_id!r} must be 16, 24 or 32 random bytes: {error}") from None
        self.current = current
        self.reads_plain = reads_plain

    def __repr__(self) -> str:
        return f"AesGcm(keys {quoted(sorted(self._keys))}; current {self.current!r})"

    def encode(self, text: str, about: str) -> str:
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._keys[self.current].encrypt(nonce, text.encode(), about.encode())
        return f"{_PREFIX}{self.current}:{base64.b64encode(sealed).decode()}"

    def decode(self, text: str, about: str) -> str:
        if not text.startswith(MARK):
            if self.reads_plain:
                return text
            raise PayloadUnreadable(
                f"{about} is not encrypted, and this store reads nothing else. If it was stored before there was "
                "encryption: AesGcm(..., reads_plain=True), then `sagas db reencrypt`. Else somebody wrote it there"
            )
        key_id, _, sealed_text = text.removeprefix(_PREFIX).partition(":")
        if not text.startswith(_PREFIX) or key_id not in self._keys:
            raise PayloadUnreadable(
                f"{about} is encrypted with the key {key_id[:40]!r}, and there is only {quoted(sorted(self._keys))}: "
                "keep old keys until `sagas db reencrypt` has gone through"
            )
        try:
            sealed = base64.b64decode(sealed_text, validate=True)
            return self._keys[key_id].decrypt(sealed[:_NONCE], sealed[_NONCE:], about.encode()).decode()
        except (InvalidTag, binascii.Error, ValueError):
            raise PayloadUnreadable(
                f"{about} is not what was encrypted with the key {key_id!r}: it was changed, moved here from another "
                "row, or two keys have had this id"
            ) from None

    def is_current(self, stored: str) -> bool:
        return stored.startswith(f"{_PREFIX}{self.current}:")
