"""utils/runs.py: names, folders, params.json and the history, each broken on purpose."""

import errno
import fcntl
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shared import contents, full_disk, written
from utils import runs
from utils.settings import from_params, read_constants

SHAPE = (28, 28, 1)


# --- the folder -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"latent_dim": 20}, "mnist-ce-z20"),
        ({"dataset": "fashion_mnist", "latent_dim": 2}, "fashion_mnist-ce-z2"),
        ({"loss": "ad", "decoder_scale": "learned", "latent_dim": 2}, "mnist-ad-learned-z2"),
        ({"loss": "mse", "autoencoder": True, "latent_dim": 2}, "mnist-mse-ae-z2"),
        ({"labels": (1, 7), "noise_dim": 8, "latent_dim": 2}, "mnist-1_7-ce-z2-noise8"),
        (
            {
                "dataset": "tfds:cifar10",
                "architecture": "conv",
                "loss": "logistic",
                "decoder_scale": "learned",
                "latent_dim": 64,
            },
            "tfds_cifar10-logistic-conv-z64",
        ),
        ({"labels": tuple(range(50)), "latent_dim": 2}, "mnist-50labels-ce-z2"),
        ({"run_name": "cycles"}, "cycles"),
    ],
)
def test_a_run_is_named_after_what_tells_it_apart_or_as_the_user_says(changes, name, tmp_path):
    settings = from_params(output_dir=str(tmp_path / "new" / "folders"), **changes)
    assert runs.create(settings, "CPU", SHAPE) == tmp_path / "new" / "folders" / name


def test_a_derived_name_that_is_taken_gets_what_differs_and_a_number_only_where_nothing_does(tmp_path):
    first = from_params(latent_dim=2, output_dir=str(tmp_path))
    names = [runs.create(first, "CPU", SHAPE).name for _ in range(3)]
    assert names == ["mnist-ce-z2", "mnist-ce-z2-2", "mnist-ce-z2-3"]
    other = first.model_copy(update={"seed": 1, "kl_weight_end": 4.0, "checkpoint_every": 7})
    names = [runs.create(other, "CPU", SHAPE).name for _ in range(2)]
    assert names == ["mnist-ce-z2-kl_weight_end4-seed1", "mnist-ce-z2-kl_weight_end4-seed1-2"]
    (tmp_path / "mnist-ce-z3").mkdir()  # not a run
    assert runs.create(first.model_copy(update={"latent_dim": 3, "seed": 1}), "CPU", SHAPE).name == "mnist-ce-z3-2"


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({"encoder_layers": (500, 300)}, "-encoder_layers500_300"),
        ({"encoder_layers": (), "kl_schedule": "sigmoid"}, "-no_encoder_layers-kl_schedule_sigmoid"),
        ({"learning_rate": 1e-05, "gradient_clip": 1e30}, "-learning_rate1e-05-gradient_clip1e30"),
        ({"mixed_precision": True, "free_bits": 0.125}, "-free_bits0.125-mixed_precision"),
        ({"start_from": "old runs/my digits (2)/"}, "-start_from_my_digits__2_"),
        ({"data_dir": "/elsewhere", "run_name": "", "log_every": 3}, "-2"),  # nothing that describes the run
        ({"dataset": "folder", "data_dir": "~/my/faces"}, "-data_dir_faces"),
        (  # 80 characters have no room for the layers
            {"encoder_layers": (1000,) * 15, "held_out": 5000, "seed": 2**31 - 1},
            "-held_out5000-seed2147483647-and1more",
        ),
    ],
)
def test_what_differs_in_words(changes, ending, tmp_path):
    first = from_params(latent_dim=2, output_dir=str(tmp_path), dataset=changes.get("dataset", "mnist"))
    plain = runs.create(first, "CPU", SHAPE)
    assert runs.create(from_params(**first.model_dump() | changes), "CPU", SHAPE).name == plain.name + ending


