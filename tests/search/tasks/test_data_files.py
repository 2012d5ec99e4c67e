"""Data files: what stands in them is what a task is made of."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import json
import lzma
import tarfile
import zipfile

import pytest

from sparsearch.config.study import DataConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.data_rows import SPLITS, load_rows

TEXT_AND_LABEL = dict.fromkeys(SPLITS, ("text", "label"))
ROWS = [{"text": "good film", "label": "yes"}, {"text": "bad song", "label": "no"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "text,label\ngood film,yes\nbad song,no\n"


@pytest.fixture
def read(tmp_path):
    """Reads one file, of this content and name, as all three splits; gives columns of the training split."""

    def load(content, name="data.jsonl", path="json", columns=("text", "label"), **settings):
        files = content if isinstance(content, dict) else {name: content}
        for file, text in files.items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(text.encode() if isinstance(text, str) else text)
        listed = list(files) if isinstance(content, dict) else name
        config = DataConfig(
            path=path,
            data_files=dict.fromkeys(("train", "validation", "test"), listed),
            **settings,
        )
        return load_rows(config, tmp_path, dict.fromkeys(SPLITS, columns))["train"].columns

    return load


def in_zip(text, folder):
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("rows/a", text)
        archive.writestr("__MACOSX/rows/a", b"\0")
    return (folder / "a.zip").read_bytes()


def in_tar(text, folder):
    (folder / "member").write_text(text)
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        archive.add(folder / "member", "rows/a")
    return (folder / "a.tar.gz").read_bytes()


COMPRESSIONS = {
    "plain": lambda text, folder: text.encode(),
    "byte order mark": lambda text, folder: text.encode("utf-8-sig"),
    "gzip": lambda text, folder: gzip.compress(text.encode()),
    "bzip2": lambda text, folder: bz2.compress(text.encode()),
    "xz": lambda text, folder: lzma.compress(text.encode()),
    "zip": in_zip,
    "tar": in_tar,
}


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
@pytest.mark.parametrize(("text", "path"), [(LINES, "json"), (TABLE, "csv")], ids=["json", "csv"])
def test_compressed_files_and_archives_are_read(compress, text, path, read, tmp_path):
    found = read(compress(text, tmp_path), "data", path)
    assert found == {"text": ["good film", "bad song"], "label": ["yes", "no"]}


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        LINES.replace("\n", "\n\n"),
        LINES.replace("\n", "\r\n"),
        LINES.removesuffix("\n"),
        LINES.replace("{", '{"other": {"text": [1]}, '),
    ],
    ids=["list", "indented list", "indented objects", "empty lines", "crlf", "no end", "nested"],
)
def test_json_is_read_in_all_its_layouts(content, read):
    assert read(content) == {"text": ["good film", "bad song"], "label": ["yes", "no"]}


def test_json_strings_are_kept_and_so_are_types_in_one_column(read):
    """Guessing readers make None, 7, 100000.0, 0 and dates of these."""
    labels = ["null", "007", "1e5", "-", "2024-01-01", "12:30", "", 7, 1.0, True, None, [1], "é"]
    lines = "".join(json.dumps({"text": str(label), "label": label}) + "\n" for label in labels)
    found = read(lines)
    assert found["label"] == labels and list(map(type, found["label"])) == list(map(type, labels))
    assert found["text"] == list(map(str, labels))


def test_characters_written_as_two_escapes_are_whole(read):
    assert read('{"text": "\\ud83d\\ude00", "label": "é"}') == {"text": ["😀"], "label": ["é"]}


def test_late_rows_of_another_type_are_not_cast(read):
    """A reader that looks at the first megabytes for types casts what comes later."""
    early = '{"text": "' + "a" * 3000 + '", "label": 1}\n'
    found = read(early * 4000 + '{"text": "late", "label": "01"}\n')
    assert found["label"][-2:] == [1, "01"] and found["text"][-1] == "late"


def test_csv_fields_are_text_as_they_are_written(read):
    fields = [
        "NA",
        "null",
        "None",
        "nan",
        "n/a",
        "",
        "00",
        "1.0",
        "1",
        "1e5",
        "True",
        "2024-01-01",
        " a ",
    ]
    found = read("text,label\n" + "".join(f"{f},{f}\n" for f in fields), path="csv")
    assert found == {"text": fields, "label": fields}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_fields_may_be_quoted_and_hold_delimiters_and_line_ends(end, read):
    table = [
        "text,label",
        '"a, b","x"',
        '"two',
        'lines",y',
        '"he said ""no""",z',
        '5" disk,"q"',
        "",
        "",
    ]
    found = read(end.join(table), path="csv")
    assert found["text"] == ["a, b", f"two{end}lines", 'he said "no"', '5" disk']
    assert found["label"] == ["x", "y", "z", "q"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_csv_fields_may_be_parted_by_another_delimiter(delimiter, read):
    table = TABLE.replace(",", delimiter)
    found = read(table, path="csv", delimiter=delimiter)
    assert found == {"text": ["good film", "bad song"], "label": ["yes", "no"]}
    with pytest.raises(DataError, match="no column 'text'") as caught:
        read(table, path="csv")
    assert f"--set 'task.data.delimiter={json.dumps(delimiter)}'" in caught.value.hint


def test_long_csv_fields_are_read(read):
    assert len(read(f"text,label\n{'a' * 300_000},x\n", path="csv")["text"][0]) == 300_000


def test_parquet_values_have_the_types_of_the_file(read, tmp_path):
    import datasets

    values = {
        "words": ["NA", "", "00"],
        "whole": [1, 0, None],
        "truth": [True, False, None],
        "day": [datetime.date(2024, 1, 1)] * 3,
        "price": [decimal.Decimal("1.50")] * 3,
        "raw": [b"a"] * 3,
    }
    datasets.Dataset.from_dict(values).to_parquet(tmp_path / "a=1.parquet")
    content = (tmp_path / "a=1.parquet").read_bytes()
    assert read(content, "a=1.parquet", "parquet", tuple(values)) == values


@pytest.mark.parametrize(
    "name", ["runs[1]/data.jsonl", "a*b?.jsonl", "x=1/a::b.jsonl", "{a}.jsonl"]
)
def test_names_of_folders_and_files_are_taken_literally(name, read):
    assert read(LINES, name)["label"] == ["yes", "no"]


def test_a_split_may_be_several_files(read):
    files = {"b.jsonl": LINES, "empty.jsonl": "", "a.jsonl.gz": gzip.compress(LINES.encode())}
    assert read(files)["label"] == ["yes", "no", "yes", "no"]
    with pytest.raises(DataError, match="split 'train' has no column 'label'; it has: text"):
        read({"b.jsonl": LINES, "c.jsonl": '{"text": "a"}'})


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        ("train[:1]", ["yes"]),
        ("train[50%:]", ["no"]),
        ("train[-1:]+validation", ["no", "yes", "no"]),
        ("all", ["yes", "no"] * 3),
    ],
)
def test_a_split_may_be_a_slice_of_files(wanted, labels, read):
    assert read(LINES, splits={"train": wanted})["label"] == labels


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("nope", "cannot load split 'train': Unknown split \"nope\""),
        ("train[5:]", "split 'train' is empty: 'train\\[5:\\]' selects no rows"),
        ("train[1", "cannot load split 'train': .*train\\[1"),
        ("train[:0%]", "split 'train' is empty: 'train\\[:0%\\]' selects no rows"),
    ],
)
def test_a_slice_that_cannot_be_is_refused(wanted, message, read):
    with pytest.raises(DataError, match=message) as caught:
        read(LINES, splits={"train": wanted})
    assert "task.data.splits" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        (LINES.replace("bad", "caf\xe9").encode("latin-1"), "json", "line 2, byte 14 is 0xe9, .* not UTF-8"),
        (TABLE.replace("bad", "caf\xe9").encode("latin-1"), "csv", "line 3, byte 4 is 0xe9, .* not UTF-8"),
        (TABLE.encode("utf-16"), "csv", "line 1, byte 1 is 0xff, which is not UTF-8"),
        (gzip.compress(LINES.replace("bad", "\xe9").encode("latin-1"), mtime=0), "json", "line 2, byte 11 is 0xe9"),
        (gzip.compress(LINES.encode() * 99, mtime=0)[:-20], "json", "ended before the end-of-stream marker"),
        (LINES + '{"text": "x", "lab', "json", "line 3, column 15: "),
        (LINES + '{"text": "x", "label": 1, "label": 2}', "json", "line 3: .* the key 'label' twice"),
        (LINES + '{"text": "\\ud83d", "label": "x"}', "json", "line 3: 'text' holds half a character"),
        (LINES + '{"text": "x", "label": "\\ude00"}', "json", "line 3: 'label' holds half a character"),
        ("{}\n{}\n", "json", "its objects are empty"),
        ("[{}, {}]", "json", "its objects are empty"),
        ('{"label": 1, "label": 2}', "json", "line 1: .* the key 'label' twice"),
        (LINES + '["x", 1]\n', "json", "line 3 holds \\['x', 1\\] where an object belongs"),
        ('["x", "y"]', "json", "row 0 holds 'x' where an object belongs"),
        ('[{"text": 1},\n{"text": 2}', "json", "line 2, column 12: "),
        (TABLE + "a,b,c\n", "csv", "line 4 ends a row of 3 fields, the header has 2"),
        (TABLE + "a\n", "csv", "line 4 ends a row of 1 fields, the header has 2"),
        (TABLE + '"a,b\nc,d\n', "csv", "unexpected end of data"),
        (TABLE + '"a"b,c\n', "csv", "line 4: ',' expected after '\"'"),
        ("text,label,label\na,b,c\n", "csv", "the header names 'label' 2 times"),
        ("no parquet", "parquet", "Parquet"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_place(content, path, message, read, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        read(content, "damaged", path)
    assert f"split 'train' of '{tmp_path / 'damaged'}'" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("   \n", "remove that line: it holds blanks alone"),
        ('x, "a, b"\n', "no blank between a delimiter and a double quote"),
        ("a, b, c\n", "fields that contain the delimiter into double quotes"),
    ],
)
def test_a_row_of_another_length_has_a_hint_for_its_cause(line, hint, read):
    with pytest.raises(DataError, match="line 4 ends a row of") as caught:
        read(TABLE + line, path="csv")
    assert hint in caught.value.hint


