"""Settings: one line for every problem, all at once, naming the variable; secrets never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.properties import given
from worker.errors import SettingsError
from worker.settings import Group, chosen, fields, load, variable


def problems(environ: dict[str, str], config: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(config, environ)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "assay.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_nothing_set_gives_the_defaults_of_the_contract() -> None:
    """The names and values that the contract promises."""
    settings = load(None, {})
    assert settings.kafka.group_id == "assay-worker"
    assert settings.kafka.auto_offset_reset == "earliest"
    assert (settings.kafka.incoming_topic, settings.kafka.verdicts_topic, settings.kafka.rejected_topic) == (
        "images.incoming",
        "images.verdicts",
        "images.rejected",
    )
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 9464)
    assert (settings.redis.verdict_ttl, settings.redis.hash_ttl) == (30 * 86400, 7 * 86400)
    assert (settings.limits.max_image_bytes, settings.limits.max_image_pixels) == (25_000_000, 100_000_000)
    assert settings.references.schemes == []
    assert settings.triton.model_name == "code"


@pytest.mark.parametrize("field", [f"{group}.{name}" for group, name, _ in fields()])
def test_every_setting_is_documented(field: str) -> None:
    """Each has a description that is a sentence: docs/settings.md has nothing else to show."""
    info = next(info for group, name, info in fields() if f"{group}.{name}" == field)
    assert info.description
    assert info.description.endswith(".")


def test_the_environment_beats_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    """Variables first, then the file, then the defaults."""
    path = toml(tmp_path, '[kafka]\ngroup_id = "file"\nclient_id = "file"\nincoming_topic = "file"\n')
    environ = {"ASSAY_KAFKA__GROUP_ID": "environment", "ASSAY_KAFKA__INCOMING_TOPIC": "environment", "PATH": "/bin"}
    kafka = load(path, environ).kafka
    assert (kafka.group_id, kafka.incoming_topic, kafka.client_id, kafka.rejected_topic) == (
        "environment",
        "environment",
        "file",
        "images.rejected",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ASSAY_KAFKA__BOOTSTRAP_SERVERS", "nonsense"),
        ("ASSAY_KAFKA__BOOTSTRAP_SERVERS", "host:abc"),
        ("ASSAY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:0, [::1"),
        ("ASSAY_REDIS__URL", "redis://127.0.0.1:99999/0"),
        ("ASSAY_REDIS__URL", "redis://127.0.0.1:abc/0"),
        ("ASSAY_TRITON__URL", "127.0.0.1:99999"),
        ("ASSAY_TRITON__URL", "http://127.0.0.1:8000"),
    ],
)
def test_an_address_that_leads_nowhere_is_named(name: str, value: str) -> None:
    """A missing or impossible port is a wrong setting, not a server that is away."""
    with pytest.raises(SettingsError) as caught:
        load(None, {name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(name)


def test_lists_are_comma_separated_or_toml_arrays(tmp_path: Path) -> None:
    """Spaces around commas do not matter."""
    assert load(None, {"ASSAY_KAFKA__BOOTSTRAP_SERVERS": "a:9092, b:9092 ,"}).kafka.bootstrap_servers == [
        "a:9092",
        "b:9092",
    ]
    assert load(toml(tmp_path, '[kafka]\nbootstrap_servers = ["a:1", "b:2"]'), {}).kafka.bootstrap_servers == [
        "a:1",
        "b:2",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("15m", 900), ("12h", 43200), ("30d", 2_592_000), (" 1 h ", 3600)],
)
def test_durations(text: str, seconds: int) -> None:
    """Seconds, or a number with a unit."""
    assert load(None, {"ASSAY_REDIS__VERDICT_TTL": text}).redis.verdict_ttl == seconds


@pytest.mark.parametrize("text", ["-1", "1w", "soon", "1.5h", ""])
def test_wrong_durations(text: str) -> None:
    """Anything else is refused by name."""
    (problem,) = problems({"ASSAY_REDIS__VERDICT_TTL": text})
    assert problem.startswith(f"ASSAY_REDIS__VERDICT_TTL={text!r}: ")


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    """A person mends a file once, not once for each line: values, misspelt names and rules over several fields
    together.
    """
    path = toml(tmp_path, '[flow]\nmax_items = 0\nmax_itmes = 5\n[flwo]\nx = 1\n[cache]\nenabled = "perhaps"\n')
    found = problems(
        {
            "ASSAY_HTTP__PORT": "70000",
            "ASSAY_KAFKA__GRUOP_ID": "x",
            "ASSAY_TRITON__URL": "http://host:8000",
            "ASSAY_REDIS__MODE": "sentinel",
            "ASSAY_INTAKE__ID_SOURCES": "ce_id,user",
            "ASSAY_NONSENSE": "1",
        },
        path,
    )
    starts = [
        f"{path}: flow.max_itmes is no setting; did you mean max_items?",
        f"{path}: [flwo] is no group of settings; expected one of ",
        "ASSAY_KAFKA__GRUOP_ID is no setting; did you mean ASSAY_KAFKA__GROUP_ID?",
        "ASSAY_NONSENSE is no setting; ",
        "ASSAY_HTTP__PORT='70000': ",
        "ASSAY_TRITON__URL='http://host:8000': ",
        "ASSAY_INTAKE__ID_SOURCES='ce_id,user': Input should be 'ce_id', 'key' or 'sha256'",
        "ASSAY_REDIS__SENTINELS=None: mode=sentinel needs them",
        f"{path}: flow.max_items=0: ",
        f"{path}: cache.enabled='perhaps': ",
    ]
    for start in starts:
        assert [problem for problem in found if problem.startswith(start)], f"{start} is not in {found}"
    assert len(found) == len(starts)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (
            {"ASSAY_KAFKA__HEARTBEAT_INTERVAL_MS": "9000"},
            "ASSAY_KAFKA__HEARTBEAT_INTERVAL_MS='9000': at most half of session_timeout_ms=10000",
        ),
        (
            {"ASSAY_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"},
            "ASSAY_KAFKA__SASL_USERNAME=None: security_protocol=SASL_SSL needs",
        ),
        ({"ASSAY_KAFKA__BOOTSTRAP_SERVERS": ""}, "ASSAY_KAFKA__BOOTSTRAP_SERVERS='': "),
        (
            {"ASSAY_REDIS__SENTINELS": "s:1", "ASSAY_REDIS__MODE": "sentinel", "ASSAY_REDIS__URL": "unix:///s"},
            "ASSAY_REDIS__URL=(secret): mode=sentinel",
        ),
        ({"ASSAY_TRITON__URL": "triton"}, "ASSAY_TRITON__URL='triton': "),
        ({"ASSAY_FLOW__LOW_WATER": "nan"}, "ASSAY_FLOW__LOW_WATER='nan': "),
    ],
)
def test_one_problem_is_one_line(environ: dict[str, str], expected: str) -> None:
    """The line begins with the variable to change and the value that was found."""
    (problem,) = problems(environ)
    assert problem.startswith(expected)


def test_a_line_says_what_the_setting_means() -> None:
    """Whoever reads the error need not look the setting up."""
    (problem,) = problems({"ASSAY_HTTP__PORT": "x"})
    assert "Port of /metrics" in problem


SECRETS = [(group, name) for group, name, info in fields() if "SecretStr" in str(info.annotation)]


def test_there_are_secrets() -> None:
    """Passwords, keys and URLs that may carry one are secrets."""
    assert {
        ("kafka", "sasl_password"),
        ("kafka", "ssl_key_password"),
        ("redis", "url"),
        ("redis", "password"),
        ("references", "s3_secret_access_key"),
    } <= set(SECRETS)


@pytest.mark.parametrize(("group", "name"), SECRETS)
def test_a_secret_comes_from_a_file_and_is_never_shown(group: str, name: str, tmp_path: Path) -> None:
    """`*_FILE` is read without its closing newline; neither repr nor a dump shows the value."""
    value = {"url": "redis://u:hunter2@host:6379/0", "secret": "hunter2" * 5}.get(name, "hunter2")
    path = tmp_path / "secret"
    path.write_text(value + "\n")
    settings = load(None, {f"{variable(group, name)}_FILE": str(path)})
    assert getattr(getattr(settings, group), name).get_secret_value() == value
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_wrong_secret_is_not_shown_in_the_problem() -> None:
    """An unusable URL may hold a password: the problem names the variable alone."""
    (problem,) = problems({"ASSAY_REDIS__URL": "http://user:hunter2@host"})
    assert problem.startswith("ASSAY_REDIS__URL=(secret): ")
    assert "hunter2" not in problem


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    """A value and a file: which one counts is not for us to guess."""
    path = tmp_path / "secret"
    path.write_text("x")
    found = problems({"ASSAY_REDIS__PASSWORD": "hunter2", "ASSAY_REDIS__PASSWORD_FILE": str(path)})
    assert found == ["ASSAY_REDIS__PASSWORD_FILE: ASSAY_REDIS__PASSWORD is set too; set one of the two"]


def test_a_secret_file_that_is_not_there_is_named() -> None:
    """The variable, the path and the system's reason."""
    (problem,) = problems({"ASSAY_REDIS__PASSWORD_FILE": "/nowhere/password"})
    assert problem.startswith("ASSAY_REDIS__PASSWORD_FILE='/nowhere/password': ")
    assert "No such file" in problem


