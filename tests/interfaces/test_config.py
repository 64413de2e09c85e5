"""Settings: flag > environment > file > default, each with its origin, errors that name the key, no secret shown."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.postgres.connect import redact
from stream.config.settings import is_secret, setting_kind, setting_names, show_value
from stream.config.sources import Origin, Settings, Sources, load, reload, to_environment, unknown_variables
from stream.config.values import parse_duration, parse_size, show_duration, show_size
from stream.core.errors import ConfigurationError
from stream.core.masking import mask_passwords, passwords_in
from tests.interfaces.fix_counted import Run, run

__all__ = ["run"]

PASSWORD = "hunter2-is-no-secret"  # a word that can't appear by chance


def test_the_defaults_are_the_ones_of_the_contract() -> None:
    settings = load(environ={})
    assert settings.http_listen == "127.0.0.1:8087"
    assert settings.http_address == ("127.0.0.1", 8087)
    assert settings.flush_interval == 0.1
    assert settings.recount_interval == 300.0
    assert (settings.slot_name, settings.publication, settings.mailer_schema) == ("sentstream", "sentstream", "public")
    assert settings.kafka_partitions == 12
    assert settings.history_retention == settings.report_retention == 400 * 86400
    assert settings.removed == "keep"
    assert settings.write_back is True
    assert settings.slot_kind == "permanent"
    assert settings.log_format == "text"
    assert settings.timezone == ""
    assert settings.kafka is False
    assert settings.partitions == 1


@given(st.sets(st.sampled_from(["flag", "environment", "file"])))
def test_flag_goes_before_environment_before_file_before_default(
    tmp_path_factory: pytest.TempPathFactory, given_in: set[str]
) -> None:
    seconds = {"flag": 1.0, "environment": 2.0, "file": 3.0, "default": 0.1}
    path = tmp_path_factory.mktemp("config") / "sentstream.toml"
    path.write_text('flush_interval = "3s"\n' if "file" in given_in else "")
    settings = load(
        {"flush_interval": "1s" if "flag" in given_in else None},
        config=path,
        environ={"SENTSTREAM_FLUSH_INTERVAL": "2s"} if "environment" in given_in else {},
    )
    winner = next(kind for kind in ("flag", "environment", "file", "default") if kind in given_in or kind == "default")
    where = {
        "flag": "--flush-interval", "environment": "SENTSTREAM_FLUSH_INTERVAL", "file": str(path), "default": "",
    }  # fmt: skip
    assert settings.flush_interval == seconds[winner]
    assert settings.origin("flush_interval") == Origin(winner, where[winner])


def test_every_setting_can_be_given_in_the_environment() -> None:
    values = {name: getattr(Settings(), name) for name in setting_names()}
    text = {"duration": "7s", "size": "3MB", "number": "3", "switch": "false", "list": "a:1,b:2", "secret": "word"}
    special = {
        "database_url": "postgresql://h/d", "notify_url": "https://h/", "http_listen": "[::1]:1",
        "metrics_listen": "[::1]:2",
        "http_allowed_origins": "https://a", "timezone": "Europe/Berlin",
    }  # fmt: skip
    for name in setting_names():
        kind = setting_kind(name)
        value = special.get(name) or text.get(kind) or ("word" if kind == "text" else str(values[name]))
        settings = load(environ={"SENTSTREAM_" + name.upper(): value})
        assert settings.origin(name).kind == "environment"
        if kind != "choice":
            assert getattr(settings, name) != values[name]


def test_tables_in_the_file_are_the_first_part_of_the_key(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    kafka = '[kafka]\npartitions = 3\nbootstrap_servers = ["k:9092"]\n'
    path.write_text('slot_name = "a"\n' + kafka + "[recount]\ninterval = 60\n")
    settings = load(config=path, environ={})
    assert (settings.slot_name, settings.kafka_partitions, settings.recount_interval) == ("a", 3, 60.0)
    assert settings.kafka_bootstrap_servers == ("k:9092",)
    assert settings.partitions == 3


def test_the_file_is_found_by_flag_variable_or_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).slot_name == "sentstream"
    (tmp_path / "sentstream.toml").write_text('slot_name = "here"')
    (tmp_path / "other.toml").write_text('slot_name = "other"')
    assert load(environ={}).slot_name == "here"
    assert load(environ={"SENTSTREAM_CONFIG": "other.toml"}).slot_name == "other"
    assert load(config="sentstream.toml", environ={"SENTSTREAM_CONFIG": "other.toml"}).slot_name == "here"


def test_an_empty_variable_counts_as_not_set() -> None:
    settings = load(environ={"SENTSTREAM_SLOT_NAME": "", "SENTSTREAM_HTTP_TOKEN": ""})
    assert settings.slot_name == "sentstream"
    assert settings.origin("http_token").kind == "default"


def test_a_secret_may_be_in_a_file_that_a_variable_names(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(PASSWORD + "\n")
    settings = load(environ={"SENTSTREAM_HTTP_TOKEN_FILE": str(tmp_path / "token")})
    assert settings.http_token == PASSWORD
    with pytest.raises(ConfigurationError, match=r"SENTSTREAM_HTTP_TOKEN_FILE names .*missing, which can't be read"):
        load(environ={"SENTSTREAM_HTTP_TOKEN_FILE": str(tmp_path / "missing")})


def test_a_secret_in_a_file_is_read_again_at_each_use(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("postgresql://u:old@h/d\n")
    settings = load(environ={"SENTSTREAM_DATABASE_URL_FILE": str(path)})
    assert pickle.loads(pickle.dumps(settings)).require_database() == "postgresql://u:old@h/d"
    path.write_text("postgresql://u:new@h/d\n")
    assert settings.require_database() == "postgresql://u:new@h/d"
    assert "new" not in repr(settings.require_database())
    path.write_text("")
    assert settings.require_database() == "postgresql://u:old@h/d", "it is just being written"
    path.unlink()
    assert settings.require_database() == "postgresql://u:old@h/d"
    assert load({"database_url": "postgresql://flag@h/d"}, environ={}).require_database() == "postgresql://flag@h/d"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("flush_interval", "soon", "FLUSH_INTERVAL 'soon' (environment SENTSTREAM_FLUSH_INTERVAL) must be a duration"),
        ("flush_interval", "-1s", "must be a duration above 0"),
        ("recount_interval", "0", "RECOUNT_INTERVAL '0'"),
        ("removed", "forget", "REMOVED 'forget' (environment SENTSTREAM_REMOVED) must be one of keep or follow"),
        ("write_back", "perhaps", "must be true or false"),
        ("kafka_partitions", "0", "must be 1 or more"),
        ("kafka_partitions", "many", "must be a whole number"),
        ("database_url", f"mysql://u:{PASSWORD}@h/d", "DATABASE_URL (environment SENTSTREAM_DATABASE_URL) must begin"),
        ("slot_name", "Main-Slot", "must be 1 to 63 lower-case letters"),
        ("http_listen", "8087", "must be host:port"),
        ("timezone", "Mars/Olympus", "must be a time zone"),
        ("timezone", "../etc/passwd", "must be a time zone"),
        ("notify_url", "https://h:word/x", "NOTIFY_URL (environment SENTSTREAM_NOTIFY_URL) must be an http"),
        ("notify_url", "ftp://x", "NOTIFY_URL (environment SENTSTREAM_NOTIFY_URL) must be an http"),
        ("catchup_threshold", "big", "must be a size"),
        ("kafka_bootstrap_servers", "kafka", "must be host:port"),
        ("http_allowed_origins", "mail.example.org", "must be origins"),
        ("log_level", "loud", "must be one of debug, info, warning or error"),
    ],
)
def test_an_error_names_key_origin_and_rule(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(environ={"SENTSTREAM_" + name.upper(): value})
    assert said in str(caught.value)
    assert name.upper() in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.code == 2


def test_unknown_keys_and_broken_files_are_errors_that_help(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[kafka]\npartitons = 3\n")
    with pytest.raises(ConfigurationError, match=r"KAFKA_PARTITONS in .* Did you mean KAFKA_PARTITIONS\?"):
        load(config=path, environ={})
    path.write_text("slot_name = \n")
    with pytest.raises(ConfigurationError, match=r"no valid TOML.*line 1"):
        load(config=path, environ={})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="it is not UTF-8"):
        load(config=path, environ={})
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml does not exist"):
        load(config=tmp_path / "nowhere.toml", environ={})
    with pytest.raises(ConfigurationError, match="DATABASE_URI is no setting"):
        load({"database_uri": "x"}, environ={})


def test_unknown_variables_are_listed_not_refused() -> None:
    environ = {"SENTSTREAM_SERVICE_HOST": "10.0.0.1", "SENTSTREAM_SLOT_NAME": "a", "SENTSTREAM_CONFIG": "", "PATH": "/"}
    assert load(environ=environ).slot_name == "a"
    assert unknown_variables(environ) == ("SENTSTREAM_SERVICE_HOST",)


def test_no_secret_in_any_text() -> None:
    settings = load(
        {"database_url": f"postgresql://u:{PASSWORD}@h/d?sslpassword={PASSWORD}"},
        environ={
            "SENTSTREAM_HTTP_TOKEN": PASSWORD, "SENTSTREAM_KAFKA_SASL_PASSWORD": PASSWORD,
            "SENTSTREAM_NOTIFY_URL": f"https://me:{PASSWORD}@h/{PASSWORD}?k={PASSWORD}",
            "SENTSTREAM_KAFKA_SSL_KEYFILE_PASSWORD": PASSWORD,
        },
    )  # fmt: skip
    texts = [repr(settings), str(settings), f"{settings}", repr(settings.model_dump()), settings.model_dump_json()]
    texts += [repr([getattr(settings, name) for name in setting_names()]), str(settings.model_dump(mode="json"))]
    texts += [str(settings.shown(name)) for name in setting_names()]
    assert not [text for text in texts if PASSWORD in text]
    assert settings.shown("database_url") == "postgresql://u:***@h/d?sslpassword=***"
    assert settings.shown("notify_url") == "https://h/***"
    assert PASSWORD in settings.secrets()


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30))
def test_a_password_in_a_url_never_shows_whatever_it_holds(password: str) -> None:
    word = f"pw{password}pw"
    for url in (f"postgresql://user:{word}@host/db", f"could not connect to postgres://u:{word}@h:5432/d?a=b here"):
        assert word not in mask_passwords(url)
        assert "***" in mask_passwords(url)
    assert word in set(passwords_in(f"postgresql://user:{word}@host/db"))


def test_a_password_among_key_value_words_never_shows() -> None:
    assert mask_passwords("host=h password='it''s' user=u") == "host=h password=*** user=u"
    assert mask_passwords(r"host=h password='a \' b' user=u") == "host=h password=*** user=u"
    assert mask_passwords("password=abc host=h") == "password=*** host=h"
    assert mask_passwords(r"password=a\ b'c host=h") == "password=*** host=h"
    assert mask_passwords(r"password='a\'b c") == "password=***", "without the last quote"
    assert mask_passwords("password = 'a' host=h password='' user=x") == "password = *** host=h password=*** user=x"
    assert {"a b", r"a\ b"} <= set(passwords_in(r"host=h password=a\ b"))


@pytest.mark.parametrize("key", ["passwor%64", "%50assword", "sslpassword", "ssl%70%61ssword", "PASSWORD"])
def test_a_password_under_an_encoded_name_never_shows(key: str) -> None:
    assert mask_passwords(f"postgresql://h/d?a=b&{key}=secret&c=d") == f"postgresql://h/d?a=b&{key}=***&c=d"
    assert "secret" not in redact(f"postgresql://h/d?{key}=secret&port=x")


@given(st.floats(min_value=1e-6, max_value=1e9, allow_nan=False))
def test_a_duration_reads_back_as_it_was_shown(seconds: float) -> None:
    assert parse_duration(show_duration(seconds)) == pytest.approx(seconds, rel=1e-9)


@given(st.integers(1, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_whole_durations_are_exact(number: int, unit: str) -> None:
    seconds = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
    if number * seconds[unit] > 100 * 366 * 86400:
        return
    value = parse_duration(f"{number}{unit}")
    assert math.isclose(value, number * seconds[unit])
    assert parse_duration(show_duration(value)) == value


def test_durations_are_written_the_short_way() -> None:
    shown = {0.1: "100ms", 5.0: "5s", 300.0: "5m", 90.0: "90s", 3600.0: "1h", 400 * 86400.0: "400d", 1.5: "1.5s"}
    assert {seconds: show_duration(seconds) for seconds in shown} == shown
    same = ["5m", "300", "300s", "5 minutes", "300.0", 300, 300.0, " 5 min "]
    assert {parse_duration(text) for text in same} == {300.0}
    for wrong in ("", "5 parsecs", "nan", "inf", "1e3s", True, None, "5s5s", "0", "-5s", "1e300", "99999999999d"):
        with pytest.raises(ValueError, match="must be"):
            parse_duration(wrong)


@given(st.integers(0, 2**63 - 1))
def test_a_size_reads_back_as_it_was_shown(size: int) -> None:
    assert parse_size(show_size(size)) == size


def test_a_reload_takes_intervals_and_names_what_needs_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('recount_interval = "5m"\nslot_name = "a"\n')
    sources = Sources({"flush_interval": "1s"}, path, {})
    settings = load(sources.flags, config=path, environ={})
    path.write_text('recount_interval = "1m"\nslot_name = "b"\nflush_interval = "9s"\n')
    after = reload(settings, sources)
    assert (after.changed, after.need_restart) == (("recount_interval",), ("slot_name",))
    assert after.settings.recount_interval == 60.0
    assert after.settings.slot_name == "a"
    assert after.settings.flush_interval == 1.0, "the flag still goes first"
    path.write_text("recount_interval = 'never'\n")
    with pytest.raises(ConfigurationError, match="RECOUNT_INTERVAL 'never'"):
        reload(settings, sources)


def test_a_child_gets_what_flags_and_code_gave() -> None:
    settings = load(
        {"kafka_bootstrap_servers": "a:1,b:2", "write_back": False, "flush_interval": "50ms"},
        environ={"SENTSTREAM_SLOT_NAME": "inherited"},
    )
    child = to_environment(settings)
    assert child == {
        "SENTSTREAM_KAFKA_BOOTSTRAP_SERVERS": "a:1,b:2",
        "SENTSTREAM_WRITE_BACK": "false",
        "SENTSTREAM_FLUSH_INTERVAL": "0.05",
    }
    again = load(environ=child | {"SENTSTREAM_SLOT_NAME": "inherited"})
    assert again.model_dump() == settings.model_dump()
    assert to_environment(Settings(slot_name="code")) == {"SENTSTREAM_SLOT_NAME": "code"}


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().slot_name = "other"


def test_what_is_missing_is_named_with_its_fix() -> None:
    with pytest.raises(ConfigurationError, match=r"DATABASE_URL is not set.*--database-url"):
        Settings().require_database()
    with pytest.raises(ConfigurationError, match="KAFKA_BOOTSTRAP_SERVERS is not set"):
        Settings().require_kafka()
    half = load(environ={"SENTSTREAM_KAFKA_BOOTSTRAP_SERVERS": "a:1", "SENTSTREAM_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"})
    with pytest.raises(ConfigurationError, match="KAFKA_SASL_USERNAME is not set"):
        half.require_kafka()


def test_every_secret_is_masked_when_shown() -> None:
    for name in setting_names():
        if is_secret(name) and setting_kind(name) == "secret":
            assert show_value(name, "word") == "***"


def test_every_command_warns_of_a_variable_that_is_no_setting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTSTREAM_DATABSE_URL", "postgresql://h/d")
    monkeypatch.setenv("SENTSTREAM_PORT_8087_TCP_ADDR", "10.0.0.1")  # a service link of Kubernetes
    for command in (["config"], ["status", "--database-url", "postgresql://127.0.0.1:1/d"]):
        said = run(*command).err
        assert said.count("SENTSTREAM_DATABSE_URL in the environment is no setting") == 1
        assert "Is it SENTSTREAM_DATABASE_URL?" in said
        assert "PORT_8087" not in said
