import errno
import fcntl
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ablate.core import locks
from ablate.core.errors import UserError
from ablate.core.locks import RunLock, exclusive, is_locked


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".locks" / "run.lock"


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_only_one_holds_a_lock(path):
    first, second = RunLock(path), RunLock(path)
    assert first.acquire()
    assert not second.acquire()
    assert second.is_taken()
    assert str(os.getpid()) in second.owner()
    second.release()  # does nothing: it is not its own
    assert path.exists()
    first.release()
    assert not path.exists()
    assert second.acquire()


def test_of_many_at_once_one_wins(path):
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: RunLock(path).acquire(), range(64))) == 1


def test_a_dead_owners_lock_is_taken_over_by_one(path):
    RunLock(path).acquire()
    edit(path, pid=dead_process(), started=None)
    assert not RunLock(path).is_taken()
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: RunLock(path).acquire(), range(64))) == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.lock"]


def test_a_killed_runners_training_still_holds_the_lock(path):
    lock = RunLock(path)
    lock.acquire()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    lock.set_child(child.pid)
    edit(path, pid=dead_process(), started=None)
    assert not RunLock(path).acquire()
    child.kill()
    child.wait()
    assert RunLock(path).acquire()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_reused_process_number_is_not_the_owner(path):
    RunLock(path).acquire()
    edit(path, started="1")  # this process's number, but the process began at another time
    assert RunLock(path).acquire()


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"namespace": "pid:[1]"}, {"boot": "another"}])
def test_a_lock_from_elsewhere_is_stale_only_without_signs_of_life(path, elsewhere):
    RunLock(path).acquire()
    edit(path, pid=dead_process(), **elsewhere)
    assert not RunLock(path).acquire()
    long_ago = path.stat().st_mtime - locks.HEARTBEAT_LOST - 5
    os.utime(path, (long_ago, long_ago))
    assert RunLock(path).acquire()


def test_refreshing_is_a_sign_of_life(path, monkeypatch):
    lock = RunLock(path)
    lock.acquire()
    os.utime(path, (1, 1))
    lock.refresh()
    assert path.stat().st_mtime == 1  # too soon
    monkeypatch.setattr(locks, "HEARTBEAT", -1.0)
    lock.refresh()
    assert path.stat().st_mtime > 1


def test_a_lock_cut_short_by_a_crash_is_stale_soon(path):
    path.parent.mkdir()
    path.write_text("")
    assert not RunLock(path).acquire()  # its maker may be about to write it
    long_ago = path.stat().st_mtime - locks.HEARTBEAT - 5
    os.utime(path, (long_ago, long_ago))
    assert RunLock(path).acquire()


def test_a_lock_that_another_took_over_is_not_released(path):
    lock = RunLock(path)
    lock.acquire()
    edit(path, token="another's")
    lock.release()
    assert path.exists()


def test_a_takeover_cut_short_by_a_crash_does_not_block_for_ever(path):
    RunLock(path).acquire()
    edit(path, pid=dead_process(), started=None)
    guard = path.with_name("run.lock.takeover")
    guard.touch()
    assert not RunLock(path).acquire()
    os.utime(guard, (1, 1))
    assert RunLock(path).acquire()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(UserError, match="has no file locks"), exclusive(tmp_path / "x" / "lock"):
        pass


def test_whether_a_lock_is_held(tmp_path):
    path = tmp_path / "lock"
    assert not is_locked(path)
    with exclusive(path):
        assert is_locked(path)
    assert not is_locked(path)
