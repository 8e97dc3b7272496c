"""Secrets are known by their name or form; other options are shown."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from noising.config.instantiate import make
from noising.config.secrets import is_reference, is_secret, masked, require_no_secret
from noising.errors import ConfigError

SECRET = (
    *("key", "api_key", "apikey", "apiKey", "wandb_api_key", "WANDB_API_KEY", "ssh_key", "aws_access_key_id"),
    *("aws_secret_access_key", "private-key", "token", "tokens", "hf_token", "accessToken", "secret", "secrets"),
    *("client_secret", "password", "passwords", "dbpassword", "PGPASSWORD", "passwd", "pwd", "user_pwd", "passphrase"),
    *("auth", "basic_auth", "authorization", "cookie", "cookies", "session_cookie", "dsn", "sentry_dsn", "credentials"),
    *("logger.mine.api_key", "+data.token", "secrets.hub", "logger.auth.user", "tokens.0"),
)
OPEN = (
    *("monkey", "image_key", "sort_keys", "author", "authors", "project", "root", "name", "tokenizer", "token_dim"),
    *(
        "keyword",
        "schedule",
        "checkpoint",
        "sha256",
        "run_id",
        "dsnake",
        "cookiecutter",
        "model.attention",
        "secretary",
    ),
)


def test_secret_names() -> None:
    assert [name for name in SECRET if not is_secret(name)] == []
    assert [name for name in OPEN if is_secret(name)] == []


def test_masked() -> None:
    given: dict[str, Any] = {
        "token": "abc",
        "tokens": ["abc", "def"],
        "auth": {"user": "me", "kind": "basic"},
        "pwd": 1234,
        "max_tokens": 512,
        "key": 3,
        "lr": 0.1,
        "password": None,
        "api_key": "${oc.env:KEY}",
        "url": "https://me:abc@host/x?a=1&token=abc&b=2",
        "signed": "see host/x?X-Amz-Signature=abc#access_token=abc and host?sig=abc;password=abc",
    }
    assert masked(given) == {
        "token": "***",
        "tokens": ["***", "***"],
        "auth": {"user": "***", "kind": "***"},
        "pwd": "***",
        "max_tokens": 512,
        "key": 3,
        "lr": 0.1,
        "password": None,
        "api_key": "${oc.env:KEY}",
        "url": "https://***@host/x?a=1&token=***&b=2",
        "signed": "see host/x?X-Amz-Signature=***#access_token=*** and host?sig=***;password=***",
    }


def test_references() -> None:
    assert is_reference("tokens.0", "${oc.env:A}")
    for name, text in (
        ("root", "${oc.env:A}"),
        ("token", "a${oc.env:A}"),
        ("token", "${oc.env:A,b}"),
        ("token", "${A}"),
    ):
        assert not is_reference(name, text)


def quoting(token: str, count: int = 1, password: int = 1) -> None:
    raise ValueError(f"{token} is no token")


def test_an_error_does_not_quote_a_secret() -> None:
    node: dict[str, Any] = {"_target_": f"{__name__}.quoting", "token": "5ec4e7"}
    with pytest.raises(ConfigError, match=r"^data: \*\*\* is no token$"):
        make(node, "data", object)
    with pytest.raises(ConfigError, match=r"^data.password=\*\*\*: expected int"):
        make({**node, "password": "5ec4e7"}, "data", object)
    with pytest.raises(ConfigError, match=r"^data.password: no such"):
        make({"_target_": "noising.data.digits.Digits", "password": "5ec4e7"}, "data", object)


def test_what_is_not_a_number_is_no_secret() -> None:
    require_no_secret(OmegaConf.create({"data": {"kind": float("nan"), "root": "~/images"}}))
    with pytest.raises(ConfigError, match=r"data\.token looks like a secret"):
        require_no_secret(OmegaConf.create({"data": {"token": "5ec4e7"}}))
