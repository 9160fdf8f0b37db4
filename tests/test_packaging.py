"""What surrounds the code holds: pins, wheel and container files, and nothing that belongs to one machine."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from packaging.requirements import Requirement

from app.settings import Settings

ROOT: Final = Path(__file__).resolve().parent.parent
INSTALL: Final = "pip install --require-hashes -r constraints.txt"

# Weak copyleft on the library alone: used unchanged and separately replaceable.
LESSER: Final = {"fpdf2", "psycopg", "psycopg-binary"}


def tracked() -> Iterator[tuple[str, str]]:
    """Give the path and text of every file of the project, in a checkout or in an unpacked archive."""
    git = shutil.which("git")
    if git is not None and (ROOT / ".git").exists():
        listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in paths:
        if path.is_file():
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8", errors="replace")


def pins() -> dict[str, list[str]]:
    """Give the hashes of every pinned version, by ``name==version``."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            pin, *options = line.split()
            found[pin] = options
    return found


def requirements_of(name: str, seen: set[str]) -> None:
    """Add to ``seen`` everything that the installed distribution needs here, itself included."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in seen:
        return
    seen.add(name)
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirements_of(requirement.name, seen)


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files in the wheel that this checkout builds."""
    made = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(made.glob("*.whl"))) as wheel:
        return wheel.namelist()


