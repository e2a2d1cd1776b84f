#!/usr/bin/env bash
# Writes protos/gen anew from the .proto files. With --check: says what differs and changes nothing.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
target=gen
if [[ ${1:-} == --check ]]; then target=$(mktemp -d); trap 'rm -rf "$target"' EXIT; fi

mapfile -t files < <(find countinghouse -name '*.proto' | LC_ALL=C sort)
rm -rf "${target:?}/countinghouse"
mkdir -p "$target"
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -I . \
  --python_out="$target" --grpc_python_out="$target" --mypy_out=quiet:"$target" --mypy_grpc_out=quiet:"$target" "${files[@]}"
# files that define no service get an empty stub module: leave those out
find "$target" -name '*_pb2_grpc.py*' | while read -r file; do
  grep -q 'class .*Stub' "$file" || rm "$file"
done
touch "$target/countinghouse/py.typed"
if [[ ${1:-} == --check ]]; then
  diff -r -x __pycache__ "$target/countinghouse" gen/countinghouse \
    || { echo "protos/gen differs from the .proto files: run 'make gen' and commit the result" >&2; exit 1; }
fi
