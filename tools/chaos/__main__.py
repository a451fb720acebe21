"""`make chaos`: MINUTES (10), SEED (random), BROKER (rabbitmq or embedded), MESSAGING_TEST_URL for a given broker.

`RATE` is how many messages a second each of two publishers sends at most (200).

`FAULTS="relay killed,queue purged"` injects these kinds alone, `FAULTS="-database failed over"` all the others.
`KEEP=1` keeps the logs of a run that passed, too.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    from tools.environment import DEVELOPMENT, ROOT, ensure_environment

    python = ensure_environment(DEVELOPMENT)
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        os.execv(python, [str(python), "-m", "tools.chaos"])  # noqa: S606 - ourselves, in the environment

from tools.chaos import soak
from tools.chaos.schedule import BROKER, KINDS
from tools.chaos.stage import Stage
from tools.janitor import Janitor
from tools.packages import install_missing
from tools.services import ServiceFailed, ServiceMissing, stopping_on_signals


def main() -> int:
    """Run as the environment says. Returns 0 for nothing lost and nothing doubled, 1 for a flaw, 2 for no proof."""
    seed = os.environ.get("SEED") or str(int.from_bytes(os.urandom(4)))
    minutes, rate, broker = _number("MINUTES", 10), _number("RATE", 200), _broker()
    for sentence in install_missing("postgresql", *(["rabbitmq-server"] if broker == "rabbitmq" else [])):
        say(sentence)
    say(f"SEED={seed} MINUTES={minutes:g} on {'a given broker' if '://' in broker else broker} and PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="messaging-chaos-"))
    folder.chmod(0o755)  # PostgreSQL's account must reach its folder below
    janitor = Janitor()
    janitor.remove(folder)
    try:
        with stopping_on_signals():
            return _run(folder, janitor, broker, seed, rate, minutes * 60)
    except KeyboardInterrupt:
        say("Interrupted: nothing is proven.")
        return 130
    except (ServiceMissing, ServiceFailed) as error:
        say(str(error))
        return 2
    finally:
        janitor.close()


def _run(folder: Path, janitor: Janitor, broker: str, seed: str, rate: float, seconds: float) -> int:
    management_url = os.environ.get("MESSAGING_TEST_MANAGEMENT_URL")
    kinds = [kind for kind in _faults() if broker == "rabbitmq" or KINDS[kind].lane != BROKER]
    with Stage(
        folder, janitor, broker=broker, management_url=management_url, seed=seed, rate=rate, kinds=kinds
    ) as stage:
        evidence = ROOT / "var" / "chaos" / f"seed-{seed}"
        try:
            result = soak.run(stage, seconds, kinds, say)
        except Exception:
            soak.keep(stage, evidence)
            say(f"The run broke off. Logs: {evidence}")
            raise
        for line in soak.report(result):
            say(line)
        if result.status or os.environ.get("KEEP"):
            soak.keep(stage, evidence)
        if result.status:
            say(f"{result.spoiled or 'FAILED'}. Logs and the rows concerned: {evidence}. Again: make chaos SEED={seed}")
        else:
            say("Passed: 0 lost, 0 doubled.")
        return result.status


def say(line: str) -> None:
    """One line to whoever watches."""
    print(line, flush=True)


def _number(name: str, default: float) -> float:
    text = os.environ.get(name) or f"{default}"
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 10_000:
        raise SystemExit(f"{name}={text} is no such number: it should be like {default:g}, or {default / 20:g}.")
    return number


def _faults() -> list[str]:
    named = os.environ.get("FAULTS") or ""
    names = [name.strip() for name in named.removeprefix("-").split(",") if name.strip()]
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise SystemExit(f"FAULTS: {', '.join(unknown)} is unknown; there are {', '.join(KINDS)}.")
    return [name for name in KINDS if not names or (name in names) != named.startswith("-")]


def _broker() -> str:
    name = os.environ.get("BROKER") or os.environ.get("MESSAGING_TEST_URL") or "rabbitmq"
    if name not in ("rabbitmq", "embedded") and not name.startswith("amqp://"):
        raise SystemExit(f"BROKER={name} is unknown: rabbitmq or embedded; MESSAGING_TEST_URL takes amqp://...")
    return name


if __name__ == "__main__":
    raise SystemExit(main())
