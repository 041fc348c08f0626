import hashlib
import os

import pytest

from straw_experiments.data import text
from straw_experiments.runner import limits

SENTENCES = {part: f" {part} of a bank \n" * 9 for part in text.PARTS}


@pytest.fixture
def treebank(tmp_path, monkeypatch):
    digests = {part: hashlib.sha256(each.encode()).hexdigest() for part, each in SENTENCES.items()}
    monkeypatch.setattr(text, "SHA256", digests)
    for part, each in SENTENCES.items():
        (tmp_path / f"ptb.{part}.txt").write_text(each)
    return tmp_path


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content.replace("bank", "rank", 1),
        lambda content: content + " ",
        lambda content: "",
    ],
)
def test_a_damaged_file_of_penn_treebank_is_named_with_the_cure(damage, treebank):
    assert text.load(None, str(treebank)).name == "Penn Treebank"
    path = treebank / "ptb.valid.txt"
    path.write_text(damage(SENTENCES["valid"]))
    with pytest.raises(ValueError, match=rf"expected {path} with .*deleted is downloaded again"):
        text.load(None, str(treebank))


def test_what_is_no_text_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for path, reason in [
        ("pipe", "it is no regular file"),
        (".", "it is a folder"),
        ("gone", "No such file or directory"),
        ("latin", "it is not UTF-8"),
    ]:
        with pytest.raises(ValueError, match=rf"--text: expected a text file, .* {reason}$"):
            text.load(str(tmp_path / path))
    with pytest.raises(ValueError, match="No such file or directory"):
        text.load("~nobody-of-this-name/text")


def test_a_text_that_fills_the_memory_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "long.txt"
    path.write_text("x" * 100)
    monkeypatch.setattr(limits, "own_memory", lambda: 799)
    with pytest.raises(ValueError, match=r"long\.txt: .* at most half of this machine's memory"):
        text.load(str(path))
    monkeypatch.setattr(limits, "own_memory", lambda: 800)
    assert len(text.load(str(path)).train) == 90
