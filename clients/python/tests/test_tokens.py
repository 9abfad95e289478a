import stat
from pathlib import Path

import pytest

from thingspace_gateway import FileTokenStore


def test_a_saved_token_is_loaded_by_another_store(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "folder"
    assert FileTokenStore(folder).load("account", "request") is None
    FileTokenStore(folder).save("account", "request", "one")
    FileTokenStore(folder).save("account", "request", "two")
    FileTokenStore(folder).save("account", "other", "three")
    assert FileTokenStore(folder).load("account", "request") == "two"
    FileTokenStore(folder).delete("account", "request")
    FileTokenStore(folder).delete("account", "request")
    assert FileTokenStore(folder).load("account", "request") is None
    assert FileTokenStore(folder).load("account", "other") == "three"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a" * 1000, "", "ü\0\n", "."])
def test_any_id_has_a_file_in_the_folder(tmp_path: Path, name: str) -> None:
    store = FileTokenStore(tmp_path / "tokens")
    store.save(name, name, "token")
    assert store.load(name, name) == "token"
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "tokens"]


def test_account_and_request_are_told_apart(tmp_path: Path) -> None:
    store = FileTokenStore(tmp_path)
    store.save("ab", "c", "one")
    store.save("a", "bc", "two")
    assert (store.load("ab", "c"), store.load("a", "bc")) == ("one", "two")
