"""Fashion-MNIST: found in a folder or in the cache, or downloaded, and read."""

import contextlib
import hashlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pooch

from horovod_keras.background import within
from job import cache
from job.data.arrays import Arrays
from job.data.formats import check_pair, opened, read_csv, read_idx_images, read_idx_labels, read_npz, refuse
from job.errors import InputError, refused_here

IDX_FILES = {
    "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
}
"""The original files and their checksums, as published at https://github.com/zalandoresearch/fashion-mnist."""

HOMES = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
"""The authors' own two addresses of the files, in the order in which they are tried."""

CSV_FILES = ("fashion-mnist_train.csv", "fashion-mnist_test.csv")
"""Kaggle's files of the same images (https://www.kaggle.com/datasets/zalando-research/fashionmnist)."""

DOWNLOAD_SECONDS = 600.0
"""The most that a download of all files may take: 31 MB at about 50 kB/s."""

_CONNECT_SECONDS, _SILENT_SECONDS = 5.0, 30.0
_HOW = (
    "Name a folder that holds the four IDX files, Kaggle's two CSV files or one .npz with --data-dir, "
    "or train on drawn images with --dataset garments."
)


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one data set, found but not yet read: four IDX files, two CSV files or one npz file."""

    files: tuple[Path, ...]
    description: str
    """Where they were found, for people."""

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of all bytes of the files. Raises InputError where they can't be read."""
        digest = hashlib.sha256()
        for path in self.files:
            with opened(path) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def read(self) -> Arrays:
        """Read the files. Raises InputError where they are damaged or don't belong together."""
        if len(self.files) == len(IDX_FILES):
            train_images, test_images = (read_idx_images(self.files[number]) for number in (0, 2))
            train_labels, test_labels = (read_idx_labels(self.files[number]) for number in (1, 3))
            check_pair(self.files[0], train_images, self.files[1], train_labels)
            check_pair(self.files[2], test_images, self.files[3], test_labels)
            return Arrays(train_images, train_labels, test_images, test_labels, self.description)
        if len(self.files) == len(CSV_FILES):
            return Arrays(*read_csv(self.files[0]), *read_csv(self.files[1]), self.description)
        return Arrays(*read_npz(self.files[0]), self.description)


def load(data_dir: Path | None, *, download: bool = True) -> Arrays:
    """Find Fashion-MNIST and read it; see `find`."""
    return find(data_dir, download=download).read()


def find(data_dir: Path | None, *, download: bool = True) -> Source:
    """Find Fashion-MNIST's files in a folder (or one npz file), else in the cache, else download them.

    Args:
        data_dir: a folder with the four IDX files (gzipped or not), Kaggle's two CSV files or one npz file; or the path
            of an npz file. Files need not be the published ones: any that are well formed will do.
        download: whether what is not in the cache may be downloaded into it.

    Raises:
        InputError: nothing was found, or the download failed, in bounded time.
        OSError: the cache's disk is full or can't be written.
    """
    if data_dir is not None:
        return _find_in(data_dir)
    folder = cache.folder("fashion-mnist")
    files = tuple(folder / name for name in IDX_FILES)
    if download:
        with cache.one_at_a_time(folder):
            if not all(map(_is_published, files)):
                _download(folder)
    elif not all(map(_is_published, files)):
        refuse(folder, "does not hold the files of Fashion-MNIST", "no or damaged files", _HOW)
    return Source(files, str(folder))


def _find_in(place: Path) -> Source:
    if place.is_file() and place.suffix == ".npz":
        return Source((place,), str(place))
    if not place.is_dir():
        received = "a file that is not .npz" if place.exists() else "a path where nothing is"
        refuse(place, "is no folder with Fashion-MNIST", received, _HOW)
    idx = [_either(place / name) for name in IDX_FILES]
    csv = [place / name for name in CSV_FILES]
    for wanted in (idx, csv):
        missing = [file.name for file in wanted if not file.exists()]
        if not missing:
            return Source(tuple(wanted), str(place))
        if len(missing) < len(wanted):
            refuse(place, f"lacks {', '.join(missing)}", "the other files only", "Put the missing files there.")
    archives = sorted(place.glob("*.npz"))
    if len(archives) != 1:
        received = f"{len(archives)} .npz files" if archives else "no file of a known name"
        refuse(place, "holds no one Fashion-MNIST", received, _HOW)
    return Source((archives[0],), str(archives[0]))


def _either(zipped: Path) -> Path:
    plain = zipped.with_suffix("")
    return plain if plain.exists() and not zipped.exists() else zipped


def _is_published(file: Path) -> bool:
    try:
        return file.is_file() and pooch.file_hash(str(file), alg="md5") == IDX_FILES[file.name].removeprefix("md5:")
    except OSError:
        return False


def _download(folder: Path) -> None:
    """Download all files into a folder, from the first home that answers. Raises as `find` does, in bounded time."""
    pooch.get_logger().setLevel("WARNING")
    logging.getLogger(__name__).info("downloading Fashion-MNIST, 31 MB, to %s", folder)

    def fetch() -> str:
        """Download; what went wrong, if none of the homes has the files."""
        problems = []
        for home in HOMES:
            downloader = pooch.HTTPDownloader(
                progressbar=sys.stderr.isatty(), timeout=(_CONNECT_SECONDS, _SILENT_SECONDS), chunk_size=1 << 16
            )
            try:
                for name, checksum in IDX_FILES.items():
                    file = pooch.retrieve(home + name, checksum, fname=name, path=folder, downloader=downloader)
                    with contextlib.suppress(OSError):  # another user's, who shares the cache
                        Path(file).chmod(cache.MODE)
                return ""
            except OSError as problem:
                if refused_here(problem):
                    raise
                problems.append(f"{cache.cause(problem)} for {home}")
            except ValueError:
                problems.append(f"a file with another checksum from {home}")
        return ", ".join(problems)

    # A server that sends a byte now and then keeps within the time limits of one read: only the whole can be bounded.
    try:
        failed = within(DOWNLOAD_SECONDS, "download", fetch)
    except TimeoutError as problem:
        failed = cache.cause(problem)
    if failed:
        raise InputError(f"Fashion-MNIST could not be downloaded: received {failed}. {_HOW}")
