"""The documentation page: everything that can be called, and nothing from anywhere else."""

import html
import re
from html.parser import HTMLParser

import pytest

from tests.harness import House, expect


class Page(HTMLParser):
    """What a browser would find in the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "srcset", "action", "data", "poster"}:
                self.addresses.append(value or "")
            if name == "style" or name.startswith("on"):
                self.inline.append(name)
            if name == "id":
                self.anchors.add(value or "")


@pytest.fixture(params=["sqlite"])
def database_kind(request: pytest.FixtureRequest) -> str:
    """One database: the page does not ask it anything."""
    kind: str = request.param
    return kind


def test_the_page_shows_every_operation_with_right_example_and_problems(house: House) -> None:
    """Served by the service itself, from its own document (api.md, SYS-08)."""
    text = expect_page(house)
    document = expect(house.client.get("/openapi.json"), 200)
    page = Page(text)
    seen = html.unescape(text)
    count = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["operationId"] in page.anchors
            assert f"#{operation['operationId']}" in page.addresses
            for said in (path, method.upper(), operation["summary"], operation["description"]):
                assert said in seen, (path, said)
            article = seen.split(f'id="{operation["operationId"]}"')[1].split("</article>")[0]
            for status in operation["responses"]:
                assert f">{status}<" in article, (path, status)
            assert ("<h4>Request" in article) is ("requestBody" in operation), path
            count += 1
    assert count == text.count("<article") > 60
    assert "insufficient_user_authentication" in seen
    assert "stock_insufficient" in seen
    assert "Idempotency-Key" in seen


def test_nothing_comes_from_another_host_and_nothing_runs(house: House) -> None:
    """No script, no inline style, no foreign asset; the policy forbids what is not there (BLD-13, T28)."""
    response = house.client.get("/docs")
    page = Page(expect_page(house))
    assert not {"script", "iframe", "object", "embed", "form", "img", "base", "style", "meta-refresh"} & set(page.tags)
    assert page.inline == []
    assert {address for address in page.addresses if not address.startswith("#")} == {
        "/docs/style.css",
        "/openapi.json",
    }
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "img-src": "'self'",
        "object-src": "'none'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in response.headers
    style = house.client.get("/docs/style.css")
    assert style.status_code == 200
    assert style.headers["content-type"].startswith("text/css")
    assert not re.search(r"url\(|@import|//", style.text)


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect", "/docs/documentation.html", "/docs/..%2Fmain.py"])
def test_the_pages_of_the_framework_are_off(house: House, path: str) -> None:
    """Those would load from a content network (libraries.md)."""
    assert house.client.get(path).status_code == 404


def expect_page(house: House) -> str:
    """Return the page, which anybody may read: it holds nothing of a study."""
    response = house.client.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return response.text