def test_only_secrets_come_from_files() -> None:
    """`*_FILE` of an ordinary setting is a misspelling."""
    (problem,) = problems({"ASSAY_KAFKA__GROUP_ID_FILE": "/etc/hostname"})
    assert problem.startswith("ASSAY_KAFKA__GROUP_ID_FILE is no setting")


@pytest.mark.parametrize("content", [None, b"[kafka\n", b"\xff\xfe", b"kafka = 3"])
def test_a_config_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    """Missing, not TOML, not UTF-8, or not tables: named, together with its path."""
    path = tmp_path / "assay.toml"
    if content is not None:
        path.write_bytes(content)
    (problem,) = problems({}, path)
    assert str(path) in problem


def test_settings_cannot_be_changed_later() -> None:
    """They are read once; nobody changes them behind another's back."""
    with pytest.raises(ValueError, match="frozen"):
        load(None, {}).kafka = None  # type: ignore[assignment]


def test_chosen_tells_what_was_set(tmp_path: Path) -> None:
    """Commands look for a local stack only where no address was set."""
    path = toml(tmp_path, "[http]\nport = 1\n")
    assert chosen(path, {"ASSAY_REDIS__URL": "redis://h"}) == {
        ("http", "port"): 1,
        ("redis", "url"): "redis://h",
    }
    assert chosen(None, {}) == {}


