"""How each language's programs are built and run. Their sources are in the folders of the same names."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.interop.toolchain import PROTOS, SOURCES, Step, Toolchain

_BUILD_LIMIT_S = 600.0
_UNREACHED = r"connection refused|timed? ?out|no such host|dns error|network is unreachable"

#: What each client says when it could not fetch. A wrong hash or a lock that does not fit is no such thing: that fails.
_MAVEN_UNFETCHED = re.compile(
    r"Could not (resolve|transfer|find artifact)|could not be resolved|Unable to resolve artifact"
    r"|Failed to read artifact descriptor"
)
_GO_UNFETCHED = re.compile(rf"{_UNREACHED}|reading \S+: \d{{3}} |unrecognized import path|dial tcp", re.IGNORECASE)
_UV_UNFETCHED = re.compile(rf"{_UNREACHED}|failed to (fetch|download)|not found in the package registry", re.IGNORECASE)
_NPM_UNFETCHED = re.compile(r"FetchError|code E(CONN|NOTFOUND|AI_AGAIN|TIMEDOUT|HOSTUNREACH|NETUNREACH|[45]\d\d)")


# ---- Java: Maven fetches Dubbo and protoc, and compiles -----------------------------------------------------


def _java_steps(folder: Path) -> Sequence[Step]:
    build = (
        *("mvn", "--batch-mode", "--strict-checksums", f"-Dbuild.folder={folder}"),
        "-Dmaven.wagon.rto=30000",  # a silent repository is given up after 30 s, not after half an hour
        *("compile", "dependency:copy-dependencies", f"-DoutputDirectory={folder / 'lib'}"),
    )
    return [
        Step(
            "building (a minute or more the first time)",
            build,
            SOURCES / "java",
            _MAVEN_UNFETCHED,
            limit_s=_BUILD_LIMIT_S,
        )
    ]


def _java_command(folder: Path, program: str) -> Sequence[str]:
    return (
        *("java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
        f"-Duser.home={folder / 'home'}",  # Dubbo keeps its caches there
        "-Ddubbo.application.logger=jdk",
        *("-cp", f"{folder / 'classes'}{os.pathsep}{folder / 'lib'}{os.sep}*"),
        f"countinghouse.interop.{program.capitalize()}",
    )


JAVA: Final = Toolchain("java", ("java", "javac", "mvn"), SOURCES / "java", _java_steps, _java_command)


# ---- Go: our messages are generated beside the sources, in an ignored folder --------------------------------

_GO: Final = SOURCES / "go"
_GENERATOR = "google.golang.org/protobuf/cmd/protoc-gen-go"


def _go_steps(folder: Path) -> Sequence[Step]:
    files = [str(file.relative_to(PROTOS)) for file in sorted(PROTOS.rglob("*.proto"))]
    packages = [f"--go_opt=M{file}=countinghouse.interop/gen/{Path(file).parent}" for file in files]
    generate = (
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"),
        f"--plugin=protoc-gen-go={folder / 'protoc-gen-go'}",
        *("--go_out=.", "--go_opt=module=countinghouse.interop", *packages, *files),
    )
    nothing_more = {"GOPROXY": "off"}
    return [
        Step("fetching the generator", ("go", "list", "-deps", _GENERATOR), _GO, _GO_UNFETCHED),
        Step(
            "building the generator",
            ("go", "build", "-buildvcs=false", "-o", str(folder / "protoc-gen-go"), _GENERATOR),
            _GO,
            environment=nothing_more,
        ),
        Step("generating our messages", generate, _GO),
        Step("fetching dubbo-go", ("go", "list", "-deps", "."), _GO, _GO_UNFETCHED, limit_s=_BUILD_LIMIT_S),
        Step(
            "building (a minute or more the first time)",
            ("go", "build", "-buildvcs=false", "-o", str(folder / "interop"), "."),
            _GO,
            limit_s=_BUILD_LIMIT_S,
            environment=nothing_more,
        ),
    ]


def _go_command(folder: Path, program: str) -> Sequence[str]:
    return (str(folder / "interop"), program)


GO: Final = Toolchain("go", ("go",), _GO, _go_steps, _go_command)


# ---- PyPI's apache-dubbo: a virtual environment of its own, for its pins are not ours ----------------------

_PYPI: Final = SOURCES / "pypi"
_UV: Final = str(Path(sys.executable).with_name("uv"))


def _pypi_steps(folder: Path) -> Sequence[Step]:
    python = str(folder / "venv" / "bin" / "python")
    return [
        Step("making a virtual environment", (_UV, "venv", "--clear", "--python", sys.executable, "venv"), folder),
        Step(
            "installing apache-dubbo",
            (_UV, "pip", "install", "--python", python, "--require-hashes", "-r", str(_PYPI / "requirements.lock")),
            folder,
            _UV_UNFETCHED,
        ),
    ]


def _pypi_command(folder: Path, program: str) -> Sequence[str]:
    return (str(folder / "venv" / "bin" / "python"), "-P", str(_PYPI / f"{program}.py"))


def _pypi_environment(_folder: Path) -> Mapping[str, str]:
    return {"PYTHONPATH": str(PROTOS / "gen")}


PYPI: Final = Toolchain("pypi", (_UV,), _PYPI, _pypi_steps, _pypi_command, _pypi_environment)


# ---- npm's @apachedubbo/dubbo: it reads our messages from their descriptors --------------------------------

_NPM: Final = SOURCES / "npm"


def _npm_steps(folder: Path) -> Sequence[Step]:
    for file in _NPM.iterdir():
        shutil.copy(file, folder)  # npm installs beside package.json, and a script imports from beside itself
    files = [str(file.relative_to(PROTOS)) for file in sorted(PROTOS.rglob("*.proto"))]
    describe = (
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_imports"),
        *(f"--descriptor_set_out={folder / 'protos.binpb'}", *files),
    )
    install = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=30000")
    return [
        Step("describing our messages", describe, folder),
        Step("installing @apachedubbo/dubbo", install, folder, _NPM_UNFETCHED),
    ]


def _npm_command(folder: Path, program: str) -> Sequence[str]:
    return ("node", str(folder / f"{program}.js"), str(folder / "protos.binpb"))


NPM: Final = Toolchain("npm", ("node", "npm"), _NPM, _npm_steps, _npm_command)
