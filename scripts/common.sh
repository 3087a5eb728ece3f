# Sourced by the other scripts: --help, what is wrong with the arguments in one line, and an argument left out before a
# further one (--overwrite and the like) takes its default. n_places says how many stand before the further ones.
usage=$(sed -n '2,/^set /{/^#/{s/^# \{0,1\}//;p;};}' "$0")
fail() {
  echo "error: $1" >&2
  exit 2
}

trait_name() { # of a trait as eval_persona takes it (an alias, a file), the name that its tables and vectors have
  python -c 'import sys; from persona_vectors.traits import trait_name; print(trait_name(sys.argv[1]))' "$1"
}

if [[ ${1-} == --help || ${1-} == -h ]]; then
  echo "$usage"
  exit
fi
if [[ -n ${n_places-} && $# -eq 0 ]]; then
  fail "no GPU_ID; give a GPU's number, or \"\" for none: $(grep -m1 '^bash scripts/' <<<"$usage")"
fi
if [[ ! ${1-} =~ ^(-1|[0-9]+(,[0-9]+)*|(GPU|MIG)-.*)?$ ]]; then
  fail "GPU_ID is $1; expected a GPU's number such as 0 or 0,1, or \"\" for none: $(grep -m1 '^bash scripts/' <<<"$usage")"
fi
if ! python -c 'import importlib.util as u, sys; sys.exit(None in map(u.find_spec, ("fire", "torch")))' &>/dev/null; then
  fail "python has no torch and fire; activate the environment that make sets up: source .venv/bin/activate"
fi

if [[ -n ${n_places-} ]]; then
  places=()
  while [[ $# -gt 0 && ${#places[@]} -lt $n_places && $1 != --* ]]; do
    places+=("$1")
    shift
  done
  while [[ $# -gt 0 && ${#places[@]} -lt $n_places ]]; do
    places+=("")
  done
  set -- "${places[@]}" "$@"
fi
