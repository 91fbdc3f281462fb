"""How much of an image each dependency takes, as a table. Runs inside the image, and needs nothing of it but Python.

docker run --rm --interactive fashion-job:cpu python - < docker/sizes.py
"""

import os
from collections import defaultdict
from importlib import metadata
from pathlib import Path

SMALLEST = 5_000_000
"""Bytes below which a part is counted among the others."""


def files(root: str) -> dict[str, int]:
    """Bytes of every file on the root file system, each content once however many names it has."""
    sizes: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    device = os.lstat(root).st_dev
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if os.lstat(f"{folder}/{name}").st_dev == device]
        for name in names:
            status = os.lstat(f"{folder}/{name}")
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                sizes[f"{folder.rstrip('/')}/{name}"] = status.st_size
    return sizes


def python_packages() -> dict[str, str]:
    """The pip package that each file or folder at the top of site-packages belongs to."""
    owners: dict[str, str] = {}
    for distribution in metadata.distributions():
        for file in distribution.files or []:
            if ".." not in file.parts:
                place = Path(str(distribution.locate_file(""))) / file.parts[0]
                # NVIDIA's packages share a folder.
                owners[str(place / file.parts[1] if file.parts[0] == "nvidia" and len(file.parts) > 2 else place)] = (
                    distribution.metadata["Name"]
                )
    return owners


def debian_packages() -> dict[str, str]:
    """The Debian package of each file."""
    owners: dict[str, str] = {}
    for listing in Path("/var/lib/dpkg/info").glob("*.list"):
        for line in listing.read_text().splitlines():
            owners[os.path.realpath(line)] = f"{listing.stem.partition(':')[0]} (Debian)"
    return owners


def main() -> None:
    python, debian = python_packages(), debian_packages()
    shares: dict[str, int] = defaultdict(int)
    for path, size in files("/").items():
        parents = [path, *map(str, Path(path).parents)]
        owner = next((python[each] for each in parents if each in python), None) or debian.get(os.path.realpath(path))
        if owner is None:
            owner = "this project" if path.startswith("/opt/fashion-job/") else "everything else"
        shares[owner] += size
    total = sum(shares.values())
    small = {owner: size for owner, size in shares.items() if size < SMALLEST and owner != "this project"}
    print("| part | MB | share |\n| --- | ---: | ---: |")
    for owner, size in sorted(shares.items(), key=lambda item: -item[1]):
        if owner not in small:
            print(f"| {owner} | {size / 1e6:.1f} | {size / total:.1%} |")
    print(f"| {len(small)} others, each below {SMALLEST / 1e6:.0f} MB | {sum(small.values()) / 1e6:.1f} |", end=" ")
    print(f"{sum(small.values()) / total:.1%} |\n| all | {total / 1e6:.0f} | 100 % |")


if __name__ == "__main__":
    main()
