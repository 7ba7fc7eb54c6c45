#!/bin/sh
# Takes out of a virtual environment what is of no use where nothing is compiled or tested: slim.sh FOLDER
set -eu
packages=$(echo "$1"/lib/python3*/site-packages)
find "$packages" -depth -type d \( -name tests -o -name include \) -exec rm -rf {} +
find "$packages" -type f \( -name '*.a' -o -name '*.pyi' -o -name '*.pxd' \) -delete
rm -rf "$packages/torch/test"
find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete
