#!/usr/bin/env bash
# Make .venv with bnvuln installed in place; quick when it is there already.
#   tools/environment.sh [EXTRAS]      EXTRAS as in setup.cfg, e.g. test
# Needs Python 3.11 or newer (PYTHON=... names one) and a package index.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-}

find_python() {
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "bnvuln needs Python 3.11 or newer; set PYTHON to one" >&2
  exit 1
}

want="$(cat setup.cfg pyproject.toml constraints.txt | cksum) $PWD"
stamp=".venv/installed-${extras:-base}"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  exit 0
fi
[ -x .venv/bin/python ] || "$(find_python)" -m venv .venv
echo "installing bnvuln${extras:+[$extras]} into .venv" >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}"
case ",$extras," in
  *,dev,* | *,bench,*)
    # Of the extra bench (see setup.cfg). All that it imports is there by now: PyTorch, NumPy, SciPy, tqdm.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1
    ;;
esac
echo "$want" > "$stamp"
