"""The built pages: links and pictures as written, and everything else as a real browser shows it, offline."""

import os
import re
import shutil
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from urllib.parse import unquote, urlsplit

import build
import guard
import pytest
from api_reference import Package
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Browser, Page, sync_playwright

import gradcourse
from gradcourse.course.claims import RECORD_MIME

PAGES = [f"{page}.html" for page in guard.pages()]
CHAPTERS = [f"book/{path.stem}.html" for path in guard.chapters()]
EXTRA_PAGES = ["index.html", "search.html", "genindex.html"]  # Sphinx's own

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
NO_BROWSER = (
    "no Chromium or Chrome found, so nobody has looked at the pages. "
    "Debian: apt-get install --no-install-recommends chromium. macOS: install Chromium or Google Chrome."
)


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder with the pages, built from the sources as they are now."""
    build.build()
    return build.HTML


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_BROWSER)
    quiet = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=quiet)
        yield browser
        browser.close()


class Visitor:
    """A reader without a network, who notes everything that goes wrong."""

    def __init__(self, browser: Browser, viewport: dict[str, int], theme: str) -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=theme)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        note = self.troubles.append
        self.page.on("console", lambda m: note(f"console: {m.text}") if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: note(f"script error: {error}"))
        self.page.on("requestfailed", lambda request: note(f"request failed: {request.url}"))
        self.page.on("request", lambda r: None if is_local(r.url) else note(f"asks another host: {r.url}"))

    def open(self, address: str) -> Page:
        self.page.goto(address)
        self.page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready }")
        return self.page


def is_local(url: str) -> bool:
    return urlsplit(url).scheme in ("file", "data", "blob", "about")


@pytest.fixture
def visit(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Visitor]:
    viewport, theme = getattr(request, "param", (DESKTOP, "light"))
    visitor = Visitor(browser, viewport, theme)
    yield visitor
    visitor.context.close()


every_page = pytest.mark.parametrize("name", PAGES)
on_a_phone_in_the_dark = pytest.mark.parametrize("visit", [(PHONE, "dark")], ids=["phone"], indirect=True)


# ---- as written


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def html_files(site: Path) -> list[Path]:
    return [path for path in sorted(site.rglob("*.html")) if "_static" not in path.relative_to(site).parts]


def address(tag: Tag, attribute: str) -> str:
    return str(tag.get(attribute, ""))


def test_every_page_is_built_and_no_other(site: Path) -> None:
    assert {str(path.relative_to(site)) for path in html_files(site)} == {*PAGES, *EXTRA_PAGES}


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = [("link", "href"), ("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")]
    outside = [
        f"{path.relative_to(site)}: {address(tag, attribute)}"
        for path in html_files(site)
        for name, attribute in loads
        for tag in soup(path).find_all(name)
        if urlsplit(address(tag, attribute)).netloc
    ]
    outside += [
        f"{path.relative_to(site)}: {url}"
        for path in site.rglob("*.css")
        for url in re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^)'\"]+)", path.read_text("utf-8"))
    ]
    assert not outside, "\n".join(outside)


def test_links_lead_somewhere(site: Path) -> None:
    pages = {path: soup(path) for path in html_files(site)}
    anchors = {path: {tag["id"] for tag in page.find_all(id=True)} for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for tag in page.find_all("a", href=True):
            href = urlsplit(address(tag, "href"))
            if href.scheme or href.netloc:
                continue
            target = (path.parent / unquote(href.path)).resolve() if href.path else path
            if not target.exists() or (href.fragment and unquote(href.fragment) not in anchors.get(target, ())):
                broken.append(f"{path.relative_to(site)}: {address(tag, 'href')}")
    assert not broken, "\n".join(broken)


def test_images_say_what_they_show(site: Path) -> None:
    mute = [
        f"{path.relative_to(site)}: {address(image, 'src')}: {alt!r}"
        for path in html_files(site)
        for image in soup(path).select("article img")
        if len(alt := address(image, "alt")) < 20 or "/" in alt.split()[0]
    ]
    assert not mute, "\n".join(mute)


def test_every_record_is_in_the_table_of_claims(site: Path) -> None:
    page = soup(site / "book" / "claims.html")
    rows = page.select("table.claims-table tbody tr")
    assert [address(row, "id") for row in rows] == [f"claim-c{number:02d}" for number in range(1, 23)]
    for chapter in guard.chapters():
        for record in records(chapter):
            row = page.find(id=f"claim-{record['claim'].lower()}")
            assert isinstance(row, Tag)
            words = " ".join(row.get_text(" ").split())
            assert f"{record['quantity']}: {record['measured']}" in words
            assert any(chapter.stem in address(link, "href") for link in row.find_all("a"))


def records(chapter: Path) -> list[dict[str, str]]:
    outputs = [output for cell in guard.code_cells(guard.read(chapter)) for output in cell.outputs]
    return [output.data[RECORD_MIME] for output in outputs if RECORD_MIME in output.get("data", {})]


def test_reference_has_every_public_name_once(site: Path) -> None:
    page = soup(site / "book" / "reference.html")
    ids = [str(tag["id"]) for tag in page.find_all(id=True)]
    modules = [m.name for m in walk_packages(gradcourse.__path__, "gradcourse.") if "._" not in m.name]
    package = Package("gradcourse")
    names = {package.defined(f"{module}.{name}") for module in modules for name in import_module(module).__all__}
    names -= set(modules)  # what a package hands on may be a module, which has a section
    counts = {name: ids.count(name) for name in [*names, *(f"module-{module}" for module in modules)]}
    assert {name: count for name, count in counts.items() if count != 1} == {}


@pytest.mark.browser
def test_search_finds_a_function_of_the_package(site: Path, visit: Visitor) -> None:
    page = visit.open(f"{(site / 'search.html').as_uri()}?q=over_seeds")
    page.wait_for_selector(
        "#search-results li a[href$='reference.html#gradcourse.training.sweeps.over_seeds']", timeout=10_000
    )
    assert not visit.troubles, "\n".join(visit.troubles)


# ---- as shown


@pytest.mark.browser
@every_page
def test_page_loads_and_formulas_are_rendered(site: Path, visit: Visitor, name: str) -> None:
    page = visit.open((site / name).as_uri())
    raw = page.eval_on_selector_all(
        ".math", "all => all.filter(e => !e.querySelector('mjx-container')).map(e => e.textContent)"
    )
    assert not raw, f"formulas not rendered: {raw}"
    wrong = page.eval_on_selector_all("mjx-merror, [data-mjx-error]", "all => all.map(e => e.textContent)")
    assert not wrong, f"formulas MathJax does not understand: {wrong}"
    fonts = page.evaluate("[...document.fonts].filter(f => f.status === 'error').map(f => f.family)")
    assert not fonts, f"fonts not loaded: {fonts}"
    empty = page.evaluate(
        """async () => {
            const images = [...document.querySelectorAll('article img')];
            images.forEach(image => image.loading = 'eager');
            await Promise.all(images.map(image => image.decode().catch(() => null)));
            return images.filter(image => !image.naturalWidth).map(image => image.src);
        }"""
    )
    assert not empty, f"images not shown: {empty}"
    assert not visit.troubles, "\n".join(visit.troubles)


@pytest.mark.browser
@on_a_phone_in_the_dark
@every_page
def test_page_fits_a_phone_and_can_be_read(site: Path, visit: Visitor, name: str) -> None:
    page = visit.open((site / name).as_uri())
    # Folded solutions count too; they would otherwise fade in while we look.
    page.add_style_tag(content="* { animation: none !important; transition: none !important; }")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate("document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'))")
    for theme in ("dark", "light"):  # as opened, and as it turns with the reader's day
        page.emulate_media(color_scheme=theme)
        page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
        assert not (wide := page.evaluate(TOO_WIDE)), "\n".join(wide)
        assert not (squeezed := page.evaluate(SQUEEZED)), "\n".join(squeezed)
        assert not (faint := page.evaluate(TOO_FAINT)), "\n".join(faint)
    assert not visit.troubles, "\n".join(visit.troubles)


@pytest.mark.browser
@pytest.mark.parametrize("name", CHAPTERS)
def test_search_finds_a_chapter_by_its_title(site: Path, visit: Visitor, name: str) -> None:
    title = soup(site / name).select_one("article h1")
    assert title is not None
    words = re.sub(r"[^\w\s]", " ", title.get_text()).split()
    word = max(words, key=len)
    page = visit.open(f"{(site / 'search.html').as_uri()}?q={word}")
    # Results come one after the other, and this fails if it is not among them in the end.
    page.wait_for_selector(f"#search-results li a[href*='{name}']", timeout=10_000)
    assert not visit.troubles, "\n".join(visit.troubles)


# What sticks out of the screen, unless something around it scrolls or hides it.
TOO_WIDE = """() => {
    const held = e => { for (let p = e.parentElement; p && !p.matches('.bd-article'); p = p.parentElement)
        if (getComputedStyle(p).overflowX !== 'visible') return true; return false; };
    return [...document.querySelectorAll('.bd-article *')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.getBoundingClientRect().width > 1)
        .filter(e => !held(e)).slice(0, 5).map(e => `sticks out: ${e.outerHTML.slice(0, 200)}`);
}"""

# Pictures that are shown in another shape than they have.
SQUEEZED = """() => [...document.querySelectorAll('.bd-article img')]
    .map(e => [e, e.getBoundingClientRect()]).filter(([e, box]) => e.naturalWidth && box.width > 1)
    .filter(([e, box]) => Math.abs(box.width / box.height / (e.naturalWidth / e.naturalHeight) - 1) > 0.02)
    .map(([e]) => `out of shape: ${e.outerHTML.slice(0, 200)}`)"""

# Text whose contrast with what lies behind it is below 4.5 (WCAG AA); code has its own colours.
TOO_FAINT = """() => {
    const parse = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
    const behind = e => { const layers = []; for (let p = e; p; p = p.parentElement)
        layers.push(parse(getComputedStyle(p).backgroundColor));
        return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255, 1]); };
    const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const faint = {};
    const words = 'h1, h2, h3, p, li, td, th, a, dt, dd, figcaption, span';
    for (const e of document.querySelectorAll(`.bd-article :is(${words})`)) {
        if (e.closest('.highlight, mjx-container, .headerlink, .math')) continue;
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
        if (!e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
        let opacity = 1;
        for (let p = e; p; p = p.parentElement) opacity *= getComputedStyle(p).opacity;
        const [r, g, b, a] = parse(getComputedStyle(e).color);
        const back = behind(e), fore = over([r, g, b, a * opacity], back);
        const [dark, bright] = [light(back), light(fore)].sort((a, b) => a - b);
        const ratio = (bright + 0.05) / (dark + 0.05);
        if (ratio >= 4.5) continue;
        faint[`${fore} on ${back}`] = `contrast ${ratio.toFixed(2)}: ${e.outerHTML.slice(0, 160)}`;
    }
    return Object.values(faint);
}"""
