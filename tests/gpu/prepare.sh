#!/usr/bin/env bash
# prepare.sh DIR: an environment in DIR with a CUDA build of torch (several GB) and two small libraries that
# stand in for a driver and its count of devices. Needs Python 3.11 or later, gcc and g++.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1/stub"
"${PYTHON3:-python3}" -m venv "$1/venv"
"$1/venv/bin/pip" install -q torch==2.11.0 triton==3.6.0 numpy pandas pyarrow scipy matplotlib click rich pyyaml \
  safetensors tokenizers transformers==5.17.0 setuptools
g++ -shared -fPIC -o "$1/devices.so" "$here/devices.cpp"
gcc -shared -fPIC -o "$1/stub/libcuda.so.1" "$here/driver.c"
