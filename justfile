# What one does here; `just` lists it. Another environment: just venv=/path/to/venv check

venv := ".venv"
python := venv / "bin/python"

_list:
    @{{ just_executable() }} --list --unsorted

# Make the environment
setup:
    python3 -m venv {{ venv }}
    {{ python }} -m pip install -e '.[dev]'

# See the whole system work:  just demo --quick
demo *flags:
    {{ venv }}/bin/weakmcn demo {{ flags }}

# Everything a change must pass, but for the wheel
check: lint types docs test

# Take the screenshots of the pages again; needs Chromium and a finished `weakmcn demo --quick`
screenshots:
    {{ python }} -m tests.screenshots

# The tests, or some of them:  just test tests/test_cli.py
test *flags:
    {{ python }} -m pytest {{ flags }}

# Format, lint, import directions
lint:
    {{ venv }}/bin/ruff format --check .
    {{ venv }}/bin/ruff check .
    {{ venv }}/bin/lint-imports --no-cache

# Put the code into shape
format:
    {{ venv }}/bin/ruff format .
    {{ venv }}/bin/ruff check --fix .

# Types
types:
    {{ venv }}/bin/pyright --pythonpath {{ python }}

# Build the documentation's site into build/site; a broken link or a page outside the navigation fails
docs:
    NO_MKDOCS_2_WARNING=1 {{ venv }}/bin/mkdocs build --strict

# Type the commands of pages and put what they print into them:  just pages docs/plan.md docs/runs.md
pages +files:
    {{ python }} -m tests.walk {{ files }}

# Build the wheel, install it alone, run it far from this folder
wheel-test:
    .ci/wheel-test {{ python }}

# Type the commands of docs/clusters.md; needs a finished demo, and stops every Ray process of yours
clusters:
    {{ python }} -m tests.clusters

# Make the pocket world's frozen networks again (two to three hours on two cores)
pocket-weights:
    {{ python }} -m weakmcn.pipeline.pocket.pretrain

# Score of the pocket network by minutes of training:  just score-against-time STORE --minutes 1,2,4
score-against-time store *flags:
    {{ python }} tests/bench/score_against_time.py {{ store }} {{ flags }}

# Measure something, for the docs:  just bench codecs, just bench real_sizes --size l
bench name *flags:
    {{ python }} -m tests.bench.{{ name }} {{ flags }}

# Train the ports on the synthetic set and hold them to their acceptance checks
acceptance *flags:
    {{ python }} -m tests.acceptance {{ flags }}

# The fault tests at full length, an hour at most; fewer of each:  just soak --minutes 5
soak *flags:
    {{ python }} -m tests.soak {{ flags }}

# Seeded defects, each of which the tests must catch
mutants *flags:
    {{ python }} -m tests.mutants {{ flags }}
