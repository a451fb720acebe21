"""A Dockerfile's steps, carried out in a clean root where no container engine is: `python -m tools.dockerfile FOLDER`.

It knows what docs/deploy/Dockerfile uses: ARG, FROM, ENV, WORKDIR, COPY, RUN, USER, STOPSIGNAL and CMD in exec form. In
place of an image of Python stands a Debian root that debootstrap makes once; what it takes to reach the package index
is copied from this machine. Needs Linux, root, and the package debootstrap.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SUITE = "bookworm"
PACKAGES = "ca-certificates,python3,python3-venv,passwd"
# How a package index is reached from here; an image is built with the same.
ABOUT_NETWORK = re.compile(r"^(PIP_|SSL_CERT|REQUESTS_CA|CURL_CA|HTTPS?_PROXY|NO_PROXY)", re.IGNORECASE)
CERTIFICATES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass
class Image:
    """What was built.

    Attributes:
        root: its files.
        env, folder, user: what a process in it begins with; `user` is a number, "0" for root.
        command: the words of CMD.
        stop_signal: the name of the signal that asks it to stop.
    """

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    command: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"

    def enter(self, words: list[str]) -> list[str]:
        """The command that runs these words in it, as process 1 of a namespace that ends with it."""
        changed = ["--userspec", f"{self.user}:{self.user}"] if self.user != "0" else []
        inside = shlex.join(["chroot", *changed, str(self.root), "/bin/sh", "-c", 'cd "$0" && exec "$@"', self.folder])
        # Nothing that is mounted is to be seen outside; within a changed root, which cannot be made private, it is not.
        private = "mount --make-rprivate / 2>/dev/null"
        script = f'{private}; mount -t proc proc {shlex.quote(str(self.root))}/proc && exec {inside} "$@"'
        namespaces = ["--pid", "--fork", "--kill-child", "--mount", "--propagation", "unchanged"]
        return ["unshare", *namespaces, "sh", "-c", script, "sh", *words]

    def run(self, words: list[str], env: dict[str, str] | None = None, timeout: float = 900) -> str:
        """Run words in it and return what they say. Raises SystemExit where they fail."""
        made = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/", **self.env, **(env or {})}
        done = subprocess.run(
            [str(shutil.which("unshare")), *self.enter(words)[1:]],
            env=made, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{shlex.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout


def steps(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile, with what follows each."""
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in plain.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def build(dockerfile: Path, context: Path, folder: Path, base: Path) -> Image:
    """Carry out every step; returns the last stage.

    Args:
        dockerfile: what to build.
        context: the folder that COPY copies from; what its .dockerignore lists is left out.
        folder: where the roots of the stages are made.
        base: the root that stands for every image that FROM names.
    """
    stages: dict[str, Image] = {}
    image: Image | None = None
    for name, rest in steps(dockerfile.read_text()):
        if name == "FROM":
            words = rest.split()
            alias = words[2] if len(words) > 2 else str(len(stages))
            image = stages[alias] = Image(folder / f"stage-{alias}")
            subprocess.run(["cp", "-a", "--reflink=auto", f"{base}/.", image.root], check=True)
        elif image is not None:
            _take(image, name, rest, context, stages)
        elif name != "ARG":
            raise SystemExit(f"{name} before FROM.")
    assert image is not None
    return image


def _take(image: Image, name: str, rest: str, context: Path, stages: dict[str, Image]) -> None:
    """One step of a stage."""
    print(f"{name} {rest[:100]}", flush=True)
    match name:
        case "RUN":
            network = {key: value for key, value in os.environ.items() if ABOUT_NETWORK.match(key)}
            image.run(["/bin/sh", "-c", rest], network)
        case "COPY":
            _copy(image, rest.split(), context, stages)
        case "ENV":
            image.env |= dict(word.split("=", 1) for word in shlex.split(rest))
        case "WORKDIR":
            image.folder = rest
            (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = rest
        case "STOPSIGNAL":
            image.stop_signal = rest
        case "CMD":
            image.command = json.loads(rest)  # the exec form alone: a shell would keep the signal
        case _:
            raise SystemExit(f"Nobody knows here how to carry out {name}.")


def _copy(image: Image, words: list[str], context: Path, stages: dict[str, Image]) -> None:
    source = context
    if words[0].startswith("--from="):
        source = stages[words.pop(0).partition("=")[2]].root
    what, target = source / words[0].lstrip("/"), image.root / os.path.join(image.folder, words[1]).lstrip("/")
    if what.is_dir():
        ignored = _ignored(context) if source == context else []
        shutil.copytree(what, target, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns(*ignored))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(what, target)


def _ignored(context: Path) -> list[str]:
    path = context / ".dockerignore"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line.removeprefix("**/") for line in lines if line and not line.startswith("#")]


def clean_root(folder: Path) -> Path:
    """A Debian root with Python and nothing else, made once."""
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for path in (*(os.environ.get(name, "") for name in CERTIFICATES), "/etc/pip.conf"):
            if path and Path(path).is_file():
                (folder / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, folder / path.lstrip("/"))
        own = Path.home() / ".config/pip/pip.conf"
        if own.is_file() and not (folder / "etc/pip.conf").exists():
            shutil.copy2(own, folder / "etc/pip.conf")
        (folder / ".complete").touch()
    for name in ("resolv.conf", "hosts"):
        shutil.copy2(Path("/etc") / name, folder / "etc" / name)
    return folder


def main(arguments: list[str]) -> int:
    """Build the shipped Dockerfile with a site in a folder as its context, and say what would be started."""
    from tools.environment import ROOT

    if len(arguments) != 1:
        print("Say which site: python -m tools.dockerfile FOLDER")
        return 2
    var = ROOT / "var" / "image"
    shutil.rmtree(var / "stages", ignore_errors=True)
    (var / "stages").mkdir(parents=True)
    dockerfile = ROOT / "docs" / "deploy" / "Dockerfile"
    image = build(dockerfile, Path(arguments[0]), var / "stages", clean_root(var / "base"))
    print(f"{image.root}: {shlex.join(image.command)} as user {image.user}, stopped by {image.stop_signal}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
