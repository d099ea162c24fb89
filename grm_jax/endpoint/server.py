"""The address, the key and the limits of an OpenAI-compatible server."""

import dataclasses
import os
from pathlib import Path

import httpx

from grm_jax.commands import Number
from grm_jax.display import outside_text

SLOW_TOKENS_PER_SECOND = 30.0  # of one request to a busy server, for `time_warning`
RANGES = {  # of the settings
    "parallel": Number(int, 1, 4096),
    "retries": Number(int, 0, 1000),
    "timeout": Number(float, 1e-3, 1e6),
    "total_timeout": Number(float, 0, 1e7),
    "pause": Number(float, 0, 1e4),
}
_SECRET_PARAMETERS = ("key", "token", "secret", "password", "sig")


@dataclasses.dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server, and how to send requests to it.

    Attributes:
      url: base address; "/chat/completions" is added. It must not contain a user, password or key.
      model: name of the model on the server.
      key_variable: environment variable with the key; sent as a bearer token if it is set.
      parallel: requests in flight.
      retries: further tries after a failed one that may pass.
      timeout: seconds for one try, from the connection to the last byte.
      total_timeout: seconds for all tries of one request and the waits between them; 0 is
        (retries + 1) x timeout.
      pause: seconds before the second try, doubled each time, with a random factor of 0.5 to 1.5.
        A longer Retry-After of the server wins.

    Raises ValueError, beginning with the field's name, for a value outside its range.
    """

    url: str
    model: str
    _: dataclasses.KW_ONLY
    key_variable: str = "OPENAI_API_KEY"
    parallel: int = 16
    retries: int = 5
    timeout: float = 120.0
    total_timeout: float = 0.0
    pause: float = 1.0

    def __post_init__(self) -> None:
        check_url(self.url)
        for name, number in RANGES.items():
            number.check(f"{name}=", getattr(self, name))
        for name in ("model", "key_variable"):
            if not isinstance(value := getattr(self, name), str):
                raise ValueError(f"{name}={value!r:.40}: give a text")

    @property
    def seconds(self) -> float:
        """The most seconds that one request takes."""
        return self.total_timeout or (self.retries + 1) * self.timeout


# Fields that decide how replies are fetched, but not their content.
TRANSPORT = frozenset(field.name for field in dataclasses.fields(Server)) - {"model"}


def time_warning(server: Server, max_new_tokens: int) -> str:
    """Returns a warning if a reply of the greatest length takes longer than one try, else ""."""
    seconds = max_new_tokens / SLOW_TOKENS_PER_SECOND
    limit = min(server.timeout, server.seconds)
    if seconds <= limit:
        return ""
    return (
        f"{max_new_tokens:,} new tokens take {seconds:.0f} s at {SLOW_TOKENS_PER_SECOND:.0f} "
        f"tokens/s, and a request times out after {limit:g} s: raise timeout, or lower "
        "max_new_tokens"
    )


def check_url(url: str) -> None:
    """Raises ValueError, which does not quote secrets, for an address that cannot be used."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise ValueError(f"url is not an address: {outside_text(error)}") from None
    if parsed.userinfo or any(
        secret in name.lower() for name in parsed.params for secret in _SECRET_PARAMETERS
    ):
        raise ValueError(
            f"url contains a password or key, which would be written to disk: give {public(url)} "
            "and set the key in the environment, OPENAI_API_KEY"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"url={outside_text(url)} does not begin with http://HOST or https://HOST")
    if not 0 < (parsed.port or 80) < 65536:
        raise ValueError(f"url={outside_text(url)}: a port is a number from 1 to 65535")


def public(url: str) -> str:
    """Returns an address without user, password, parameters and fragment."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(username=None, password=None, query=None, fragment=None))


def endpoint_url(url: str, name: str) -> str:
    """Returns the address of "chat/completions" or "models" below a base address."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(path=f"{parsed.path.rstrip('/')}/{name}", fragment=None))


def api_key(variable: str) -> str:
    """Returns the key, "" without one. Raises ValueError, without it, if it is not a key."""
    key = os.environ.get(variable, "")
    if not key and (path := os.environ.get(f"{variable}_FILE")):
        try:
            key = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"${variable}_FILE={path} cannot be read: {outside_text(error)}"
            ) from None
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"${variable} has a character that is not allowed in a key: set it again")
    return key
