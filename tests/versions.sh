#!/usr/bin/env bash
# Test with the oldest supported torch and the newest there is, each in an environment of its own, in .versions:
#   tests/versions.sh                          both, with what `make test` runs
#   tests/versions.sh 2.12.0 -- tests/core     versions of one's own; what follows -- goes to pytest
# Exit code 1 if tests failed with one of them, 3 if one could not be installed here and so was not tested.
set -uo pipefail
cd "$(dirname "$0")/.."

oldest=$(sed -n 's/^ *"torch>=\([0-9.]*\)",$/\1/p' pyproject.toml)
versions=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do versions+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#versions[@]} -eq 0 ] && versions=("$oldest.*" newest)
arguments=("$@")
[ ${#arguments[@]} -eq 0 ] && arguments=(-n 2 --dist worksteal -m "not slow and not vision")

mkdir -p .versions
grep -v '^torch==' constraints.txt > .versions/constraints.txt
code=0
report=()
for version in "${versions[@]}"; do
    home=".versions/${version%.\*}"
    requirement="torch==$version"
    [ "$version" = newest ] && requirement="torch"
    echo "== $requirement"
    "${PYTHON:-python3}" -m venv "$home" || exit 2
    if ! "$home/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade \
        -c .versions/constraints.txt "$requirement" -e '.[dev]'; then
        report+=("$requirement: could not be installed here, NOT TESTED")
        [ $code -eq 0 ] && code=3
        continue
    fi
    installed=$("$home/bin/python" -c 'import torch; print(torch.__version__)')
    if OMP_NUM_THREADS=1 "$home/bin/python" -m pytest "${arguments[@]}"; then
        report+=("torch $installed: passed")
    else
        report+=("torch $installed: FAILED")
        code=1
    fi
done
echo
printf '%s\n' "${report[@]}"
exit $code
