"""Fixtures that every test may use: real services, and sites that run as processes of their own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from django.test import TransactionTestCase
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from pytest_django import DjangoDbBlocker, Settings

from tests.mariadb import MariaDatabase
from tests.services import MISSING, Broker, Database, Services, missing
from tests.settings import TEST_DB
from tests.site import SiteFactory
from tools.cluster import Cluster
from tools.mariadb import MariaDB
from tools.pgbouncer import PgBouncer
from tools.postgresql import PostgreSQL
from tools.rabbitmq import RabbitMQ
from tools.services import ServiceMissing

if TYPE_CHECKING:
    from tests.relays import Desk

# Hypothesis measures by the clock how long examples take, which says more about the machine than about them.
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")

# With these a test may use the database that TEST_DB names.
DATABASE_FIXTURES = {"db", "transactional_db", "django_db_setup", "second_database"}

LINES = 100  # of the end of a log, with the failure of a test
services = Services()


def pytest_configure(config: pytest.Config) -> None:
    """With xdist, start the services once, before the workers, which find them in the environment."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what we start would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    is_worker = hasattr(config, "workerinput")
    if not is_worker and config.getoption("numprocesses", None) and not config.option.collectonly:
        services.share(mariadb=TEST_DB == "mariadb" or "not slow" not in config.option.markexpr)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what may open this process's database: pytest-django refuses it to all others."""
    for item in items:
        if item.get_closest_marker("django_db") or DATABASE_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("database")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say with a failure what the processes of its sites and the node of its own have said."""
    report = yield
    if report.failed and report.when != "teardown":
        fixtures = getattr(item, "funcargs", {}).values()
        for value in {id(value): value for value in fixtures}.values():  # one may pass on what another has made
            if isinstance(value, SiteFactory):
                report.sections += [(f"Output of {running}", running.log_tail(LINES)) for running in value.running]
            elif isinstance(value, RabbitMQ):
                report.sections.append(("The node's log", value.log_tail(LINES)))
    return report


def pytest_unconfigure() -> None:
    """End every service that this process started."""
    services.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once more, in red and last, what was left untested for want of a service."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)]
    for reason in sorted({reason for reason in reasons if MISSING in reason}):
        count = reasons.count(reason)
        terminalreporter.write_line(
            f"{count} tests did not run. {reason.removeprefix('Skipped: ')}", red=True, bold=True
        )


@pytest.fixture(scope="session", autouse=True)
def _emptying() -> None:
    """Have tests that commit leave empty tables in the quickest way; all of them do, so it is never undone."""
    from tests.emptying import empty  # models: only once Django is set up

    TransactionTestCase._fixture_teardown = empty


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    """Have no test write what one before it has counted in the memory of this process."""
    from messaging.monitoring import counters, failure_groups  # models: only once Django is set up

    counters._counted.clear()
    failure_groups._counted.clear()
    counters._written_at = counters._joined_at = time.monotonic()


@pytest.fixture(scope="session", autouse=True)
def _time_for_brokers() -> Iterator[None]:
    """Let no broker that stands still for a while be taken to be away. A test about a limit sets its own."""
    from messaging.backends import rabbitmq
    from messaging.backends.rabbitmq import certificates, management, sender, session
    from messaging.backends.rabbitmq.connection import Connection
    from messaging.monitoring import readings

    long = 60.0  # seconds
    connect = Connection.open

    def connect_patiently(connection: Connection, timeout: float = 10.0) -> None:
        connect(connection, long if timeout == 10.0 else timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "open", connect_patiently)
        patch.setattr(rabbitmq, "_READING_SECONDS", long)
        patch.setattr(readings, "PATIENCE", 2 * long)
        patch.setattr(certificates, "SECONDS", long)
        patch.setattr(sender, "CONNECT_TIMEOUT", long)
        patch.setattr(session.Session.__init__, "__defaults__", (long,))
        patch.setattr(management.Management.__init__, "__defaults__", (long,))
        yield


@pytest.fixture(scope="session")
def shared_broker() -> Broker:
    """The broker of this run, at the virtual host that it came with."""
    try:
        return services.broker()
    except ServiceMissing as error:
        missing(error)
        raise


@pytest.fixture(scope="session")
def rabbitmq(shared_broker: Broker, worker_id: str) -> Iterator[Broker]:
    """The broker of this run, at a virtual host of this test process's own. Do not stop it: see `own_rabbitmq`."""
    if not shared_broker.can_add_vhosts:
        yield shared_broker
        return
    name = f"test-{worker_id}-{uuid4().hex[:8]}"
    url = shared_broker.add_vhost(name)
    yield Broker(url, shared_broker.management_url, shared_broker.ctl_prefix)
    shared_broker.delete_vhost(name)


@pytest.fixture(scope="session")
def broker_url(rabbitmq: Broker) -> str:
    """The AMQP URL of `rabbitmq`, one virtual host for the whole test process."""
    return rabbitmq.url


@pytest.fixture(scope="session")
def management_url(rabbitmq: Broker) -> str:
    """The base URL of the management API, with credentials; skips where the broker was given without one."""
    if rabbitmq.management_url is None:
        pytest.skip("needs the management API: set MESSAGING_TEST_MANAGEMENT_URL")
    return rabbitmq.management_url


@pytest.fixture
def vhost_url(rabbitmq: Broker) -> Iterator[str]:
    """The AMQP URL of a virtual host for this test alone; skips where none can be made."""
    name = f"test-{uuid4().hex[:12]}"
    yield rabbitmq.add_vhost(name)
    rabbitmq.delete_vhost(name)