def test_what_differs_from_an_older_run_counts_what_it_was_saved_without(tmp_path, monkeypatch):
    chosen = from_params(latent_dim=2, image_crop=9, output_dir=str(tmp_path))
    folder = runs.create(chosen, "CPU", SHAPE)
    about = runs.read_params(folder)
    old = {name: value for name, value in about["settings"].items() if name not in ("image_crop", "seed")}
    runs.write_params(folder, about | {"settings": old | {"zebra": 3}})
    monkeypatch.setitem(runs.BEFORE, "image_crop", 9)
    today = read_constants()["seed"].value
    found = [runs.create(chosen.model_copy(update={"seed": seed}), "CPU", SHAPE) for seed in (today, today + 1)]
    assert [path.name for path in found] == ["mnist-ce-z2-2", f"mnist-ce-z2-seed{today + 1}"]
    monkeypatch.setattr(runs, "unread", lambda: ["seed"])  # not in the name, because nothing reads it
    other = chosen.model_copy(update={"seed": today + 1, "image_crop": 0})
    assert runs.create(other, "CPU", SHAPE).name == "mnist-ce-z2-image_crop0"
    (folder / "params.json").write_text('{"settings": {"se')
    assert runs.create(other, "CPU", SHAPE).name == "mnist-ce-z2-3"


def test_a_name_that_gets_too_long_is_shortened_and_counts_what_it_leaves_out(tmp_path):
    chosen = from_params(latent_dim=2, output_dir=str(tmp_path))
    runs.create(chosen, "CPU", SHAPE)
    many = {
        "encoder_layers": (500,),
        "decoder_layers": (500,),
        "reconstruction_reduction": "mean",
        "gradient_clip": 1.0,
    }
    long = many | {"encoder_layers": (512,) * 20}
    names = [
        runs.create(chosen.model_copy(update=changes), "CPU", SHAPE).name
        for changes in (many, many | {"seed": 3}, many | {"seed": 4}, long, long, {"start_from": "x" * 100})
    ]
    assert names == [
        "mnist-ce-z2-enco_laye500-deco_laye500-reco_redu_mean-grad_clip1",
        "mnist-ce-z2-enco_laye500-deco_laye500-reco_redu_mean-grad_clip1-seed3",
        "mnist-ce-z2-enco_laye500-deco_laye500-reco_redu_mean-grad_clip1-seed4",
        "mnist-ce-z2-deco_laye500-reco_redu_mean-grad_clip1-and1more",
        "mnist-ce-z2-deco_laye500-reco_redu_mean-grad_clip1-and1more-2",
        "mnist-ce-z2-and1more",
    ]


NUMBERS = st.integers(0, 2**31) | st.floats(0, 1e38)
ANYTHING = st.fixed_dictionaries(
    {},
    optional={
        "labels": st.lists(st.integers(0, 10**6), max_size=60).map(tuple),
        "encoder_layers": st.lists(st.integers(1, 65_536), max_size=30).map(tuple),
        "start_from": st.text(max_size=100),
        "dataset": st.sampled_from(["mnist", "folder", f"tfds:a_set_whose_name_is_{'long_' * 12}/or-longer:1.*"]),
        "data_dir": st.text(max_size=100),
        "loss": st.sampled_from(["ce", "my loss/ö"]),
        "autoencoder": st.booleans(),
        "learning_rate": NUMBERS,
        "latent_dim": NUMBERS,
        "seed": NUMBERS,
    },
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(ANYTHING, min_size=2, max_size=8))
def test_a_name_is_new_and_plain_and_short_whatever_the_settings_are(all_changes):
    pattern = next(
        rule.pattern for rule in read_constants()["run_name"].annotation.__metadata__ if hasattr(rule, "pattern")
    )
    with tempfile.TemporaryDirectory() as parent:
        for changes in all_changes:
            chosen = from_params().model_copy(update=changes)
            name = next(
                name for name in runs.names_for(chosen, Path(parent)) if not os.path.lexists(f"{parent}/{name}")
            )
            assert re.fullmatch(pattern, name)
            assert 0 < len(name) <= 80
            os.mkdir(f"{parent}/{name}")
            about = {"settings": chosen.model_dump(mode="json", warnings=False), "schedule_epochs": 1}
            Path(parent, name, "params.json").write_text(json.dumps(about))


def test_a_name_given_and_taken_is_refused_and_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    before = contents(tmp_path)
    with pytest.raises(
        runs.RunError, match=r"^run_name: 'mine' is taken \(\S+/mine\); choose another; that is not a run$"
    ):
        runs.create(from_params(run_name="mine", output_dir=str(tmp_path)), "CPU", SHAPE)
    assert contents(tmp_path) == before


