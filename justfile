# Short names for the commands of this repository (https://just.systems). Each recipe calls a script or cargo;
# the scripts document their options. Recipes that start sandboxes need root and use sudo.

sudo := if `id -u` == "0" { "" } else { "sudo" }

# List the recipes
default:
    @just --list

# Build all programs, optimised: target/release
build:
    cargo build --release --locked --bins

# Every check and every test, or only tests whose names match: just test api_sessions::
test *FILTER:
    {{ sudo }} ./scripts/test {{ FILTER }}

# The unit tests: no daemon, no sandbox
test-unit:
    ./scripts/test unit

# Measure the promised numbers (docs/promises.md): just perf short
perf *ARGS:
    {{ sudo }} ./scripts/perf {{ ARGS }}

# Build the Debian package: target/package
deb *ARGS:
    ./packaging/build-deb {{ ARGS }}

# Test the package in a booted Debian under QEMU: just vm full
vm *ARGS="short":
    {{ sudo }} ./tests/machine/run {{ ARGS }}

# Build ashd, run one session with the real Claude Code, show its confinement, remove everything
demo:
    {{ sudo }} ./scripts/demo

# Format, clippy and dependencies, as scripts/test checks them
lint:
    cargo fmt --all --check
    cargo clippy --release --locked --all-targets -- -D warnings
    cargo deny --locked check --deny unmatched-skip --deny unnecessary-skip bans licenses sources

# The documentation of the code: target/doc/ashd/index.html
doc:
    cargo doc --locked --no-deps --document-private-items
