"""The key file; what every provider must do stands in ``test_providers_conformance``."""

import os
import stat
from base64 import b64encode
from pathlib import Path

import pytest

from app.errors import KeyUnavailable, UnsafeSetting
from app.sealing.providers import KeyFileProvider
from tests.sealing.builders import SeededEntropy, key_file, secret_of

SECRET = secret_of("deployment secret")
CONTEXT = b"deployment"


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