def test_a_folder_that_could_not_be_filled_does_not_take_the_name(tmp_path, monkeypatch):
    settings = from_params(run_name="mine", output_dir=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", full_disk)
        with pytest.raises(OSError, match="No space"):
            runs.create(settings, "CPU", SHAPE)
    assert runs.create(settings, "CPU", SHAPE) == tmp_path / "mine"


def test_the_folder_of_runs_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = runs.create(from_params(run_name="here", output_dir="~/runs"), "CPU", SHAPE)
    assert folder == runs.find("here", "~/runs") == tmp_path / "runs" / "here"


def test_a_run_is_found_by_its_name_or_its_folder(tmp_path):
    folder = runs.create(from_params(run_name="mine", output_dir=str(tmp_path / "a")), "CPU", SHAPE)
    assert runs.find("mine", str(tmp_path / "a")) == folder
    assert runs.find(str(folder), "elsewhere") == folder
    with pytest.raises(runs.RunError, match=r"^--resume your: no such run in .*; there is mine$"):
        runs.find("your", str(tmp_path / "a"))
    with pytest.raises(runs.RunError, match=r"there is none$"):
        runs.find("mine", str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "can't be read: "),
        ('{"settings": {', "can't be read: "),
        ("[]", "is not what a run wrote"),
        ('{"settings": {}}', "is not what a run wrote"),
        ('{"settings": [], "schedule_epochs": 3}', "is not what a run wrote"),
        ('{"schedule_epochs": 3}', "is not what a run wrote"),
    ],
)
def test_params_json_that_no_run_wrote_is_told(text, told, tmp_path):
    if text is not None:
        (tmp_path / "params.json").write_text(text)
    with pytest.raises(runs.RunError, match=rf"params\.json {told}"):
        runs.read_params(tmp_path)