@pytest.fixture
def desk(vhost_url: str, settings: Settings) -> Iterator[Desk]:
    """A channel to the broker that this process's own `MESSAGING` names, for the relays of `tests.relays`."""
    from tests.relays import Desk  # models: only once Django is set up

    settings.MESSAGING = {"default": {"URL": vhost_url, "POLL_INTERVAL": 0.05, "LEASE": 3}}
    desk = Desk(vhost_url)
    yield desk
    desk.close()


@pytest.fixture(scope="session")
def _own_rabbitmq() -> RabbitMQ:
    try:
        return services.node()
    except ServiceMissing as error:
        missing(error)
        raise


@pytest.fixture
def own_rabbitmq(_own_rabbitmq: RabbitMQ) -> RabbitMQ:
    """A node that nobody else uses, running: stop it, kill it, start it again. The next test finds it running."""
    if not _own_rabbitmq.is_available:
        _own_rabbitmq.stop()
        _own_rabbitmq.start()
    return _own_rabbitmq


@pytest.fixture(scope="session")
def _rabbitmq_cluster() -> Cluster:
    try:
        return services.rabbitmq_cluster()
    except ServiceMissing as error:
        missing(error)
        raise


@pytest.fixture
def rabbitmq_cluster(_rabbitmq_cluster: Cluster) -> Cluster:
    """Three nodes that nobody else uses, all running: kill them, freeze them, part them. The next test finds them well.

    It takes half a minute to start, so tests that use it are `slow`.
    """
    _rabbitmq_cluster.start()
    return _rabbitmq_cluster


@pytest.fixture(scope="session")
def postgres() -> Database:
    """The PostgreSQL server of this run. Do not stop it: see `own_postgres`."""
    try:
        return services.database()
    except ServiceMissing as error:
        missing(error)
        raise


@pytest.fixture(scope="session")
def _own_postgres() -> PostgreSQL:
    try:
        return services.cluster()
    except ServiceMissing as error:
        missing(error)
        raise


@pytest.fixture
def own_postgres(_own_postgres: PostgreSQL) -> PostgreSQL:
    """A PostgreSQL server that nobody else uses, running: stop it, kill it, start it again."""
    if not _own_postgres.is_running:
        _own_postgres.start()
    return _own_postgres


@pytest.fixture
def own_services() -> Iterator[Services]:
    """Services that this test alone uses, which end with it."""
    own = Services()
    yield own
    own.close()


@pytest.fixture
def pgbouncer(own_services: Services) -> Callable[[str], PgBouncer]:
    """Starts a PgBouncer before the PostgreSQL server of a URL."""

    def start(server: str) -> PgBouncer:
        try:
            return own_services.pgbouncer(server)
        except ServiceMissing as error:
            missing(error)
            raise

    return start


@pytest.fixture(scope="session")
def mariadb() -> MariaDatabase:
    """The MariaDB server of this run. Do not stop it: see `own_mariadb`."""
    try:
        return services.mariadb()
    except ServiceMissing as error:
        missing(error)
        raise


@pytest.fixture(scope="session")
def _own_mariadb() -> MariaDB:
    try:
        return services.mariadb_server()
    except ServiceMissing as error:
        missing(error)
        raise


@pytest.fixture
def own_mariadb(_own_mariadb: MariaDB) -> MariaDB:
    """A MariaDB server that nobody else uses, running: stop it, kill it, start it again."""
    if not _own_mariadb.is_running:
        _own_mariadb.start()
    return _own_mariadb


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    django_db_modify_db_settings_parallel_suffix: None, request: pytest.FixtureRequest
) -> None:
    """Send Django to this run's PostgreSQL or MariaDB where TEST_DB asks for it."""
    from django.db import connections

    settings = connections["default"].settings_dict
    if TEST_DB in ("postgres", "mariadb"):
        import environ

        database: Database | MariaDatabase = request.getfixturevalue(TEST_DB)
        url = environ.Env.db_url_config(database.dsn)
        settings.update({name: url[name] for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT")})


@pytest.fixture(scope="module")
def second_database(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """A database `other` beside the default one, for a module's tests: see `tests.other`."""
    from tests import other  # models: only once Django is set up

    with django_db_blocker.unblock(), other.second_database():
        yield


@pytest.fixture(scope="session")
def _site_templates(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[SiteFactory]:
    factory = SiteFactory(tmp_path_factory.mktemp("sites"), request.getfixturevalue)
    yield factory
    factory.close()


@pytest.fixture
def site(_site_templates: SiteFactory) -> Iterator[SiteFactory]:
    """`site(db="sqlite" | "postgres" | "mariadb")`: the project as processes of its own; see `SiteFactory.__call__`."""
    yield _site_templates
    _site_templates.close_sites()


@pytest.fixture(params=["sqlite", *(pytest.param(db, marks=pytest.mark.slow) for db in ("postgres", "mariadb"))])
def every_db(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn, all but SQLite in `make test-slow` alone, for `site(db=every_db)`."""
    return str(request.param)


@pytest.fixture(params=["postgres", pytest.param("sqlite", marks=pytest.mark.slow)])
def any_db(request: pytest.FixtureRequest) -> str:
    """Both databases in turn, SQLite in `make test-slow` alone, for `site(db=any_db)`."""
    return str(request.param)
