"""Text files: read as bags of lines, and written from bags of strings."""

from __future__ import annotations

import codecs
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from taskloom._collections.protocol import quote
from taskloom._collections.tokens import tokenize
from taskloom.bag.base import BagBase
from taskloom.bag.steps import Step

if TYPE_CHECKING:
    from taskloom.bag.core import Bag

__all__ = ["Writing", "read_text", "to_textfiles"]

Url: TypeAlias = str | os.PathLike[str]

# Line ends that Python's own text files know, as open(newline=...) takes them.
_KNOWN_ENDS = (None, "", "\n", "\r", "\r\n")


def read_text(
    urlpath: Url | Sequence[Url],
    blocksize: int | str | None = None,
    compression: str | None = "infer",
    encoding: str = "utf-8",
    errors: str = "strict",
    linedelimiter: str | None = None,
    collection: bool = True,
    storage_options: dict[str, Any] | None = None,
    files_per_partition: int | None = None,
    include_path: bool = False,
) -> Any:
    """A bag of the lines of text files.

    Args:
        urlpath: a path, one with wildcards (``logs/*.json.gz``), or a list of such; also with a protocol that fsspec
            knows, such as ``s3://bucket/*.json``. Files that wildcards find are taken in the order of their names.
        blocksize: how many bytes of a file make a partition, as a number or in words such as "64 MB"; None: each file is
            one partition. Lines are never cut: one belongs to the block in which it begins.
        compression: "gzip", "bz2", "xz" or another that fsspec knows; "infer": by the ending of each file's name; None.
        encoding: the encoding of the text.
        errors: what becomes of bytes that are no such text, as in :func:`open`.
        linedelimiter: what ends a line. None: each of ``\\n``, ``\\r\\n`` and ``\\r``, and all arrive as ``\\n``; any other
            text stays at the end of its line as it is.
        collection: False: a list of Delayed, one a partition, instead of a bag.
        storage_options: handed to the file system: credentials, hosts and the like.
        files_per_partition: how many files make a partition.
        include_path: whether the items are pairs of a line and the path of its file.

    Returns:
        A bag; its items are lines with their ends.

    Raises:
        FileNotFoundError: there is no such file, or nothing that matches; names what was asked for.
        ValueError: options that exclude each other: a block size with compressed files or with ``files_per_partition``.

    >>> import tempfile, pathlib
    >>> from taskloom import bag
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "a.txt").write_text("one\\ntwo\\n")
    ...     bag.read_text(f"{folder}/*.txt").map(str.strip).compute(scheduler="sync")
    ['one', 'two']
    """
    if files_per_partition is not None:
        if blocksize is not None:
            raise ValueError("give read_text a blocksize or files_per_partition, not both")
        if isinstance(files_per_partition, bool) or not isinstance(files_per_partition, int) or files_per_partition < 1:
            raise ValueError(f"files_per_partition is a whole number of 1 or more, not {files_per_partition!r}")
    codecs.lookup(encoding)  # an unknown one is an error here, not in a task
    fs, paths = find_files(urlpath, dict(storage_options or {}))
    how = Reading(fs, check_compression(compression), encoding, errors, linedelimiter, include_path)
    tasks: list[tuple[Any, ...]]
    if blocksize is not None:
        size = parse_bytes(blocksize, "blocksize")
        how.check_blocks(paths)
        step = Step(how.block, "read_text", lazy=True)
        tasks = []
        for path in paths:
            length = how.size(path)
            starts = range(0, max(length, 1), size)
            tasks += [(step, path, start, start + size if start + size < length else None) for start in starts]
    else:
        step = Step(how.files, "read_text", lazy=True)
        at_once = files_per_partition or 1
        tasks = [(step, *paths[at : at + at_once]) for at in range(0, len(paths), at_once)]
    name = (
        f"read-text-{tokenize('read_text', how, [how.state_of(path) for path in paths], [task[1:] for task in tasks])}"
    )
    # a path is no key here: the keys of bags are tuples, those of Items and Delayed end in what no path does
    layer = {(name, i): (task[0], *map(quote, task[1:])) for i, task in enumerate(tasks)}
    from taskloom.bag.core import Bag

    bag = Bag._make(name, len(tasks), layer, ())
    return bag if collection else bag.to_delayed()


