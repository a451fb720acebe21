"""A certificate authority for tests: what a broker over TLS, and a client that it asks for a certificate, need."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path


class Authority:
    """Signs certificates for `localhost` and names of clients, in a folder that every account may read."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="messaging-certificates-")
        self.folder = Path(self._home.name)
        self.folder.chmod(0o755)  # a broker's own account reads it
        self.ca_file = self.folder / "ca.pem"
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # which Python 3.13 asks of an authority
        self._openssl("req", "-x509", *_NEW, self._key("ca"), "-out", self.ca_file, "-subj", "/CN=tests", *usage)

    def sign(self, name: str) -> tuple[Path, Path]:
        """A new certificate for a name, and its key."""
        certificate, request, extensions = (self.folder / f"{name}.{kind}" for kind in ("pem", "csr", "ext"))
        extensions.write_text(f"subjectAltName=DNS:{name}\nauthorityKeyIdentifier=keyid\n")
        self._openssl("req", *_NEW, self._key(name), "-out", request, "-subj", f"/CN={name}")
        signed_by = ("-CA", self.ca_file, "-CAkey", self._key("ca"), "-CAcreateserial", "-extfile", extensions)
        self._openssl("x509", "-req", "-days", "2", "-in", request, "-out", certificate, *signed_by)
        self._key(name).chmod(0o644)
        return certificate, self._key(name)

    def close(self) -> None:
        """Remove all of it."""
        self._home.cleanup()

    def _key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def _openssl(self, *arguments: object) -> None:
        command = ["openssl", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr


_NEW = ("-newkey", "rsa:2048", "-nodes", "-keyout")
