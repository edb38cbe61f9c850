"""The rules on commands: what is read as simple commands, and what is refused whatever it does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.errors import PolicyDenied
from oxydra.policy.commands import DEFAULTS, RESERVED, STARTERS, CommandRules

DEFAULT = CommandRules()


def refused(line: str, rules: CommandRules = DEFAULT) -> str:
    with pytest.raises(PolicyDenied) as denied:
        rules.check(line)
    return str(denied.value)


@pytest.mark.parametrize(
    "line",
    [
        "ls",
        "ls -la /shared",
        "  ls  ",
        "ls | wc -l",
        "ls && pwd || true; date -Iseconds",
        "ls\npwd",
        "ls &&\n pwd",
        "ls;",
        "grep -rn 'a $HOME `id` b' .",
        'grep "it\'s \\"here\\"" notes.txt',
        "find . -name '*.py' -o -name '*.md'",
        "find ./*.d -type f",
        "find . -name \\*.py",
        "cat *.txt",
        "sort -k2,2 -n file | uniq -c | head",
        "ls missing 2>/dev/null",
        "ls 2>&1 | head",
        "echo grüße",
        "printf '%s\\n' a b",
        "ls ~",
    ],
)
def test_what_is_allowed(line):
    DEFAULT.check(line)


@pytest.mark.parametrize(
    "line",
    [
        # substitutions and variables
        *("echo $(id)", "echo `id`", 'echo "$(id)"', 'echo "`id`"', "echo $HOME", 'echo "$HOME"'),
        *("echo ${x}", "echo $((1))", "echo $'a'", 'echo $"a"', "ls <(id)", "ls >(id)", "$x"),
        # subshells, groups, blocks, background
        *(
            "(ls)",
            "{ ls; }",
            "if true; then ls; fi",
            "for x in a; do ls; done",
            "while true; do ls",
        ),
        *(
            "! ls",
            "[[ -f x ]]",
            "ls & id",
            "ls &",
            "coproc ls",
            "f() { ls; }",
            "function f { ls; }",
        ),
        *("ls |& cat", "ls ;; id", "case x in x) ls;; esac", "select x in a; do ls; done"),
        # redirections
        *(
            "ls > out",
            "ls >> out",
            "cat < in",
            "cat <<< x",
            "cat << E\nx\nE",
            "ls 2> err",
            "ls >&3",
        ),
        *(
            "ls > /dev/null/../x",
            "ls >/dev/nullx",
            "ls 2>&1x",
            "echo a >| b",
            "cat <> x",
            "ls &> x",
        ),
        # assignments
        *("X=1 ls", "X=1", "PATH=. ls", "X+=1 ls", "a[0]=1 ls", "X='1' ls", "LD_PRELOAD=x ls"),
        # commands that start others
        *("sh -c ls", "bash x", "/bin/sh -c ls", "env ls", "time ls", "nice ls", "nohup ls"),
        *("xargs ls", "timeout 1 ls", "eval ls", "exec ls", "command ls", "builtin ls", "source x"),
        *(". x", "sudo ls", "busybox ls", "setsid ls", "stdbuf -o0 ls", "'env' ls", "e\\nv ls"),
        *("ls | xargs rm", "true && sh", "ls; bash", "ls\nbash", "watch ls", "trap ls EXIT"),
        # harmful options, also abbreviated and bundled
        *("find . -exec id ;", "find . -execdir id +", "find . -ok id ;", "find . -delete"),
        *("find . '-exec' id", "find . -e\\xec id", "find . -fprint x", "find * -name x"),
        *("sort -o x y", "sort -no x y", "sort --output=x", "sort --out x", "sort --compress-p sh"),
        *("sort --c=sh", "sort -ox y", "shuf -o x y", "tree -o x", "printf -v PATH .", "file -C"),
        *("find . [-]delete", "find . ?delete", "sort {-o,x}"),
        # other commands, names that only look right
        *("rm -rf x", "curl x", "python3 x", "awk x", "sed x", "git log", "tar x", "tee x", "vi"),
        *("./ls", "/bin/ls", "../ls", "l*", "[l]s", "", " ", "''", "\\", "ls\\", "ls \\\n -a"),
        *("ls 'a", 'ls "a', "| ls", "&& ls", "; ls", "ls ||", "ls && && pwd", "ls # x"),
        # what can't be seen
        *("ls\r", "ls\x00", "ls\u00a0-l", "ls\x0bid", "ls\u2028id", "ls\x1b"),
    ],
)
def test_what_is_refused(line):
    assert "not run" in refused(line) or "no command" in refused(line)


def test_allow_adds_and_replaces():
    rules = CommandRules(allow=("python3", "git status", "./build.sh"))
    rules.check("python3 x.py && ls")
    rules.check("git status -s | head")
    rules.check("./build.sh --fast")
    assert "'git' is not among" in refused("git push", rules)
    assert "build.sh" in refused("build.sh", rules)
    alone = CommandRules(allow=("git",), replace_defaults=True)
    alone.check("git log")
    assert "'ls' is not among" in refused("ls", alone)


def test_an_allowed_wrapper_stays_refused():
    """It would allow everything; only `*` says that."""
    for name in ("env", "xargs", "sh", "time", "timeout"):
        assert "starts other commands" in refused(f"{name} ls", CommandRules(allow=(name,)))
    assert "not allowed" in refused("if", CommandRules(allow=("if",)))


def test_everything_is_allowed_by_a_star():
    rules = CommandRules(allow=("*",))
    for line in ("rm -rf x", "sh -c 'ls'", "X=1 env ls > out", "for x in *; do echo $x; done"):
        rules.check(line)


def test_deny_wins():
    rules = CommandRules(allow=("*",), deny=("rm", "git push"))
    for line in ("rm x", "/bin/rm x", "ls; rm x", "env rm x", "sh -c 'rm x'", "$(rm x)", "(rm x)"):
        assert "'rm' is not allowed" in refused(line, rules)
    assert "'git push'" in refused("git push origin", rules)
    rules.check("git log; ls format; echo confirm")
    assert "'ls'" in refused("ls", CommandRules(deny=("ls",)))


def test_operators_can_be_forbidden():
    rules = CommandRules(allow_operators=False)
    rules.check("ls -l")
    rules.check("ls 'a | b'")
    for line in ("ls | wc", "ls; pwd", "ls && pwd", "ls || pwd", "ls\npwd"):
        assert "joined" in refused(line, rules)
    assert "joined" in refused("ls | wc", CommandRules(allow=("*",), allow_operators=False))
    assert "joined" in refused("$(ls)", CommandRules(allow=("*",), allow_operators=False))


def test_no_default_starts_others():
    assert not DEFAULTS & STARTERS
    assert not DEFAULTS & RESERVED


ACTIVE = st.sampled_from(list("$`()<>&{}"))
TEXT = st.text(st.sampled_from(list("ls -a'\"\\;|\n $`()<>&{}#=*?[]~!")), max_size=20)


@given(TEXT)
def test_it_decides_about_anything(line):
    try:
        DEFAULT.check(line)
    except PolicyDenied as denied:
        assert "\n" not in str(denied)


@given(TEXT, ACTIVE)
def test_an_active_character_never_passes_unquoted(text, char):
    """Whatever stands before it without a quote in it."""
    plain = "".join(c for c in text if c not in "'\"\\")
    line = f"ls {plain}{char}id"
    if f"{char}id" == "&id" and plain.endswith("&"):
        return  # that is `&&`
    refused(line)
