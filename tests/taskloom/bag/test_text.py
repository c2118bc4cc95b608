"""Reading and writing text files, against Python's own."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from pathlib import Path

import dask.bag
import fsspec
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import taskloom
from taskloom import bag


def value(collection, **kwargs):
    return collection.compute(scheduler="sync", **kwargs)


def parts(b):
    return list(taskloom.compute(*b.to_delayed(), scheduler="sync"))


def lines_of(path, **kwargs):
    with open(path, **kwargs) as file:
        return list(file)


@pytest.fixture
def folder(tmp_path):
    for n, text in enumerate(["one\ntwo\n", "three\nfour", "", "\n"]):
        (tmp_path / f"{n}.txt").write_bytes(text.encode())
    (tmp_path / "sub.txt").mkdir()
    return tmp_path


EXPECTED = [["one\n", "two\n"], ["three\n", "four"], [], ["\n"]]


def test_paths(folder, monkeypatch):
    pattern = f"{folder}/*.txt"
    assert parts(bag.read_text(pattern)) == EXPECTED
    assert parts(bag.read_text(Path(pattern))) == EXPECTED
    assert parts(bag.read_text([f"{folder}/1.txt", folder / "0.txt"])) == [EXPECTED[1], EXPECTED[0]]
    assert parts(bag.read_text([f"{folder}/[01].txt", f"{folder}/?.txt"])) == [*EXPECTED[:2], *EXPECTED]
    assert parts(bag.read_text(f"file://{folder}/*.txt")) == EXPECTED
    monkeypatch.chdir(folder)
    assert parts(bag.read_text("*.txt")) == EXPECTED
    assert parts(bag.read_text("0.txt")) == EXPECTED[:1]
    # a name that has a wildcard's character in it
    (folder / "x[1]?.txt").write_text("odd")
    assert value(bag.read_text("x[1]?.txt")) == ["odd"]


def test_what_is_not_there(folder):
    with pytest.raises(FileNotFoundError, match=r"no file matches '.*\*\.json' \(looked in"):
        bag.read_text(f"{folder}/*.json")
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        bag.read_text(f"{folder}/nowhere/*.json")
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*9\.txt'"):
        bag.read_text([f"{folder}/0.txt", f"{folder}/9.txt"])
    with pytest.raises(IsADirectoryError, match=r"/\*"):
        bag.read_text(str(folder))
    with pytest.raises(ValueError, match="empty list"):
        bag.read_text([])
    with pytest.raises(TypeError, match="not int"):
        bag.read_text([1])
    with pytest.raises(TypeError, match="bytes"):
        bag.read_text(b"x")
    path = folder / "0.txt"
    b = bag.read_text(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.txt"):
        value(b)


def test_options_are_checked_at_once(folder):
    path = f"{folder}/0.txt"
    with pytest.raises(LookupError, match="utf-9"):
        bag.read_text(path, encoding="utf-9")
    with pytest.raises(ValueError, match=r"no compression 'gzp'; there are infer, .*gzip"):
        bag.read_text(path, compression="gzp")
    with pytest.raises(ValueError, match="not both"):
        bag.read_text(path, blocksize=5, files_per_partition=2)
    for wrong in (0, -1, True, "x"):
        with pytest.raises(ValueError, match="files_per_partition"):
            bag.read_text(path, files_per_partition=wrong)
    for wrong in (0, "many", "5 X", True, -1, "nan"):
        with pytest.raises(ValueError, match="blocksize"):
            bag.read_text(path, blocksize=wrong)
    with pytest.raises(ValueError, match="overlap"):
        bag.read_text(path, blocksize=5, linedelimiter="\n\n")


def test_files_per_partition_and_paths(folder):
    b = bag.read_text(f"{folder}/*.txt", files_per_partition=3)
    assert parts(b) == [[*EXPECTED[0], *EXPECTED[1]], EXPECTED[3]]
    b = bag.read_text(f"{folder}/*.txt", include_path=True)
    assert value(b)[1:3] == [("two\n", f"{folder}/0.txt"), ("three\n", f"{folder}/1.txt")]
    b = bag.read_text(f"{folder}/*.txt", include_path=True, blocksize=4)
    assert value(b)[1:3] == [("two\n", f"{folder}/0.txt"), ("three\n", f"{folder}/1.txt")]
    theirs = dask.bag.read_text([f"{folder}/{n}.txt" for n in range(4)], include_path=True).compute(scheduler="sync")
    assert value(b) == list(theirs)
    lazy = bag.read_text(f"{folder}/*.txt", collection=False)
    assert list(taskloom.compute(*lazy, scheduler="sync")) == EXPECTED


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("ending", PACK)
def test_compressed_files(tmp_path, ending):
    text = "eins\r\nzwei\nähm\n\nend"
    path = tmp_path / f"a.txt.{ending}"
    path.write_bytes(PACK[ending](text.encode()))
    (tmp_path / "b.txt").write_text("plain\n")
    b = bag.read_text(f"{tmp_path}/*")
    assert parts(b) == [["eins\n", "zwei\n", "ähm\n", "\n", "end"], ["plain\n"]]
    assert value(bag.read_text(path, linedelimiter="w")) == ["eins\r\nzw", "ei\nähm\n\nend"]
    assert bag.read_text(path).take(1) == ("eins\n",)
    other = tmp_path / "without ending"
    other.write_bytes(path.read_bytes())
    name = {"gz": "gzip"}.get(ending, ending)
    assert value(bag.read_text(other, compression=name)) == ["eins\n", "zwei\n", "ähm\n", "\n", "end"]
    with pytest.raises(ValueError, match="compressed"):
        bag.read_text(path, blocksize=10)
    assert value(bag.read_text(path, compression=None, encoding="latin1", blocksize=10, linedelimiter=""))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises((EOFError, zlib.error, OSError, lzma.LZMAError)):
        value(bag.read_text(path))


def test_other_file_systems():
    fs = fsspec.filesystem("memory")
    fs.pipe({"/taskloom-bag/a.txt": b"1\n2\n", "/taskloom-bag/b.txt.gz": gzip.compress(b"3")})
    try:
        assert value(bag.read_text("memory://taskloom-bag/*")) == ["1\n", "2\n", "3"]
        assert value(bag.read_text("memory://taskloom-bag/a.txt", blocksize=1)) == ["1\n", "2\n"]
        with pytest.raises(FileNotFoundError, match="no file matches"):
            bag.read_text("memory://taskloom-bag/*.json")
        with pytest.raises(ValueError, match="several file systems"):
            bag.read_text(["memory://taskloom-bag/a.txt", __file__])
        written = bag.range(2, npartitions=2).map(str).to_textfiles("memory://taskloom-bag/out-*.gz", scheduler="sync")
        assert value(bag.read_text([f"memory://{path}" for path in written])) == ["0", "1"]
    finally:
        fs.rm("/taskloom-bag", recursive=True)


ENDS = ["\n", "\r\n", "\r"]
ENCODINGS = [
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "latin-1",
    "shift_jis",
    "cp037",
    "gb18030",
    "utf-7",
]


DELIMITERS = [None, "", "\n", "\r\n", "\r", "a", "ab", "\u0a0a\u0a00"]


def can_hold(encoding, text):
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [(e, d) for e in ENCODINGS for d in DELIMITERS if can_hold(e, d or "")]
)
def test_blocks_of_every_size(tmp_path, encoding, delimiter):
    text = "a\nab\r\n\r\n \n\rb\n" + ("äĀ\u0a0a\u0a00ਊ\n€" if can_hold(encoding, "äĀ\u0a0a€") else "") + "\nend"
    path = tmp_path / "x.txt"
    data = text.encode(encoding)
    path.write_bytes(data)
    if delimiter in (None, "", "\n", "\r\n", "\r"):
        expected = lines_of(path, encoding=encoding, newline=delimiter)
    else:
        *begun, rest = path.read_bytes().decode(encoding).split(delimiter)
        expected = [part + delimiter for part in begun] + [rest] * bool(rest)
    assert value(bag.read_text(path, encoding=encoding, linedelimiter=delimiter)) == expected
    for size in range(1, len(data) + 2):
        b = bag.read_text(path, encoding=encoding, linedelimiter=delimiter, blocksize=size)
        assert b.npartitions == -(-len(data) // size)
        assert value(b) == expected


def test_utf_16_of_the_other_byte_order(tmp_path):
    path = tmp_path / "x.txt"
    for bom, name in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        path.write_bytes(bom + "ab\ncd\nef".encode(name))
        for size in range(1, 10):
            assert value(bag.read_text(path, encoding="utf-16", blocksize=size)) == ["ab\n", "cd\n", "ef"]


@given(
    st.text(alphabet="ab\r\né", max_size=40),
    st.integers(1, 45),
    st.sampled_from([None, "", "\n", "\r\n", "\r", "b", "ab", "\né"]),
)
@settings(max_examples=150, deadline=None)
def test_blocks_of_any_text(tmp_path_factory, text, size, delimiter):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode())
    whole = value(bag.read_text(path, linedelimiter=delimiter))
    if delimiter is None:
        assert whole == list(io.StringIO(text, newline=None))
    else:
        assert "".join(whole) == text
    assert value(bag.read_text(path, linedelimiter=delimiter, blocksize=size)) == whole


def test_block_sizes_in_words(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("0123456\n" * 1000)
    assert bag.read_text(path, blocksize="2 kB").npartitions == 4
    assert bag.read_text(path, blocksize="1KiB").npartitions == 8
    assert bag.read_text(path, blocksize=1e3).npartitions == 8
    assert value(bag.read_text(path, blocksize="1KiB").count()) == 1000
    (tmp_path / "empty").write_text("")
    assert parts(bag.read_text(tmp_path / "empty", blocksize=10)) == [[]]


def test_long_delimiters_across_what_is_read_at_once(tmp_path):
    path = tmp_path / "x.txt"
    items = ["x" * (1 << 20), "y" * ((1 << 16) - 3), "", "z" * (1 << 17)]
    path.write_text("<end>".join(items))
    expected = [item + "<end>" for item in items[:-1]] + items[-1:]
    assert value(bag.read_text(path, linedelimiter="<end>")) == expected
    assert value(bag.read_text(path, linedelimiter="<end>", blocksize=1 << 15)) == expected


def test_errors_in_the_text(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"ok\nno\xff\n")
    for kwargs in ({}, {"blocksize": 3}):
        with pytest.raises(UnicodeDecodeError):
            value(bag.read_text(path, **kwargs))
        assert value(bag.read_text(path, errors="replace", **kwargs)) == ["ok\n", "no\ufffd\n"]


def test_names_follow_from_files_and_options(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a\n")
    name = bag.read_text(path).name
    assert bag.read_text(path).name == name
    assert bag.read_text(path, encoding="latin-1").name != name
    assert bag.read_text(path, blocksize=10).name != name
    assert bag.read_text(path, include_path=True).name != name
    path.write_text("a\nb\n")
    assert bag.read_text(path).name != name


def test_taking_reads_the_beginning_and_closes_the_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a\n" * 10)
    before = len(os.listdir("/proc/self/fd"))
    with taskloom.config.set(scheduler="sync"):
        assert bag.read_text(path).map(str.strip).take(2) == ("a", "a")  # an open file would be a ResourceWarning
    assert len(os.listdir("/proc/self/fd")) == before


# --- writing


def test_to_textfiles(tmp_path):
    b = bag.from_sequence(["a", "ä", "c", "d"], npartitions=3)
    with taskloom.config.set(scheduler="sync"):
        paths = b.to_textfiles(f"{tmp_path}/new/out-*.txt")
        assert paths == [f"{tmp_path}/new/out-{n}.txt" for n in range(3)]
        assert [Path(path).read_bytes() for path in paths] == [b"a", "ä".encode(), b"c\nd"]
        assert value(bag.read_text(f"{tmp_path}/new/*.txt").str.strip()) == ["a", "ä", "c", "d"]
        assert b.to_textfiles(f"{tmp_path}/plain") == [f"{tmp_path}/plain/{n}.part" for n in range(3)]
        assert bag.range(11, npartitions=11).map(str).to_textfiles(f"{tmp_path}/*")[0] == f"{tmp_path}/00"
        (one,) = b.repartition(1).to_textfiles([tmp_path / "one"], last_endline=True, encoding="latin-1")
        assert Path(one).read_bytes() == "a\nä\nc\nd\n".encode("latin-1")
        names = b.to_textfiles(f"{tmp_path}/*.txt", name_function=lambda n: "abc"[n])
        assert [Path(name).name for name in names] == ["a.txt", "b.txt", "c.txt"]
        empty = bag.from_sequence([]).to_textfiles(f"{tmp_path}/empty-*", last_endline=True)
        assert Path(empty[0]).read_bytes() == b""
    lazy = b.to_textfiles(f"{tmp_path}/lazy-*.txt", compute=False)
    assert not Path(f"{tmp_path}/lazy-0.txt").exists()
    assert taskloom.compute(*lazy, scheduler="sync") == tuple(f"{tmp_path}/lazy-{n}.txt" for n in range(3))
    assert bag.to_textfiles(b, f"{tmp_path}/*.f", scheduler="sync") == [f"{tmp_path}/{n}.f" for n in range(3)]


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_writing_compressed_files(tmp_path, ending):
    b = bag.range(100, npartitions=2).map(str)
    paths = b.to_textfiles(f"{tmp_path}/*.{ending}", scheduler="sync")
    assert not Path(paths[0]).read_bytes().startswith(b"0\n")
    assert value(bag.read_text(paths).map(int)) == list(range(100))
    (path,) = bag.from_sequence(["x"]).to_textfiles(f"{tmp_path}/*.{ending}.no", compression="gzip", scheduler="sync")
    assert gzip.decompress(Path(path).read_bytes()) == b"x"


def test_writing_what_cannot_be_written(tmp_path):
    b = bag.range(3, npartitions=2)
    with pytest.raises(TypeError, match=r"item 0 of this partition is int: 0\. map\(str\)"):
        b.to_textfiles(f"{tmp_path}/*", scheduler="sync")
    with pytest.raises(ValueError, match="3 paths for 2 partitions"):
        b.to_textfiles(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"more than one \*"):
        b.to_textfiles("*/*")
    with pytest.raises(ValueError, match="same file"):
        b.to_textfiles([f"{tmp_path}/a", f"{tmp_path}/a"])
    with pytest.raises(ValueError, match="same file"):
        b.to_textfiles(f"{tmp_path}/*", name_function=lambda n: "x")
    with pytest.raises(TypeError, match="name_function"):
        b.to_textfiles(f"{tmp_path}/*", name_function=lambda n: n)
    with pytest.raises(ValueError, match="name_function goes with"):
        b.to_textfiles(["a", "b"], name_function=str)
    with pytest.warns(UserWarning, match="sort"):
        b.map(str).to_textfiles(f"{tmp_path}/*", name_function=lambda n: "ba"[n], scheduler="sync")


def test_lines_with_their_ends_are_written_once(tmp_path):
    """What was read with its line ends is written as it was."""
    path = tmp_path / "x.txt"
    path.write_text("a\nb\n\nc")
    (out,) = bag.read_text(path).str.rstrip("\n").to_textfiles(f"{tmp_path}/*.out", scheduler="sync")
    assert Path(out).read_text() == path.read_text()