def find_files(urlpath: Url | Sequence[Url], options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The file system and the paths in it that a path, one with wildcards, or a list of these stand for."""
    import fsspec.core

    several = not isinstance(urlpath, (str, bytes, os.PathLike)) and isinstance(urlpath, Iterable)
    urls: list[Any] = list(urlpath) if several else [urlpath]  # type: ignore[arg-type]
    if not urls:
        raise ValueError("an empty list of paths: there is nothing to read")
    found: list[str] = []
    fs: Any = None
    for url in urls:
        if not isinstance(url, (str, os.PathLike)):
            raise TypeError(f"a path is a string or a Path, not {type(url).__name__}: {url!r:.60}")
        url = os.fspath(url)
        its_fs, path = fsspec.core.url_to_fs(url, **options)
        if fs is None:
            fs = its_fs
        elif fs != its_fs:
            raise ValueError(
                f"paths on several file systems ({urls[0]!r:.80} and {url!r:.80}): read each into a bag of its own and "
                "join them with concat"
            )
        local = is_local(fs)
        if _has_wildcards(path) and not (local and os.path.exists(path)):
            matches = sorted(match for match in fs.glob(path) if not (local and os.path.isdir(match)))
            if not matches:
                raise FileNotFoundError(f"no file matches {url!r}{_looked_in(path) if local else ''}")
            found += matches
            continue
        if local and os.path.isdir(path):
            raise IsADirectoryError(f"{url!r} is a directory; {os.path.join(url, '*')!r} are the files in it")
        if local and not os.path.exists(path):
            raise FileNotFoundError(f"there is no file {url!r}{_looked_in(path)}")
        found.append(path)
    return fs, found


def _has_wildcards(path: str) -> bool:
    return any(mark in path for mark in "*?[")


def _looked_in(path: str) -> str:
    folder = os.path.dirname(path)
    while _has_wildcards(folder):
        folder = os.path.dirname(folder)
    return f" (looked in {folder})" if os.path.isdir(folder) else f" (there is no directory {folder})"


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's own."""
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


def check_compression(compression: str | None) -> str | None:
    """A compression that is known, or an error."""
    if not compression:
        return None
    if compression != "infer":
        from fsspec.compression import compr

        if compression not in compr:
            known = ", ".join(sorted(str(name) for name in compr if name))
            raise ValueError(f"there is no compression {compression!r}; there are infer, {known}")
    return compression


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(value: int | float | str, name: str) -> int:
    """A number of bytes, also as people write it: ``"64 MB"``, ``"1.5GiB"``.

    Raises:
        ValueError: it is none, or less than 1.
    """
    number: float | None = None
    if isinstance(value, str):
        text = value.strip().lower().removesuffix("b").replace("_", "")
        digits = text.rstrip("kmgti ")
        unit = text[len(digits) :].strip()
        try:
            number = float(digits) * _UNITS[unit]
        except (KeyError, ValueError):
            number = None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = value
    if number is None or not 1 <= number < 2**63:
        raise ValueError(f"{name} is a number of bytes of 1 or more, such as 64_000_000 or '64 MB'; not {value!r}")
    return int(number)


class Reading:
    """How files are read: what the tasks of :func:`read_text` call.

    Args:
        fs: the file system.
        others: see :func:`read_text`.
    """

    def __init__(
        self,
        fs: Any,
        compression: str | None,
        encoding: str,
        errors: str,
        linedelimiter: str | None,
        include_path: bool,
    ) -> None:
        self.fs = None if is_local(fs) else fs
        self.compression = compression
        self.encoding = encoding
        self.errors = errors
        self.delimiter = linedelimiter
        self.include_path = include_path

    def files(self, *paths: str) -> Iterator[Any]:
        """The lines of files, one after the other."""
        return self.file(paths[0]) if len(paths) == 1 else chain.from_iterable(map(self.file, paths))

    def file(self, path: str) -> Iterator[Any]:
        """The lines of a file."""
        return self.shown(self.lines(path), path)

    def shown(self, lines: Iterator[str], path: str) -> Iterator[Any]:
        return zip(lines, repeat(path), strict=False) if self.include_path else lines

    def lines(self, path: str) -> Iterator[str]:
        compression = self.compression_of(path)
        file: Any
        if self.fs is None and compression is None:
            file = open(path, encoding=self.encoding, errors=self.errors, newline=self.newline)  # noqa: SIM115
        else:
            file = open_text(self.fs, path, "rt", compression, self.encoding, self.errors, self.newline)
        with file as text:
            yield from self.split(text)

    def split(self, text: Iterable[str]) -> Iterable[str]:
        """The lines of an open file."""
        if self.delimiter in _KNOWN_ENDS:
            return text
        assert self.delimiter is not None
        return _split(text, self.delimiter)

    @property
    def newline(self) -> str | None:
        return self.delimiter if self.delimiter in _KNOWN_ENDS else ""

    def compression_of(self, path: str) -> str | None:
        if self.compression != "infer":
            return self.compression
        from fsspec.utils import infer_compression

        found: str | None = infer_compression(path)
        return found

    # --- blocks

    def check_blocks(self, paths: Iterable[str]) -> None:
        """Refuse what cannot be read in blocks."""
        for path in paths:
            compression = self.compression_of(path)
            if compression is not None:
                raise ValueError(
                    f"{path!r} is compressed ({compression}) and can be read from its beginning only: blocksize=None makes "
                    "each such file one partition; compression=None reads it as it is"
                )
        end = self.delimiter or ""
        if any(end[:n] == end[-n:] for n in range(1, len(end))):
            raise ValueError(
                f"a line end such as {end!r}, which can overlap with itself, cannot be found from the middle of a file: "
                "give blocksize=None"
            )

    def size(self, path: str) -> int:
        return os.path.getsize(path) if self.fs is None else int(self.fs.size(path))

    def state_of(self, path: str) -> Any:
        """What changes when a file does, as far as it can be told cheaply."""
        if self.fs is None:
            state = os.stat(path)
            return path, state.st_mtime_ns, state.st_size
        return path

    def block(self, path: str, start: int, stop: int | None) -> Iterator[Any]:
        """The lines that begin in a part of a file.

        Args:
            path: the file.
            start: the first byte.
            stop: the byte after the last one; None: the end of the file.
        """
        with open(path, "rb") if self.fs is None else self.fs.open(path, "rb") as file:
            encoding, end, unit = self.found_encoding(file)
            first = line_start(file, start, end, unit)
            last = None if stop is None else line_start(file, stop, end, unit)
            file.seek(first)
            data = file.read() if last is None else file.read(last - first)
        # the first bytes of a file say what they are
        text = io.TextIOWrapper(
            io.BytesIO(data), self.encoding if first == 0 else encoding, self.errors, newline=self.newline
        )
        return self.shown(iter(self.split(text)), path)

    def found_encoding(self, file: BinaryIO) -> tuple[str, bytes, int]:
        """The encoding behind the first bytes of a file, a line end in it, and how many bytes its units have."""
        name = codecs.lookup(self.encoding).name
        if name in ("utf-16", "utf-32"):
            head = file.read(4)
            little, big = (
                (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
                if name == "utf-16"
                else (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
            )
            order = "le" if head.startswith(little) else "be" if head.startswith(big) else f"{sys.byteorder[0]}e"
            name = f"{name}-{order}"
        elif name == "utf-8-sig":
            name = "utf-8"
        unit = 4 if name.startswith("utf-32") else 2 if name.startswith("utf-16") else 1
        return name, (self.delimiter or "\n").encode(name), unit


def line_start(file: BinaryIO, place: int, end: bytes, unit: int) -> int:
    """The first place in a file, from a given one on, at which a line begins; else the length of the file.

    Args:
        file: a file of bytes.
        place: where to look from: a number of bytes.
        end: what is at the end of each line.
        unit: lines begin at multiples of this.
    """
    if place <= 0:
        return 0
    at = max(0, place - len(end))
    file.seek(at)
    buffer = b""
    while True:
        found = buffer.find(end)
        while found >= 0 and (at + found) % unit:
            found = buffer.find(end, found + 1)
        if found >= 0:
            return at + found + len(end)
        keep = len(end) - 1
        drop = max(0, len(buffer) - keep)
        buffer, at = buffer[drop:], at + drop
        more = file.read(1 << 16)
        if not more:
            return at + len(buffer)
        buffer += more


def _split(text: Any, end: str) -> Iterator[str]:
    """The parts of an open file of text, each with what ends it."""
    rest = ""
    while chunk := text.read(1 << 20):
        *parts, rest = (rest + chunk).split(end)
        for part in parts:
            yield part + end
    if rest:
        yield rest


def open_text(
    fs: Any, path: str, mode: str, compression: str | None, encoding: str, errors: str | None, newline: str | None
) -> Any:
    """A file of text on any file system, compressed or not, to be entered with ``with``."""
    from fsspec.core import OpenFile

    if fs is None:
        from fsspec.implementations.local import LocalFileSystem

        fs = LocalFileSystem(auto_mkdir="w" in mode)
    return OpenFile(fs, path, mode, compression, encoding, errors, newline)


class Writing(BagBase):
    """The part of :class:`taskloom.bag.Bag` that writes files."""

    __slots__ = ()

    def to_textfiles(
        self,
        path: Url | Sequence[Url],
        name_function: Callable[[int], str] | None = None,
        compression: str | None = "infer",
        encoding: str = "utf-8",
        compute: bool = True,
        storage_options: dict[str, Any] | None = None,
        last_endline: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Write each partition, whose items are strings, to a file of its own: an item a line.

        Args:
            path: a path with a ``*`` for the number of the partition; a directory, for files ``000.part``, ...; or a list
                of as many paths as there are partitions. Directories are made.
            name_function: number of the partition -> what stands for the ``*``; by default the number, with zeros in
                front so that the names sort as the partitions do.
            compression: "gzip", "bz2", "xz", ...; "infer": by the ending of the path; None.
            encoding: the encoding of the text.
            compute: whether to do it at once; otherwise a list of Delayed is returned.
            storage_options: handed to the file system.
            last_endline: whether there is a line end behind the last item too.
            kwargs: handed to the scheduler.

        Returns:
            The paths of the files, or Delayed of them.

        >>> import tempfile, pathlib
        >>> from taskloom import bag
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = bag.from_sequence(["a", "b", "c"], npartitions=2).to_textfiles(f"{folder}/*.txt", scheduler="sync")
        ...     [pathlib.Path(path).read_text() for path in paths]
        ['a', 'b\\nc']
        """
        import fsspec.core

        options = dict(storage_options or {})
        urls = _numbered(path, self._npartitions, name_function)
        compression = check_compression(compression)
        fs = fsspec.core.url_to_fs(urls[0], **options)[0]
        paths = [fsspec.core.url_to_fs(url, **options)[1] for url in urls]
        if len(set(paths)) < len(paths):
            raise ValueError(f"several partitions would be written to the same file; the paths are {paths[:4]} ...")
        step = Step(
            FileWriter(None if is_local(fs) else fs, compression, encoding, last_endline), "to_textfiles", streams=1
        )
        name = f"to-textfiles-{tokenize('to_textfiles', self._name, paths, compression, encoding, last_endline)}"
        layer = {(name, i): (step, (self._name, i), quote(place)) for i, place in enumerate(paths)}
        files = self._make(name, self._npartitions, layer, (self,))
        return files.compute(**kwargs) if compute else files.to_delayed()


def to_textfiles(bag: Bag, path: Url | Sequence[Url], **kwargs: Any) -> Any:
    """Write each partition of a bag to a file; see :meth:`Bag.to_textfiles`."""
    return bag.to_textfiles(path, **kwargs)


def _numbered(path: Url | Sequence[Url], n: int, name_function: Callable[[int], str] | None) -> list[str]:
    """The paths of ``n`` files."""
    if not isinstance(path, (str, os.PathLike)):
        paths = [os.fspath(one) for one in path]
        if len(paths) != n:
            raise ValueError(f"{len(paths)} paths for {n} partitions: there has to be one for each")
        if name_function is not None:
            raise ValueError("name_function goes with a path that has a *, not with a list of paths")
        return paths
    path = os.fspath(path)
    if "*" not in path:
        path = f"{path.rstrip('/')}/*.part"
    if path.count("*") > 1:
        raise ValueError(f"{path!r} has more than one *; the number of the partition has one place")
    if name_function is None:
        width = len(str(n - 1))
        names = [f"{i:0{width}}" for i in range(n)]
    else:
        names = [name_function(i) for i in range(n)]
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"name_function returns a string for each number, not {names[0]!r}")
        if names != sorted(names):
            warnings.warn(
                "the names that name_function makes do not sort as the partitions do, so that reading the files "
                "with a * brings the partitions in another order",
                UserWarning,
                stacklevel=3,
            )
    return [path.replace("*", name) for name in names]


class FileWriter:
    """Writes a partition to a file: what the tasks of :meth:`Writing.to_textfiles` call."""

    def __init__(self, fs: Any, compression: str | None, encoding: str, last_endline: bool) -> None:
        self.fs = fs
        self.compression = compression
        self.encoding = encoding
        self.last_endline = last_endline

    def __call__(self, items: Iterable[Any], path: str) -> str:
        compression = self.compression
        if compression == "infer":
            from fsspec.utils import infer_compression

            compression = infer_compression(path)
        with open_text(self.fs, path, "wt", compression, self.encoding, None, None) as file:
            write = file.write
            n = -1
            for n, item in enumerate(items):
                if not isinstance(item, str):
                    raise TypeError(
                        f"to_textfiles writes strings; item {n} of this partition is {type(item).__name__}: {item!r:.60}. "
                        "map(str) or map(json.dumps) makes strings of them"
                    )
                if n:
                    write("\n")
                write(item)
            if self.last_endline and n >= 0:
                write("\n")
        return path
