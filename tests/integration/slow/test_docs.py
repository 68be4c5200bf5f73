"""The code in README.md and docs/: Python runs under pytest, JavaScript is parsed, numbers are those of the code.

The Python blocks of a page make one file, and each line of it has the number that it has on the page. The comment
`<!-- file: test_chat.py -->` sends the Python blocks that follow into a file of that name instead; so a page can have a
module, a `conftest.py` and tests that import the module. `<!-- file: index.html -->` does the same with HTML.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec
import pytest
from playwright.sync_api import expect, sync_playwright

from starlette_channels import Limits, LongPoll, Rate
from tests.clients.node import MODULES, NODE, install, limit
from tests.support.ports import HOST
from tests.support.servers import ROOT, Kind, Server, serve

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w+-]*)")
FILE = re.compile(r"^<!-- file: (?P<name>\w+(?P<suffix>\.\w+)) -->$")
SCRIPT = re.compile(r"<script type=\"module\">\n(.*?)</script>", re.DOTALL)
CHANNELS_JS = ROOT / "starlette_channels" / "static" / "channels.js"
CHROMIUM = shutil.which("chromium")
CONFTEST = """\
import pytest


@pytest.fixture
def anyio_backend():
    return "asyncio"
"""  # the one that the page on testing shows
SUFFIXES = {"python": ".py", "html": ".html"}

PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]


class Block(NamedTuple):
    """A fenced block of code; `line` is the number of its first line, counted from 1."""

    language: str
    line: int
    text: str
    file: str


def blocks(page: Path) -> Iterator[Block]:
    """Read the fenced blocks of a page."""
    lines = iter(enumerate(page.read_text().splitlines(), 1))
    files = {suffix: f"{page.stem.replace('-', '_')}_md{suffix}" for suffix in SUFFIXES.values()}
    for number, line in lines:
        if name := FILE.match(line):
            files[name["suffix"]] = name["name"]
        if not (fence := FENCE.match(line)):
            continue
        inside: list[str] = []
        for _, inner in lines:
            if re.fullmatch(rf" *{fence['fence']}[`~]* *", inner):
                break
            inside.append(inner.removeprefix(fence["indent"]))
        language = fence["language"]
        yield Block(language, number + 1, "\n".join(inside), files.get(SUFFIXES.get(language, ""), ""))


def files_of(page: Path) -> dict[str, str]:
    """Put the blocks of a page into files, every line at the number that it has on the page."""
    files: dict[str, list[str]] = {}
    for block in blocks(page):
        if block.file:
            lines = files.setdefault(block.file, [])
            lines.extend([""] * (block.line - 1 - len(lines)))
            lines.extend(block.text.split("\n"))
    return {name: "\n".join(lines) + "\n" for name, lines in files.items()}


def write_files(page: Path, folder: Path) -> list[str]:
    """Write the files of a page into a folder, and return the names of those that are Python."""
    files = {"conftest.py": CONFTEST, **files_of(page)}
    for name, text in files.items():
        (folder / name).write_text(text)
    return [name for name in files if name.endswith(".py")]


def uvicorn_in(folder: Path) -> Kind:
    """A server whose application is in this folder."""
    return Kind("uvicorn", f"uvicorn {{app}} --host {HOST} --port {{port}} --app-dir {folder}")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def run_python(page: Path, folder: Path) -> None:
    """Run all that a page has under pytest; modules without tests are imported."""
    names = [name for name in write_files(page, folder) if name != "conftest.py"]
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "anyio", *names]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        ours = "|".join(map(re.escape, names))
        report = re.sub(rf"(?m)(^|[\s\"/])(?:{ours})(:|\", line )(\d+)", rf"\1{name_of(page)}\2\3", done.stdout)
        pytest.fail(f"{name_of(page)}\n{report}{done.stderr}", pytrace=False)


def check_javascript(page: Path, folder: Path) -> None:
    """Parse the scripts of a page."""
    scripts = [(block.line, block.text) for block in blocks(page) if block.language in ("js", "javascript")]
    scripts += [
        (block.line + block.text.count("\n", 0, script.start(1)), script[1])
        for block in blocks(page)
        if block.language == "html"
        for script in SCRIPT.finditer(block.text)
    ]
    file = folder / "script.mjs"
    for line, script in scripts:
        file.write_text("\n" * (line - 1) + script)
        done = subprocess.run([NODE, "--check", file], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            pytest.fail(done.stderr.replace(str(file), name_of(page)), pytrace=False)


def with_code(*languages: str) -> list[Path]:
    return [page for page in PAGES if any(block.language in languages for block in blocks(page))]


@pytest.mark.parametrize("page", with_code("python"), ids=name_of)
def test_the_python_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    run_python(page, tmp_path)


@pytest.mark.parametrize("page", with_code("js", "javascript", "html"), ids=name_of)
def test_the_javascript_of_a_page_can_be_parsed(page: Path, tmp_path: Path) -> None:
    check_javascript(page, tmp_path)


@pytest.mark.parametrize(
    ("code", "line"),
    [("assert True", None), ("import nothing_of_this_name", 5), ("async def f():\n    return\n\n1 +", 8)],
)
def test_a_failure_names_the_page_and_the_line(code: str, line: int | None, tmp_path: Path) -> None:
    page = tmp_path / "some-page.md"
    page.write_text(f"# Title\n\ntext\n```python\n{code}\n```\n")
    if line is None:
        run_python(page, tmp_path)
        return
    with pytest.raises(pytest.fail.Exception, match=rf"some-page\.md(:|\", line ){line}\b"):
        run_python(page, tmp_path)


@pytest.mark.parametrize("body", ["{code}", "assert len('ab') == 2\n```\n\n```python\n{code}"])
def test_a_failing_test_names_the_page_and_the_line(body: str, tmp_path: Path) -> None:
    failing = "import pytest\n\n@pytest.mark.anyio\nasync def test_it():\n    assert 1 == 2"
    page = tmp_path / "page.md"
    page.write_text(f"<!-- file: test_it.py -->\n```python\n{body.format(code=failing)}\n```\n")
    line = page.read_text().splitlines().index("    assert 1 == 2") + 1
    with pytest.raises(pytest.fail.Exception, match=rf"page\.md:{line}\b"):
        run_python(page, tmp_path)


@pytest.mark.parametrize(
    "block", ["```js\nawait x(;\n```", '```html\n<script type="module">\nawait x(;\n</script>\n```']
)
def test_javascript_that_cannot_be_parsed_names_the_page_and_the_line(block: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{block}\n")
    line = page.read_text().splitlines().index("await x(;") + 1
    with pytest.raises(pytest.fail.Exception, match=rf"page\.md:{line}\b"):
        check_javascript(page, tmp_path)


def test_the_page_about_testing_shows_the_set_up_that_all_pages_use() -> None:
    assert files_of(ROOT / "docs" / "guides" / "testing.md")["conftest.py"].strip() == CONFTEST.strip()


def test_every_limit_is_on_the_page_about_limits_with_its_default() -> None:
    text = (ROOT / "docs" / "guides" / "limits-and-errors.md").read_text()
    for field in msgspec.structs.fields(Limits):
        assert f"| `{field.name}` | {as_written(field.default)} |" in text


def as_written(default: object) -> str:
    match default:
        case int():
            return f"{default:_}"
        case Rate():
            return f"`Rate({default.per_second:g}, burst={default.burst})`"
        case _:
            return str(default)


def test_every_option_of_long_polling_is_on_its_page_with_its_default() -> None:
    text = (ROOT / "docs" / "guides" / "long-polling.md").read_text()
    for field in msgspec.structs.fields(LongPoll):
        default = f"{field.default:_}" if isinstance(field.default, int) else json.dumps(field.default)
        assert f"| `{field.name}` | {default} |" in text


def test_every_counter_is_on_the_page_about_limits() -> None:
    text = (ROOT / "docs" / "guides" / "limits-and-errors.md").read_text()
    code = "\n".join(file.read_text() for file in (ROOT / "starlette_channels").rglob("*.py"))
    places = (
        r"counts\[\"(\w+)\"\]",
        r"(?:refuse|blame)\(message, \"(\w+)\"",
        r"Refused\(.*\"(\w+_\w+)\"",
        r"code: str = \"(\w+)\"",
        r"note\(\s*\"(\w+)\"",
        r"_fail\(\d+, \"(\w+)\"",
        r"\"error\", \"\w+ [^\"]*\", \"(\w+)\"",
    )
    counters = {counter for place in places for counter in re.findall(place, code)}
    assert {
        "channel_crashed",
        "connect_crashed",
        "connect_refused",
        "join_refused",
        "malformed_message",
        "unmatched_topic",
    } <= counters
    assert {counter for counter in counters if f"`{counter}`" not in text} == set()


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="no Chromium here: apt-get install chromium")
def test_the_tutorials_chat_works_in_two_browser_windows(tmp_path: Path) -> None:
    write_files(ROOT / "docs" / "tutorial.md", tmp_path)
    with serve("chat:app", uvicorn_in(tmp_path)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        ann, bob = browser.new_page(), browser.new_page()
        ann.goto(f"{server.http}/?user=ann")
        bob.goto(f"{server.http}/?user=bob")
        expect(ann.get_by_text("Welcome, ann!")).to_be_visible()
        expect(bob.get_by_text("Welcome, bob!")).to_be_visible()

        ann.get_by_placeholder("Say something").fill("hello")
        ann.get_by_role("button", name="Send").click()
        expect(bob.get_by_text("ann: hello")).to_be_visible()
        expect(ann.get_by_text("ann: hello")).to_be_visible()

        bob.get_by_role("button", name="Send").click()
        expect(bob.get_by_text("invalid payload")).to_be_visible()

        server.kill()
        expect(bob.get_by_text("The connection is closed.")).to_be_visible()
        server.start()
        expect(bob.get_by_text("The connection is open.")).to_be_visible(timeout=20_000)
        browser.close()


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """The page about clients, and the server of its application."""
    folder = tmp_path_factory.mktemp("guide")
    page = ROOT / "docs" / "guides" / "javascript.md"
    write_files(page, folder)
    with serve("app:app", uvicorn_in(folder)) as server:
        yield page, server


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "lobby has heard 5 letters"),
        (1, "unauthorized"),
        (2, "badge shows lobby"),
        (5, "joined lobby"),
        (6, ""),
    ],
    ids=["channels.js", "leave", "shared", "phoenix.js", "node"],
)
def test_the_examples_for_clients_run_under_node(
    number: int, said: str, guide: tuple[Path, Server], tmp_path: Path
) -> None:
    page, server = guide
    install()
    script = [block for block in blocks(page) if block.language == "js"][number].text
    script = re.sub(r"from \"\S*channels.js\"", f'from "{CHANNELS_JS.as_uri()}"', script)
    script = script.replace(
        'from "phoenix"', f'from "{(MODULES / "phoenix" / "priv" / "static" / "phoenix.mjs").as_uri()}"'
    )
    script = re.sub(r"new Socket\(\"[^\"]*/socket\"", f'new Socket("{server.ws}/socket"', script)
    file = tmp_path / "script.mjs"
    file.write_text(script)
    output: list[str] = []
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([NODE, file], stdout=pipe, stderr=subprocess.STDOUT, text=True) as process,
        limit(process, 30),
    ):
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if said and said in line:
                return
        status = process.wait()
    assert (status, said) == (0, ""), "".join(output)


def test_the_example_of_a_client_by_hand_runs(guide: tuple[Path, Server]) -> None:
    page, server = guide
    program: dict[str, Any] = {}
    exec(files_of(page)["app.py"], program)
    assert anyio.run(program["say"], server.ws, "hi") == [
        [None, None, "room:lobby", "new_msg", {"body": "hi"}],
        ["1", "2", "room:lobby", "phx_reply", {"status": "ok", "response": {"length": 2}}],
    ]


SECURITY = (ROOT / "docs" / "security.md").read_text()


@pytest.mark.parametrize("reference", sorted(set(re.findall(r"`(tests/[^`]+)`", SECURITY))))
def test_what_the_page_on_security_says_is_shown_by_a_test_that_exists(reference: str) -> None:
    path, _, name = reference.partition("::")
    module = (ROOT / path).read_text()
    assert re.search(rf"^ *(async )?def {name}\(", module, re.MULTILINE) if name else "def test_" in module