@pytest.fixture(scope="module")
def readme() -> str:
    """The README."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def dockerfile() -> list[str]:
    """The instructions, one a line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [re.sub(r" +", " ", line) for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as Compose reads it."""
    read: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return read


class TestConstraints:
    def test_every_pin_has_its_hashes(self) -> None:
        """One version each, and nothing is installed that was not seen before."""
        assert len(pins()) > 50
        for pin, options in pins().items():
            assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.]*", pin), pin
            assert options, pin
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", option) for option in options), pin

    def test_everything_asked_for_is_pinned(self) -> None:
        """Whatever pyproject.toml names, for running, testing or building, has its pin."""
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        project = settings["project"]
        asked = (
            project["dependencies"] + project["optional-dependencies"]["test"] + settings["build-system"]["requires"]
        )
        names = {re.split(r"[\[<>=;]", requirement)[0].strip() for requirement in asked}
        assert names <= {pin.partition("==")[0] for pin in pins()}


class TestTrackedFiles:
    def test_no_package_index(self) -> None:
        """Where packages come from is the machine's own setting."""
        hosts = "|".join(re.escape(".".join(host)) for host in (("pypi", "org"), ("pythonhosted", "org")))
        named = re.compile(rf'--(extra-)?index-url|--find-links[= ]+[a-z]+:|\bregistry *= *"?https?:|{hosts}')
        assert [path for path, text in tracked() if named.search(text)] == []

    def test_no_path_of_this_machine(self) -> None:
        """Nothing that is kept knows where it lay when it was written."""
        places = [f"{ROOT.parent}/", f"{Path.home()}/", sys.prefix + "/"]
        found = [(path, place) for path, text in tracked() for place in places if place != "//" and place in text]
        assert found == []

    def test_no_private_key(self) -> None:
        """No secret is kept with the code. [F1]"""
        key = re.compile("BEGIN (RSA |EC |OPENSSH |ENCRYPTED |)PRIVATE" + " KEY")
        assert [path for path, text in tracked() if key.search(text)] == []


class TestLicences:
    def test_of_what_runs_the_service(self) -> None:
        """Whoever runs the service owes nobody its source: no GPL or AGPL among its libraries."""
        needed: set[str] = set()
        requirements_of("snose", needed)
        strong = [
            name
            for name in sorted(needed - LESSER)
            if re.search(r"\bA?L?GPL|GNU (Affero |Lesser |)General Public", self.licence(distribution(name)))
        ]
        assert strong == []

    def test_of_what_tests_it(self) -> None:
        """The tools are free of the GPL too."""
        strong = [
            installed.name
            for installed in distributions()
            if re.search(r"(?<!L)\bA?GPL|GNU (Affero |)General Public", self.licence(installed))
        ]
        assert strong == []

    @staticmethod
    def licence(installed: Distribution) -> str:
        """Give what the distribution says of its licence: the expression, the classifiers, a short text."""
        metadata = installed.metadata
        text = metadata["License"] or ""
        classifiers = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
        return "\n".join([metadata["License-Expression"] or "", text if len(text) < 200 else "", *classifiers])


class TestWheel:
    @pytest.mark.parametrize(
        "file",
        [
            "app/verifier.py",
            "app/py.typed",
            "app/alembic.ini",
            "app/migrations/env.py",
            "app/migrations/script.py.mako",
        ],
    )
    def test_carries(self, wheel_files: list[str], file: str) -> None:
        """`snose` works from any folder, the migrations and the verifier included."""
        assert file in wheel_files

    def test_carries_every_migration(self, wheel_files: list[str]) -> None:
        """Each version that the checkout knows is in the wheel."""
        known = {f"app/migrations/versions/{path.name}" for path in (ROOT / "migrations" / "versions").glob("*.py")}
        assert known
        assert known <= set(wheel_files)

    def test_carries_nothing_else(self, wheel_files: list[str]) -> None:
        """One package and its metadata: no tests, no settings, no cache."""
        stray = [file for file in wheel_files if not re.match(r"(app/|snose-[^/]+\.dist-info/)", file)]
        assert stray + [file for file in wheel_files if "__pycache__" in file] == []

    def test_as_installed(self) -> None:
        """The command stands for the function that this checkout has."""
        scripts = distribution("snose").entry_points.select(group="console_scripts", name="snose")
        assert [script.value for script in scripts] == ["app.cli:main"]
        assert callable(next(iter(scripts)).load())


class TestReadme:
    def test_installs_by_hash(self, readme: str) -> None:
        """Both commands install what the pins name, and nothing else."""
        lines = [line.strip() for line in readme.splitlines() if line.strip().startswith("pip install")]
        assert lines
        for line in lines:
            first, *rest = line.split(" && ")
            assert first == INSTALL
            assert rest[0].startswith("pip install --no-deps --no-build-isolation ")

    def test_is_what_the_gate_runs(self, readme: str) -> None:
        """The gate installs as the README does and runs the same tests."""
        gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
        assert INSTALL in gate
        assert "pip install --no-deps --no-build-isolation -e ." in gate
        assert re.search(r"&& pytest -n 2$", readme, re.MULTILINE)
        assert re.search(r"^pytest -n 2 ", gate, re.MULTILINE)


class TestDockerfile:
    def test_installs_by_hash_and_offline(self, dockerfile: list[str]) -> None:
        """What pip fetches is checked against the pins, and the service is installed from that alone."""
        pip = [line for line in dockerfile if re.search(r"\bpip (install|download)\b", line)]
        assert len(pip) == 2
        assert "pip download --quiet --require-hashes -r constraints.txt" in pip[0]
        assert "--no-index" in pip[1]

    def test_has_stages_and_a_named_base(self, dockerfile: list[str]) -> None:
        """What builds does not serve, and the base is a named release of Python 3.11."""
        bases = [line.split() for line in dockerfile if line.startswith("FROM ")]
        assert [base[1] for base in bases] == ["python:3.11-slim-trixie"] * 2
        assert bases[0][2:] == ["AS", "build"]
        assert not any("build" in base for base in bases[-1])

    def test_serves_without_privilege(self, dockerfile: list[str]) -> None:
        """The last stage ends as an account that owns nothing but its data."""
        last = dockerfile[max(number for number, line in enumerate(dockerfile) if line.startswith("FROM ")) :]
        users = [line.split()[1] for line in last if line.startswith("USER ")]
        assert users == ["snose"]
        assert any(line.startswith("ENTRYPOINT") and "snose" in line for line in last)

    def test_tells_its_health(self, dockerfile: list[str]) -> None:
        """The health check asks the service itself, with what the image has."""
        checks = [line for line in dockerfile if line.startswith("HEALTHCHECK ")]
        assert len(checks) == 1
        assert "/livez" in checks[0]
        assert '"python"' in checks[0]

    def test_copies_only_what_the_context_lets_through(self, dockerfile: list[str]) -> None:
        """The context holds nothing but what is named, and every copy finds its source."""
        rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        assert "*" in rules
        let_through = {rule[1:] for rule in rules if rule.startswith("!")}
        copied = {
            source
            for line in dockerfile
            if line.startswith("COPY ") and "--from" not in line
            for source in line.split()[1:-1]
        }
        assert copied == let_through
        assert all((ROOT / source).exists() for source in copied)


class TestCompose:
    def test_names_its_parts(self, compose: dict[str, Any]) -> None:
        """The service, its PostgreSQL and the migration between them, with volumes of their own."""
        assert set(compose["services"]) == {"database", "migrate", "service"}
        assert compose["services"]["database"]["image"] == "postgres:17"
        assert set(compose["volumes"]) == {"records", "custody"}

    @pytest.mark.parametrize("name", ["database", "migrate", "service"])
    def test_each_part_is_confined(self, compose: dict[str, Any], name: str) -> None:
        """A file system that nobody writes to, no capability, no way to more rights."""
        part = compose["services"][name]
        assert part["read_only"] is True
        assert part["cap_drop"] == ["ALL"]
        assert part["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in part

    @pytest.mark.parametrize("name", ["migrate", "service"])
    def test_our_parts_need_no_capability(self, compose: dict[str, Any], name: str) -> None:
        """Nothing is given back."""
        assert "cap_add" not in compose["services"][name]

    def test_starts_in_order(self, compose: dict[str, Any]) -> None:
        """The service starts on a healthy database with its migrations done."""
        services = compose["services"]
        assert services["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
        assert services["service"]["depends_on"] == {
            "database": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }
        assert all("healthcheck" in services[name] for name in ("database", "service"))

    def test_holds_no_secret(self, compose: dict[str, Any]) -> None:
        """Secrets come as files, and each part is given its own alone. [CUS-05]"""
        for part in compose["services"].values():
            for name, value in part["environment"].items():
                if re.search("PASSWORD|URL|SECRET|TOKEN", name):
                    assert name.endswith("_FILE"), name
                    assert value.removeprefix("/run/secrets/") in part["secrets"]
        assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
        assert "owner_url" not in compose["services"]["service"]["secrets"]
        assert set(compose["secrets"]) == {name for part in compose["services"].values() for name in part["secrets"]}

    def test_sets_what_there_is_to_set(self, compose: dict[str, Any], dockerfile: list[str]) -> None:
        """Every variable that the container files set is one that the service reads."""
        given = {name for part in compose["services"].values() for name in part["environment"]}
        given |= {name for line in dockerfile for name in re.findall(r"\b(SNOSE_\w+)=", line)}
        assert {name for name in given if name.startswith("SNOSE_")} <= {
            f"SNOSE_{name.upper()}" for name in Settings.model_fields
        }

    def test_opens_one_port_on_loopback(self, compose: dict[str, Any]) -> None:
        """The database cannot be reached from outside, the service only through the machine's own proxy."""
        services = compose["services"]
        assert [name for name, part in services.items() if "ports" in part] == ["service"]
        assert all(port.startswith("127.0.0.1:") for port in services["service"]["ports"])
        assert compose["networks"]["inside"]["internal"] is True
        assert services["database"]["networks"] == ["inside"]
