"""Key providers: what every provider must do, and the key file."""

import itertools
import os
import pickle
import stat
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import KeyUnavailable, UnsafeSetting
from app.sealing.providers import KeyFileProvider, KeyProvider
from tests.sealing.builders import SeededEntropy, key_file, secret_of

SECRET = secret_of("deployment secret")
CONTEXT = b"deployment"

Factory = Callable[[Path, str], KeyProvider]
"""Makes the provider of a name in a folder; the same name twice gives two providers with one key."""

PROVIDERS: dict[str, Factory] = {"key file": key_file}


@pytest.fixture(params=PROVIDERS)
def make(request: pytest.FixtureRequest) -> Factory:
    return PROVIDERS[str(request.param)]


class TestEveryProvider:
    """The conformance suite: a new provider is one more line in PROVIDERS."""

    def test_unwrapped(self, make: Factory, tmp_path: Path) -> None:
        """What was wrapped is unwrapped, also by the provider of another process. (rule F1)"""
        wrapped = make(tmp_path, "key").wrap(SECRET, CONTEXT)
        assert make(tmp_path, "key").unwrap(wrapped, CONTEXT) == SECRET

    @pytest.mark.parametrize("context", [b"", b"deploymenu", b"deployment "])
    def test_other_context(self, make: Factory, tmp_path: Path, context: bytes) -> None:
        """A secret opens in the deployment and mode it was wrapped for. (rule A10)"""
        provider = make(tmp_path, "key")
        with pytest.raises(KeyUnavailable):
            provider.unwrap(provider.wrap(SECRET, CONTEXT), context)

    def test_other_key(self, make: Factory, tmp_path: Path) -> None:
        """Another key opens nothing: a backup without the key is noise. (rule F4)"""
        wrapped = make(tmp_path, "key").wrap(SECRET, CONTEXT)
        with pytest.raises(KeyUnavailable):
            make(tmp_path, "other").unwrap(wrapped, CONTEXT)

    def test_changed(self, make: Factory, tmp_path: Path) -> None:
        """Nothing that was changed or cut short is unwrapped. (T10)"""
        provider = make(tmp_path, "key")
        wrapped = provider.wrap(SECRET, CONTEXT)
        prefix = wrapped.rindex(".")
        changes = {wrapped[:at] for at in range(len(wrapped))} | {
            wrapped + "A",
            "",
            "garbage",
            wrapped + "\n",
        }
        for at in range(prefix, len(wrapped)):
            changes |= {wrapped[:at] + other + wrapped[at + 1 :] for other in "AB+\u00e9"}
        for change in changes - {wrapped}:
            with pytest.raises(KeyUnavailable):
                provider.unwrap(change, CONTEXT)

    def test_twice(self, make: Factory, tmp_path: Path) -> None:
        """The same secret wrapped twice shows no likeness."""
        provider = make(tmp_path, "key")
        assert provider.wrap(SECRET, CONTEXT) != provider.wrap(SECRET, CONTEXT)

    def test_printed(self, make: Factory, tmp_path: Path) -> None:
        """Neither name, repr, wrapped text nor refusal shows a secret. (house rule 6)"""
        provider = make(tmp_path, "key")
        wrapped = provider.wrap(SECRET, CONTEXT)
        with pytest.raises(KeyUnavailable) as refused:
            provider.unwrap(wrapped, b"other")
        texts = (provider.name, repr(provider), repr(vars(provider)), wrapped, str(refused.value))
        for secret, text in itertools.product((SECRET, secret_of("key")), texts):
            assert b64encode(secret).decode() not in text
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text

    def test_pickled(self, make: Factory, tmp_path: Path) -> None:
        """A provider is not pickled. (custody: in memory)"""
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(make(tmp_path, "key"))


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    """Write a file with a mode, and return its path."""
    path.write_bytes(content)
    path.chmod(mode)
    return path


