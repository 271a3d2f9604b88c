#!/bin/sh
# LMDB 0.9.36 (by lmdb 3.0.0, PyPI): after a commit, the file can end before the last page that the database counts.
#
# A transaction that puts large values and deletes them again assigns page numbers that it no longer needs. The commit
# records the highest number, but writes no such page: until a later transaction uses them, the file ends before
# (last_pgno + 1) * page size. So the length does not distinguish a healthy file from a truncated one, and a copy tool
# or a check that expects that length is wrong.
#
# Seen: in 8 of 60 rounds the file is shorter than its own count, first by 24576 bytes (77824 of 102400). It opens again,
#       and all that it holds can be read.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check lmdb==3.0.0 || exit 2
cat > finding.py <<'PY'
import os
import lmdb

assert lmdb.version() == (0, 9, 36), lmdb.version()
shorter = []
for turn in range(60):
    with lmdb.open("db", map_size=1 << 26) as env:  # opened again each time: what is there can be read
        with env.begin(write=True) as txn:
            assert turn == 0 or txn.get(b"key 0") == bytes((turn - 1) * 1013 % 20000)
            for key in range(1 + turn % 4):
                txn.put(b"key %d" % key, bytes((turn * 1013 + key * 4099) % 20000))
            for key in range(2, 5):
                txn.delete(b"key %d" % key)
        counted = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    size = os.path.getsize("db/data.mdb")
    if size < counted:
        shorter.append(turn)
        print(f"round {turn}: the file has {size} bytes, the database counts {counted}")
print(f"{len(shorter)} of 60 rounds")
assert shorter, "the file is never shorter than its pages"
PY
venv/bin/python finding.py
echo "as stated"
