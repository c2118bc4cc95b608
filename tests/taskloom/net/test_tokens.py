"""The token's file: who makes it, who may read it, where it is found."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from taskloom.errors import CommError, TokenError
from taskloom.net.tokens import (
    TokenFile,
    check_token,
    dump_token,
    find_or_make_token,
    find_token,
    how_to_get_token,
    load_token,
    make_token,
    read_token,
    token_path,
    tokens_of,
)


def test_a_token_is_made_once_and_only_for_its_user(tmp_path):
    path = tmp_path / "new" / "taskloom" / "token"
    old = os.umask(0)
    try:
        token = make_token(str(path))
    finally:
        os.umask(old)
    assert len(token) >= 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert make_token(str(path)) == token
    assert read_token(str(path)) == token
    assert os.listdir(path.parent) == ["token"]


def test_a_strict_umask_does_not_hide_it_from_its_user(tmp_path):
    old = os.umask(0o777)
    try:
        (tmp_path / "x").mkdir()
        os.chmod(tmp_path / "x", 0o700)
        make_token(str(tmp_path / "x" / "token"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x" / "token").stat().st_mode) == 0o600


def test_processes_that_make_it_at_a_time_get_the_same(tmp_path):
    path = str(tmp_path / "token")
    code = f"import sys; sys.stdin.read(); from taskloom.net.tokens import make_token; print(make_token({path!r}))"
    makers = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for maker in makers:
        maker.stdin.close()
    found = set()
    for maker in makers:
        with maker:
            found.add(maker.stdout.read().strip())
    assert len(found) == 1
    assert found == {read_token(path)}
    assert os.listdir(tmp_path) == ["token"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o606, 0o644, 0o610, 0o602])
def test_a_token_that_others_can_read_or_change_is_refused(tmp_path, mode):
    path = tmp_path / "token"
    path.write_text("x" * 40)
    path.chmod(mode)
    with pytest.raises(TokenError, match=f"mode 0{mode:o}.*rm {path}.*chmod 600 {path}"):
        read_token(str(path))
    with pytest.raises(TokenError):
        make_token(str(path))
    assert path.read_text() == "x" * 40


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file to another user")
def test_a_token_of_another_user_is_refused(tmp_path):
    path = tmp_path / "token"
    path.write_text("x" * 40)
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(TokenError, match=r"belongs to another user \(uid 65534\)"):
        read_token(str(path))


def test_a_token_through_a_link_is_judged_by_its_file(tmp_path):
    """As Kubernetes mounts secrets."""
    (tmp_path / "real").write_text("x" * 40)
    (tmp_path / "real").chmod(0o400)
    (tmp_path / "token").symlink_to("real")
    assert read_token(str(tmp_path / "token")) == "x" * 40


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has 0 characters"),
        (b"short\n", "has 5 characters, and could be guessed"),
        (b"two words that are long enough", "not one word"),
        (b"x" * 30 + b"\n" + b"y" * 30, "not one word"),
        ("schlüssel-der-lang-genug-ist".encode(), "printable ASCII"),
        (b"\0" * 40, "not one word"),
        (b"x" * 5000, "at most 4096"),
    ],
)
def test_what_is_no_good_token_is_refused(tmp_path, content, words):
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(TokenError, match=words) as caught:
        read_token(str(path))
    assert "two words" not in str(caught.value)
    assert "xxxx" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(TokenError, match="can't be read: No such file"):
        read_token(str(tmp_path / "none"))
    with pytest.raises(TokenError, match="is no file"):
        read_token(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TokenError, match="is no file"):
        read_token(str(tmp_path / "pipe"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(TokenError, match="no token can be made"):
        make_token(str(tmp_path / "file" / "token"))


def test_where_a_token_is_found(tmp_path):
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert token_path(home) == str(tmp_path / "taskloom" / "token")
    assert find_token(home) is None
    made = find_or_make_token(home)
    assert find_token(home) == made
    assert find_or_make_token(home) == made

    other = tmp_path / "other"
    other.write_text("o" * 40 + "\n")
    other.chmod(0o600)
    named = {**home, "TASKLOOM_TOKEN_FILE": str(other)}
    assert tokens_of(find_token(named)) == ("o" * 40,)
    assert find_token({**named, "TASKLOOM_TOKEN": " " + "v" * 20}) == "v" * 20
    with pytest.raises(TokenError, match="the variable TASKLOOM_TOKEN has 3 characters"):
        find_token({**home, "TASKLOOM_TOKEN": "abc"})
    with pytest.raises(TokenError, match="can't be read"):
        find_token({**home, "TASKLOOM_TOKEN_FILE": str(tmp_path / "none")})


def test_a_link_that_leads_nowhere_is_an_error_and_not_replaced(tmp_path):
    (tmp_path / "taskloom").mkdir()
    (tmp_path / "taskloom" / "token").symlink_to("nowhere")
    with pytest.raises(TokenError, match="can't be read"):
        find_or_make_token({"XDG_CONFIG_HOME": str(tmp_path)})


def test_what_to_type():
    assert how_to_get_token() == 'TASKLOOM_TOKEN="$(cat ~/.config/taskloom/token)"'
    assert how_to_get_token("node7") == 'TASKLOOM_TOKEN="$(ssh node7 cat ~/.config/taskloom/token)"'


def test_a_token_is_checked():
    assert check_token("  correct-horse-battery\n") == "correct-horse-battery"
    assert issubclass(TokenError, CommError)


def write(path, *tokens):
    """As a secret is replaced: by another file, at once."""
    new = path.with_name("new")
    new.write_text("\n".join(tokens) + "\n")
    new.chmod(0o600)
    new.rename(path)


def test_a_file_may_have_several_tokens_and_be_replaced(tmp_path, caplog):
    path = tmp_path / "token"
    write(path, "o" * 20)
    token = find_token({"TASKLOOM_TOKEN_FILE": str(path), "XDG_CONFIG_HOME": str(tmp_path / "none")})
    assert tokens_of(token) == ("o" * 20,)
    write(path, "n" * 20, "", "  " + "o" * 20)
    assert tokens_of(token) == ("n" * 20, "o" * 20)
    with pytest.raises(TokenError, match="A file with several is for TASKLOOM_TOKEN_FILE"):
        read_token(str(path))
    again = load_token(json.loads(json.dumps(dump_token(token))))
    assert tokens_of(again) == ("n" * 20, "o" * 20)
    assert repr(again) == f"TokenFile({str(path)!r})"
    write(path, "short")
    assert tokens_of(token) == ("n" * 20, "o" * 20)
    assert "could be guessed" in caplog.text
    assert "The tokens that were there before are used" in caplog.text
    path.unlink()
    assert tokens_of(token) == ("n" * 20, "o" * 20)
    with pytest.raises(TokenError, match="can't be read"):
        TokenFile(str(path))
    write(path, "x" * 20)
    assert tokens_of(token) == ("x" * 20,)


def test_a_word_is_a_token_too():
    assert tokens_of(load_token(dump_token("w" * 20))) == ("w" * 20,)
    with pytest.raises(TokenError, match="could be guessed"):
        tokens_of("short")
