# Everything sets itself up: Python 3.11 or newer and a package index are all it takes.
.PHONY: demo test test-all docs format environment clean

demo: ## Table 6 of the paper on real MNIST, in minutes; ends by naming the report
	bash tools/environment.sh
	.venv/bin/bnvuln reproduce table6 --scale quick --jobs 2

test: ## lint, types and tests, as CI runs them
	bash .ci/run

test-all: ## the same with the slow tests
	bash .ci/run -m "slow or not slow"

docs: ## the documentation, into site/
	bash tools/environment.sh test,docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

environment: ## .venv with everything a developer needs
	bash tools/environment.sh dev

format:
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

clean:
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage*
