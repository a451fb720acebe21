"""Make the passwords of the examples: a file for each, and RabbitMQ's definitions with their hashes.

    python make_secrets.py FOLDER

Passwords that are in the folder already are kept, so it can be run again: to make one anew, remove its file first.
"""

import base64
import hashlib
import json
import secrets
import sys
from pathlib import Path

ACCOUNTS = Path(__file__).resolve().parent / "rabbitmq" / "definitions.json"


def main(folder: Path) -> None:
    """Write what is missing, and the definitions anew."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    definitions = json.loads(ACCOUNTS.read_text())
    for name in ("secret-key", "database-password"):
        password_in(folder / name)
    for user in definitions["users"]:
        user["password_hash"] = hashed(password_in(folder / f"{user['name']}-password"))
    write(folder / "definitions.json", json.dumps(definitions, indent=2))


def password_in(path: Path) -> str:
    """The password that a file holds; a new one where there is no file."""
    if not path.exists():
        write(path, secrets.token_urlsafe(32))
    return path.read_text().strip()


def write(path: Path, text: str) -> None:
    """Write a file that others find whole or not at all. Containers read it as users of their own."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(path)


def hashed(password: str) -> str:
    """What RabbitMQ stores of a password: four bytes of salt, and the SHA-256 of both."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("Say where to: python make_secrets.py FOLDER")
    main(Path(sys.argv[1]))
