"""What no file may say, and what two files must say alike; every rule is broken by an example."""

from collections.abc import Callable, Mapping

import pytest

from tests.layering import text_rules as rules
from tests.layering.sources import Ignored, Sources, checkout

Rule = Callable[[Sources], list[str]]
RULES = [
    *(rules.own_paths, rules.package_hosts, rules.long_files, rules.runs_text),
    *(rules.requirements, rules.limits, rules.unknown_limits),
]

# Bounds that hold without their constant being named, each with the reason.
HELD_ELSEWHERE: Mapping[str, str] = {
    "header_count": "hyper's own bound is the same number; setting it would move every head to the heap",
    "write_buffer_bytes": "hyper bounds what it buffers of one answer by a size of its own",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_checkout_keeps_the_rule(rule: Rule) -> None:
    assert rule(checkout()) == []


def test_every_bound_is_named_by_code_or_known_to_be_held_elsewhere() -> None:
    assert rules.unread_limits(checkout()) == sorted(HELD_ELSEWHERE)


def test_the_checkout_is_seen_and_what_git_ignores_is_not() -> None:
    sources = checkout()
    assert {
        "Makefile",
        ".ci/run",
        "Cargo.lock",
        "crates/wire/src/lib.rs",
        "tests/layering/sources.py",
    } <= sources.keys()
    assert not [path for path in sources if path.startswith((".venv/", "target/", ".git/")) or "__pycache__" in path]


def test_ignored_patterns_are_names_or_paths() -> None:
    ignored = Ignored("# a comment\n/build/\n__pycache__/\n*.so\ncrates/fuzz/target/\n")
    for path in ("build", "a/b/__pycache__", "python/x.so", "crates/fuzz/target"):
        assert path in ignored
    for path in ("a/build", "build.py", "x.so.py", "crates/fuzz", "a comment"):
        assert path not in ignored


# Pieced together, since this file is one of those that are looked at.
@pytest.mark.parametrize(
    "path",
    [
        *("/home" + "/ada/penstock", "/home" + "/ada", "C:" + "\\Users\\ada"),
        *("/root" + "/x", "/root" + "/.cargo", "/work" + "/main", "/work" + "/.venv/bin"),
    ],
)
def test_a_path_of_one_machine_is_found(path: str) -> None:
    assert len(rules.own_paths({"a.md": f"fine\nsee {path}\n"})) == 1
    assert len(rules.own_paths({"a.py": f'X = "{path}"'})) == 1


@pytest.mark.parametrize(
    "text", ["~/work/x", "docs/work/a.md", "$HOME/root/x", "tests/home/x", "/etc/passwd", "/tmp/x"]
)
def test_other_paths_are_no_path_of_one_machine(text: str) -> None:
    assert rules.own_paths({"a.md": text}) == []


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "pypi" + ".org/simple",
        "files." + "pythonhosted" + ".org",
        "pip install --" + "index-url X",
        "pip install --extra-" + "index-url X",
        "index-" + 'url = "X"',
        "static." + "crates" + ".io/x",
    ],
)
def test_a_package_host_is_found(text: str) -> None:
    assert len(rules.package_hosts({"Makefile": text})) == 1


def test_cargos_name_for_its_default_registry_is_for_lock_files_only() -> None:
    line = 'source = "registry+https://github.com/rust-lang/crates' + '.io-index"'
    assert rules.package_hosts({"Cargo.lock": line, "a/Cargo.lock": line}) == []
    assert len(rules.package_hosts({"Cargo.toml": line})) == 1


def test_a_file_of_code_with_two_ideas_is_found() -> None:
    long = "x = 1\n" * (rules.MAX_LINES + 1)
    assert len(rules.long_files({"a.py": long, "b.rs": long})) == 2
    assert rules.long_files({"a.lock": long, "a.json": long, "a.py": "x = 1\n" * rules.MAX_LINES}) == []


@pytest.mark.parametrize(
    ("requirements", "count"), [("a>=1\nb\n", 0), ("# c\na>=1", 1), ("a>=2\nb", 2), ("a>=1\nb\nc", 1)]
)
def test_requirements_that_differ_are_found(requirements: str, count: int) -> None:
    project = '[project]\ndependencies = ["a>=1", "b"]'
    assert len(rules.requirements({"pyproject.toml": project, "requirements/runtime.in": requirements})) == count


@pytest.mark.parametrize(
    "text",
    [
        *("eval(name)", "exec(source)", "builtins.eval(name)", "os.system(line)"),
        *("subprocess.run(line, shell=True)", "Popen(line, shell=chosen)"),
    ],
)
def test_text_that_is_run_is_found(text: str) -> None:
    assert len(rules.runs_text({"python/penstock/serve/a.py": f"def f():\n    {text}"})) == 1


@pytest.mark.parametrize("text", ["network.eval()", "subprocess.run(['ls'], shell=False)", "# eval(name)"])
def test_what_runs_no_text_is_allowed(text: str) -> None:
    assert rules.runs_text({"python/penstock/serve/a.py": text}) == []


TOML, PYTHON, RUST = "python/penstock/limits.toml", "python/penstock/limits.py", "crates/schema/build.rs"
CONSTANTS = 'BODY_BYTES: Final = LIMITS["body_bytes"].value\nCHUNKS: Final = LIMITS["chunks"].value'
LIMITS = {
    TOML: "[body_bytes]\nvalue = 1\n[chunks]\nvalue = 2",
    PYTHON: CONSTANTS,
    RUST: '"../../python/penstock/limits.toml"',
}


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        (PYTHON, 'BODY_BYTES: Final = LIMITS["body_bytes"].value', "no constant reads chunks"),
        (
            "python/penstock/limits.py",
            LIMITS["python/penstock/limits.py"] + '\nX: Final = LIMITS["x"].value',
            "X reads x",
        ),
        (PYTHON, CONSTANTS.replace("CHUNKS", "PIECES"), "name CHUNKS"),
        (
            "python/penstock/limits.py",
            LIMITS["python/penstock/limits.py"].replace('LIMITS["chunks"].value', "2"),
            "chunks",
        ),
        (RUST, '"limits.toml"', "does not read"),
    ],
)
def test_limits_of_two_sources_are_found(path: str, text: str, words: str) -> None:
    assert rules.limits(LIMITS) == []
    (complaint,) = rules.limits({**LIMITS, path: text})
    assert words in complaint


@pytest.mark.parametrize("use", ["limits::PIECES", "use penstock_schema::limits::{CHUNKS, PIECES};"])
def test_a_bound_that_only_rust_knows_is_found(use: str) -> None:
    (complaint,) = rules.unknown_limits({**LIMITS, "crates/front/src/a.rs": f"limits::CHUNKS;\n{use}"})
    assert "limits::PIECES" in complaint
    assert rules.unknown_limits({**LIMITS, "crates/front/src/a.rs": "limits::CHUNKS; limits::new()"}) == []


def test_a_bound_that_nothing_reads_is_found() -> None:
    rust = {"crates/front/src/a.rs": "limits::CHUNKS"}
    assert rules.unread_limits({**LIMITS, **rust}) == ["body_bytes"]
    assert rules.unread_limits({**LIMITS, **rust, "python/penstock/serve/a.py": "limits.BODY_BYTES"}) == []
    assert rules.unread_limits({**LIMITS, "crates/front/src/a.rs": "use limits::{BODY_BYTES, CHUNKS};"}) == []
