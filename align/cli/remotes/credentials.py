"""Passwords and keys where git would publish them: `.dvc/config`, and `.dvc/config.local` if git has it."""

import re
from collections.abc import Iterator
from configparser import ConfigParser, Error
from pathlib import Path
from urllib.parse import urlsplit

from align.cli.doctor.findings import Finding
from align.cli.project.git import git

CONFIG = Path(".dvc/config")
LOCAL_CONFIG = Path(".dvc/config.local")
# Options of DVC's remotes that hold a secret itself, not the name of a file that does or the wish to be asked.
SECRET = re.compile(
    r"password|passphrase|secret_access_key|session_token|token|account_key|sas_token|connection_string"
    r"|sse_customer_key|client_secret|gdrive_client_secret|oss_key_secret"
)


def check_credentials() -> Iterator[Finding]:
    """Tell whether a config that git publishes holds a secret; its value is not shown."""
    if git("ls-files", "--error-unmatch", str(LOCAL_CONFIG)) is not None:
        mend = (f"`git rm --cached {LOCAL_CONFIG}`", "change what it holds: git keeps what was committed")
        yield Finding("credentials", "problem", f"{LOCAL_CONFIG} is in git", mend)
    found = secrets_in(CONFIG)
    for remote, option in found:
        mend = (
            f"`dvc remote modify --unset {remote} {option}`, then `dvc remote modify --local {remote} {option} VALUE`",
            "if it has been committed, change it at the server: git keeps it",
        )
        if option == "url":
            mend = (f"`dvc remote modify {remote} url URL` without the password", mend[1])
        yield Finding("credentials", "problem", f"{CONFIG} holds {option} of remote {remote}, and is in git", mend)
    if not found:
        yield Finding("credentials", "ok", f"none in {CONFIG}")


def secrets_in(config: Path) -> list[tuple[str, str]]:
    """Return remote and option of each secret in a config of DVC; of a password in an address, option `url`."""
    parser = ConfigParser(interpolation=None, strict=False, default_section="")
    try:
        parser.read(config, encoding="utf-8")
    except (Error, UnicodeDecodeError):
        return []  # DVC says so itself, and starts no command with it
    found = []
    for section in parser.sections():
        match = re.fullmatch(r"'?remote \"(.*)\"'?", section)
        for option, value in parser.items(section) if match else ():
            if SECRET.fullmatch(option) or (option == "url" and urlsplit(value).password):
                found.append((match[1] if match else "", option))
    return found