def test_blanks_in_a_header_are_seen(read):
    with pytest.raises(DataError, match=r"has no column 'label'; it has: text, ' label', ''"):
        read("text, label,\na,b,c\n", path="csv")


def test_a_file_that_is_listed_twice_is_refused(tmp_path):
    (tmp_path / "a").write_text(LINES)
    files = {"train": ["a", "./a"], "validation": "a", "test": "a"}
    with pytest.raises(DataError, match=r"train lists one file twice: a, \./a"):
        load_rows(DataConfig(path="json", data_files=files), tmp_path, TEXT_AND_LABEL)


@pytest.mark.parametrize(
    ("content", "path"), [("", "json"), ("\n \n", "json"), ("", "csv"), ("text,label\n", "csv")]
)
def test_a_file_without_rows_is_empty(content, path, read):
    with pytest.raises(DataError, match="split 'train' is empty: data holds no rows"):
        read(content, "data", path)


def test_columns_of_arrays_are_refused_by_their_type(read, tmp_path):
    import datasets

    array = datasets.Array2D(shape=(1, 1), dtype="int32")
    features = datasets.Features({"text": array, "label": datasets.Value("int64")})
    rows = {"text": [[[1]], [[2]]], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x")
    with pytest.raises(DataError, match="column 'text' holds Array2D.*; it must hold text"):
        read((tmp_path / "x").read_bytes(), "x", "parquet")


def test_a_folder_of_files_is_loaded_as_a_data_set_of_the_hub_is(tmp_path):
    import datasets

    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(LINES)
    config = DataConfig(path=str(tmp_path), splits={"train": "train[:1]"})
    found = load_rows(config, tmp_path, TEXT_AND_LABEL)
    assert found["train"].columns == {"text": ["good film"], "label": ["yes"]}
    assert len(found["test"]) == 2
    assert datasets.utils.logging.is_progress_bar_enabled()
    with pytest.raises(DataError, match="split 'train' has no column 'mood'; it has: text, label"):
        load_rows(config, tmp_path, dict.fromkeys(SPLITS, ("mood",)))
    with pytest.raises(DataError, match="cannot load split 'test' of .*dev") as caught:
        load_rows(DataConfig(path=str(tmp_path), splits={"test": "dev"}), tmp_path, TEXT_AND_LABEL)
    assert "task.data.splits" in caught.value.hint


def test_a_column_of_mixed_types_that_the_hub_rewrites_is_refused(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(LINES + '{"text": "so", "label": 7}\n')
    with pytest.raises(DataError, match="column 'label' holds Json.*; it must hold text"):
        load_rows(DataConfig(path=str(tmp_path)), tmp_path, TEXT_AND_LABEL)