def test_the_commit_is_told_with_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=b", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/none"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(runs, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runs.git_commit() is None
    git("init")
    (tmp_path / "main.py").write_text("1")
    git("add", "main.py")
    git("commit", "-m", "one")
    git("tag", "v1")  # the commit itself is reported, not its tag
    commit = git("rev-parse", "HEAD").strip()
    assert runs.git_commit() == commit
    (tmp_path / "main.py").write_text("2")
    assert runs.git_commit() == f"{commit}+changes"
    monkeypatch.setenv("PATH", "")
    assert runs.git_commit() is None


def test_two_cannot_train_in_one_folder_and_the_second_may_afterwards(tmp_path):
    with runs.locked(tmp_path), pytest.raises(runs.RunError, match="another process"), runs.locked(tmp_path):
        pass
    with runs.locked(tmp_path):
        pass


def test_longer_means_longer_and_the_rest_is_as_it_was(tmp_path):
    folder = runs.create(from_params(epochs=5, output_dir=str(tmp_path)), "CPU", SHAPE)
    before = json.loads((folder / "params.json").read_text())
    runs.note_changes(folder, from_params(epochs=9, data_dir="moved", skip_bad_images=True, learning_rate=0.5))
    after = json.loads((folder / "params.json").read_text())
    assert (after["settings"].pop("epochs"), before["settings"].pop("epochs")) == (9, 5)
    assert after["settings"].pop("data_dir") == "moved" != before["settings"].pop("data_dir")
    assert (after["settings"].pop("skip_bad_images"), before["settings"].pop("skip_bad_images")) == (True, False)
    assert after.pop("checksum") != before.pop("checksum")
    assert after == before
    assert after["image_shape"] == list(SHAPE)
    assert after["schedule_epochs"] == 5


# --- history ----------------------------------------------------------------------------------------------------------
def test_a_line_that_a_crash_cut_short_does_not_count(tmp_path):
    written(tmp_path, [10, 20])
    written(tmp_path, [20], split="test")
    text = (tmp_path / "history.jsonl").read_text()
    for length in range(len(text) - 25, len(text) - 2):  # within the last line
        (tmp_path / "history.jsonl").write_text(text[:length])
        assert [line["step"] for line in runs.read_history(tmp_path)] == [10, 20]
    (tmp_path / "history.jsonl").write_text(text)
    assert [(line["step"], line["split"]) for line in runs.read_history(tmp_path)][1:] == [(20, "train"), (20, "test")]
    assert runs.read_history(tmp_path / "nowhere") == []


# --- the lock ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_file_system_without_locks_costs_a_note(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lines = []
    with runs.locked(tmp_path, lines.append):
        assert len(lines) == 1
        assert lines[0].startswith(f"note       this file system has no locks ({os.strerror(number)})")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_left_as_it_is(kind, tmp_path):
    lock, target = tmp_path / ".lock", tmp_path / "target"
    target.write_text("theirs")
    {"link": lambda: lock.symlink_to(target), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(runs.RunError, match=r"\.lock is not a file"), runs.locked(tmp_path):
        pytest.fail("let in")
    assert target.read_text() == "theirs"


def test_one_flipped_bit_of_params_json_is_refused(tmp_path):
    folder = runs.create(from_params(output_dir=str(tmp_path)), "CPU", SHAPE)
    path = folder / "params.json"
    path.write_text(path.read_text().replace('"batch_size": 1', '"batch_size": 3'))
    with pytest.raises(runs.RunError, match="is damaged or was edited: its checksum does not match"):
        runs.read_params(folder)
    path.write_text(path.read_text().replace('"checksum"', '"checksun"'))
    with pytest.raises(runs.RunError, match="is damaged or was edited: its checksum does not match"):
        runs.read_params(folder)


def test_the_checksum_is_of_what_is_read_again(tmp_path):
    about = {"settings": {}, "schedule_epochs": 1, "data": {"labels": {1: (2, 3), 10: (4, 5), 2: (6, 7)}}}
    runs.write_params(tmp_path, about)  # its keys are in another order as texts
    assert runs.read_params(tmp_path)["data"] == {"labels": {"1": [2, 3], "10": [4, 5], "2": [6, 7]}}


@pytest.mark.parametrize(
    ("name", "value"),
    [("schedule_epochs", epochs) for epochs in (0, -1, 10**30, True, None, "3", 1.5)]
    + [("image_shape", shape) for shape in (None, [28, 28], [28, 28, "1"], [0, 28, 1], 28)]
    + [("unread", names) for names in (5, [[]], "text")]
    + [("data", None), ("settings", None)],
)
def test_params_json_with_what_no_run_writes_is_refused_by_name(tmp_path, name, value):
    about = {"settings": {}, "schedule_epochs": 1} | {name: value}
    (tmp_path / "params.json").write_text(json.dumps(about))
    with pytest.raises(runs.RunError, match=f"is not what a run wrote: {name} is {re.escape(json.dumps(value))[:20]}"):
        runs.read_params(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(about | {name: float("nan")}))
    with pytest.raises(runs.RunError, match="can't be read: it holds NaN"):
        runs.read_params(tmp_path)


def test_what_a_killed_process_left_is_not_offered_as_a_run(tmp_path):
    for name in ("mine", ".new-0123"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "params.json").touch()
    with pytest.raises(runs.RunError, match=r"no such run in .*; there is mine$"):
        runs.find("other", str(tmp_path))


def test_a_run_whose_checkpoints_are_gone_or_linked_does_not_go_on(tmp_path):
    settings = from_params(output_dir=str(tmp_path), checkpoint_every=100)
    folder = runs.create(settings, "CPU", SHAPE)
    line = {"split": "train", "epoch": 1.0, "objective": 1.0, "reconstruction": 1.0}
    (folder / "history.jsonl").write_text(json.dumps(line | {"step": 100}))
    runs.check_can_go_on(folder, settings)  # killed before its first checkpoint: nothing is lost
    before = runs.read_params(folder)
    runs.note_saved(folder)  # as a stop does, before CHECKPOINT_EVERY
    with pytest.raises(runs.RunError, match="its checkpoints are gone, so it can't go on;"):
        runs.check_can_go_on(folder, settings)
    runs.write_params(folder, before)
    (folder / "history.jsonl").write_text(json.dumps(line | {"step": 101}))
    with pytest.raises(runs.RunError, match=r"its checkpoints are gone, so it can't go on; start a new run$"):
        runs.check_can_go_on(folder, settings)
    (tmp_path / "elsewhere").mkdir()
    (folder / "tensorboard").mkdir()
    for name in ("checkpoints", "tensorboard/train"):
        (folder / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(runs.RunError, match=f"{name} is a link; a resumed run would delete and write where it le"):
            runs.check_can_go_on(folder, settings)
        (folder / name).unlink()
    (folder / "film").touch()
    with pytest.raises(runs.RunError, match="film is no folder; move it away"):
        runs.check_can_go_on(folder, settings)


def test_a_run_that_is_stopped_while_its_folder_is_made_leaves_nothing(tmp_path, monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "git_commit", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.create(from_params(output_dir=str(tmp_path)), "CPU", SHAPE)
    monkeypatch.undo()
    monkeypatch.setattr(runs, "names_for", lambda *about: stopped())
    with pytest.raises(KeyboardInterrupt):
        runs.create(from_params(output_dir=str(tmp_path)), "CPU", SHAPE)
    assert list(tmp_path.iterdir()) == []
