"""Records: every damage is seen, none of it becomes a figure, and what can be remade is."""

import json
import os
import shutil

import pytest

from straw_experiments.runner import records
from straw_experiments.runner.records import RecordError

RECORD = {"seconds": 0.1 + 0.2, "Größe": "a\n", "by seed": [1, None, {"loss": float("inf")}]}


def test_record_comes_back_and_can_be_read_by_hand(tmp_path):
    path = tmp_path / "new" / "record.json"
    records.write_json(path, RECORD)
    found = records.read_json(path)
    assert found == RECORD
    assert list(found) == list(RECORD)
    assert list(json.loads(path.read_text())) == ["format", *RECORD, "crc32"]
    assert [each.name for each in path.parent.iterdir()] == ["record.json"]


def _damaged(raw):
    for at in range(len(raw)):
        yield from (raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :] for bit in range(8))
        yield raw[:at]
        yield raw[:at] + bytes(min(64, len(raw) - at)) + raw[at + 64 :]


def test_no_damage_of_a_record_becomes_a_value(tmp_path):
    path = tmp_path / "record.json"
    records.write_json(path, RECORD)
    refused = 0
    for raw in _damaged(path.read_bytes()):
        path.write_bytes(raw)
        try:
            assert records.read_json(path) == RECORD  # white space, or the end of the last line
        except RecordError:
            refused += 1
    assert refused > 1_000


def test_no_damage_of_a_line_becomes_a_value(tmp_path):
    path, lines = tmp_path / "lines.jsonl", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    records.write_lines(path, lines[:1])
    records.append_line(path, lines[1])
    assert records.read_lines(path) == lines
    for raw in _damaged(path.read_bytes()):
        path.write_bytes(raw)
        assert all(line in lines for line in records.read_lines(path))


def test_records_of_earlier_versions_are_taken_as_they_are(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(RECORD))
    assert records.read_json(path) == RECORD
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert records.read_lines(path) == [{"epoch": 1}, {"epoch": 2}]


def test_records_that_changed_places_are_refused(tmp_path):
    paths = [tmp_path / "runs" / f"straw-seed{seed}" / "result.json" for seed in (0, 1)]
    paths.append(tmp_path / "summary.json")
    for path in paths:
        records.write_json(path, RECORD)
    for path in paths:
        for other in set(paths) - {path}:
            path.write_bytes(other.read_bytes())
            assert not records.is_whole(path)
        records.write_json(path, RECORD)
    shutil.move(tmp_path / "runs", tmp_path / "moved" / "runs")  # the study may be moved
    assert records.is_whole(tmp_path / "moved" / "runs" / "straw-seed0" / "result.json")


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", "null", '{"format": 2}', '{"crc32": 2}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    assert not records.is_whole(path)
    with pytest.raises(RecordError, match="cannot read"):
        records.read_json(path)


def test_damaged_record_is_set_aside_with_one_warning(tmp_path):
    path = tmp_path / "record.json"
    assert not records.is_made(path)
    path.write_text("{")
    with pytest.warns(UserWarning, match=rf"{path}: .*record\.json\.damaged, and made again"):
        assert not records.is_made(path)
    assert not records.is_made(path)
    assert (tmp_path / "record.json.damaged").read_text() == "{"
    records.write_json(path, RECORD)
    assert records.is_made(path)


@pytest.mark.skipif(os.name != "posix", reason="folders are opened")
def test_file_and_folder_are_on_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    done = []
    replace, fsync = os.replace, os.fsync

    def synced(file):
        done.append(os.path.realpath(f"/proc/self/fd/{file}"))
        fsync(file)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    records.write(tmp_path / "file", "text")
    assert done == [str(tmp_path / "file.part"), "rename", str(tmp_path)]


# --- folders ------------------------------------------------------------------------------------


def test_settings_are_found_as_long_as_one_copy_is_whole(tmp_path):
    assert records.read_settings(tmp_path) is None
    records.write_settings(tmp_path, {"rank": 4})
    records.write_summary(tmp_path, {"config": {"rank": 4}}, [])
    assert records.read_settings(tmp_path) == {"rank": 4}
    (tmp_path / "config.json").write_text("[]")
    with pytest.warns(UserWarning, match="config.json: expected a JSON .*taken from .*runs"):
        assert records.read_settings(tmp_path) == {"rank": 4}
    (tmp_path / "config.json").unlink()
    with pytest.warns(UserWarning, match="config.json is gone. Settings are taken from .*runs"):
        assert records.read_settings(tmp_path) == {"rank": 4}
    (tmp_path / "runs" / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"taken from .*summary\.json"):
        assert records.read_settings(tmp_path) == {"rank": 4}
    (tmp_path / "summary.json").unlink()
    with pytest.raises(RecordError, match=r"is gone\. Restore it, .*or choose another --out"):
        records.read_settings(tmp_path)


def test_summary_alone_may_have_no_settings(tmp_path):
    records.write_summary(tmp_path, {"seeds": [0]}, [])
    assert records.is_begun(tmp_path)
    assert records.read_settings(tmp_path) is None


def test_finished_study_is_whole_with_all_its_files(tmp_path):
    (tmp_path / "runs").mkdir()
    assert records.read_summary(tmp_path) is None
    (tmp_path / "report.md").write_text("all is well")
    records.write_summary(tmp_path, RECORD, ["report.md"])
    assert records.read_summary(tmp_path) == RECORD
    (tmp_path / "report.md").write_text("all is bell")
    with pytest.warns(UserWarning, match=r"made again from the runs: report\.md"):
        assert records.read_summary(tmp_path) is None
    shutil.rmtree(tmp_path / "runs")  # years later: there is nothing to make it from
    with pytest.warns(UserWarning, match=r"not made again, as the runs are gone, too: report\.md"):
        assert records.read_summary(tmp_path) == RECORD
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RecordError, match=r"summary\.json"):
        records.read_summary(tmp_path)
