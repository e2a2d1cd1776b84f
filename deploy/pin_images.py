"""Pin the public images of the deployment: name each by its digest, in deploy/.env, which docker compose reads.

    make pin-images        pulls each image by its tag, and writes the digest that the registry gave

A tag can be moved to another image, a digest cannot. What is written is to be committed, and renewed when an image has
security fixes. Without the file the deployment uses the tags.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).with_name(".env")
#: The variable of docker-compose.yml for each image that it names.
IMAGES = {
    "COUNTINGHOUSE_PYTHON_IMAGE": "python:3.13-slim",
    "COUNTINGHOUSE_ZOOKEEPER_IMAGE": "zookeeper:3.9",
    "COUNTINGHOUSE_POSTGRES_IMAGE": "postgres:17",
}
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_PULL_TIMEOUT_S = 600


class NotPinned(Exception):
    """An image has no digest of a registry; the message says why, and what to do."""


def digest(image: str) -> str:
    """Pull an image, and return its digest, `@sha256:…`: that of all its architectures, if it has several.

    Raises:
        NotPinned: It cannot be pulled, or was built here.
    """
    _docker("pull", "--quiet", image)
    found = json.loads(_docker("image", "inspect", "--format", "{{json .RepoDigests}}", image)) or []
    digests = {match[0] for name in found if (match := _DIGEST.search(name))}
    if len(digests) != 1:
        raise NotPinned(f"{image} has {len(digests)} digests, and one is wanted; remove the image, and run this again")
    return digests.pop()


def pinned(before: str, digests: dict[str, str]) -> str:
    """Return the text of the file with these digests; lines about something else stay.

    Args:
        digests: By variable.
    """
    others = [line for line in before.splitlines() if line.partition("=")[0] not in digests]
    return "\n".join([*others, *(f"{variable}={IMAGES[variable]}{each}" for variable, each in digests.items())]) + "\n"


def main() -> int:
    """Pin every image, or none.

    Returns:
        The exit code: 1 if an image cannot be pinned.
    """
    digests = {}
    for variable, image in IMAGES.items():
        print(f"{image}: asking the registry", file=sys.stderr)
        try:
            digests[variable] = digest(image)
        except NotPinned as error:
            print(f"pin_images: {error}; nothing was written", file=sys.stderr)
            return 1
    before = FILE.read_text(encoding="utf-8") if FILE.exists() else ""
    FILE.write_text(pinned(before, digests), encoding="utf-8")
    for variable, each in digests.items():
        print(f"{IMAGES[variable]}{each}")
    print(f"written to {FILE.parent.name}/{FILE.name}; commit it", file=sys.stderr)
    return 0


def _docker(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603  the images are ours to name
            ["docker", *arguments],  # noqa: S607  wherever it is installed
            capture_output=True,
            text=True,
            check=False,
            timeout=_PULL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotPinned(f"docker {arguments[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NotPinned(f"docker {arguments[0]} {arguments[-1]} failed: {words[-1]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
