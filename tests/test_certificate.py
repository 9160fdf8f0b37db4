"""`snose certificate`: the page that the statistician signs, read back from its PDF."""

import hashlib
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pypdf
import pytest
from typer.testing import CliRunner

from app.cli import command, site_treatments
from app.cli.certificate import NotVerified, Section, draw, print_certificate
from app.cli.site_treatments import treatments_of
from app.errors import Missing
from tests.security.evidence_builders import LIST_ID, SIGNER, Package, package

KEY: Final = ("--key", SIGNER.vkey)


def text_of(path: Path) -> str:
    """Return the words of a PDF, without the breaks of its lines."""
    return "".join("".join(page.extract_text() for page in pypdf.PdfReader(path).pages).split())


def printed(folder: Path, made: Package) -> tuple[Path, Path]:
    """Return a package and its certificate."""
    path, out = made.write(folder / "final.zip"), folder / "certificate.pdf"
    print_certificate(path, out, KEY)
    return path, out


class TestCertificate:
    @pytest.mark.parametrize("imported", [False, True])
    def test_what_it_says(self, imported: bool, tmp_path: Path) -> None:
        """Study, lists, digests, arms, trail, keys; whether a list was computed anew; and who may see it. [A8, SEQ-16]"""
        made = package(imported=imported)
        path, out = printed(tmp_path, made)
        text = text_of(out)
        with zipfile.ZipFile(path) as archive:
            (row, *_) = json.loads(archive.read("schedules.json"))["schedules"]
            allocations = json.loads(archive.read("allocations.json"))["allocations"]
        arms = [one["binding"]["arm_code"] for one in allocations]
        verifier = Path(__file__).parents[1] / "app" / "verifier.py"
        for words in (
            "UNBLINDED",
            "VERIFIED",
            "S1(modetest)",
            LIST_ID,
            row["commitment"],
            hashlib.sha256(path.read_bytes()).hexdigest(),
            hashlib.sha256(verifier.read_bytes()).hexdigest(),
            f"A:{arms.count('A')},B:{arms.count('B')}",
            "Entries27",
            SIGNER.key.key_id.hex(),
            SIGNER.vkey,
            "Placeanddate",
        ):
            assert words in text
        assert text.count("imported:notrecomputable") == int(imported)
        assert text.count("recomputedfromseed") == 3 - int(imported)
        assert "Nokeywasgiven" not in text

    def test_the_same_bytes(self, tmp_path: Path) -> None:
        """Printed twice it is one file: nobody need believe which came first. [A8]"""
        path, out = printed(tmp_path, package())
        before = out.read_bytes()
        print_certificate(path, out, KEY)
        assert out.read_bytes() == before

    def test_a_package_that_does_not_verify(self, tmp_path: Path) -> None:
        """No page, and the first difference in its words; neither for what is no package. [E4]"""
        out = tmp_path / "certificate.pdf"
        spoilt = package().write(tmp_path / "spoilt.zip", {"list.csv": b"nothing"})
        with pytest.raises(NotVerified, match=r"\[file_altered\]: list.csv"):
            print_certificate(spoilt, out, KEY)
        with pytest.raises(NotVerified, match="cannot be read or written"):
            print_certificate(tmp_path, out, KEY)
        whole = package().write(tmp_path / "final.zip")
        with pytest.raises(NotVerified, match="cannot be read"):
            print_certificate(whole, out, ["--sink", str(tmp_path / "absent")])
        assert not out.exists()

    def test_the_command(self, tmp_path: Path) -> None:
        """The options of the verifier are given on; without a key the page says that nobody vouches for it."""
        path, out = package().write(tmp_path / "final.zip"), tmp_path / "certificate.pdf"
        done = CliRunner().invoke(command, ["certificate", str(path), "--out", str(out), "--json"])
        assert json.loads(done.stdout)["package_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert "Nokeywasgiven" in text_of(out)
        done = CliRunner().invoke(command, ["certificate", str(path), "--out", str(out), *KEY])
        assert "its certificate is" in done.stdout

    def test_a_long_one(self) -> None:
        """Every page carries the warning, and the place for the signature is not torn apart. [CUS-09]"""
        rows = [("Label", "value")] * 58
        drawn = draw([Section("Lists", rows)], datetime(2027, 1, 1, tzinfo=UTC))
        first, second = (page.extract_text() for page in pypdf.PdfReader(io.BytesIO(drawn)).pages)
        assert first.startswith("UNBLINDED")
        assert second.startswith("UNBLINDED")
        assert "I have compared" in second
        assert "Signature" in second


class TestSiteTreatments:
    """What one site is told when the trial is over. [UNB-09]"""

    def test_its_own_subjects_alone(self, tmp_path: Path) -> None:
        """Each line of the list is of one site's file, and of no other's. [UNB-09]"""
        path = package(sites=("01", "02")).write(tmp_path / "final.zip")
        with zipfile.ZipFile(path) as archive:
            heading, *lines = archive.read("list.csv").decode().splitlines()
            allocations = json.loads(archive.read("allocations.json"))["allocations"]
        parts = {}
        for site in ("01", "02"):
            content, subjects = treatments_of(path, site, KEY)
            first, *parts[site] = content.decode().splitlines()
            assert first == heading
            assert len(parts[site]) == subjects > 0
            theirs = {one["subject_id"] for one in allocations if one["site_code"] == site}
            assert {line.split(",")[0] for line in parts[site]} == theirs
        assert sorted(parts["01"] + parts["02"]) == sorted(lines)
        with pytest.raises(Missing, match="of site 03"):
            treatments_of(path, "03", KEY)

    def test_only_what_verifies(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is written from a package that was altered, cannot be read, or changes meanwhile. [UNB-09, E4]"""
        out = tmp_path / "site.csv"
        spoilt = package().write(tmp_path / "spoilt.zip", {"list.csv": b"nothing"})
        done = CliRunner().invoke(command, ["site-treatments", str(spoilt), "--site", "01", "--out", str(out)])
        assert isinstance(done.exception, NotVerified)
        with pytest.raises(NotVerified, match="cannot be read"):
            treatments_of(tmp_path, "01", KEY)
        whole = package().write(tmp_path / "final.zip")
        digests = iter(["before", "after"])
        monkeypatch.setattr(site_treatments, "digest_of", lambda _: next(digests))
        with pytest.raises(NotVerified, match="was changed"):
            treatments_of(whole, "01", KEY)
        assert not out.exists()

    def test_the_command(self, tmp_path: Path) -> None:
        """For its owner's eyes, and never over a file that is there. [UNB-09]"""
        path, out = package().write(tmp_path / "final.zip"), tmp_path / "site.csv"
        words = ["site-treatments", str(path), "--site", "01", "--out", str(out), *KEY]
        done = CliRunner().invoke(command, words)
        assert "It is unblinded" in done.stdout
        assert out.stat().st_mode & 0o777 == 0o600
        before = out.read_bytes()
        assert CliRunner().invoke(command, [*words, "--json"]).exit_code == 1
        assert out.read_bytes() == before
        out.unlink()
        assert json.loads(CliRunner().invoke(command, [*words, "--json"]).stdout)["site"] == "01"
