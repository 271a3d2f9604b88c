#!/bin/sh
# Linux 6.18 with ext4 (defaults of mke2fs 1.47.0): what space a log writes into decides how much its `fdatasync` costs.
#
# Appending 4 KiB and calling `fdatasync` also changes metadata: the journal is committed, with a second flush of the
# disk and twice as many sectors. A preceding `posix_fallocate` does not help: its blocks are marked as unwritten, and
# each first write clears that mark, again in the journal. Only previously written space (zeros will do) takes one
# flush. Measured on a file system in an image, so that no other program writes there. Needs root, for a loop device.
#
# Seen, for each write of 4 KiB with fdatasync: written before 1 flush, 8 sectors; growing 2 flushes, 18 sectors;
#       fallocated 2 flushes, 14 sectors
set -eu
[ "$(id -u)" = 0 ] || { echo "needs root, for a loop device"; exit 2; }
dir=$(mktemp -d)
trap 'umount "$dir/mounted" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
uname -r
truncate -s 64M image
mkfs.ext4 -q -F image
mkdir mounted
mount -o loop image mounted
cat > finding.py <<'PY'
import os, sys

device, writes, block = os.path.basename(sys.argv[1]), 200, 4096


def counters():
    """Sectors written, flushes."""
    with open(f"/sys/block/{device}/stat") as file:
        fields = file.read().split()
    return int(fields[6]), int(fields[15])


def measure(kind):
    file = os.open(f"mounted/{kind}", os.O_RDWR | os.O_CREAT)
    if kind == "written before":
        os.pwrite(file, bytes(writes * block), 0)
    if kind == "fallocated":
        os.posix_fallocate(file, 0, writes * block)
    os.sync()
    before = counters()
    for number in range(writes):
        os.pwrite(file, b"x" * block, number * block)
        os.fdatasync(file)
    sectors, flushes = ((after - start) / writes for after, start in zip(counters(), before))
    print(f"{kind}: {flushes:.2f} flushes, {sectors:.1f} sectors")
    return flushes, sectors


written, growing, fallocated = map(measure, ["written before", "growing", "fallocated"])
assert written[0] < 1.1 and written[1] < 9
for flushes, sectors in (growing, fallocated):
    assert 1.9 < flushes < 2.1 and sectors > 1.5 * written[1]
PY
python3 finding.py "$(findmnt --noheadings --output SOURCE mounted)"
echo "as stated"
