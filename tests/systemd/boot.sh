#!/bin/bash
# Makes a machine of its own out of the host's files and becomes its systemd.
#
# Runs as the first process of new mount, PID, cgroup, UTS, IPC and network namespaces. Nothing it
# does, and nothing that the machine does afterwards, reaches the host: what is written goes to a
# layer of its own, and every file system but that is new.
#
#   boot.sh DIRECTORY SITE_PACKAGES PYTHON
#
# DIRECTORY/upper receives what the machine writes, and holds already what one that it continues
# has written. DIRECTORY/notify is told when it has booted.
set -euo pipefail
directory=$1 site_packages=$2 python=$3
root=$directory/root

mount --make-rprivate /
mount -t overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" machine "$root"

mount -t proc proc "$root/proc"
# systemd-sysctl would change the host's kernel.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=0755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"

# Nodes of its own: systemd changes the mode of those that it finds.
mount -t tmpfs -o mode=0755 dev "$root/dev"
node() { mknod -m "$2" "$root/dev/$1" c "$3" "$4"; }
node null 666 1 3
node zero 666 1 5
node full 666 1 7
node random 666 1 8
node urandom 666 1 9
node tty 666 5 0
node console 600 1 3
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for stream in stdin:0 stdout:1 stderr:2; do
    ln -s "/proc/self/fd/${stream#*:}" "$root/dev/${stream%:*}"
done

# The tests' interpreter stays where it was built for, and its packages come along; both may lie
# where other users may not go.
mkdir -p "$root/srv/site-packages"
mount --bind "$site_packages" "$root/srv/site-packages"
if [ "$python" != /usr ]; then
    mkdir -p "$root$python"
    mount --bind "$python" "$root$python"
    parent=$(dirname "$python")
    while [ "$parent" != / ]; do
        chmod o+x "$root$parent"
        parent=$(dirname "$parent")
    done
fi
touch "$root/run/booted"
mount --bind "$directory/notify" "$root/run/booted"

# What the host is set up to start is not what is tested.
: >"$root/etc/fstab"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
if [ ! -e "$root/etc/systemd/journald.conf.d/tests.conf" ]; then
    rm -rf "$root"/etc/systemd/system/*
    rm -rf "$root/etc/craftcache" "$root/opt/craftcache" "$root/var/cache/craftcache"
    for unit in console-getty.service getty.target systemd-logind.service \
        systemd-modules-load.service systemd-networkd.service systemd-resolved.service \
        systemd-timesyncd.service systemd-udevd.service systemd-udev-trigger.service; do
        ln -s /dev/null "$root/etc/systemd/system/$unit"
    done
    mkdir -p "$root/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' \
        >"$root/etc/systemd/journald.conf.d/tests.conf"
fi

cd "$root"
mkdir -p .host
pivot_root . .host
umount --lazy /.host
# systemd hands credentials to other users by mounts that must propagate.
mount --make-rshared /
exec env -i container=tests NOTIFY_SOCKET=/run/booted \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
