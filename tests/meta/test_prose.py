"""The prose check finds phrases wherever they are written, and reports where."""

from pathlib import Path

import pytest

from tests.meta.prose import PARTS, PHRASES, files_in, findings, findings_in


def test_phrases_have_several_words() -> None:
    assert [phrase for phrase in PHRASES if " " not in phrase or phrase != phrase.lower()] == []


def test_replacements_contain_no_phrase(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(PHRASES.values()))
    assert list(findings_in(page, "page.md")) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("page.md", "Good.\n\nThe link is not valid any\nmore.", 'page.md:3: "any more" -> "no longer"'),
        ("page.html", "<p>The link is not valid\nAny more</p>", 'page.html:2: "Any more" -> "no longer"'),
        ("code.py", "x = 1\ndef f():\n    '''Returns.\n\n    Not any more.'''\n", 'code.py:5: "any more" -> "no longer"'),
        ("code.py", "x = 'not any more'\n", 'code.py:1: "any more" -> "no longer"'),
        ("code.py", "x = f'{y} not any more'\n", 'code.py:1: "any more" -> "no longer"'),
        ("code.py", "# Why: not any\n# more\nx = 1\n", 'code.py:1: "any more" -> "no longer"'),
        ("code.py", "x = 1\ny = 2  # not any more\n", 'code.py:2: "any more" -> "no longer"'),
    ],
)
def test_phrase_is_reported_with_its_line(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    assert list(findings_in(tmp_path / name, name)) == [expected]


def test_code_is_not_prose(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("any, more = 1, 2\n# many more, any\n\n# more\n")
    assert list(findings_in(tmp_path / "code.py", "code.py")) == []


def test_missing_part_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        list(files_in(["no-such-folder"]))


def test_parts_contain_no_phrase_to_replace() -> None:
    assert findings(PARTS) == []
