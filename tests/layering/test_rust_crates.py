"""Who depends on whom among the crates, and what is absent from each; every rule is broken by an example."""

from collections.abc import Callable

import pytest

from tests.layering import rust_rules as rules
from tests.layering.sources import Sources, checkout

Rule = Callable[[Sources], list[str]]


@pytest.mark.parametrize("rule", [rules.dependencies, rules.unsafe_code, rules.absent], ids=lambda rule: rule.__name__)
def test_the_checkout_keeps_the_rule(rule: Rule) -> None:
    assert rule(checkout()) == []


def test_the_crates_are_seen() -> None:
    found = rules.crates(checkout())
    assert found.keys() >= {"schema", "wire", "dispatch", "front", "bridge"}
    assert found["front"] >= {"penstock-wire", "penstock-dispatch", "hyper"}
    assert "pyo3" in found["bridge"]


def test_every_promise_of_absence_is_about_files_that_exist() -> None:
    for prefix, promise, _ in rules.ABSENT:
        assert [path for path in checkout() if path.startswith(prefix)], f"{promise}: nothing is below {prefix}"


@pytest.mark.parametrize(
    ("crate", "manifest", "words"),
    [
        ("wire", "[dependencies]\npenstock-dispatch.workspace = true", "wire must not know dispatch"),
        ("dispatch", "[dev-dependencies]\npenstock-wire = { path = '../wire' }", "dispatch must not know wire"),
        ("schema", "[build-dependencies]\npenstock-wire.workspace = true", "schema must not know wire"),
        ("load", "[dependencies]\nw = { package = 'penstock-front', path = '../front' }", "load must not know front"),
        ("front", "[target.'cfg(unix)'.dependencies]\npenstock-bridge.workspace = true", "must not know bridge"),
        ("bridge", "[dependencies]\npenstock-wire.workspace = true", "bridge must not know wire"),
        ("front", "[dependencies]\npyo3 = '0.28'", "only bridge knows Python"),
        ("wire", "[dependencies]\ntokio.workspace = true", "promises to be free"),
        ("attic", "[dependencies]", "has no row in MAY_DEPEND"),
    ],
)
def test_a_dependency_across_the_layers_is_found(crate: str, manifest: str, words: str) -> None:
    (complaint,) = rules.dependencies({f"crates/{crate}/Cargo.toml": manifest})
    assert words in complaint


def test_a_crate_that_the_workspace_calls_otherwise_is_found() -> None:
    workspace = "[workspace.dependencies]\nqueue = { package = 'penstock-dispatch', path = 'crates/dispatch' }"
    crate = {"crates/wire/Cargo.toml": "[dependencies]\nqueue.workspace = true"}
    (complaint,) = rules.dependencies({"Cargo.toml": workspace, **crate})
    assert "wire must not know dispatch" in complaint


@pytest.mark.parametrize("root", ["//! A crate.\n", "// #![forbid(unsafe_code)]\n", "#![deny(unsafe_code)]\n"])
def test_a_crate_that_does_not_forbid_unsafe_code_is_found(root: str) -> None:
    manifests = {"crates/wire/Cargo.toml": "", "crates/bridge/Cargo.toml": ""}
    good = {**manifests, "crates/wire/src/lib.rs": "#![forbid(unsafe_code)]\n", "crates/bridge/src/lib.rs": ""}
    assert rules.unsafe_code(good) == []
    assert len(rules.unsafe_code({**good, "crates/wire/src/lib.rs": root})) == 1
    for program in ("main.rs", "bin/tool.rs", "bin/tool/main.rs"):
        assert len(rules.unsafe_code({**good, f"crates/wire/src/{program}": root})) == 1


def test_a_crate_without_a_root_is_found() -> None:
    assert len(rules.unsafe_code({"crates/wire/Cargo.toml": ""})) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("crates/wire/src/json/decode.rs", "use std::net::TcpStream;"),
        ("crates/wire/src/lib.rs", "pub async fn read() {}"),
        ("crates/wire/src/lib.rs", "let now = Instant::now();"),
        ("crates/dispatch/src/queue.rs", "let now = std::time::Instant::now();"),
        ("crates/dispatch/src/queue.rs", "use std::fs::File;"),
        ("crates/dispatch/src/policy.rs", "static COUNT: AtomicU32 = AtomicU32::new(0);"),
        ("crates/front/src/lib.rs", "use pyo3::prelude::*;"),
    ],
)
def test_what_a_crate_promises_to_lack_is_found(path: str, line: str) -> None:
    assert len(rules.absent({path: f"//! A module.\n{line}\n"})) == 1
    assert rules.absent({path: f"// {line}\n"}) == []


def test_the_clock_may_read_the_time() -> None:
    line = "let now = Instant::now();"
    assert rules.absent({"crates/dispatch/src/clock.rs": line}) == []
    assert len(rules.absent({"crates/dispatch/src/costs.rs": line})) == 1
