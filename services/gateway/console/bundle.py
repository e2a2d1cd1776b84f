"""Make the console's bundle: `python -m services.gateway.console.bundle`, or `make console`.

It needs Node.js with npm, and gets the packages of `package-lock.json` into the user's cache. Who runs the
gateway needs none of them: `static/` is in the repository, and names the sources that it was made from.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
STATIC: Final = FOLDER / "static"
_SOURCES: Final = FOLDER / "src"
_BANNER: Final = "/* made by make console, of sources "
_LICENSES: Final = "; contains preact (MIT), htm (Apache-2.0) and uPlot (MIT) */\n"


def fingerprint() -> str:
    """Return the SHA-256 of the sources and of the versions that they are bundled with."""
    found = hashlib.sha256()
    for file in sorted([*_SOURCES.rglob("*.*"), FOLDER / "package-lock.json"]):
        found.update(f"{file.relative_to(FOLDER).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()


def bundled_of() -> str:
    """Return the fingerprint of the sources that the bundle was made from; empty: there is none."""
    try:
        first = (STATIC / "app.js").open(encoding="utf-8").readline()
    except FileNotFoundError:
        return ""
    return first.removeprefix(_BANNER).partition(";")[0] if first.startswith(_BANNER) else ""


def packages() -> Path:
    """Get the packages; return their folder.

    Raises:
        OSError: There is no Node.js.
        subprocess.CalledProcessError: A package cannot be had.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "countinghouse" / "console"
    cache.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(FOLDER / name, cache / name)
    npm = ["npm", "ci", "--prefix", str(cache), "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(npm, check=True, stdout=sys.stderr)  # noqa: S603
    return cache / "node_modules"


def make() -> None:
    """Make the bundle. Raises as `packages`, also if the sources are wrong."""
    modules = packages()
    STATIC.mkdir(exist_ok=True)
    shutil.copyfile(_SOURCES / "index.html", STATIC / "index.html")
    charts = (modules / "uplot" / "dist" / "uPlot.min.css").read_bytes()
    (STATIC / "app.css").write_bytes((_SOURCES / "app.css").read_bytes() + charts)
    esbuild = str(modules / ".bin" / "esbuild")
    options = [
        "--bundle",
        "--minify",
        "--format=esm",
        "--target=es2022",
        "--legal-comments=none",
        "--log-level=warning",
    ]
    environment = os.environ | {"NODE_PATH": str(modules)}
    made = subprocess.run(  # noqa: S603
        [esbuild, str(_SOURCES / "main.js"), *options], check=True, capture_output=True, env=environment
    )
    (STATIC / "app.js").write_bytes(f"{_BANNER}{fingerprint()}{_LICENSES}".encode() + made.stdout)


def main() -> None:
    """`python -m services.gateway.console.bundle [--check]`."""
    parser = argparse.ArgumentParser(prog="python -m services.gateway.console.bundle", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="make nothing; exit code 1: the bundle is of other sources"
    )
    parser.add_argument("--axe", action="store_true", help="make nothing; print where axe-core is, for the tests")
    given = parser.parse_args()
    if given.check:
        if bundled_of() != fingerprint():
            sys.exit("services/gateway/console/static is of other sources; run `make console`")
        return
    try:
        if given.axe:
            print(packages() / "axe-core" / "axe.min.js")  # noqa: T201  for make
            return
        make()
    except FileNotFoundError as error:
        sys.exit(f"bundle: {error.filename} is missing; install Node.js with npm")
    except subprocess.CalledProcessError as error:
        sys.exit(f"bundle: {(error.stderr or b'').decode(errors='replace') or error}")


if __name__ == "__main__":
    main()
