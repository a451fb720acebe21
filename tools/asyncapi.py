"""AsyncAPI's official parser, from npm, and the page of the docs that shows the demo's document.

`python -m tools.asyncapi` writes that page anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.environment import ROOT
from tools.services import ServiceMissing

PARSER = "@asyncapi/parser@3.6.0"
FOLDER = ROOT / "var" / "asyncapi"
PAGE = ROOT / "docs" / "demo-messages.md"
# Reads the document that its argument names, and prints what the parser says of it.
PARSE = """
const { Parser } = require("@asyncapi/parser");
const text = require("fs").readFileSync(process.argv[1], "utf8");
new Parser().validate(text).then((found) => console.log(JSON.stringify(found)));
"""
HEAD = """# What the demo publishes and handles

`manage.py asyncapi` wrote this of the demo: an AsyncAPI 3.0 document, of which the tables below are a summary.
[Contracts](how-to/contracts.md) says how to have one for your own site, and how to be told what a change breaks.

"""


def find_npm() -> str:
    """npm, which comes with Node.js. Raises ServiceMissing."""
    program = shutil.which("npm") if shutil.which("node") else None
    if program is None:
        raise ServiceMissing("There is no npm: `apt-get install npm` (Debian, Ubuntu) or `brew install node`.")
    return program


def node_modules() -> Path:
    """The folder with the parser, installed when it is missing. Raises ServiceMissing where it cannot be."""
    modules = FOLDER / "node_modules"
    stamp = FOLDER / "installed"
    if stamp.is_file() and stamp.read_text() == PARSER:
        return modules
    npm = find_npm()
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", PARSER]
    environment = os.environ | {"npm_config_update_notifier": "false"}
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceMissing(f"npm could not install {PARSER}: {done.stderr.strip()[-300:]}")
    stamp.write_text(PARSER)
    return modules


def demo_document() -> str:
    """The demo's document, whatever this machine's environment says."""
    environment = {"PATH": os.environ.get("PATH", ""), "ENV_FILE": os.devnull, "DATABASE_URL": "sqlite://:memory:"}
    command = [sys.executable, "manage.py", "asyncapi", "--title", "Demo shop", "--release", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def page(text: str) -> str:
    """The page of the docs that shows a document."""
    document = json.loads(text)
    sent = [one for one in document["operations"].values() if one["action"] == "send"]
    handled = [one for one in document["operations"].values() if one["action"] == "receive"]
    lines = ["## Published", "", "| Routing key | Payload | When |", "|---|---|---|"]
    lines += [f"| `{_address(document, one)}` | {_payload(document, one)} | {one.get('summary', '')} |" for one in sent]
    lines += ["", "## Handled", "", "| Queue | Routing keys | Payload | What for |", "|---|---|---|---|"]
    for one in handled:
        keys = ", ".join(f"`{key}`" for key in one["x-routing-keys"])
        lines.append(f"| `{_address(document, one)}` | {keys} | {_payload(document, one)} | {one.get('summary', '')} |")
    return f"{HEAD}{chr(10).join(lines)}\n\n## The document\n\n<!-- asyncapi -->\n```json\n{text}```\n"


def _at(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


def _address(document: Any, operation: Any) -> str:
    address: str = _at(document, operation["channel"]["$ref"])["address"]
    return address


def _payload(document: Any, operation: Any) -> str:
    """The fields of a payload, as far as the first level goes."""
    message = _at(document, _at(document, operation["messages"][0]["$ref"])["$ref"])
    schema = message.get("payload", {})
    if "$ref" in schema:
        schema = _at(document, schema["$ref"])
    fields = [f"`{name}`: {value.get('type', 'any')}" for name, value in schema.get("properties", {}).items()]
    return ", ".join(fields) or schema.get("type", "any")


if __name__ == "__main__":
    PAGE.write_text(page(demo_document()))
