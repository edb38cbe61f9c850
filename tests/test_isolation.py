"""What holds a user's guests: which folders they may have, what may leave, and who may say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra import config
from oxydra.config.egress import covers
from oxydra.config.presets import destinations
from oxydra.errors import ConfigError
from oxydra.types import Folder
from tests.config_place import RUNNER, Place

SECRET = "ghp-test-0123456789abcdefghij"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.setenv("HOME", made.env["HOME"])
    made.home.mkdir(parents=True, mode=0o700)
    return made


def isolated(place: Place, runner: str = "", user: str = "") -> config.Isolation:
    text = f'workspace_root = "../spaces"\n{runner}\n{RUNNER}'
    return config.isolation(place.load(place.local_files(runner=text, user=user)))


def refused(place: Place, runner: str = "", user: str = "") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        isolated(place, runner, user)
    return caught.value


# ------------------------------------------------------------------------------------------- egress


def test_without_a_word_nothing_leaves(place: Place) -> None:
    policy = isolated(place).egress
    assert (policy.shell, policy.allow, policy.git_hosts) == ("none", (), {})
    assert policy.limits == config.EgressLimits(600, 50_000, 20_000)
    assert not policy.allows("example.org", 443)


def test_an_empty_list_is_nobody_and_open_is_everybody(place: Place) -> None:
    closed = isolated(place, '[egress]\nshell = "allowlist"').egress
    assert not closed.allows("example.org", 443)
    assert isolated(place, '[egress]\nshell = "open"').egress.allows("example.org", 443)
    unused = isolated(place, '[egress]\nallow = ["example.org:443"]').egress
    assert not unused.allows("example.org", 443)


def test_presets_ask_the_programs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example.org/simple")
    monkeypatch.setenv(
        "PIP_EXTRA_INDEX_URL", "http://a.example:8080/x https://mirror.example.org/y"
    )
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://npm.example.org/")
    destinations.cache_clear()
    policy = isolated(place, '[egress]\nshell = "allowlist"\npresets = ["pip", "npm"]').egress
    assert policy.allow == ("mirror.example.org:443", "a.example:8080", "npm.example.org:443")
    destinations.cache_clear()


def test_a_preset_whose_program_is_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    destinations.cache_clear()
    with pytest.raises(ConfigError, match="npm does not say"):
        isolated(place, '[egress]\nshell = "allowlist"\npresets = ["npm"]')
    destinations.cache_clear()


def test_a_list_and_its_presets(place: Place) -> None:
    policy = isolated(
        place,
        '[egress]\nshell = "allowlist"\nallow = ["a.org:443", "*.b.org:8443"]\npresets = ["git"]',
    ).egress
    for host, port, allowed in (
        ("a.org", 443, True),
        ("A.org", 443, True),
        ("a.org", 80, False),
        ("x.a.org", 443, False),
        ("x.b.org", 8443, True),
        ("y.x.b.org", 8443, True),
        ("b.org", 8443, False),
        ("evilb.org", 8443, False),
        ("x.b.org", 443, False),
        ("github.com", 443, True),
        ("a.org:443.evil.org", 443, False),
    ):
        assert policy.allows(host, port) is allowed, (host, port)


ALLOWLIST = '[egress]\nshell = "allowlist"\nallow = ["a.org:443", "*.b.org:443"]\n'


@pytest.mark.parametrize(
    ("runner", "user", "shell", "allow"),
    [
        (ALLOWLIST, 'shell = "none"', "none", ()),
        (ALLOWLIST, "allow = []", "allowlist", ()),
        (ALLOWLIST, 'allow = ["x.b.org:443"]', "allowlist", ("x.b.org:443",)),
        (ALLOWLIST, 'allow = ["*.x.b.org:443"]', "allowlist", ("*.x.b.org:443",)),
        (ALLOWLIST, "", "allowlist", ("a.org:443", "*.b.org:443")),
        ('[egress]\nshell = "open"', 'allow = ["c.org:22"]', "allowlist", ("c.org:22",)),
        ('[egress]\nshell = "open"', "", "open", ()),
    ],
)
def test_a_user_narrows(place: Place, runner: str, user: str, shell: str, allow: object) -> None:
    policy = isolated(place, runner, f"[egress]\n{user}").egress
    assert (policy.shell, policy.allow) == (shell, allow)


@pytest.mark.parametrize(
    ("runner", "line", "key"),
    [
        ("", 'shell = "open"', "shell"),
        ("", 'shell = "allowlist"', "shell"),
        (ALLOWLIST, 'shell = "open"', "shell"),
        (ALLOWLIST, 'allow = ["c.org:443"]', "allow"),
        (ALLOWLIST, 'allow = ["b.org:443"]', "allow"),
        (ALLOWLIST, 'allow = ["*.x.org:443"]', "allow"),
        (ALLOWLIST, 'allow = ["*.a.org:443"]', "allow"),
        (ALLOWLIST, 'presets = ["git"]', "presets"),
        ("", "max_requests_per_minute = 601", "max_requests_per_minute"),
        ("", "max_requests_per_day = 50001", "max_requests_per_day"),
        ("", "max_mib_per_day = 20001", "max_mib_per_day"),
    ],
)
def test_a_user_never_widens(place: Place, runner: str, line: str, key: str) -> None:
    error = refused(place, runner, f"\n[egress]\n{line}\n")
    assert "narrow, never widen" in str(error)
    assert (error.key, error.line) == (f"egress.{key}", 3)
    assert error.file == str(place.local / "users" / "alice.toml")


@given(st.lists(st.sampled_from(["*", "a", "b", "org"]), min_size=1, max_size=4))
def test_what_a_pattern_covers_is_never_wider(parts: list[str]) -> None:
    """If a pattern covers another, every name that the other matches is matched by the first."""
    other = f"{'.'.join(parts)}:443"
    for pattern in ("*.a.org:443", "*.org:443", "a.org:443"):
        if covers(pattern, other) and other.startswith("*."):
            for name in ("x", "x.y"):
                assert covers(pattern, name + other[1:])


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[egress]\nshel = "open"', 3, "Did you mean 'shell'?"),
        ('[egress]\nshell = "all"', 3, '"none" or "allowlist" or "open"'),
        ('[egress]\nallow = ["https://a.org"]', 3, "api.example.org:443"),
        ('[egress]\nallow = ["a.org"]', 3, "api.example.org:443"),
        ('[egress]\nallow = ["*:443"]', 3, "api.example.org:443"),
        ('[egress]\nallow = ["*.org:443"]', 3, "api.example.org:443"),
        ('[egress]\nallow = ["a.*.org:443"]', 3, "api.example.org:443"),
        ('[egress]\nallow = ["A.org:443"]', 3, "lower case"),
        ('[egress]\nallow = ["a.org:70000"]', 3, "api.example.org:443"),
        ('[egress]\nallow = ["a.org:443\\n"]', 3, "api.example.org:443"),
        ('[egress]\npresets = ["gti"]', 3, "known: git, npm, pip"),
        ("[egress]\nmax_mib_per_day = 0", 3, "at least 1"),
        (f'[egress]\ngit_credentials = {{ "github.com" = "{SECRET}" }}', 3, "env:VARIABLE"),
        ('[egress]\ngit_credentials = { "github.com:443" = "env:T" }', 3, "without a port"),
        ('[guest_images]\nagent = "a b"', 3, "NAME:TAG"),
        ('[guest_images]\nshell = "--privileged"', 3, "NAME:TAG"),
        ('[guest_images]\nextra_packages = ["node; rm"]', 3, "Debian package"),
        ('[guest_images]\nextra_packages = ["-oDpkg::x"]', 3, "Debian package"),
        ('[guest_image]\nagent = "a"', 2, "Did you mean 'guest_images'?"),
        ('[mounts]\nshared = "x"', 2, "belongs in users/<id>.toml"),
        ("[resources]\nmax_vcpus = 1", 2, "belongs in users/<id>.toml"),
    ],
)
def test_what_is_wrong_in_runner_toml(place: Place, text: str, line: int, says: str) -> None:
    error = refused(place, text)
    assert says in str(error) and SECRET not in str(error)
    assert (error.file, error.line) == (str(place.local / "runner.toml"), line)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[resources]\nmax_memory = 1", 2, "Did you mean 'max_memory_mib'?"),
        ("[resources]\nmax_vcpus = 0", 2, "at least 0.1"),
        ("[resources]\nmax_processes = 1", 2, "at least 32"),
        ("[resources]\nmax_workspace_mib = 1", 2, "at least 16"),
        ("[resources]\nmax_memory_mib = '1G'", 2, "whole number"),
        ("[mounts]\nshare = 'x'", 2, "Did you mean 'shared'?"),
        ("[mounts]\nextra = ['x']", 2, "list of tables"),
        ("[mounts]\nextra = [{ mode = 'ro' }]", 2, "path is missing"),
        ("[mounts]\nextra = [{ path = '' }]", 2, "is empty"),
        ("[mounts]\nextra = [{ path = 'x', mode = 'wr' }]", 2, '"ro" or "rw"'),
        ("[mounts]\nextra = [{ path = 'x', name = '..' }]", 2, "mount's name"),
        ("[mounts]\nextra = [{ path = 'x', name = 'a/b' }]", 2, "mount's name"),
        ("[behavior]\nshell_enable = false", 2, "Did you mean 'shell_enabled'?"),
        ("[egress]\ngit_credentials = { 'a.org' = 'env:T' }", 2, "runner.toml"),
    ],
)
def test_what_is_wrong_in_a_users_file(place: Place, text: str, line: int, says: str) -> None:
    error = refused(place, user=text)
    assert says in str(error)
    assert (error.file, error.line) == (str(place.local / "users" / "alice.toml"), line)


# --------------------------------------------------------------------------------------- git tokens

GIT = ALLOWLIST.replace("a.org", "github.com") + (
    'git_credentials = { "github.com" = "env:GH", "gitlab.com" = "env:GL" }\n'
)


def tokens(place: Place, runner: str, user: str = "") -> dict[str, str]:
    settings = place.load(place.local_files(runner=f"{runner}\n{RUNNER}", user=user))
    found = config.git_tokens(settings, place.env)
    assert SECRET not in repr(found) + repr(settings) + "".join(map(str, settings.explain()))
    return {host: token.value for host, token in found.items()}


def test_a_git_token_is_found_for_a_host_that_may_be_reached(place: Place) -> None:
    place.env["GH"] = SECRET
    assert tokens(place, GIT) == {"github.com": SECRET}
    assert tokens(place, GIT, "[egress]\nallow = []") == {}
    del place.env["GH"]
    config.set_key("GH", SECRET, place.home)
    assert tokens(place, GIT) == {"github.com": SECRET}


def test_a_missing_git_token_is_named(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"runner.toml:4: .*GH.*key set GH"):
        tokens(place, GIT)


def test_a_git_token_is_no_variable_of_the_shells(place: Place) -> None:
    place.local_files()
    named = place.local_files('[tools.shell]\nenv_keys = ["GL"]', f"{GIT}{RUNNER}")
    with pytest.raises(ConfigError, match="GL, which holds a key"):
        place.load(named)


# ------------------------------------------------------------------------------------------- mounts


def folder(place: Place, name: str) -> Path:
    path = place.here / name
    path.mkdir(parents=True)
    return path


def test_the_workspaces_own_folders_are_the_default(place: Place) -> None:
    mounts = isolated(place).mounts
    space = place.load(place.local / "runner.toml").workspace_root / "alice"
    assert (mounts.shared, mounts.tmp, mounts.vault) == tuple(
        space / name for name in ("shared", "tmp", "vault")
    )
    assert mounts.folders(space) == [
        Folder("shared", str(space / "shared"), True),
        Folder("tmp", str(space / "tmp"), True),
        Folder("vault", str(space / "vault"), False),
    ]


def test_folders_of_ones_own(place: Place) -> None:
    papers, code, vault = (folder(place, name) for name in ("Papers", "code", "vault"))
    (place.home.parents[1] / "link").symlink_to(vault)
    mounts = isolated(
        place,
        user='[mounts]\nvault = "~/link"\nextra = [{ path = "../../Papers" }, '
        f'{{ path = "{code}", mode = "rw", name = "src" }}]',
    ).mounts
    assert mounts.vault == vault
    assert mounts.extra == (
        config.Mount(papers, "Papers", False),
        config.Mount(code, "src", True),
    )
    space = place.load(place.local / "runner.toml").workspace_root / "alice"
    assert mounts.folders(space)[2:] == [
        Folder("vault", str(vault), False, guarded=True),
        Folder("mnt/Papers", str(papers), False, guarded=True),
        Folder("mnt/src", str(code), True, guarded=True),
    ]
    assert [mount.variable for mount in mounts.extra] == ["MNT_PAPERS", "MNT_SRC"]


@pytest.mark.parametrize("key", ["shared", "tmp", "vault", "extra"])
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/", "whole home folder"),
        ("~", "whole home folder"),
        ("~/..", "whole home folder"),
        ("~/.config", "holds the configuration"),
        ("~/.config/oxydra/keys", "where the keys are"),
        ("..", "holds the configuration"),
        (".", "holds the configuration"),
        ("../../spaces", "holds the workspaces"),
        ("../../spaces/bob/shared", "among the workspaces"),
        ("../../spaces/alice/ipc", "among the workspaces"),
        ("../../spaces/alice/internal", "among the workspaces"),
        ("../../spaces/alice", "among the workspaces"),
        ("../../link-to-bob", "among the workspaces"),
        ("/proc/self", "running system"),
        ("/dev/shm", "running system"),
        ("../../nothing", "No such file"),
        ("../../file", "is no folder"),
    ],
)
def test_a_folder_that_no_guest_may_have(place: Place, key: str, path: str, says: str) -> None:
    for name in ("bob/shared", "alice/ipc", "alice/internal"):
        folder(place, f"spaces/{name}")
    (place.home / "keys").mkdir()
    (place.here / "link-to-bob").symlink_to(place.here / "spaces" / "bob" / "shared")
    (place.here / "file").write_text("")
    value = f'[{{ path = "{path}", name = "x" }}]' if key == "extra" else f'"{path}"'
    error = refused(place, 'default_tier = "process"', f"\n[mounts]\n{key} = {value}\n")
    assert says in str(error)
    assert (error.key, error.line) == (f"mounts.{key}", 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_elses(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, roots = folder(place, "theirs"), folder(place, "roots")
    os.chown(theirs, 4711, 4711)
    mounts = '[mounts]\nextra = [{{ path = "{}", mode = "{}" }}]'
    settings = {
        (path, mode): place.load(place.local_files(user=mounts.format(path, mode)))
        for path in (theirs, roots)
        for mode in ("ro", "rw")
    }
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert config.isolation(settings[roots, "ro"]).mounts.extra[0].path == roots
    for key in ((theirs, "ro"), (theirs, "rw"), (roots, "rw")):
        with pytest.raises(ConfigError, match="belongs to another user"):
            config.isolation(settings[key])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('extra = [{ path = "../../a" }, { path = "../../b/a" }]', "two mounts named 'a'"),
        (
            'extra = [{ path = "../../a", name = "a-1" }, { path = "../../b/a", name = "A.1" }]',
            "two mounts named 'A.1'",
        ),
        ('extra = [{ path = "../../a" }, { path = "../../a", name = "b" }]', "lies in"),
        ('extra = [{ path = "../../b/a" }, { path = "../../b" }]', "lies in"),
        ('shared = "../../b"\nvault = "../../b/a"', "lies in"),
        ('shared = "../../b"\nextra = [{ path = "../../b/a" }]', "lies in"),
        ('extra = [{ path = "../../a", name = "vault" }]', "taken by the workspace"),
        ('extra = [{ path = "../../a:b" }]', "can't be a mount's name"),
    ],
)
def test_folders_are_kept_apart(place: Place, text: str, says: str) -> None:
    for name in ("a", "b/a", "a:b"):
        folder(place, name)
    assert says in str(refused(place, user=f"[mounts]\n{text}"))


# -------------------------------------------------------------------------------- the other keys


def test_resources_and_images(place: Place) -> None:
    found = isolated(
        place,
        '[guest_images]\nagent = "localhost:5000/oxydra-vm:1"\nextra_packages = ["g++", "jq"]',
        "[resources]\nmax_vcpus = 0.5\nmax_workspace_mib = 64",
    )
    assert (found.resources.max_vcpus, found.resources.max_memory_mib) == (0.5, 1024)
    assert (found.resources.max_processes, found.resources.max_workspace_mib) == (256, 64)
    assert found.guest_images.agent == "localhost:5000/oxydra-vm:1"
    assert (found.guest_images.shell, found.guest_images.extra_packages) == ("", ("g++", "jq"))


@pytest.mark.parametrize(
    ("agent", "user", "enabled"),
    [(True, True, True), (False, True, False), (True, False, False), (False, False, False)],
)
def test_both_files_must_enable_the_shell(
    place: Place, agent: bool, user: bool, enabled: bool
) -> None:
    settings = place.load(
        place.local_files(
            f"[tools.shell]\nenabled = {str(agent).lower()}",
            user=f"[behavior]\nshell_enabled = {str(user).lower()}",
        )
    )
    assert config.isolation(settings).shell_enabled is enabled
    told = config.effective(settings, place.select(settings))
    assert told["tools"]["shell"]["enabled"] is enabled


# --------------------------------------------------------------------------- who may say all this


@pytest.mark.parametrize(
    ("runner", "user", "key"),
    [
        ('[egress]\nshell = "open"\n', "", "egress.shell"),
        ('[guest_images]\nagent = "theirs:1"\n', "", "guest_images.agent"),
        ("[approvals]\nexfiltration = 'allow'\n", "", "approvals.exfiltration"),
        ("", "[approvals]\nexfiltration = 'allow'\n", "approvals.exfiltration"),
        ("", '[mounts]\nshared = "/srv"\n', "mounts.shared"),
        ("", "[resources]\nmax_memory_mib = 9999\n", "resources.max_memory_mib"),
    ],
)
def test_a_cloned_repository_sets_no_limit(place: Place, runner: str, user: str, key: str) -> None:
    (place.here / ".git").mkdir()
    named = place.local_files(runner=runner + RUNNER, user=user)
    with pytest.raises(ConfigError, match="cloned repository") as caught:
        place.load(named)
    assert (caught.value.key, caught.value.line) == (key, 2)
    assert "oxydra-runner trust" in str(caught.value)
    config.trust(place.local, place.home)
    place.load(named)


@pytest.mark.parametrize("name", ["EGRESS__SHELL", "MOUNTS__SHARED"])
def test_a_variable_sets_no_limit(place: Place, name: str) -> None:
    place.env[f"OXYDRA__{name}"] = "open"
    with pytest.raises(ConfigError, match=r"runner\.toml and users/<id>.toml only"):
        place.load(place.local_files())
