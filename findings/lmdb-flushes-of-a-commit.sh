#!/bin/sh
# LMDB 0.9.36 (by lmdb 3.0.0, PyPI) on Linux 6.18 with ext4: a commit flushes the disk two times, and three if it grows.
#
# LMDB syncs the data pages and then writes the meta page that makes them valid, synced as well. While its file grows,
# each commit costs a third flush, of the file system's journal. Extending the file to the size of the map before
# (`truncate`) does not help, because its blocks are still not allocated; pages that earlier transactions have freed
# do help. Measured on a file system in an image, so that no other program writes there. Needs root, for a loop
# device.
#
# Seen, for each commit of one value of 3000 bytes: new pages 3.00 flushes, new pages in a file as long as the map 3.00,
#       freed pages 2.02
set -eu
[ "$(id -u)" = 0 ] || { echo "needs root, for a loop device"; exit 2; }
dir=$(mktemp -d)
trap 'umount "$dir/mounted" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check lmdb==3.0.0 || exit 2
truncate -s 256M image
mkfs.ext4 -q -F image
mkdir mounted
mount -o loop image mounted
cat > finding.py <<'PY'
import os, sys
import lmdb

assert lmdb.version() == (0, 9, 36), lmdb.version()
device, commits, map_size = os.path.basename(sys.argv[1]), 200, 1 << 26


def flushes():
    with open(f"/sys/block/{device}/stat") as file:
        return int(file.read().split()[15])


def measure(kind):
    with lmdb.open(f"mounted/{kind}", map_size=map_size) as env:
        if kind == "file as long as the map":
            os.truncate(f"mounted/{kind}/data.mdb", map_size)
        if kind == "freed pages":
            for change in (lambda txn, key: txn.put(key, bytes(3000)), lambda txn, key: txn.delete(key)):
                with env.begin(write=True) as txn:
                    for number in range(commits):
                        change(txn, b"old %d" % number)
            for number in range(3):  # a page is used again two transactions later
                with env.begin(write=True) as txn:
                    txn.put(b"other", b"%d" % number)
        os.sync()
        before = flushes()
        for number in range(commits):
            with env.begin(write=True) as txn:
                txn.put(b"%08d" % number, bytes(3000))
        each = (flushes() - before) / commits
    print(f"{kind}: {each:.2f} flushes")
    return each


new, long, freed = map(measure, ["new pages", "file as long as the map", "freed pages"])
assert 2.9 < new < 3.1 and 2.9 < long < 3.1 and 1.9 < freed < 2.1
PY
venv/bin/python finding.py "$(findmnt --noheadings --output SOURCE mounted)"
echo "as stated"
