# The entry points of the repository; each line does what its name says. `bin/flotilla --help` has the rest.
.PHONY: help run test up down reset build check bench faults sizes images reproduce cluster cluster-down cluster-test k8s k8s-down schemas baseline

help:
	@echo "make run      bring the whole fleet up and keep it in the foreground (Ctrl-C stops it)"
	@echo "make test     run all tests: unit, property, integration, fleet"
	@echo "make up/down  the same fleet in the background"
	@echo "make reset    remove the stopped fleet's data, after asking"
	@echo "make check    formatting, lints, contracts, generated files"
	@echo "make bench    measure against this machine's raw limits (release build; allow an hour and a quarter)"
	@echo "make faults   half an hour of kills, pauses, cuts, wipes, restores and poison under load, then the promise is checked; then stores restored in pairs, a cluster and two releases"
	@echo "make sizes    an outbox of twenty million rows: what the relay and operators read of it"
	@echo "make images   an OCI archive of each program, without a container engine, into target/images (release build)"
	@echo "make reproduce  build and pack todo in two clean clones: the same digest (a quarter of an hour)"
	@echo "make k8s      the whole fleet in a Kubernetes of one node on this machine (root, see docs/kubernetes.md); make k8s-down removes it"
	@echo "make cluster  a real Kubernetes of one node on this machine (root; builds its programs once); make cluster-down removes it"
	@echo "make schemas  write schemas/ anew from the Rust types"

build:
	@scripts/prerequisites.sh
	@scripts/build.sh

# ARGS=--oidc: with a real OpenID provider.
run: build
	@exec bin/flotilla run $(ARGS)

up: build
	@exec bin/flotilla up

down:
	@exec bin/flotilla down

reset:
	@exec bin/flotilla reset

test: build
	@scripts/test.sh

check:
	@scripts/check.sh

# Leave the machine alone meanwhile. For one figure: target/release/bench --help
bench:
	@scripts/prerequisites.sh
	@scripts/release.sh
	@target/release/bench all

# FLOTILLA_FAULTS_SECONDS=1800 and FLOTILLA_FAULTS_SEED=any say how long, and which run again.
faults: build
	@cargo test --workspace --test faults -- --ignored --nocapture
	@cargo test --workspace --test restored -- --ignored --nocapture
	@cargo test --package operations --test it cluster
	@cargo test --package consumer --test consuming releases

sizes: build
	@cargo test --package todo --test it -- --ignored --nocapture sizes

# Every service, and the command. PROFILE=debug takes what `make build` has built.
images:
	@scripts/prerequisites.sh
	@[ "$${PROFILE:-release}" != release ] || scripts/release.sh
	@scripts/images.sh target/images flotilla $(notdir $(wildcard services/*))

reproduce:
	@scripts/prerequisites.sh
	@scripts/reproduce.sh

cluster:
	@scripts/cluster.sh up

cluster-down:
	@scripts/cluster.sh down

# Needs root, and takes down a cluster that is up. One after the other: there is one cluster on a machine.
cluster-test: build
	@scripts/cluster.sh prerequisites
	@cargo test --workspace --test cluster -- --ignored --nocapture --test-threads=1

# PROFILE=debug takes what `make build` has built. For another release of this clone: scripts/k8s.sh release NAME
k8s:
	@scripts/k8s.sh check
	@scripts/prerequisites.sh
	@if [ "$${PROFILE:-release}" = release ]; then scripts/release.sh; else scripts/build.sh; fi
	@scripts/k8s.sh up

k8s-down:
	@scripts/k8s.sh down

schemas:
	UPDATE_SCHEMAS=1 cargo test --quiet --package contracts --test schemas the_schemas_folder_is_what_the_types_say
	UPDATE_SCHEMAS=1 cargo test --quiet --package gateway --lib the_description_is_as_it_was_reviewed

# After a release: what clients rely on from now on.
baseline:
	@scripts/buf.sh build proto --exclude-source-info -o proto/baseline.binpb
	cp schemas/*.json schemas/released/
	sha384sum services/*/migrations/*.sql crates/*/schema/*.sql > infra/released-migrations.sha384
