# Sourced by demo.sh and test.sh: a virtual environment in .venv with isojax installed.
#   setup EXTRAS   e.g. setup "" or setup "[test]"; ISOJAX_VENV names another folder
setup() {
  local venv want
  venv="$(realpath -m "${ISOJAX_VENV:-.venv}")"
  want="$(cat pyproject.toml) $1"
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$want" ]; then
    echo "installing isojax$1 into $venv (a minute or two)"
    "$venv/bin/python" -m pip install --no-compile --quiet --disable-pip-version-check --editable ".$1"
    printf '%s' "$want" > "$venv/.installed"
  fi
  export PATH="$venv/bin:$PATH"
}
