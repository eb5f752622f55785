"""The first screen of the README is true: its example runs, and answers what the README says it answers."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import penstock as ps

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_example_answers_as_printed() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    call = re.search(r"\$ curl -s \S+:8000(/\S+) -d '(.*)'\n(\{.*\})\n", README)
    assert code is not None
    assert call is not None
    path, body, printed = call.groups()
    # The example as printed, but for the ports and for waiting until a signal comes.
    script = (
        code[1].replace("http_port=8000", "http_port=0, metrics_port=None").replace("grpc_port=8001", "grpc_port=0")
    )
    names: dict[str, Any] = {}
    exec(script.replace("server.run()", ""), names)
    server = names["server"]
    assert isinstance(server, ps.Server)
    with server:
        request = urllib.request.Request(f"http://127.0.0.1:{server.http_port}{path}", body.encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.loads(answer.read()) == json.loads(printed)


def test_links_lead_somewhere() -> None:
    root = Path(__file__).resolve().parents[2]
    for page in (root / "README.md", *(root / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.relative_to(root)} -> {link}"
