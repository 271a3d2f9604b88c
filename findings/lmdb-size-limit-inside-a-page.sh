#!/bin/sh
# LMDB 0.9.36 (by lmdb 3.0.0, PyPI): a short write is reported as EIO, whatever its cause is.
#
# With a limit on the size of files (RLIMIT_FSIZE), the system writes the part that fits, and reports the cause only
# to the next call. LMDB makes no next call: a short write is "Input/output error", the message of a broken disk. Only
# if the limit falls between two of its writes is the real cause reported.
#
# Seen: values of 3000 bytes, limit 1048576 (a multiple of the page size): File too large
#       values of 3000 bytes, limit 1049576: Input/output error
#       values of 20000 bytes, limit 1048576: Input/output error
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check lmdb==3.0.0 || exit 2
cat > finding.py <<'PY'
import errno, os, resource, signal
import lmdb

assert lmdb.version() == (0, 9, 36), lmdb.version()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG, and the process continues
unlimited = resource.RLIM_INFINITY


def fill(limit, value_bytes):
    with lmdb.open(f"{limit}-{value_bytes}", map_size=1 << 26) as env:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited))
        try:
            for key in range(4000):
                with env.begin(write=True) as txn:
                    txn.put(b"%08d" % key, bytes(value_bytes))
        except lmdb.Error as error:
            return str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))


expected = {(1 << 20, 3000): errno.EFBIG, ((1 << 20) + 1000, 3000): errno.EIO, (1 << 20, 20000): errno.EIO}
for (limit, value_bytes), code in expected.items():
    said = fill(limit, value_bytes)
    print(f"values of {value_bytes} bytes, limit {limit}: {said}")
    assert said is not None and said.endswith(os.strerror(code)), os.strerror(code)
PY
venv/bin/python finding.py
echo "as stated"