@given(
    st.dictionaries(
        st.sampled_from([variable(group, name) for group, name, _ in fields()] + ["ASSAY_X"]),
        st.text(max_size=8),
        max_size=6,
    )
)
def test_no_environment_breaks_the_parser(environ: dict[str, str]) -> None:
    """Any text in any variable gives settings, or problems that each name something that was set."""
    found: list[str] = []
    try:
        load(None, environ)
    except SettingsError as error:
        found = error.problems or ["no problem named"]
    assert all(problem.startswith("ASSAY_") for problem in found)


def test_names_are_environment_variables() -> None:
    """Every group is a table of plain fields: two levels, as the variables' names say."""
    for group, name, info in fields():
        assert variable(group, name) == f"ASSAY_{group}__{name}".upper()
        assert not (isinstance(info.annotation, type) and issubclass(info.annotation, Group))


@pytest.mark.parametrize("option", ["foo=bar", "socket_timeout=soon", "db=first"])
def test_an_option_that_the_redis_client_does_not_know_is_refused(option: str) -> None:
    """Where the settings are read, and without the URL's password; known options pass."""
    with pytest.raises(SettingsError, match="ASSAY_REDIS__URL") as refused:
        load(environ={"ASSAY_REDIS__URL": f"redis://:word@redis:6379/0?{option}"})
    assert ":word" not in str(refused.value)
    assert load(
        environ={"ASSAY_REDIS__URL": "rediss://redis:6379/1?ssl_check_hostname=true&health_check_interval=30"}
    ).redis.url
