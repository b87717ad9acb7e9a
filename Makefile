# Each target installs what is missing first. PYTHON=python3.12 chooses another interpreter; ARGS is passed to pytest.
PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11 python3.10; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
PIP := .venv/bin/python -m pip --disable-pip-version-check -q
# The tests start some two hundred processes; without bytecode each would compile the whole package.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: install develop run test coverage lint docs bench

# One environment that grows: `make install` and `make run` need what the proxy needs, the other targets the rest, too.
install: .venv/.installed

develop: .venv/.developed

run: install
	.venv/bin/nacos-proxy demo

# The fault suite waits more than it works, so it runs beside the others; with ARGS there is one pytest.
test: develop
ifdef ARGS
	NACOS_PROXY_TEST_RNACOS= .venv/bin/pytest $(ARGS)
else
	@mkdir -p build; NACOS_PROXY_TEST_RNACOS= .venv/bin/pytest tests/faults tests/helpers -p no:cacheprovider >build/faults.log 2>&1 & faults=$$!; \
	NACOS_PROXY_TEST_RNACOS= .venv/bin/pytest --ignore=tests/faults --ignore=tests/helpers; rest=$$?; \
	wait $$faults; faults=$$?; cat build/faults.log; [ $$rest -eq 0 ] && [ $$faults -eq 0 ]
endif

coverage: develop
	NACOS_PROXY_TEST_RNACOS= .venv/bin/coverage run -m pytest $(ARGS) && .venv/bin/coverage combine -q && .venv/bin/coverage json -q && .venv/bin/python .ci/coverage_floors.py coverage.json

lint: develop
	.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/pyright && .venv/bin/lint-imports

# The site, in build/site; to read it with its search: python3 -m http.server -d build/site
docs: develop
	$(PIP) install -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

bench: develop
	.venv/bin/python -m loadtest all --quick

.venv/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed; choose it with make PYTHON=..."; exit 1; }
	@echo "installing the proxy into .venv"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) install -e .
	@touch $@

# --no-deps: the legacy half of the SDK needs no dependencies; only its gRPC half needs the 130 MB that the package asks for.
.venv/.developed: .venv/.installed tests/legacy-sdk.txt
	@echo "installing what the tests need into .venv; the first time this takes some minutes"
	$(PIP) install -e '.[dev]'
	$(PIP) install --no-deps -r tests/legacy-sdk.txt
	@touch $@
