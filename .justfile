# `just` lists these; each line can be typed as it is.
python := ".venv/bin/python"

_list:
    @just --list --justfile {{justfile()}}

# Run all tests but the slow ones
test *ARGS:
    {{python}} -m pytest {{ARGS}}

# Run some tests without starting workers: just one tests/engine
one +ARGS:
    {{python}} -m pytest -n 0 {{ARGS}}

# Run the slow tests
slow:
    {{python}} -m pytest -m slow

# Format, and repair what the linter can
fix:
    {{python}} -m ruff format .
    {{python}} -m ruff check --fix .

# Format, lint and types, as CI checks them
check:
    {{python}} -m ruff format --check .
    {{python}} -m ruff check .
    {{python}} -m mypy

# Build the documentation into docs/site; warnings are errors
docs:
    {{python}} -m mkdocs build --strict -f docs/mkdocs.yml

# Draw the picture of a run for the README and the documentation again
picture:
    {{python}} docs/picture.py

# Everything CI runs, in a fresh environment
ci:
    bash .ci/run
