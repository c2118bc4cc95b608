from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading

import pytest

import taskloom
from taskloom import config
from taskloom.errors import TaskloomError


@pytest.fixture(autouse=True)
def untouched(monkeypatch, tmp_path):
    """Settings of nobody's but the test's: no file, no variable, and nothing left behind."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("TASKLOOM_CONFIG", raising=False)
    config.refresh()
    yield
    config.set(dict.fromkeys(config.SETTINGS))
    monkeypatch.undo()
    config.refresh()


def test_defaults():
    assert config.get("scheduler") is None
    assert config.get("num_workers") is None
    assert config.get("num_workers", 3) == 3
    assert config.get("delayed.pure") is False
    assert config.get("delayed") == {"pure": False}


def test_a_plain_call_sets_for_the_whole_process():
    config.set(num_workers=2)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(config.get("num_workers")))
    thread.start()
    thread.join()
    assert seen == [2]
    assert config.get("num_workers", 9) == 2
    config.set(num_workers=None)
    assert config.get("num_workers", 9) == 9


def test_blocks_nest_and_restore():
    config.set(num_workers=1)
    with config.set(num_workers=2, scheduler="sync"):
        with config.set(num_workers=3):
            assert (config.get("num_workers"), config.get("scheduler")) == (3, "sync")
        with config.set(scheduler=None):
            assert (config.get("num_workers"), config.get("scheduler")) == (2, None)
        assert config.get("scheduler") == "sync"
    assert (config.get("num_workers"), config.get("scheduler")) == (1, None)


def test_a_block_restores_after_an_error():
    with pytest.raises(ZeroDivisionError), config.set(num_workers=2):
        raise ZeroDivisionError
    assert config.get("num_workers") is None


def test_a_block_is_never_seen_by_other_threads():
    stop = threading.Event()
    seen = set()

    def watch():
        while not stop.is_set():
            seen.add(config.get("num_workers"))

    before = sys.getswitchinterval()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        sys.setswitchinterval(1e-6)
        for _ in range(3000):
            with config.set(num_workers=2):
                assert config.get("num_workers") == 2
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()
    assert seen <= {None}


def test_a_block_is_not_seen_by_other_tasks_of_asyncio():
    async def main():
        entered, seen = asyncio.Event(), asyncio.Event()

        async def setter():
            with config.set(num_workers=2):
                entered.set()
                await seen.wait()
                return config.get("num_workers")

        async def reader():
            await entered.wait()
            found = config.get("num_workers")
            seen.set()
            return found

        return await asyncio.gather(setter(), reader())

    assert asyncio.run(main()) == [2, None]


def test_a_call_that_is_entered_later_becomes_a_block():
    block = config.set(num_workers=2)
    assert config.get("num_workers") == 2
    with block:
        assert config.get("num_workers") == 2
    assert config.get("num_workers") is None
    with contextlib.ExitStack() as stack:
        stack.enter_context(config.set(num_workers=3))
        assert config.get("num_workers") == 3
    assert config.get("num_workers") is None


def test_a_block_cannot_be_entered_twice_at_once():
    block = config.set(num_workers=2)
    with block, pytest.raises(RuntimeError, match="entered already"):
        block.__enter__()


def test_names_may_be_dotted_nested_or_with_underscores():
    for settings in ({"delayed.pure": True}, {"delayed": {"pure": True}}, {"delayed__pure": True}):
        with config.set(settings):
            assert config.get("delayed.pure") is True
            assert config.get("delayed") == {"pure": True}
    with config.set(delayed__pure=True):
        assert config.get("delayed.pure") is True
    with config.set({"num-workers": 2}):
        assert config.get("num-workers") == config.get("num_workers") == 2


def test_an_unknown_name_is_refused_with_what_comes_close():
    with pytest.raises(config.UnknownSettingError, match="no setting 'shceduler'; close to it: scheduler"):
        config.set(shceduler="threads")
    with pytest.raises(KeyError, match="close to it: num_workers"):
        config.get("num_worker")
    with pytest.raises(config.UnknownSettingError, match=r"close to it: delayed\.pure"):
        config.get("pure")
    with pytest.raises(config.UnknownSettingError, match="there are: scheduler"):
        config.get("zzz")
    with pytest.raises(config.UnknownSettingError, match=r"is a group of settings: delayed\.pure"):
        config.set(delayed=True)
    with pytest.raises(config.UnknownSettingError, match=r"'delayed\.impure'"):
        config.set({"delayed": {"impure": True}})
    assert issubclass(config.UnknownSettingError, TaskloomError)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_workers": 0}, ValueError, "num_workers is a whole number of 1 or more, not 0"),
        ({"num_workers": "4"}, TypeError, "num_workers is a whole number of 1 or more, not '4' of type str"),
        ({"num_workers": True}, TypeError, "not True of type bool"),
        ({"delayed.pure": 1}, TypeError, "delayed.pure is True or False, not 1 of type int"),
        ({"scheduler": 5}, TypeError, "scheduler is a name such as 'threads'"),
        ({"scheduler": {}}, TypeError, "scheduler is a name such as 'threads'"),
        ({"pool": 5}, TypeError, "pool is an executor"),
        ({1: 2}, TypeError, "the name of a setting is a string, not 1"),
        (5, TypeError, "takes a mapping of settings or keyword arguments, not 5"),
    ],
)
def test_wrong_values_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        config.set(settings)


def test_nothing_is_changed_when_one_of_several_is_wrong():
    with pytest.raises(ValueError):
        config.set(delayed__pure=True, num_workers=-1)
    assert config.get("delayed.pure") is False


def test_positive_int():
    numpy = pytest.importorskip("numpy")
    assert config.positive_int("n", 3) == 3
    value = config.positive_int("n", numpy.int64(3))
    assert value == 3
    assert type(value) is int
    with pytest.raises(TypeError, match=r"n is a whole number of 1 or more, not 2\.0 of type float"):
        config.positive_int("n", 2.0)
    with pytest.raises(ValueError, match="not -1"):
        config.positive_int("n", -1)


def test_the_environment(monkeypatch):
    monkeypatch.setenv("TASKLOOM_NUM_WORKERS", "3")
    monkeypatch.setenv("TASKLOOM_SCHEDULER", "sync")
    monkeypatch.setenv("TASKLOOM_DELAYED__PURE", "true")
    # what Kubernetes sets for a service named taskloom
    monkeypatch.setenv("TASKLOOM_SERVICE_HOST", "10.0.0.1")
    config.refresh()
    assert (config.get("num_workers"), config.get("scheduler"), config.get("delayed.pure")) == (3, "sync", True)
    config.set(num_workers=5)
    config.refresh()
    assert config.get("num_workers") == 5


def test_wrong_environments(monkeypatch):
    monkeypatch.setenv("TASKLOOM_NUM_WORKERS", "many")
    with pytest.raises(TypeError, match="in the variable TASKLOOM_NUM_WORKERS: num_workers is a whole number"):
        config.refresh()
    monkeypatch.setenv("TASKLOOM_NUM_WORKERS", "")
    monkeypatch.setenv("TASKLOOM_NUM_WORKER", "3")
    with pytest.warns(UserWarning, match="TASKLOOM_NUM_WORKER is no setting.*close to it: TASKLOOM_NUM_WORKERS"):
        config.refresh()
    assert config.get("num_workers") is None


def test_files(monkeypatch, tmp_path):
    user = tmp_path / "taskloom" / "config.toml"
    user.parent.mkdir()
    user.write_text("num_workers = 2\nscheduler = 'sync'\n[delayed]\npure = true\n")
    config.refresh()
    assert (config.get("num_workers"), config.get("scheduler"), config.get("delayed.pure")) == (2, "sync", True)
    # the environment goes before the file
    monkeypatch.setenv("TASKLOOM_NUM_WORKERS", "3")
    config.refresh()
    assert config.get("num_workers") == 3
    # another file instead of the user's
    other = tmp_path / "other.toml"
    other.write_text("num_workers = 7\n")
    monkeypatch.delenv("TASKLOOM_NUM_WORKERS")
    monkeypatch.setenv("TASKLOOM_CONFIG", str(other))
    config.refresh()
    assert (config.get("num_workers"), config.get("scheduler")) == (7, None)


def test_wrong_files(monkeypatch, tmp_path):
    path = tmp_path / "mine.toml"
    monkeypatch.setenv("TASKLOOM_CONFIG", str(path))
    with pytest.raises(FileNotFoundError, match="the variable TASKLOOM_CONFIG names it"):
        config.refresh()
    path.write_text("num_workers = \n")
    with pytest.raises(ValueError, match=r"mine\.toml are no valid TOML"):
        config.refresh()
    path.write_text("num_wokers = 3\n")
    with pytest.raises(config.UnknownSettingError, match=r"in the file .*mine\.toml: .*close to it: num_workers"):
        config.refresh()
    path.write_text("num_workers = 0\n")
    with pytest.raises(ValueError, match=r"in the file .*mine\.toml: num_workers"):
        config.refresh()
    path.write_text("[delayed.more]\nx = 1\n")
    with pytest.raises(config.UnknownSettingError, match=r"delayed\.more"):
        config.refresh()


def test_schedulers_heed_the_settings():
    graph = {f"x{i}": (threading.get_ident,) for i in range(5)}
    with config.set(num_workers=1):
        assert len(set(taskloom.threaded.get(graph, list(graph)))) == 1
    with config.set(scheduler="sync"):
        assert taskloom.delayed(threading.get_ident)().compute() == threading.get_ident()


def test_tasks_see_the_settings_of_their_caller():
    with config.set(num_workers=2):
        assert taskloom.threaded.get({"x": (config.get, "num_workers")}, "x") == 2


def test_every_setting_is_documented():
    for name, setting in config.SETTINGS.items():
        assert setting.name == name
        assert setting.type
        assert setting.meaning
        if setting.default is not None:
            assert setting.check(name, setting.default) == setting.default


def test_it_imports_little():
    code = (
        "import sys; before = set(sys.modules); import taskloom.config; taskloom.config.get('num_workers');"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("taskloom")}
    assert ours == {"taskloom", "taskloom.config", "taskloom.errors"}
    assert not {"tomllib", "ast", "difflib", "asyncio", "numpy", "yaml"} & set(loaded)
