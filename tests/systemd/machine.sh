#!/bin/sh
# The two halves of a machine for tests, whose systemd is process 1 of namespaces of its own.
#   machine.sh hold DIR [FROM:TO]...   in a mount namespace: its disk, until this process ends
#   machine.sh boot DIR NAME           in namespaces of everything: becomes its systemd
set -eu
verb=$1 root=$2/root
shift 2

hold() {
    dir=${root%/root}
    mount -t tmpfs -o mode=755 tmpfs "$dir"
    mkdir "$dir/upper" "$dir/work" "$root"
    # This machine's own root, in which whatever is written is written to memory.
    mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"
    for pair in "$@"; do
        mkdir -p "$root${pair#*:}"
        mount --bind -o ro "${pair%%:*}" "$root${pair#*:}"
    done
    # Nothing of this machine's own services: only what a bare system needs.
    rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/runqueue* \
        "$root"/etc/runqueue "$root"/var/lib/runqueue* "$root"/var/log/journal
    for unit in getty.target systemd-timesyncd.service systemd-networkd.service \
        systemd-resolved.service e2scrub_reap.service apt-daily.timer apt-daily-upgrade.timer \
        systemd-remount-fs.service systemd-firstboot.service systemd-update-utmp.service \
        systemd-binfmt.service systemd-sysctl.service systemd-modules-load.service \
        sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    mkdir -p "$root/var/log/journal" "$root/oldroot"
    : >"$root/etc/fstab"
    echo machine >"$root/etc/hostname"
    touch "$dir/ready"
    exec sleep infinity
}

boot() {
    mount --make-rprivate /
    mount -t proc proc "$root/proc"
    # No sysctl of the kernel, which is everybody's.
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        touch "$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    hostname "$1"
    cd "$root"
    pivot_root . oldroot
    # Shared, or the directories of credentials are empty.
    exec chroot . /bin/sh -c 'umount -l /oldroot; mount --make-rshared /
        exec env -i container=runqueue-tests \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
            /lib/systemd/systemd --system systemd.unified_cgroup_hierarchy=1 \
            systemd.unit=multi-user.target'
}

"$verb" "$@"
