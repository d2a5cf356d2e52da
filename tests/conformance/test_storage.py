"""Every storage passes Optuna's own suite, tells a trial once, and leaves what is no study file as it was."""

import pickle
import shutil
import sqlite3
import threading

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from search_spaces.errors import InvalidSpec, StorageError
from tuner.storage import hide_password, list_studies, open_storage, storage_place

KINDS = ["sqlite", "journal"]


@pytest.fixture(params=KINDS)
def url(request, tmp_path):
    return f"{request.param}:///{tmp_path / 'studies.file'}"


@pytest.fixture(scope="module")
def empty_sqlite(tmp_path_factory):
    """A file with Optuna's tables, to be copied: making them takes longer than most tests."""
    path = tmp_path_factory.mktemp("empty") / "studies.file"
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path


class TestEveryStorage(StorageTestCase):
    @pytest.fixture
    def storage(self, url, empty_sqlite):
        if url.startswith("sqlite"):
            shutil.copy(empty_sqlite, storage_place(url).where)
        return open_storage(url)

    def test_pickle_storage(self, storage):
        """A journal may travel; SQLite's transactions hold only for connections that we made."""
        if isinstance(storage, JournalStorage):
            super().test_pickle_storage(storage)
        else:
            with pytest.raises(TypeError, match="stays in its process"):
                pickle.dumps(storage)


def tell(url, trial_id, told):
    try:
        open_storage(url).set_trial_state_values(trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return
    told.append(trial_id)


def test_of_many_drivers_that_tell_a_trial_exactly_one_succeeds(url):
    storage = open_storage(url)
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    for _ in range(4):
        trial_id, told = storage.create_new_trial(study_id), []
        threads = [threading.Thread(target=tell, args=[url, trial_id, told]) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert told == [trial_id]


def test_many_drivers_may_create_the_storage_at_once(url):
    failures = []
    threads = [threading.Thread(target=_open_and_add, args=[url, failures]) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert failures == []
    trials = optuna.load_study(study_name="s", storage=open_storage(url)).trials
    assert [trial.number for trial in trials] == list(range(8))


def _open_and_add(url, failures):
    try:
        study = optuna.create_study(study_name="s", storage=open_storage(url), load_if_exists=True)
        study.optimize(lambda trial: trial.suggest_int("x", 0, 3), n_trials=2)
    except Exception as error:  # noqa: BLE001 - a thread's failure, shown by the test
        failures.append(error)


def test_tables_that_a_killed_driver_left_half_made_are_completed(tmp_path):
    path = tmp_path / "studies.db"
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE studies (study_id INTEGER NOT NULL PRIMARY KEY, study_name VARCHAR(512) NOT NULL)"
    )
    connection.close()
    optuna.create_study(study_name="s", storage=open_storage(path))
    assert list_studies(open_storage(path)) == ["s"]


def test_studies_are_listed_by_name(url):
    storage = open_storage(url)
    for name in ("b", "a"):
        optuna.create_study(study_name=name, storage=storage)
    assert list_studies(open_storage(url, create=False)) == ["a", "b"]


def foreign_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (soup TEXT)")
    connection.close()


def truncated_database(path):
    optuna.create_study(study_name="s", storage=open_storage(path))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    path.write_bytes(path.read_bytes()[:20_000])


def broken_journal(path):
    optuna.create_study(study_name="s", storage=open_storage(path))
    path.write_bytes(b"{not json}\n" + path.read_bytes())


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("garbage.db", lambda path: path.write_bytes(b"\x00\x01garbage\n" * 300), "not a database"),
        ("short.db", lambda path: path.write_text("hello"), "not a database"),
        ("other.db", foreign_database, "must be a study file; got a database with the tables recipes"),
        ("cut.db", truncated_database, "must be an undamaged SQLite file"),
        (
            "garbage.log",
            lambda path: path.write_bytes(b"\x00\x01garbage\n" * 300),
            "a journal of studies; got line 1",
        ),
        ("text.journal", lambda path: path.write_text("hello"), "a journal of studies"),
        (
            "other.log",
            lambda path: path.write_text('{"level": "info"}\n'),
            "a journal of studies; got line 1",
        ),
        ("broken.log", broken_journal, "a journal of studies; got line 1"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_and_left_as_it_was(name, make, sentence, tmp_path):
    path = tmp_path / name
    make(path)
    before = path.read_bytes()
    with pytest.raises(StorageError, match=sentence):
        open_storage(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("/proc/study.db", "must be (reachable and )?writable"),
        ("/proc/study.log", "must be (reachable and )?writable"),
        ("/dev/null/study.db", "must lie in a folder that exists"),
        ("sqlite:////no/such/folder/study.db", "must lie in a folder that exists"),
        ("/", "must be a file; got a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_sentence(url, sentence):
    with pytest.raises(StorageError, match=sentence):
        open_storage(url)


def test_a_study_is_not_looked_for_in_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(StorageError, match="must exist"):
        open_storage(tmp_path / "no.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_line_that_a_killed_driver_left_half_written_is_cut_off(tmp_path):
    path = tmp_path / "runs.log"
    optuna.create_study(study_name="s", storage=open_storage(path))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker_')
    storage = open_storage(path)
    assert path.read_bytes() == whole
    assert list_studies(storage) == ["s"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [("a.db", "sqlite"), ("sqlite:///a.db", "sqlite"), ("a.log", "journal"), ("a.journal", "journal"),
     ("journal:///a", "journal"), ("postgresql://h/b", "postgresql"), ("postgres://h/b", "postgresql")],
)  # fmt: skip
def test_a_place_says_what_kind_of_storage_it_is(text, kind):
    assert storage_place(text).kind == kind


@pytest.mark.parametrize("text", ["mysql://me:secret@h/b", "redis://:secret@h", "sqlite://", ":memory:", ""])
def test_a_place_of_another_kind_is_refused_without_its_password(text):
    with pytest.raises(InvalidSpec, match="a storage must") as caught:
        storage_place(text)
    assert "secret" not in str(caught.value)


def test_postgresql_out_of_reach_is_a_sentence_without_the_password():
    with pytest.raises(StorageError, match=r"postgresql://me:\*\*\*@127\.0\.0\.1:1/x") as caught:
        open_storage("postgresql://me:sec@ret@127.0.0.1:1/x")
    assert "ret" not in str(caught.value).replace("retry", "")


@pytest.mark.parametrize(
    "url", ["postgresql://u:se@cret@h/b", "postgresql://h/b?user=u&password=secret", "x://u:secret@h"]
)
def test_a_password_is_never_shown(url):
    assert "cret" not in hide_password(url)
