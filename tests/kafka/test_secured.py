"""Brokers that let nobody in without TLS and a login: every role over SASL_SSL, by each mechanism; and what is said
where the login or the certificate is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from connectors.kafka.topics import ensure
from stream.core.errors import SentstreamError
from stream.demo.private_kafka import QUICK_START, PrivateKafka
from tests.certificates import self_signed
from tests.fix_postgres import Database
from tests.kafka.shape import Shape
from tests.postgres.running import add_campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PASSWORD = "sesame-4711"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


@dataclass(frozen=True)
class Secured:
    """``address``: of the listener with TLS and logins; ``authority``: the certificate to trust."""

    address: str
    authority: Path

    def settings(self, mechanism: str) -> dict[str, str]:
        return {
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": mechanism,
            "kafka_sasl_username": "counter",
            "kafka_sasl_password": PASSWORD,
            "kafka_ssl_cafile": str(self.authority),
        }


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker whose second listener (its own, here) demands TLS and a login."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate, store = folder / "key.pem", folder / "ca.pem", folder / "store.pem"
    self_signed(key, certificate)
    store.write_text(key.read_text() + certificate.read_text())
    own = "listener.name.broker"
    settings = {
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,BROKER:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        f"{own}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        f"{own}.plain.sasl.jaas.config": f'{_PLAIN} required username="broker" password="{PASSWORD}"'
        f' user_broker="{PASSWORD}" user_counter="{PASSWORD}";',
        f"{own}.scram-sha-256.sasl.jaas.config": f"{_SCRAM} required;",
        f"{own}.scram-sha-512.sasl.jaas.config": f"{_SCRAM} required;",
        f"{own}.ssl.keystore.type": "PEM",
        f"{own}.ssl.keystore.location": str(store),
        f"{own}.ssl.truststore.type": "PEM",
        f"{own}.ssl.truststore.location": str(certificate),
    }
    with PrivateKafka(settings=settings, jvm=QUICK_START) as server:
        admin = KafkaAdminClient(**server.client())
        try:
            for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
                credential = UserScramCredentialUpsertion("counter", mechanism, PASSWORD)
                assert admin.alter_user_scram_credentials([credential]) == {"counter": None}
        finally:
            admin.close()
        yield Secured(f"127.0.0.1:{server.nodes[0].broker_port}", certificate)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN", "SCRAM-SHA-512"])
def test_every_role_over_tls_with_a_login(
    secured: Secured, make_shape: Callable[..., Shape], mailer_db: Database, mechanism: str
) -> None:
    shape = make_shape(mailer_db, secured.address, partitions=2, **secured.settings(mechanism))
    add_campaign(mailer_db, 1, sent_rows=3, queued=4)
    roles = [shape.start("read"), shape.start("work")]
    shape.until_based()
    mailer_db.execute("UPDATE email_queue SET status = 'sent'")
    shape.until_right()
    assert len(shape.records(shape.names.progress)) > 0
    assert [role.stop() for role in roles] == [0, 0]
    assert PASSWORD not in "".join(role.said for role in roles)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kafka_sasl_password": "guessed"}, "KAFKA_SASL"),
        ({"kafka_ssl_cafile": ""}, "KAFKA_SSL_CAFILE"),
    ],
    ids=["password", "authority"],
)
def test_what_is_wrong_is_said_without_the_password(
    secured: Secured, make_shape: Callable[..., Shape], mailer_db: Database, wrong: dict[str, str], said: str
) -> None:
    shape = make_shape(mailer_db, secured.address, partitions=2, **secured.settings("SCRAM-SHA-512"))
    with pytest.raises(SentstreamError) as refused:
        ensure(shape.settings.model_copy(update=wrong))
    text = f"{refused.value}"
    assert said in text, text
    assert PASSWORD not in text
    assert "guessed" not in text