class TestKeyFile:
    def test_created(self, tmp_path: Path) -> None:
        """A new key file is the owner's alone and holds a header and the key. (rule F2)"""
        path = tmp_path / "key"
        KeyFileProvider.create(path, SECRET)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes() == b"snose key file v1\n" + b64encode(SECRET) + b"\n"

    def test_created_under_a_loose_umask(self, tmp_path: Path) -> None:
        """Its mode does not hang on the umask."""
        before = os.umask(0)
        try:
            KeyFileProvider.create(tmp_path / "key", SECRET)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600

    def test_created_over_another(self, tmp_path: Path) -> None:
        """A key file is never overwritten, not even through a link: the lists under it would be lost."""
        KeyFileProvider.create(tmp_path / "key", SECRET)
        before = (tmp_path / "key").read_bytes()
        (tmp_path / "link").symlink_to(tmp_path / "absent")
        for name in ("key", "link"):
            with pytest.raises(UnsafeSetting, match="never overwritten"):
                KeyFileProvider.create(tmp_path / name, secret_of("other"))
        assert (tmp_path / "key").read_bytes() == before
        assert not (tmp_path / "absent").exists()

    def test_created_where_no_folder_is(self, tmp_path: Path) -> None:
        """A file that cannot be written is told in plain words."""
        with pytest.raises(KeyUnavailable, match="cannot be written: No such file or directory"):
            KeyFileProvider.create(tmp_path / "absent" / "key", SECRET)

    @pytest.mark.parametrize("size", [0, 16, 31, 33])
    def test_created_with_a_wrong_length(self, tmp_path: Path, size: int) -> None:
        """A key has 256 bits, and no file is left by one that has not."""
        with pytest.raises(ValueError, match="32 bytes"):
            KeyFileProvider.create(tmp_path / "key", bytes(size))
        assert not (tmp_path / "key").exists()

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o660, 0o777, 0o440])
    def test_open_to_others(self, tmp_path: Path, mode: int) -> None:
        """A file that group or world can read, write or run is refused, with the remedy. (rule F2)"""
        key_file(tmp_path)
        (tmp_path / "key").chmod(mode)
        with pytest.raises(UnsafeSetting, match=rf"open to others \(mode {mode:04o}\).*mode 0600"):
            key_file(tmp_path).wrap(SECRET, CONTEXT)

    @pytest.mark.parametrize("mode", [0o600, 0o400])
    def test_owner_alone(self, tmp_path: Path, mode: int) -> None:
        """A file of the owner alone is read, through a link as well: mounted secrets are links."""
        key_file(tmp_path)
        (tmp_path / "key").chmod(mode)
        (tmp_path / "link").symlink_to(tmp_path / "key")
        KeyFileProvider(tmp_path / "link", SeededEntropy()).wrap(SECRET, CONTEXT)

    def test_missing(self, tmp_path: Path) -> None:
        """Without its key file the service stays sealed. (rule F2)"""
        with pytest.raises(KeyUnavailable, match="cannot be read: No such file or directory"):
            KeyFileProvider(tmp_path / "absent", SeededEntropy()).wrap(SECRET, CONTEXT)

    def test_folder_or_pipe(self, tmp_path: Path) -> None:
        """Something else in the file's place is refused, and never waited for."""
        (tmp_path / "folder").mkdir(mode=0o700)
        os.mkfifo(tmp_path / "pipe", mode=0o600)
        for name in ("folder", "pipe"):
            with pytest.raises(UnsafeSetting, match="not a regular file"):
                KeyFileProvider(tmp_path / name, SeededEntropy()).wrap(SECRET, CONTEXT)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"snose key file v1\n",
            b64encode(SECRET) + b"\n",
            SECRET,
            b"snose key file v2\n" + b64encode(SECRET) + b"\n",
            b"snose key file v1\n" + b64encode(SECRET),
            b"snose key file v1\n" + b64encode(SECRET) + b"\n\n",
            b"snose key file v1\r\n" + b64encode(SECRET) + b"\r\n",
            b"snose key file v1\n" + b64encode(SECRET[:31]) + b"\n",
            b"snose key file v1\n" + b64encode(SECRET + b"x") + b"\n",
            b"snose key file v1\n" + b64encode(SECRET)[:-2] + b"\n",
            b"snose key file v1\n" + b64encode(SECRET) + b"\n" + b" " * 4096,
            bytes(100_000),
        ],
    )
    def test_garbage(self, tmp_path: Path, content: bytes) -> None:
        """A file of any other content is refused, and its content is not shown. (rule F2)"""
        with pytest.raises(KeyUnavailable, match="not a key file of this service") as refused:
            KeyFileProvider(written(tmp_path / "key", content), SeededEntropy()).wrap(SECRET, CONTEXT)
        assert b64encode(SECRET).decode() not in str(refused.value)
